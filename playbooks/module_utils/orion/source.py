"""From where the control plane came last, as sshd saw it: the agent lets its keys in from there alone.

It may have several addresses: each instance of orion-schedd that acts on this worker comes from its own.
"""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import os
import tempfile
import time
from collections.abc import Iterator

from . import state

PATH = f"{state.STATE_DIR}/source"

MAX_DEPTH = 64
"""More ancestors than any login has."""

MAX_SOURCES = 8
"""As many different addresses are kept."""

LOCK_PATIENCE_S = 1.0
"""The note is written in milliseconds; an account is not kept waiting for it."""


def record() -> str | None:
    """Write down where this session comes from and when, before what was seen earlier.

    None, and the file stays as it was, when sshd is no ancestor or the address is of no use.
    """
    source = address_of_session()
    if source is not None:
        try:
            state.make_directories()
            with locked():
                others = [line for line in noted() if line[0] != source]
                write([(source, int(time.time())), *others][:MAX_SOURCES])
        except OSError:
            return None
    return source


@contextlib.contextmanager
def locked() -> Iterator[None]:
    """Hold the lock of the note, so that no other step's address is lost. BlockingIOError when somebody keeps it."""
    fd = os.open(state.STATE_DIR, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    until = time.monotonic() + LOCK_PATIENCE_S
    try:
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.01)
        yield
    finally:
        os.close(fd)


def noted() -> list[tuple[str, int]]:
    """The addresses in the note, the last one first, with the Unix time at which each was seen.

    What can't be read is left out. A note of an older version has one address without a time.
    """
    try:
        with open(PATH, encoding="ascii", errors="replace") as file:
            lines = file.read(16 * 1024).splitlines()
    except FileNotFoundError:
        return []
    sources = []
    for line in lines:
        address, _, seen = line.partition(" ")
        with contextlib.suppress(ValueError):
            sources.append((str(ipaddress.ip_address(address)), int(seen or "0")))
    return sources


def address_of_session() -> str | None:
    """The address in SSH_CONNECTION of this process or its nearest ancestor that has it.

    sudo hands it on where sudoers says so; else an ancestor of sudo has it, which only CAP_SYS_PTRACE can read.
    """
    for pid in ancestors():
        connection = variable(pid, b"SSH_CONNECTION")
        if connection is not None:
            return parsed(connection)
    return None


def parsed(connection: bytes) -> str | None:
    """The client's address in "ADDRESS PORT ADDRESS PORT"; None when it is no address that another process could use."""
    words = connection.split(b" ")
    if len(words) != 4:
        return None
    try:
        address = ipaddress.ip_address(words[0].decode("ascii"))
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        if address.scope_id is not None:
            return None
    return str(address)


def ancestors() -> Iterator[int]:
    """This process, its parent, and so on."""
    pid = os.getpid()
    for _ in range(MAX_DEPTH):
        yield pid
        try:
            with open(f"/proc/{pid}/stat", "rb") as stat:
                pid = int(stat.read().rpartition(b")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            return
        if pid == 0:
            return


def variable(pid: int, name: bytes) -> bytes | None:
    """A variable of the environment that `pid` was started with."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as environ:
            entries = environ.read().split(b"\0")
    except OSError:
        return None
    return next((entry.partition(b"=")[2] for entry in entries if entry.startswith(name + b"=")), None)


def write(sources: list[tuple[str, int]]) -> None:
    """Put the file in place so that whoever reads it finds the old words or the new ones."""
    fd, new = tempfile.mkstemp(prefix="source.", dir=state.STATE_DIR)
    try:
        with open(fd, "w", encoding="ascii") as file:
            file.writelines(f"{address} {seen}\n" for address, seen in sources)
            file.flush()
            os.fsync(fd)
        os.rename(new, PATH)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(new)
        raise
