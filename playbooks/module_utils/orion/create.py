"""op create: make the account of a rental, and see that its password works."""

from __future__ import annotations

import os
import pwd
import shutil
import stat

from . import message, sshd, state, tables
from .job import Job, Verdict

SHELL = "/bin/bash"
SKELETON = "/etc/skel"


def create(job: Job) -> Verdict:
    """Make and verify the account. Repeating it, also after a kill -9 anywhere, ends in the same place."""
    job.check(creating=True)
    with state.locked(job):
        record = future(job)
        refuse_shared_ids(job)
        refuse_taken_names(job)
        state.write(record)
        ensure_client_group(job)
        ensure_user(job)
        ensure_home(job)
        ensure_password(job)
        verify(job)
        told = message.write(job)
    return Verdict(
        "present",
        f"account {job.name} (uid {job.uid}) is there and its password works",
        uid=job.uid,
        epoch=job.epoch,
        home=home_of(job),
        ends_at_wall=record.ends_at_wall,
        login_message=told,
    )


def home_of(job: Job) -> str:
    """Where the account's home is."""
    return f"/home/{job.name}"


def future(job: Job) -> state.Record:
    """The record to write; Verdict `stale_epoch` when the worker has seen something newer."""
    try:
        old = state.read(job.uid)
    except ValueError as err:
        raise Verdict("failed", f"the worker's record of uid {job.uid} is damaged") from err
    new = state.record_for(job, "present", job.ends_in_s)
    if old is None:
        return new
    ending = old.state == "gone" or old.ends_at_wall == 0
    if job.epoch < old.epoch or (job.epoch == old.epoch and ending):
        words = "is to go" if ending else "is there"
        raise Verdict("stale_epoch", f"at epoch {old.epoch} the account {words}", epoch_seen=old.epoch)
    if old.name != job.name:
        raise Verdict("failed", f"uid {job.uid} is recorded as the account {old.name}")
    repeated = job.epoch == old.epoch and old.boot_id == new.boot_id
    return old if repeated and old.ends_at_wall > new.ends_at_wall else new


def refuse_shared_ids(job: Job) -> None:
    """Refuse a uid that somebody's user namespaces could act as."""
    held = tables.sub_range_holding(job.uid)
    if held:
        raise Verdict("refused", f"uid {job.uid} lies in a range of others: {held}"[:500])


def refuse_taken_names(job: Job) -> None:
    """Refuse a name that means somebody else on this worker: as user, group, member, sudoer or home."""
    refuse_other(job, "user", tables.uid_of(job.name))
    refuse_other(job, "group", tables.gid_of(job.name))
    for kind, name in (("user", tables.name_of(job.uid)), ("group", tables.group_name_of(job.uid))):
        if name not in (None, job.name):
            raise Verdict("failed", f"id {job.uid} belongs to the {kind} {name}")
    listing = [g for g in tables.groups_listing(job.name) if g != sshd.CLIENT_GROUP]
    if listing:
        raise Verdict("name_taken", f"the group {listing[0]} lists {job.name} as a member")
    rights = tables.sudoers_naming(job.name)
    if rights:
        raise Verdict("name_taken", f"{rights} has {job.name} in it")
    try:
        info = os.lstat(home_of(job))
    except FileNotFoundError:
        return
    if info.st_uid == job.uid and stat.S_ISDIR(info.st_mode):
        return
    if info.st_uid != job.uid and job.manages(info.st_uid):
        raise Verdict("failed", f"{home_of(job)} is debris of uid {info.st_uid}", debris_uid=info.st_uid)
    raise Verdict("name_taken", f"{home_of(job)} is there already and belongs to uid {info.st_uid}")


def refuse_other(job: Job, kind: str, found: int | None) -> None:
    """Refuse when the name's id was `found` to be another one."""
    if found is None or found == job.uid:
        return
    if job.manages(found):
        raise Verdict("failed", f"the {kind} {job.name} is debris of uid {found}", debris_uid=found)
    raise Verdict("name_taken", f"the {kind} {job.name} is there already, with id {found}")


def ensure_client_group(job: Job) -> None:
    """The group that sshd's `Match` block names."""
    if tables.gid_of(sshd.CLIENT_GROUP) is None:
        job.tool("groupadd", "--system", "--force", sshd.CLIENT_GROUP)


def ensure_user(job: Job) -> None:
    """The account with its own group, locked until it has its password; without subordinate ids."""
    if tables.uid_of(job.name) is None:
        # --user-group makes the gid the uid where the range has room. A killed useradd may have left the group.
        own_group = ("--user-group", "-K", f"GID_MAX={job.uid}")
        if tables.gid_of(job.name) is not None:
            own_group = ("--gid", str(job.uid))
        job.tool(
            "useradd",
            *("--uid", str(job.uid), *own_group, "--groups", sshd.CLIENT_GROUP),
            *("--home-dir", home_of(job), "--no-create-home", "--shell", SHELL, "--no-log-init"),
            *("--comment", "Orion rental", "--expiredate", "", "--inactive", "-1"),
            *("-K", "PASS_MAX_DAYS=99999", "-K", "PASS_MIN_DAYS=0"),
            *("-K", "SUB_UID_COUNT=0", "-K", "SUB_GID_COUNT=0"),
            job.name,
        )
    elif tables.gid_of(job.name) is None:
        job.tool("groupadd", "--gid", str(job.uid), job.name)
    if not expected_groups(job):
        job.tool("usermod", "--groups", sshd.CLIENT_GROUP, job.name)
    drop_subordinate_ids(job)


def expected_groups(job: Job) -> bool:
    """Whether the account is in its own group and the clients', and in no other."""
    return set(os.getgrouplist(job.name, job.uid)) == {job.uid, tables.gid_of(sshd.CLIENT_GROUP)}


def drop_subordinate_ids(job: Job) -> None:
    """Take back id ranges that the system gave to the account."""
    for path, option in (("/etc/subuid", "--del-subuids"), ("/etc/subgid", "--del-subgids")):
        for owner, first, count in tables.sub_ranges(path):
            if owner in (job.name, str(job.uid)):
                job.tool("usermod", option, f"{first}-{first + count - 1}", job.name)


def ensure_home(job: Job) -> None:
    """The home directory, which appears complete or not at all."""
    home = home_of(job)
    if not os.path.lexists(home):
        building = f"/home/.orion-{job.uid}"
        os.makedirs("/home", exist_ok=True)
        shutil.rmtree(building, ignore_errors=True)
        os.mkdir(building, 0o700)
        if os.path.isdir(SKELETON):
            shutil.copytree(SKELETON, building, symlinks=True, dirs_exist_ok=True)
        for where, directories, names in os.walk(building):
            for name in directories + names:
                os.lchown(f"{where}/{name}", job.uid, job.uid)
        os.chmod(building, 0o700)
        os.chown(building, job.uid, job.uid)
        os.rename(building, home)
    home_fd = os.open(home, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if stat.S_IMODE(os.fstat(home_fd).st_mode) != 0o700:
            os.fchmod(home_fd, 0o700)
    finally:
        os.close(home_fd)


def ensure_password(job: Job) -> None:
    """The asked hash in the shadow file (by standard input, never argv), and no end date of the account."""
    shadow = tables.shadow_of(job.name)
    if shadow is None or shadow.hash != job.password_hash or shadow.changed == "0":
        job.tool("chpasswd", "--encrypted", stdin=f"{job.name}:{job.password_hash}\n")
    if shadow is not None and shadow.expires:
        job.tool("usermod", "--expiredate", "", job.name)


def verify(job: Job) -> None:
    """Read everything back; Verdict `failed` names what is not as it was asked for."""
    wrong = faults(job)
    if wrong:
        raise Verdict("failed", f"the account was made, but {wrong[0]}", faults=wrong)


def faults(job: Job) -> list[str]:
    """What is not as it was asked for, in words."""
    wrong = []
    entry = pwd.getpwnam(job.name) if tables.uid_of(job.name) is not None else None
    if entry is None or tuple(entry[2:4]) + tuple(entry[5:7]) != (job.uid, job.uid, home_of(job), SHELL):
        return ["its passwd entry is not the one asked for"]
    shadow = tables.shadow_of(job.name)
    if shadow is None or shadow.hash != job.password_hash:
        wrong.append("its shadow entry does not hold the hash")
    elif shadow.locked or shadow.changed == "0":
        wrong.append("it is locked or expired")
    if not expected_groups(job):
        wrong.append("it is in other groups than asked for")
    for path in ("/etc/subuid", "/etc/subgid"):
        if any(owner in (job.name, str(job.uid)) for owner, _, _ in tables.sub_ranges(path)):
            wrong.append(f"it has a range in {path}")
    home = os.lstat(home_of(job))
    if not stat.S_ISDIR(home.st_mode) or (home.st_uid, stat.S_IMODE(home.st_mode)) != (job.uid, 0o700):
        wrong.append("its home is not its own")
    if not os.access(SHELL, os.X_OK):
        wrong.append(f"{SHELL} is missing")
    complaint = sshd.complaint(job)
    if complaint:
        wrong.append(complaint)
    return wrong
