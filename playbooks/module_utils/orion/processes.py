"""Finding and ending the processes of a uid."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Iterator

from .job import TOOL_ENV, Deadline, shown

QUIET_SCANS = 3
"""So many scans in a row must find nothing: one can miss a process that forks meanwhile."""

PAUSE_S = 0.02

UIDS = re.compile(rb"^Uid:\t(\d+)\t(\d+)\t(\d+)\t(\d+)$", re.M)
STATE = re.compile(rb"^State:\t(\S)", re.M)


def uids_of(pid: int) -> set[int]:
    """Real, effective, saved and file system uid of `pid`; empty when it is gone or a mere zombie."""
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            status = file.read()
        uids, state = UIDS.search(status), STATE.search(status)
        if uids is None or (state and state.group(1) in b"ZX" and not has_live_threads(pid)):
            return set()
    except OSError:
        return set()
    return {int(uid) for uid in uids.groups()}


def has_live_threads(pid: int) -> bool:
    """Whether threads go on after the first one has ended (`pid` then looks like a zombie)."""
    return len(os.listdir(f"/proc/{pid}/task")) > 1


def all_pids() -> Iterator[int]:
    """The processes that this one can see: those of its PID namespace and the ones below."""
    return (int(name) for name in os.listdir("/proc") if name.isdecimal())


def matching(wanted: Callable[[int], bool]) -> list[tuple[int, int]]:
    """PID and uid of each process that has a uid that is `wanted`."""
    found = []
    for pid in all_pids():
        uid = next((uid for uid in uids_of(pid) if wanted(uid)), None)
        if uid is not None:
            found.append((pid, uid))
    return found


def sessions_of(name: str) -> list[int]:
    """Root's sshd processes that serve `name`: they could still start a session for it."""
    title = re.compile(rb"sshd(-session)?: " + re.escape(name.encode()) + rb"(?= \[|@|\0|$)")
    found = []
    for pid in all_pids():
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                if title.match(file.read(200)) and uids_of(pid) == {0}:
                    found.append(pid)
        except OSError:
            continue
    return found


def describe(pid: int) -> str:
    """`pid` and its program's name."""
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return f"process {pid} ({shown(file.read().strip()[:40])})"
    except OSError:
        return f"process {pid}"


def end_all(uid: int, names: list[str], deadline: Deadline) -> list[int]:
    """Kill what runs as `uid`, and sshd's sessions for `names`, until nothing is seen; return what stays.

    A loop of forks must lose: no process of the uid may fork any more (limit 0),
    and `kill -1` as that uid reaches all of them at one instant.
    """
    with contextlib.suppress(OSError, ValueError):  # without the right to: the limit is the login's
        resource.setrlimit(resource.RLIMIT_NPROC, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    quiet = 0
    while True:
        own = [pid for pid, _ in matching(lambda seen: seen == uid)]
        serving = [pid for name in names for pid in sessions_of(name)]
        if not own and not serving:
            quiet += 1
            if quiet == QUIET_SCANS:
                return []
        else:
            quiet = 0
            if deadline.left() == 0.0:
                return own + serving
            end_once(uid, own, serving)
        time.sleep(PAUSE_S)


def end_once(uid: int, own: list[int], serving: list[int]) -> None:
    """One round of killing."""
    for pid in own:
        with contextlib.suppress(OSError, ValueError):
            resource.prlimit(pid, resource.RLIMIT_NPROC, (0, 0))
    if own:
        kill_as(uid)
    for pid in own:
        kill_if(pid, lambda uids: uid in uids)
    for pid in serving:
        kill_if(pid, lambda uids: uids == {0})


def kill_as(uid: int) -> None:
    """Kill everything that `uid` may kill, at once. Its processes may kill this one first: try again then."""
    try:
        subprocess.run(
            ["/bin/sh", "-c", "kill -KILL -1"],
            user=uid,
            group=uid,
            extra_groups=[],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=TOOL_ENV,
            cwd="/",
            timeout=2,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return


def kill_if(pid: int, still: Callable[[set[int]], bool]) -> None:
    """Kill `pid` unless its number went to a process with other uids in the meantime."""
    try:
        handle = os.pidfd_open(pid)
    except OSError:
        return
    try:
        if still(uids_of(pid)):
            signal.pidfd_send_signal(handle, signal.SIGKILL)
    except OSError:
        return
    finally:
        os.close(handle)
