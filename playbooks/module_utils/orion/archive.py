"""The home of an account as one archive that root alone can read, for a while after the account is gone.

The client made what is in there: no link is followed, no mount entered, nothing but regular
files opened, and bytes, entries, names and time are bounded. Small files come first. The
archive's modification time is when its time is over: the agent removes it then.
"""

from __future__ import annotations

import errno
import os
import stat
import tarfile
import time
from collections.abc import Callable, Iterator
from typing import BinaryIO

from . import files, state
from .job import Deadline, Job

HOMES_DIR = f"{state.STATE_DIR}/homes"
UNFINISHED = ".new"

MAX_BYTES = 1 << 30
"""Of one archive; and never more than half of what is free."""
MAX_ALL_BYTES = 4 << 30
"""Of all archives on this worker together, however many rentals a day it has."""
MAX_ENTRIES = 50_000
"""Looked at in one home."""
MAX_PATH_BYTES = 1000
SMALL_BYTES = 1 << 20
"""Files up to this size come before all others."""
MARGIN_BYTES = 16 << 10
"""More than the headers of one entry and the archive's end take."""
SYNC_BYTES = 16 << 20
"""Written through to the disk each time: the time limit then counts the disk's real speed."""

OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class Full(Exception):
    """No more goes in: no time or room is left, or there is too much to look at."""


class Unreadable(Exception):
    """Something in the home can't be read; what can't be written is an OSError."""


class Contents:
    """A file's bytes as tarfile asks for them: as many as its header says, also if it shrank meanwhile."""

    def __init__(self, file: BinaryIO, tick: Callable[[], None]) -> None:
        self._file = file
        self._tick = tick

    def read(self, count: int) -> bytes:
        """Exactly `count` bytes."""
        self._tick()
        try:
            return self._file.read(count).ljust(count, b"\0")
        except OSError as err:
            raise Unreadable from err


class Archive:
    """Puts a tree into the tar `file`, of at most `budget` bytes."""

    def __init__(self, file: BinaryIO, budget: int, deadline: Deadline) -> None:
        self.files = 0
        self.truncated = False
        self._file = file
        self._budget = budget
        self._deadline = deadline
        self._synced = 0
        self._entries = 0
        self._links: dict[tuple[int, int], str] = {}
        self._tar = tarfile.open(
            fileobj=file,
            mode="w",
            format=tarfile.GNU_FORMAT,
            encoding="utf-8",
            errors="surrogateescape",
            copybufsize=1 << 20,
        )

    def fill(self, home: int, name: str) -> None:
        """Put what is below the open directory `home` in, as `name`/...; OSError when the archive can't be written."""
        try:
            for small in (True, False):
                self._entries = 0
                self._walk(home, name, 0, small)
        except (Full, Unreadable):
            self.truncated = True
        self._tar.close()

    def _walk(self, parent: int, path: str, depth: int, small: bool) -> None:
        for name in names_in(parent):
            self._tick()
            self._entries += 1
            if self._entries > MAX_ENTRIES:
                raise Full
            full = f"{path}/{name}"
            if len(os.fsencode(full)) > MAX_PATH_BYTES:
                self.truncated = True
            else:
                self._add(parent, name, full, depth, small)

    def _add(self, parent: int, name: str, path: str, depth: int, small: bool) -> None:
        """Directories and links with the small files; sockets, pipes and devices are nothing to keep."""
        try:
            info, target = seen(parent, name)
            if stat.S_ISDIR(info.st_mode):
                self._add_directory(parent, name, path, depth, small, info)
            elif target and small:
                self._put(header(path, info, tarfile.SYMTYPE, target))
            elif stat.S_ISREG(info.st_mode) and (info.st_size <= SMALL_BYTES) == small:
                self._add_file(parent, name, path)
        except Unreadable:
            self.truncated = True

    def _add_directory(
        self, parent: int, name: str, path: str, depth: int, small: bool, info: os.stat_result
    ) -> None:
        inner = files.enter(parent, name) if depth < files.MAX_DEPTH else None
        if inner is None:
            self.truncated = True
            return
        try:
            if small:
                self._put(header(path, info, tarfile.DIRTYPE))
            self._walk(inner, path, depth + 1, small)
        finally:
            os.close(inner)

    def _add_file(self, parent: int, name: str, path: str) -> None:
        try:
            fd = os.open(name, OPEN_FILE, dir_fd=parent)
        except OSError as err:
            raise Unreadable from err
        with open(fd, "rb") as file:
            info = os.fstat(fd)
            known = self._links.get((info.st_dev, info.st_ino))
            if known is not None:
                self._put(header(path, info, tarfile.LNKTYPE, known))
            elif not stat.S_ISREG(info.st_mode) or files.mount_id(fd) != files.mount_id(parent):
                self.truncated = True
            elif not self._fits(info.st_size):
                self.truncated = True
            else:
                self._put(header(path, info, tarfile.REGTYPE), file)
                self.files += 1
                if info.st_nlink > 1:
                    self._links[info.st_dev, info.st_ino] = path

    def _put(self, member: tarfile.TarInfo, file: BinaryIO | None = None) -> None:
        """One entry, whole or not at all."""
        if not self._fits(member.size):
            raise Full
        start = self._tar.offset
        try:
            self._tar.addfile(member, Contents(file, self._tick) if file else None)
        except (Full, Unreadable):
            self._file.seek(start)
            self._file.truncate()
            self._tar.offset = start
            raise
        # tarfile would remember them all.
        self._tar.members = []

    def _fits(self, size: int) -> bool:
        return self._tar.offset + size + MARGIN_BYTES <= self._budget

    def _tick(self) -> None:
        if self._deadline.left() == 0.0:
            raise Full
        written = self._file.tell()
        if written - self._synced >= SYNC_BYTES:
            self._file.flush()
            os.fdatasync(self._file.fileno())
            self._synced = written


def names_in(fd: int) -> Iterator[str]:
    """What is in the open directory, read as it goes: there may be more names than memory."""
    try:
        with os.scandir(fd) as found:
            for entry in found:
                yield entry.name
    except OSError as err:
        raise Unreadable from err


def seen(parent: int, name: str) -> tuple[os.stat_result, str]:
    """What `name` is, and where it leads if it is a symbolic link."""
    try:
        info = os.lstat(name, dir_fd=parent)
        return info, os.readlink(name, dir_fd=parent) if stat.S_ISLNK(info.st_mode) else ""
    except OSError as err:
        raise Unreadable from err


def header(path: str, info: os.stat_result, kind: bytes, target: str = "") -> tarfile.TarInfo:
    """The entry for `path`; ids as numbers, no set-uid bits."""
    member = tarfile.TarInfo(path)
    member.type, member.linkname = kind, target
    member.size = info.st_size if kind == tarfile.REGTYPE else 0
    member.mode, member.mtime = info.st_mode & 0o777, max(0, int(info.st_mtime))
    member.uid, member.gid = info.st_uid, info.st_gid
    return member


def path_for(job: Job) -> str:
    """Where the home goes that this job is the first to end."""
    return f"{HOMES_DIR}/{job.uid}-{job.epoch}.tar"


def open_home(job: Job) -> int | None:
    """The account's home; None where there is none of its own, or something is mounted there."""
    for root in files.roots(("/home",)):
        top = os.open(root, files.OPEN_DIR)
        try:
            home = files.enter(top, job.name)
        finally:
            os.close(top)
        if home is not None:
            if os.fstat(home).st_uid == job.uid:
                return home
            os.close(home)
    return None


def keep(job: Job, home: int, path: str, deadline: Deadline) -> dict:
    """Put the open directory `home` into the archive `path`, and say what is in it. OSError when it can't be written."""
    make_directory()
    budget = room()
    if budget < 2 * MARGIN_BYTES:
        raise OSError(errno.ENOSPC, "no room for an archive")
    try:
        fd = os.open(path + UNFINISHED, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(fd, "wb") as file:
            archive = Archive(file, budget, deadline)
            archive.fill(home, job.name)
            file.flush()
            os.utime(fd, (time.time(), time.time() + job.keep_home_s))
            os.fsync(fd)
            size = os.fstat(fd).st_size
        os.rename(path + UNFINISHED, path)
        state.sync_directory(HOMES_DIR)
    except OSError:
        remove_unfinished()
        raise
    return {"path": path, "bytes": size, "files": archive.files, "truncated": archive.truncated}


def make_directory() -> None:
    """The archives' directory, for root alone and without what a killed job left there."""
    os.makedirs(HOMES_DIR, mode=0o700, exist_ok=True)
    fd = os.open(HOMES_DIR, files.OPEN_DIR)
    try:
        os.fchmod(fd, 0o700)
    finally:
        os.close(fd)
    remove_unfinished()


def remove_unfinished() -> None:
    """The worker's lock is held: nobody is writing one."""
    try:
        for name in os.listdir(HOMES_DIR):
            if name.endswith(UNFINISHED):
                os.unlink(f"{HOMES_DIR}/{name}")
    except OSError:
        return


def room() -> int:
    """How many bytes an archive may have now."""
    disk = os.statvfs(HOMES_DIR)
    others = sum(os.lstat(f"{HOMES_DIR}/{name}").st_size for name in os.listdir(HOMES_DIR))
    return min(MAX_BYTES, disk.f_bavail * disk.f_frsize // 2, MAX_ALL_BYTES - others)
