"""Unmounting what lies over an account's files, so that they can be removed without touching what is mounted.

What is mounted in the home or the runtime directory, by whomever, and the account's own FUSE
mounts anywhere. They are detached lazily: a busy mount, or one whose server is dead, goes too.
"""

from __future__ import annotations

import ctypes
import os
import re
from dataclasses import dataclass

from .job import Deadline

MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8
OPEN_PATH = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True)
class Mount:
    """A line of /proc/self/mountinfo."""

    number: int
    point: str
    kind: str
    options: str
    """Those of the file system."""


def all_mounts() -> list[Mount]:
    """What is mounted, outer ones before those in them."""
    found = []
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            words = line.rstrip("\n").split(" ")
            end = words.index("-")
            found.append(Mount(int(words[0]), unescaped(words[4]), words[end + 1], words[-1]))
    return found


def unescaped(text: str) -> str:
    r"""Blanks and backslashes are \040 and the like there."""
    return re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), text)


def of_account(uid: int, names: list[str]) -> list[Mount]:
    """What is mounted over the files of the account with these names."""
    places = [*(os.path.realpath("/home") + f"/{name}" for name in names), f"/run/user/{uid}"]
    return [
        mount
        for mount in all_mounts()
        if any(mount.point == place or mount.point.startswith(f"{place}/") for place in places)
        or (mount.kind.startswith("fuse") and f"user_id={uid}" in mount.options.split(","))
    ]


def detach_all(uid: int, names: list[str], deadline: Deadline) -> tuple[list[str], list[tuple[str, str]]]:
    """Detach them; the mount points that are free, and those that are not with the reason."""
    done: list[str] = []
    stuck: dict[int, tuple[str, str]] = {}
    while deadline.left() > 0:
        # Anew each time: what was mounted in one that is detached goes with it.
        mount = next((m for m in of_account(uid, names) if m.number not in stuck), None)
        if mount is None:
            break
        try:
            detach(mount.point)
            done.append(mount.point)
        except OSError as err:
            stuck[mount.number] = (mount.point, os.strerror(err.errno or 0))
    return done, list(stuck.values())


def detach(point: str) -> None:
    """Take away what is mounted at `point`, not following a link in any part of it."""
    parent, _, name = point.rpartition("/")
    fd = os.open("/", OPEN_PATH)
    try:
        for part in filter(None, parent.split("/")):
            inner = os.open(part, OPEN_PATH, dir_fd=fd)
            os.close(fd)
            fd = inner
        path = os.fsencode(f"/proc/self/fd/{fd}/{name}")
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.umount2(path, MNT_DETACH | UMOUNT_NOFOLLOW) != 0:
            raise OSError(ctypes.get_errno(), "umount2")
    finally:
        os.close(fd)
