"""What the tests share: running the module, accounts that look odd, logins, waiting."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import pwd
import shutil
import subprocess
import sys
import time
import unittest
from collections.abc import Callable, Iterator

PLAYBOOKS = "/src/playbooks"
MODULE = f"{PLAYBOOKS}/library/orion_account.py"
STATE = "/var/lib/orion-node/accounts"
UID_BASE = 1_000_000
LIMIT_S = 60
"""Far above what a step needs, for a machine that does much else at the same time."""
FORK_LOOP = """
import os, resource, time
resource.setrlimit(resource.RLIMIT_NPROC, (120, 120))
while True:
    try:
        os.fork()
    except OSError:
        time.sleep(0.001)
"""
UNDER_SYSTEMD = os.environ.get("ORION_TEST_KIND") == "systemd"

numbers = itertools.count(int(os.environ.get("ORION_TEST_FIRST", "2")))


def hash_of(password: str) -> str:
    """A sha512crypt hash as apid makes one."""
    done = subprocess.run(
        ["openssl", "passwd", "-6", "-stdin"], input=f"{password}\n", capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


HASH = hash_of("a password of the tests")


class Account:
    """A rental's account: a name and uid of its own for each test."""

    def __init__(self, name: str | None = None) -> None:
        number = next(numbers)
        self.uid = UID_BASE + number
        self.name = name or f"client{number}"
        self.home = f"/home/{self.name}"

    def arguments(self, op: str, epoch: int, **more: object) -> dict:
        """The module's arguments."""
        arguments = {"op": op, "uid_base": UID_BASE, "uid": self.uid, "name": self.name, "epoch": epoch}
        arguments["limit_s"] = LIMIT_S
        if op == "create":
            arguments |= {"password_hash": HASH, "ends_in_s": 3600.5}
        return arguments | more

    def create(self, epoch: int = 1, **more: object) -> dict:
        return run(self.arguments("create", epoch, **more))

    def delete(self, epoch: int = 2, **more: object) -> dict:
        return run(self.arguments("delete", epoch, **more))

    def record(self) -> dict:
        with open(f"{STATE}/{self.uid}.json", encoding="utf-8") as file:
            return json.load(file)

    def exists(self) -> bool:
        return any(entry.pw_name == self.name for entry in pwd.getpwall())

    def start(self, *argv: str, **more: object) -> subprocess.Popen:
        """Run a program as the account, in a session of its own."""
        return subprocess.Popen(
            argv,
            user=self.uid,
            group=self.uid,
            extra_groups=[],
            cwd="/",
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            **more,
        )

    def python(self, code: str) -> None:
        """Run Python as the account and wait for its end."""
        done = subprocess.run(
            [sys.executable, "-c", code], user=self.uid, group=self.uid, extra_groups=[], cwd="/", check=False
        )
        assert done.returncode == 0, code

    def pids(self) -> list[int]:
        """Live processes of the uid."""
        done = subprocess.run(["ps", "-e", "-o", "pid=,uid=,stat="], capture_output=True, text=True, check=True)
        rows = (line.split() for line in done.stdout.splitlines())
        return [int(pid) for pid, uid, stat in rows if int(uid) == self.uid and not stat.startswith("Z")]


def command(arguments: dict) -> tuple[list[str], str]:
    """How the module is run by hand: argv and standard input."""
    return [sys.executable, MODULE], json.dumps({"ANSIBLE_MODULE_ARGS": arguments})


def run(arguments: dict) -> dict:
    """Run the module; its result."""
    argv, stdin = command(arguments)
    done = subprocess.run(argv, input=stdin, capture_output=True, text=True, check=False, timeout=2 * LIMIT_S)
    try:
        return json.loads(done.stdout)
    except json.JSONDecodeError as err:
        raise AssertionError(f"no result; stdout {done.stdout!r} stderr {done.stderr!r}") from err


def inspect() -> dict:
    return run({"op": "inspect", "uid_base": UID_BASE, "limit_s": LIMIT_S})


def wait_until(holds: Callable[[], bool], what: str, seconds: float = 60) -> None:
    """Wait for a condition; fail with `what` when it does not come."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"waited in vain: {what}"
        time.sleep(0.02)


def write(path: str, text: str, uid: int = 0) -> str:
    """Make a file that belongs to `uid`."""
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    os.chown(path, uid, uid)
    return path


def read(path: str) -> str:
    with open(path, encoding="utf-8") as file:
        return file.read()


def login(name: str, password: str, word: str = "echo let-in") -> subprocess.CompletedProcess:
    """Log in over the real sshd with a password, and run `word`."""
    options = ("StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "PubkeyAuthentication=no")
    argv = ["sshpass", "-e", "ssh", "-F", "none", *(part for o in options for part in ("-o", o))]
    argv += ["-o", "NumberOfPasswordPrompts=1", f"{name}@127.0.0.1", word]
    env = os.environ | {"SSHPASS": password}
    return subprocess.run(argv, env=env, capture_output=True, text=True, check=False, timeout=LIMIT_S)


@contextlib.contextmanager
def kept(path: str) -> Iterator[None]:
    """Put the file back as it was, afterwards."""
    before = read(path) if os.path.exists(path) else None
    try:
        yield
    finally:
        if before is None:
            os.path.lexists(path) and os.unlink(path)
        else:
            with open(path, "w", encoding="utf-8") as file:
                file.write(before)


@contextlib.contextmanager
def stand_in(tool: str, script: str) -> Iterator[None]:
    """Have a shell script take the place of a system tool."""
    path = shutil.which(tool)
    assert path, tool
    os.rename(path, f"{path}.real")
    try:
        with open(path, "w", encoding="utf-8") as file:
            file.write(f"#!/bin/sh\n{script}\n")
        os.chmod(path, 0o755)
        yield
    finally:
        os.rename(f"{path}.real", path)


class WorkerTest(unittest.TestCase):
    """Begins and ends with a worker that has nothing of Orion on it."""

    def setUp(self) -> None:
        self.made: list[Account] = []
        self.addCleanup(self.sweep)

    def account(self, name: str | None = None) -> Account:
        self.made.append(Account(name))
        return self.made[-1]

    def sweep(self) -> None:
        for account in self.made:
            account.delete(epoch=1_000)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{STATE}/{account.uid}.json")

    def assert_outcome(self, result: dict, outcome: str, *words: str) -> None:
        """The result is `outcome`, and each of `words` is in its detail or evidence."""
        self.assertEqual(result.get("outcome"), outcome, result)
        good = outcome in ("present", "gone", "clean", "dirty")
        self.assertEqual(bool(result.get("failed")), not good, result)
        said = result["detail"] + json.dumps(result["evidence"])
        for word in words:
            self.assertIn(word, said)

    def assert_gone(self, account: Account) -> None:
        """Nothing of the account is there, looked at without the module's help."""
        uid = account.uid
        for table in ("passwd", "group", "shadow", "gshadow", "subuid", "subgid"):
            names = [line.split(":")[0] for line in read(f"/etc/{table}").splitlines()]
            self.assertNotIn(account.name, names, table)
        self.assertEqual(account.pids(), [])
        places = [p for p in ("/home", "/tmp", "/var", "/dev/shm", "/dev/mqueue", "/run") if os.path.isdir(p)]
        done = subprocess.run(["find", *places, "-uid", str(uid)], capture_output=True, text=True, check=False)
        self.assertEqual(done.stdout, "")
        done = subprocess.run(["ipcs", "-c"], capture_output=True, text=True, check=True)
        self.assertNotIn(str(uid), done.stdout)
        self.assertEqual(account.record()["state"], "gone")
