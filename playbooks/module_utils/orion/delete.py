"""op delete: end a rental's account, and see that nothing of it is left."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace

from . import archive, files, message, mounts, processes, state, tables
from .job import TOOL_ENV, Deadline, Expired, Job, Verdict, shown

LINGER_DIR = "/var/lib/systemd/linger"
REPORT_S = 1.0
"""Kept back from the time limit, so that there is time to say what is left."""


def delete(job: Job) -> Verdict:
    """Lock, end every process, remove everything, look again. `gone` is what was seen, not what was done."""
    job.check(creating=False)
    with state.locked(job):
        record = ending_record(job)
        state.write(record)
        lock_accounts(job)
        remove_linger(job)
        working = Deadline(job.deadline.left() - REPORT_S)
        end_processes(job, working)
        unmounted, mounted = mounts.detach_all(job.uid, own_names(job), working)
        record = keep_home(job, record)
        broom = files.Broom(job.uid, working)
        for point, why in mounted:
            broom.keep(point, f"something is mounted there: {why}")
        message.remove(job)
        remove_files(job, broom)
        if not broom.kept:
            remove_accounts(job)
        left = broom.kept + leftovers(job)
        if left:
            left = list(dict.fromkeys(left))
            raise Verdict("not_gone", f"{len(left)} things are left, first {left[0]}", left=left[:20])
        state.write(replace(record, state="gone"))
    evidence: dict[str, object] = {"uid": job.uid, "epoch": job.epoch, "removed_files": broom.removed}
    if unmounted:
        evidence["unmounted"] = [shown(point) for point in unmounted[:20]]
    if record.kept_home:
        evidence["kept_home"] = record.kept_home
    return Verdict("gone", f"nothing of {job.name} (uid {job.uid}) is left", **evidence)


def ending_record(job: Job) -> state.Record:
    """The record to write; Verdict `stale_epoch` when the worker has seen a newer epoch. A damaged one counts as none."""
    new = state.record_for(job, "present", None)
    try:
        old = state.read(job.uid)
    except ValueError:
        return new
    if old is not None and job.epoch < old.epoch:
        words = "is gone" if old.state == "gone" else "is there"
        raise Verdict("stale_epoch", f"at epoch {old.epoch} the account {words}", epoch_seen=old.epoch)
    # An earlier delete of the same account has kept its home, or was about to.
    return replace(new, kept_home=old.kept_home) if old is not None else new


def keep_home(job: Job, record: state.Record) -> state.Record:
    """Put the home into an archive, once in an account's life: a delete that is repeated finds less of it.
    It is tried once, too.

    Whatever comes of it, the account goes.
    """
    kept = record.kept_home or {}
    path = kept.get("path")
    if path is not None and os.path.lexists(path):
        if "files" in kept:
            return record
        # Made by a job that was killed before it could say what is in it.
        return replace(record, kept_home={"path": path, "bytes": os.lstat(path).st_size})
    if kept == {"path": path}:
        # Tried by a job that did not get to the end of it. On a slow disk none would, and the account would stay.
        archive.remove_unfinished()
        return replace(record, kept_home={"path": None, "truncated": True, "error": "broken off"})
    if "error" in kept:
        # Said by a delete that was done: there is no home to try again.
        return record
    record = replace(record, kept_home=None)
    home = archive.open_home(job) if job.keep_home_s > 0 else None
    if home is None:
        return record
    try:
        path = path or archive.path_for(job)
        state.write(replace(record, kept_home={"path": path}))
        kept = archive.keep(job, home, path, Deadline(job.deadline.left() / 3))
    except OSError as err:
        # Not written down: on a full disk that would keep the account.
        why = os.strerror(err.errno or 0)
        return replace(record, kept_home={"path": None, "bytes": 0, "files": 0, "truncated": True, "error": why})
    finally:
        os.close(home)
    record = replace(record, kept_home=kept)
    state.write(record)
    return record


def own_entries(job: Job) -> list[tables.Entry]:
    """The lines of /etc/passwd with the job's uid, under whatever name."""
    return [entry for entry in tables.local_entries() if entry.uid == job.uid]


def own_names(job: Job) -> list[str]:
    """The names that are the account's own; without the asked one when it is somebody else's."""
    names = [entry.name for entry in own_entries(job)]
    if tables.uid_of(job.name) is None:
        names.append(job.name)
    return list(dict.fromkeys(names))


def lock_accounts(job: Job) -> None:
    """Nobody logs in any more, by password or key, and cron starts nothing."""
    for entry in own_entries(job):
        job.tool("usermod", "--lock", "--expiredate", "1970-01-02", entry.name)


def remove_linger(job: Job) -> None:
    """systemd does not start the user's services again."""
    for name in own_names(job):
        try:
            os.unlink(f"{LINGER_DIR}/{name}")
        except FileNotFoundError:
            continue


def end_processes(job: Job, working: Deadline) -> None:
    """End all processes; Verdict `not_gone` when some can't be ended: files would come back."""
    names = own_names(job)
    left = processes.end_all(job.uid, names, working)
    if not left and stop_user_manager(job):
        left = processes.end_all(job.uid, names, working)
    if left:
        words = [processes.describe(pid) for pid in left[:20]]
        raise Verdict("not_gone", f"{len(left)} processes can't be ended, first {words[0]}", left=words)


def stop_user_manager(job: Job) -> bool:
    """Have systemd take down what it holds for the user, /run/user/UID above all; whether there was any."""
    if not os.path.isdir("/run/systemd/system") or not os.path.isdir(f"/run/user/{job.uid}"):
        return False
    units = [f"user@{job.uid}.service", f"user-runtime-dir@{job.uid}.service"]
    # Its manager was killed: without the second the unit would be listed as failed for ever.
    for verb in ("stop", "reset-failed"):
        try:
            subprocess.run(
                ["systemctl", "--no-ask-password", verb, *units],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=TOOL_ENV,
                timeout=min(5.0, job.deadline.left() / 2),
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            return True
    return True


def remove_files(job: Job, broom: files.Broom) -> None:
    """Home, mail, crontab, at jobs, runtime directory, temporary files, message queues and IPC."""
    for entry in own_entries(job):
        if entry.home != f"/home/{entry.name}":
            broom.keep(entry.home, "not where the home of an account of Orion is")
    for root in files.roots(files.SPOOLS):
        broom.sweep(root, deep=False)
    remove_unfinished_home(job, broom)
    for root in files.roots(files.SHARED):
        broom.sweep(root, deep=True)
    for kind, number in ipc_objects(job.uid):
        remove_ipc(job, kind, number)


def remove_unfinished_home(job: Job, broom: files.Broom) -> None:
    """The directory in which a create that was killed built the home."""
    for root in files.roots(("/home",)):
        fd = os.open(root, files.OPEN_DIR)
        try:
            broom.remove(fd, f".orion-{job.uid}", root)
        finally:
            os.close(fd)


def ipc_objects(uid: int) -> list[tuple[str, int]]:
    """Kind (as ipcrm names it) and id of the System V IPC objects that `uid` owns or made."""
    found = []
    for kind, table in (("shmem", "shm"), ("queue", "msg"), ("semaphore", "sem")):
        try:
            with open(f"/proc/sysvipc/{table}", encoding="ascii") as file:
                head, *lines = [line.split() for line in file]
        except (OSError, ValueError):
            continue
        for line in lines:
            row = dict(zip(head, line, strict=False))
            if str(uid) in (row["uid"], row["cuid"]):
                found.append((kind, int(line[1])))
    return found


def remove_ipc(job: Job, kind: str, number: int) -> None:
    """Remove one System V object as its owner: in a container root may have no right to. The proof comes later."""
    try:
        subprocess.run(
            ["ipcrm", f"--{kind}-id", str(number)],
            user=job.uid,
            group=job.uid,
            extra_groups=[],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=TOOL_ENV,
            cwd="/",
            timeout=2,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return


def remove_accounts(job: Job) -> None:
    """The lines of passwd, shadow, group, gshadow, subuid and subgid."""
    for entry in own_entries(job):
        job.tool("userdel", "--force", entry.name, ok=(0, 6))
    for name, gid, _ in tables.local_groups():
        if gid == job.uid:
            job.tool("groupdel", name, ok=(0, 6))


def leftovers(job: Job) -> list[str]:
    """Look at everything anew; what is left, in words."""
    left = [f"passwd entry {entry.name}" for entry in own_entries(job)]
    if not left and tables.name_of(job.uid) is not None:
        left.append(f"the name service knows uid {job.uid}")
    left += [f"group {name}" for name, gid, _ in tables.local_groups() if gid == job.uid]
    left += [processes.describe(pid) for pid, _ in processes.matching(lambda uid: uid == job.uid)]
    for name in own_names(job):
        if tables.shadow_of(name):
            left.append(f"shadow entry {name}")
        if os.path.lexists(f"{LINGER_DIR}/{name}"):
            left.append(f"{LINGER_DIR}/{name}")
    left += [f"{shown(mount.point)}: mounted" for mount in mounts.of_account(job.uid, own_names(job))]
    if message.left(job):
        left.append(message.PATH)
    try:
        for paths, deep in ((files.SPOOLS, False), (files.SHARED, True)):
            left += files.owned(paths, lambda uid: uid == job.uid, job.deadline, deep, 20)
    except Expired:
        left.append("files that there was no time to look for")
    left += [f"{kind} {number}" for kind, number in ipc_objects(job.uid)]
    return left
