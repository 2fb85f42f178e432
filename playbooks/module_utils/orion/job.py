"""One job of the module: what was asked, how long it may take, how it ends."""

from __future__ import annotations

import math
import os
import re
import subprocess
import time
from dataclasses import dataclass, field

MANAGED_UIDS = 1_000_000_000
"""How many UIDs from `uid_base` on belong to Orion."""

NAME = re.compile(r"[a-z][a-z0-9_-]{0,30}")
HASH = re.compile(r"\$6\$(?:rounds=[0-9]{4,9}\$)?[./0-9A-Za-z]{1,16}\$[./0-9A-Za-z]{86}")

TOOL_ENV = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}


def shown(text: str) -> str:
    """The end of a path or name that a client may have chosen, fit to be printed."""
    plain = os.fsencode(text[-200:]).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else "?" for c in plain)


class Verdict(Exception):
    """How the job ended; `outcome` is one of the words of the module's RETURN."""

    def __init__(self, outcome: str, detail: str, **evidence: object) -> None:
        super().__init__(detail)
        self.outcome = outcome
        self.detail = detail
        self.evidence = evidence


class Expired(BaseException):
    """The job's time is over. No Exception, so that no handler in between swallows it."""


class Deadline:
    """A span of monotonic time."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds that are left, 0 when it is over."""
        return max(0.0, self._end - time.monotonic())

    def check(self) -> None:
        """Raise Expired when it is over."""
        if self.left() == 0.0:
            raise Expired


@dataclass
class Job:
    """The module's arguments, the lock that the job holds, and who asked for it."""

    uid_base: int
    deadline: Deadline
    uid: int = 0
    name: str = ""
    password_hash: str = field(default="", repr=False)
    epoch: int = 0
    ends_in_s: float = 0.0
    keep_home_s: float = 0.0
    moved: bool = False
    lock_fd: int = -1
    source: str | None = None
    """Where the control plane came from for this job, if that was noted."""

    def manages(self, uid: int) -> bool:
        """Whether `uid` is one that only Orion gives out."""
        return self.uid_base <= uid < self.uid_base + MANAGED_UIDS

    def check(self, creating: bool) -> None:
        """Refuse what no correct control plane asks for."""
        if not self.manages(self.uid):
            raise Verdict("refused", f"uid {self.uid} is not a managed one")
        if not NAME.fullmatch(self.name):
            raise Verdict("refused", "the name is not a safe user name")
        if self.epoch < 1:
            raise Verdict("refused", "the epoch is below 1")
        if not creating:
            if not math.isfinite(self.keep_home_s) or self.keep_home_s < 0:
                raise Verdict("refused", "keep_home_s is not a number of seconds")
            return
        if not HASH.fullmatch(self.password_hash):
            raise Verdict("refused", "the password hash is not a sha512crypt one")
        if not math.isfinite(self.ends_in_s) or self.ends_in_s <= 0:
            raise Verdict("refused", "ends_in_s is not a positive number of seconds")

    def tool(self, *argv: str, stdin: str = "", ok: tuple[int, ...] = (0,)) -> None:
        """Run a system tool; Verdict `failed` when it exits with another status than `ok`.

        The tool inherits the worker's lock: when this process is killed, the next
        one waits until the tool is through.
        """
        drop_orphaned_locks()
        try:
            done = subprocess.run(
                argv,
                input=stdin,
                capture_output=True,
                text=True,
                errors="replace",
                env=TOOL_ENV,
                pass_fds=(self.lock_fd,),
                timeout=self.deadline.left() + 0.1,
                check=False,
            )
        except subprocess.TimeoutExpired as err:
            raise Expired from err
        except OSError as err:
            raise Verdict("failed", f"{argv[0]} can't be run: {err.strerror}") from err
        if done.returncode not in ok:
            said = (done.stderr.strip() or "nothing was said").splitlines()[-1][:300]
            raise Verdict("failed", f"{argv[0]} ended with status {done.returncode}: {said}")


def drop_orphaned_locks() -> None:
    """Remove lock files that a killed useradd left, where its PID is somebody else's by now.

    The shadow tools do this themselves while the PID is free, but wait 15 s and
    give up when it was given to another process: one that started after the lock
    was made.
    """
    for table in ("passwd", "shadow", "group", "gshadow", "subuid", "subgid"):
        path = f"/etc/{table}.lock"
        try:
            made = os.stat(path).st_mtime
            with open(path, encoding="ascii", errors="replace") as lock:
                pid = int(lock.read(16).strip("\0 \n") or "0")
            if started_at(pid) > made + 1:
                os.unlink(path)
        except (OSError, ValueError):
            continue


def started_at(pid: int) -> float:
    """Unix time at which process `pid` started."""
    with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as stat:
        ticks = int(stat.read().rpartition(")")[2].split()[19])
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    return time.time() - age
