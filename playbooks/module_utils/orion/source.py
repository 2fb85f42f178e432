"""Where the control plane comes from, as sshd saw it: the agent lets its keys in from there alone."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import tempfile
from collections.abc import Iterator

from . import state

PATH = f"{state.STATE_DIR}/source"

MAX_DEPTH = 64
"""More ancestors than any login has."""


def record() -> str | None:
    """Write down where this session comes from, also when that is known: the file's age tells how new the word is.

    None, and the file stays as it was, when sshd is no ancestor or the address is of no use.
    """
    source = address_of_session()
    if source is not None:
        try:
            write(source)
        except OSError:
            return None
    return source


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


def write(source: str) -> None:
    """Put the file in place so that whoever reads it finds the old word or the new one."""
    state.make_directories()
    fd, new = tempfile.mkstemp(prefix="source.", dir=state.STATE_DIR)
    try:
        with open(fd, "w", encoding="ascii") as file:
            file.write(f"{source}\n")
            file.flush()
            os.fsync(fd)
        os.rename(new, PATH)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(new)
        raise
