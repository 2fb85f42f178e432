"""Whether sshd lets a user in with a password."""

from __future__ import annotations

import fnmatch
import glob
import os
import re
import subprocess

from .job import TOOL_ENV, Job

CLIENT_GROUP = "orion-client"


def complaint(job: Job) -> str | None:
    """Why sshd would not take a password from the job's user; None when it would."""
    for path in ("/etc/nologin", "/run/nologin"):
        if os.path.exists(path):
            return f"logins are closed by {path}"
    user = f"user={job.name},host=localhost,addr=127.0.0.1,laddr=127.0.0.1,lport=22"
    try:
        done = subprocess.run(
            ["/usr/sbin/sshd", "-T", "-C", user],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            env=TOOL_ENV,
            timeout=job.deadline.left() + 0.1,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as err:
        return f"sshd can't be asked: {err}"[:300]
    if done.returncode != 0:
        said = (done.stderr.strip() or "nothing was said").splitlines()[-1]
        return f"sshd can't be asked: {said}"[:300]
    return judged(done.stdout, job.name, [job.name, CLIENT_GROUP])


def judged(dump: str, name: str, groups: list[str]) -> str | None:
    """The same, from the text that `sshd -T` prints."""
    settings: dict[str, list[str]] = {}
    for line in dump.splitlines():
        key, _, value = line.partition(" ")
        settings.setdefault(key, []).extend(value.split())
    if settings.get("passwordauthentication") != ["yes"]:
        return f"sshd does not allow passwords for {name}"
    methods = settings.get("authenticationmethods", ["any"])
    if methods != ["any"] and "password" not in methods:
        return f"sshd wants {' or '.join(methods)[:100]} from {name}"
    if listed(settings.get("denyusers", []), [name]) or listed(settings.get("denygroups", []), groups):
        return f"sshd denies {name}"
    for key, names in (("allowusers", [name]), ("allowgroups", groups)):
        if settings.get(key) and not listed(settings[key], names):
            return f"sshd has {key} without {name}"
    return None


def listed(patterns: list[str], names: list[str]) -> bool:
    """Whether one of `names` matches; a pattern for a host (`user@host`) counts by its user."""
    wanted = [p.partition("@")[0] for p in patterns if not p.startswith("!")]
    unwanted = [p[1:].partition("@")[0] for p in patterns if p.startswith("!")]
    if any(fnmatch.fnmatchcase(name, p) for name in names for p in unwanted):
        return False
    return any(fnmatch.fnmatchcase(name, p) for name in names for p in wanted)


def passwords_for_clients() -> bool:
    """Whether sshd's files hold the `Match` block that lets accounts of clients in.

    Text only: sshd itself can't be asked about a group before somebody is in it.
    """
    block = re.compile(rf"^\s*Match\s+Group\s+{CLIENT_GROUP}\s*$(.*?)(?=^\s*Match\s|\Z)", re.M | re.S | re.I)
    allows = re.compile(r"^\s*PasswordAuthentication\s+yes\s*$", re.M | re.I)
    for path in ["/etc/ssh/sshd_config", *sorted(glob.glob("/etc/ssh/sshd_config.d/*.conf"))]:
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                text = file.read(1 << 20)
        except OSError:
            continue
        if any(allows.search(found.group(1)) for found in block.finditer(text)):
            return True
        if allows.search(text.partition("Match ")[0]):
            return True
    return False
