"""Reading passwd, shadow, group, subuid and subgid.

The local files are read for what belongs to Orion (it is always local), and the
name service (LDAP and others, too) for what belongs to somebody else.
"""

from __future__ import annotations

import glob
import grp
import pwd
import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """A line of /etc/passwd."""

    name: str
    uid: int
    gid: int
    home: str


@dataclass(frozen=True)
class Shadow:
    """A line of /etc/shadow."""

    hash: str
    changed: str
    expires: str

    @property
    def locked(self) -> bool:
        """No password can match it, or the account has an end date."""
        return not self.hash.startswith("$") or self.expires != ""


def rows(path: str, columns: int) -> list[list[str]]:
    """The lines of a colon-separated table that have at least `columns` columns."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            split = (line.rstrip("\n").split(":") for line in file)
            return [row for row in split if len(row) >= columns]
    except FileNotFoundError:
        return []


def local_entries() -> list[Entry]:
    """All lines of /etc/passwd."""
    found = []
    for row in rows("/etc/passwd", 7):
        if row[2].isdecimal() and row[3].isdecimal():
            found.append(Entry(row[0], int(row[2]), int(row[3]), row[5]))
    return found


def local_groups() -> list[tuple[str, int, list[str]]]:
    """Name, gid and members of all lines of /etc/group."""
    found = []
    for row in rows("/etc/group", 4):
        if row[2].isdecimal():
            found.append((row[0], int(row[2]), [m for m in row[3].split(",") if m]))
    return found


def shadow_of(name: str) -> Shadow | None:
    """The shadow line of `name`, None when there is none."""
    for row in rows("/etc/shadow", 8):
        if row[0] == name:
            return Shadow(row[1], row[2], row[7])
    return None


def uid_of(name: str) -> int | None:
    """The uid that the name service gives for `name`."""
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        return None


def name_of(uid: int) -> str | None:
    """The name that the name service gives for `uid`."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return None


def gid_of(name: str) -> int | None:
    """The gid that the name service gives for the group `name`."""
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        return None


def group_name_of(gid: int) -> str | None:
    """The group name that the name service gives for `gid`."""
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return None


def groups_listing(name: str) -> list[str]:
    """Names of local groups that list `name` as a member."""
    return [group for group, _, members in local_groups() if name in members]


def sudoers_naming(name: str) -> str | None:
    """The sudoers file that has `name` in it: whoever gets that name gets its rights, too."""
    word = re.compile(rf"(?<![\w.%@/-]){re.escape(name)}(?![\w./-])")
    for path in ["/etc/sudoers", *sorted(glob.glob("/etc/sudoers.d/*"))]:
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                lines = (line.partition("#")[0] for line in file)
                if any(word.search(line) for line in lines if not line.lstrip().startswith("Defaults")):
                    return path
        except OSError:
            continue
    return None


def sub_ranges(path: str) -> list[tuple[str, int, int]]:
    """Owner, first id and number of ids for each line of /etc/subuid or /etc/subgid."""
    return [(row[0], int(row[1]), int(row[2])) for row in rows(path, 3) if row[1].isdecimal() and row[2].isdecimal()]


def sub_range_holding(uid: int) -> str | None:
    """The range that holds `uid`, in words: its owner's user namespaces could act as `uid`."""
    for path in ("/etc/subuid", "/etc/subgid"):
        for owner, first, count in sub_ranges(path):
            if first <= uid < first + count:
                return f"{path} gives {first}-{first + count - 1} to {owner}"
    return None
