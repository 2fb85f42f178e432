"""The worker's memory under /var/lib/orion-node: the lock, and one record per account (and `source`, see there).

A record is written before anything is done, so that a later job with an older
epoch finds it and stops. It stays when the account is gone.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from .job import Job, Verdict

STATE_DIR = "/var/lib/orion-node"
ACCOUNTS_DIR = f"{STATE_DIR}/accounts"


@dataclass(frozen=True)
class Record:
    """What the worker knows of one account. `ends_at_wall` 0 says that it is to go."""

    uid: int
    name: str
    epoch: int
    state: str
    """`present` as soon as anything of it may exist, `gone` when seen to be gone."""
    ends_at_wall: float
    """Unix seconds; an upper bound."""
    ends_at_boot: float
    """Seconds of CLOCK_BOOTTIME in the boot that `boot_id` names; an upper bound."""
    boot_id: str
    kept_home: dict | None = None
    """The archive of the home, or the plan to make it; of a record that says that the account is to go."""


def boot_id() -> str:
    """The running kernel's boot id; in a container the host's."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def record_for(job: Job, state: str, ends_in_s: float | None) -> Record:
    """A record at the job's epoch that ends in `ends_in_s` seconds, or is to go (None)."""
    if ends_in_s is None:
        return Record(job.uid, job.name, job.epoch, state, 0, 0, boot_id())
    boot_now = time.clock_gettime(time.CLOCK_BOOTTIME)
    wall, boot = round(time.time() + ends_in_s, 3), round(boot_now + ends_in_s, 3)
    return Record(job.uid, job.name, job.epoch, state, wall, boot, boot_id())


def parsed(text: str) -> Record:
    """The record in `text`; ValueError when it is none. Unknown keys are let pass."""
    try:
        raw = json.loads(text)
        return Record(
            uid=int(raw["uid"]),
            name=str(raw["name"]),
            epoch=int(raw["epoch"]),
            state=str(raw["state"]),
            ends_at_wall=float(raw.get("ends_at_wall") or 0),
            ends_at_boot=float(raw.get("ends_at_boot") or 0),
            boot_id=str(raw.get("boot_id") or ""),
            kept_home=dict(raw["kept_home"]) if raw.get("kept_home") else None,
        )
    except (KeyError, TypeError) as err:
        raise ValueError(f"not a record: {err}") from err


def read(uid: int) -> Record | None:
    """The record of `uid`, None when there is none. ValueError when it is damaged."""
    try:
        with open(f"{ACCOUNTS_DIR}/{uid}.json", encoding="utf-8") as file:
            return parsed(file.read())
    except FileNotFoundError:
        return None


def read_all() -> tuple[list[Record], list[str]]:
    """All records, and the names of files that hold none."""
    records, damaged = [], []
    try:
        names = sorted(os.listdir(ACCOUNTS_DIR))
    except FileNotFoundError:
        return [], []
    for name in names:
        if not name.endswith(".json"):
            continue
        try:
            with open(f"{ACCOUNTS_DIR}/{name}", encoding="utf-8") as file:
                records.append(parsed(file.read()))
        except (OSError, ValueError):
            damaged.append(name)
    return records, damaged


def write(record: Record) -> None:
    """Put `record` in place so that a crash leaves the old or the new one, never half of it."""
    path = f"{ACCOUNTS_DIR}/{record.uid}.json"
    fd = os.open(f"{path}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(fd, "w", encoding="utf-8") as file:
        json.dump(asdict(record), file)
        file.write("\n")
        file.flush()
        os.fsync(fd)
    os.rename(f"{path}.new", path)
    sync_directory(ACCOUNTS_DIR)


def sync_directory(path: str) -> None:
    """Make a rename in there durable."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def make_directories() -> None:
    """Make the module's directories where they are missing, for root alone."""
    os.makedirs(ACCOUNTS_DIR, mode=0o700, exist_ok=True)
    os.chmod(STATE_DIR, 0o700)


@contextlib.contextmanager
def locked(job: Job) -> Iterator[None]:
    """Hold the worker's lock, so that one job at a time touches accounts."""
    make_directories()
    fd = os.open(f"{STATE_DIR}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    reserve = min(2.0, job.deadline.left() / 2)
    try:
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as err:
                if job.deadline.left() < reserve:
                    raise Verdict("failed", "another step holds the worker's lock") from err
                time.sleep(0.02)
        job.lock_fd = fd
        yield
    finally:
        os.close(fd)
