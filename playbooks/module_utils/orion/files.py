"""Finding and removing files of a uid, without ever following a link or crossing a mount.

Everything goes through directory descriptors (openat, unlinkat), so that swapping a
directory for a symbolic link leads nowhere. Whether a directory is a mount point
is told by the mount id of its descriptor: bind mounts of the same file system show, too.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator

from .job import Deadline, shown

SHARED = ("/tmp", "/var/tmp", "/dev/shm", "/dev/mqueue", "/run/lock", "/var/lock", "/run/screen")
"""Where anybody may make files; looked through at every depth."""

SPOOLS = (
    *("/home", "/var/mail", "/var/spool/mail", "/run/user"),
    *("/var/spool/cron/crontabs", "/var/spool/cron/atjobs", "/var/spool/cron/atspool"),
)
"""Where each entry belongs to one user; looked through at the top only."""

MAX_DEPTH = 64
"""Descriptors held at once while removing. Deeper directories are moved up first."""

OPEN_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def mount_id(fd: int) -> int:
    """The mount that the open directory `fd` is on."""
    with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as info:
        for line in info:
            if line.startswith("mnt_id:"):
                return int(line.split()[1])
    raise OSError(f"no mnt_id for descriptor {fd}")


def roots(paths: tuple[str, ...]) -> list[str]:
    """`paths` that exist, with links of the system resolved and each one once."""
    real = (os.path.realpath(path) for path in paths)
    return list(dict.fromkeys(path for path in real if os.path.isdir(path)))


class Broom:
    """Removes what belongs to `uid`; `kept` says what could not be removed and why."""

    def __init__(self, uid: int, deadline: Deadline) -> None:
        self.uid = uid
        self.deadline = deadline
        self.removed = 0
        self.kept: list[str] = []
        self._moved: list[str] = []

    def keep(self, path: str, why: str) -> None:
        """Note that `path` stays."""
        if len(self.kept) < 20:
            self.kept.append(f"{shown(path)}: {why}")

    def sweep(self, root: str, deep: bool) -> None:
        """Remove everything of the uid in the directory `root`, at every depth or at the top only."""
        try:
            fd = os.open(root, OPEN_DIR)
        except OSError:
            return
        try:
            self._sweep(fd, root, MAX_DEPTH if deep else 0)
        finally:
            os.close(fd)

    def _sweep(self, parent: int, path: str, depth: int) -> None:
        for name, info in entries(parent, self.deadline):
            if info.st_uid == self.uid:
                self.remove(parent, name, path)
            elif depth > 0 and stat.S_ISDIR(info.st_mode):
                fd = enter(parent, name)
                if fd is not None:
                    try:
                        self._sweep(fd, f"{path}/{name}", depth - 1)
                    finally:
                        os.close(fd)

    def remove(self, parent: int, name: str, path: str) -> None:
        """Remove `name`, whatever it is, from the open directory `parent`; `path` is for the words."""
        self._moved.append(name)
        while self._moved:
            self._remove(parent, self._moved.pop(), path, parent, 0)

    def _remove(self, parent: int, name: str, path: str, top: int, depth: int) -> None:
        full = f"{path}/{name}"
        try:
            if not stat.S_ISDIR(os.lstat(name, dir_fd=parent).st_mode):
                os.unlink(name, dir_fd=parent)
            elif depth >= MAX_DEPTH:
                self._move_up(parent, name, top)
                return
            elif not self._empty(parent, name, full, top, depth):
                return
            else:
                os.rmdir(name, dir_fd=parent)
            self.removed += 1
        except FileNotFoundError:
            return
        except OSError as err:
            self.keep(full, os.strerror(err.errno or 0))

    def _empty(self, parent: int, name: str, full: str, top: int, depth: int) -> bool:
        """Remove what is in the directory; False when it is a mount point and so none of our business."""
        fd = os.open(name, OPEN_DIR, dir_fd=parent)
        try:
            if mount_id(fd) != mount_id(parent):
                self.keep(full, "something is mounted there")
                return False
            self.deadline.check()
            for inner in os.listdir(fd):
                self._remove(fd, inner, full, top, depth + 1)
        finally:
            os.close(fd)
        return True

    def _move_up(self, parent: int, name: str, top: int) -> None:
        """Move a deep directory to where the removal began; it is removed from there afterwards."""
        flat = f".orion-{self.uid}-{os.getpid()}-{self.removed}-{len(self._moved)}"
        os.rename(name, flat, src_dir_fd=parent, dst_dir_fd=top)
        self._moved.append(flat)


def entries(fd: int, deadline: Deadline) -> Iterator[tuple[str, os.stat_result]]:
    """Name and lstat of what is in the open directory `fd`, as it was at the start."""
    deadline.check()
    for name in os.listdir(fd):
        try:
            info = os.lstat(name, dir_fd=fd)
        except OSError:
            # Gone, or where somebody's dead FUSE mount is: an account's own mounts are looked for by themselves.
            continue
        yield name, info


def enter(parent: int, name: str) -> int | None:
    """Open the directory `name` in `parent`; None when it went, is a link, or is mounted."""
    try:
        fd = os.open(name, OPEN_DIR, dir_fd=parent)
    except OSError:
        return None
    if mount_id(fd) == mount_id(parent):
        return fd
    os.close(fd)
    return None


def owned(
    paths: tuple[str, ...], wanted: Callable[[int], bool], deadline: Deadline, deep: bool, limit: int
) -> list[str]:
    """Up to `limit` paths below `paths` whose owner is `wanted`; does not go below a path it returns."""
    found: list[str] = []

    def look(fd: int, path: str, depth: int) -> None:
        for name, info in entries(fd, deadline):
            if len(found) >= limit:
                return
            if wanted(info.st_uid):
                found.append(shown(f"{path}/{name}"))
            elif depth > 0 and stat.S_ISDIR(info.st_mode):
                inner = enter(fd, name)
                if inner is not None:
                    try:
                        look(inner, f"{path}/{name}", depth - 1)
                    finally:
                        os.close(inner)

    for root in roots(paths):
        try:
            top = os.open(root, OPEN_DIR)
        except OSError:
            continue
        try:
            look(top, root, MAX_DEPTH if deep else 0)
        finally:
            os.close(top)
    return found
