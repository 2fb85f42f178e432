"""What the client of this machine reads when it logs in, by pam_motd(8) of sshd.

pam_motd reads the file with the rights of who logs in: it belongs to the account's group and to
nobody else, so that no other user of the machine is told that their account will be removed.
"""

from __future__ import annotations

import os

from .job import Job

PATH = "/etc/motd.d/orion"

TEXT = """
This machine is rented through Orion as rental {rental}.
When the rental ends, the account {name} and everything in it is removed.
If the machine dies before, your access moves to another one. Your files do not:
keep a copy of what matters elsewhere.
"""
MOVED = """
Your former machine was lost or drained, and its files were not moved here.
An administrator may still have the home you had there: ask within hours.
"""


def write(job: Job) -> bool:
    """Put the message in place. False when it can't be: a rental is of use without."""
    text = TEXT.format(rental=job.uid - job.uid_base, name=job.name) + (MOVED if job.moved else "") + "\n"
    try:
        os.makedirs(os.path.dirname(PATH), exist_ok=True)
        if os.path.lexists(PATH):
            os.unlink(PATH)
        fd = os.open(PATH, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with open(fd, "w", encoding="ascii") as file:
            file.write(text)
            file.flush()
            # Only now can anybody read it.
            os.fchown(fd, 0, job.uid)
            os.fchmod(fd, 0o640)
    except OSError:
        return False
    return True


def remove(job: Job) -> None:
    """Take the account's message away, or one that a killed create left; not that of another account."""
    if left(job):
        os.unlink(PATH)


def left(job: Job) -> bool:
    """Whether a message is there that is the account's, or nobody's yet."""
    try:
        return os.lstat(PATH).st_gid in (job.uid, 0)
    except OSError:
        return False
