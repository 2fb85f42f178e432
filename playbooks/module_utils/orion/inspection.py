"""op inspect: what of Orion's accounts is on this worker. Changes nothing."""

from __future__ import annotations

import os
import platform

from . import files, message, processes, sshd, state, tables
from .job import Job, Verdict

LIMIT = 20
"""How many of a kind are listed; `counts` has the whole numbers."""


def inspect(job: Job) -> Verdict:
    """`clean` when no managed account, process or file is to be seen, else `dirty` with what is."""
    records, damaged = state.read_all()
    accounts = accounts_seen(job, records)
    groups = [name for name, gid, _ in tables.local_groups() if job.manages(gid)]
    running = processes.matching(job.manages)
    paths = files.owned(files.SPOOLS + files.SHARED, job.manages, job.deadline, False, LIMIT)
    paths += [path for path in runtime_dirs(job) if path not in paths]
    paths += lingering(accounts)
    paths += [message.PATH] if os.path.lexists(message.PATH) else []
    uids = [account["uid"] for account in accounts] + [record.uid for record in records]
    uids += [uid for _, uid in running]
    evidence = {
        "accounts": accounts[:LIMIT],
        "processes": [{"pid": pid, "uid": uid} for pid, uid in running[:LIMIT]],
        "files": paths[:LIMIT],
        "groups": groups[:LIMIT],
        "damaged_records": damaged[:LIMIT],
        "max_uid": max(filter(job.manages, uids), default=None),
        "counts": {"accounts": len(accounts), "processes": len(running), "records": len(records)},
        "sshd_password_ok": sshd.passwords_for_clients(),
        "python": platform.python_version(),
        "os": os_name(),
        "source": job.source,
    }
    if accounts or running or paths or groups or damaged:
        said = f"{len(accounts)} accounts, {len(running)} processes, {len(paths)} files"
        return Verdict("dirty", f"seen on the worker: {said}", **evidence)
    return Verdict("clean", "no managed account, process or file is on the worker", **evidence)


def accounts_seen(job: Job, records: list[state.Record]) -> list[dict]:
    """Managed passwd entries, and records of accounts that may still have something here."""
    by_uid = {record.uid: record for record in records}
    seen = []
    for entry in tables.local_entries():
        if job.manages(entry.uid):
            record = by_uid.get(entry.uid)
            shadow = tables.shadow_of(entry.name)
            seen.append(
                {
                    "uid": entry.uid,
                    "name": entry.name,
                    "epoch": record.epoch if record else None,
                    "state": record.state if record else None,
                    "locked": shadow is None or shadow.locked,
                }
            )
    listed = {account["uid"] for account in seen}
    for record in records:
        if record.state != "gone" and record.uid not in listed:
            seen.append(
                {"uid": record.uid, "name": record.name, "epoch": record.epoch, "state": record.state, "locked": True}
            )
    return seen


def runtime_dirs(job: Job) -> list[str]:
    """/run/user/UID of managed uids."""
    try:
        names = os.listdir("/run/user")
    except FileNotFoundError:
        return []
    return [f"/run/user/{name}" for name in names if name.isdecimal() and job.manages(int(name))]


def lingering(accounts: list[dict]) -> list[str]:
    """Linger marks of these accounts."""
    paths = (f"/var/lib/systemd/linger/{account['name']}" for account in accounts)
    return [path for path in paths if os.path.lexists(path)]


def os_name() -> str:
    """The system's name and version."""
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", "unknown")[:80]
    except OSError:
        return "unknown"
