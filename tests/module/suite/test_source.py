"""The note of where the control plane's logins come from."""

import contextlib
import json
import os
import subprocess
import sys
import time

from support import MODULE, UID_BASE, LIMIT_S, WorkerTest, command, inspect, write
from test_playbooks import Play

from ansible.module_utils.orion import source


class Parsing(WorkerTest):
    def test_an_address_is_read_from_what_sshd_says(self):
        for said, address in (
            (b"203.0.113.5 40000 192.0.2.1 22", "203.0.113.5"),
            (b"2001:DB8:0::5 40000 2001:db8::1 22", "2001:db8::5"),
            (b"::ffff:203.0.113.5 40000 ::ffff:192.0.2.1 22", "203.0.113.5"),
        ):
            with self.subTest(said):
                self.assertEqual(source.parsed(said), address)

    def test_what_is_no_address_for_others_is_none(self):
        for said in (
            b"",
            b"UNKNOWN 65535 UNKNOWN 65535",
            b"fe80::1%eth0 40000 fe80::2%eth0 22",
            b"203.0.113.5",
            b"203.0.113.5 40000 192.0.2.1 22 more",
            b"203.0.113.5\n 40000 192.0.2.1 22",
            b"010.0.0.1 1 2 3",
            b"worker1 1 2 3",
            b"*,!203.0.113.5 1 2 3",
            b"\xff 1 2 3",
        ):
            with self.subTest(said):
                self.assertIsNone(source.parsed(said))


class Source(WorkerTest):
    def setUp(self):
        super().setUp()
        self.forget()
        self.addCleanup(self.forget)

    def addresses(self):
        return [address for address, _ in source.noted()]

    def forget(self):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(source.PATH)

    def test_an_inspection_over_ssh_writes_down_where_it_came_from(self):
        play = Play(self)
        _, event, _ = play.run("health_check.yml", {"uid_base": UID_BASE, "limit_s": LIMIT_S})
        self.assertEqual((event["event"], event["evidence"]["source"]), ("ok", "127.0.0.1"), event)
        self.assertEqual(self.addresses(), ["127.0.0.1"])
        self.assertLess(abs(source.noted()[0][1] - time.time()), 600)
        self.assertEqual(os.stat(source.PATH).st_mode & 0o777, 0o600)
        self.assertEqual(os.stat(os.path.dirname(source.PATH)).st_mode & 0o777, 0o700)
        first = os.stat(source.PATH)
        play.run("health_check.yml", {"uid_base": UID_BASE, "limit_s": LIMIT_S})
        self.assertGreater(os.stat(source.PATH).st_mtime_ns, first.st_mtime_ns)
        self.assertEqual([name for name in os.listdir(os.path.dirname(source.PATH)) if name.startswith("source.")], [])

    def test_without_sshd_nothing_is_written(self):
        self.assertIsNone(inspect()["evidence"]["source"])
        self.assertFalse(os.path.exists(source.PATH))

    def test_the_nearest_ancestor_decides(self):
        code = "import os, subprocess, sys; subprocess.run(sys.argv[1:], env={'PATH': os.environ['PATH']}, check=True)"
        word = '{"ANSIBLE_MODULE_ARGS": {"op": "inspect", "uid_base": 1000000}}'
        inner = [sys.executable, "-c", code, sys.executable, MODULE]
        env = os.environ | {"SSH_CONNECTION": "198.51.100.9 1 192.0.2.1 22"}
        outer = [sys.executable, "-c", "import os, subprocess, sys; os.environ['SSH_CONNECTION'] = "
                 "'::ffff:203.0.113.7 1 192.0.2.1 22'; subprocess.run(sys.argv[1:], check=True)"]
        subprocess.run(outer + inner, input=word, env=env, capture_output=True, text=True, check=True)
        self.assertEqual(self.addresses(), ["203.0.113.7"])

    def session(self, address: str, arguments: dict) -> subprocess.Popen:
        """The module, started as sshd would for somebody from `address`."""
        argv, stdin = command(arguments)
        env = os.environ | {"SSH_CONNECTION": f"{address} 1 192.0.2.1 22"}
        process = subprocess.Popen(argv, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        process.stdin.write(stdin)
        process.stdin.close()
        self.addCleanup(process.stdout.close)
        return process

    def test_every_step_writes_down_where_it_came_from_the_last_one_first(self):
        account = self.account()
        word = {"op": "inspect", "uid_base": UID_BASE, "limit_s": LIMIT_S}
        for number, arguments in enumerate((account.arguments("create", 1), account.arguments("delete", 2), word)):
            self.assertEqual(self.session(f"198.51.100.{number}", arguments).wait(), 0)
        self.assertEqual(self.addresses(), ["198.51.100.2", "198.51.100.1", "198.51.100.0"])
        self.session("198.51.100.0", word).wait()
        self.assertEqual(self.addresses(), ["198.51.100.0", "198.51.100.2", "198.51.100.1"])

    def test_steps_at_once_lose_no_address_and_only_the_last_few_are_kept(self):
        word = {"op": "inspect", "uid_base": UID_BASE, "limit_s": LIMIT_S}
        wanted = {f"198.51.100.{number}" for number in range(source.MAX_SOURCES)}
        for process in [self.session(address, word) for address in wanted]:
            self.assertEqual(process.wait(), 0)
        self.assertEqual(set(self.addresses()), wanted)
        oldest = self.addresses()[-1]
        self.session("203.0.113.1", word).wait()
        self.assertEqual(self.addresses()[0], "203.0.113.1")
        self.assertEqual(set(self.addresses()), wanted - {oldest} | {"203.0.113.1"})

    def test_a_note_of_an_older_version_is_kept_and_rubbish_is_not(self):
        write(source.PATH, "198.51.100.9\nrubbish 1\n198.51.100.8 x\n198.51.100.7 1 1\n")
        self.session("203.0.113.1", {"op": "inspect", "uid_base": UID_BASE, "limit_s": LIMIT_S}).wait()
        self.assertEqual(self.addresses(), ["203.0.113.1", "198.51.100.9"])
        self.assertEqual(source.noted()[1], ("198.51.100.9", 0))

    def test_a_note_that_somebody_keeps_locked_holds_nothing_up(self):
        with source.locked():
            process = self.session("203.0.113.1", {"op": "inspect", "uid_base": UID_BASE, "limit_s": LIMIT_S})
            result = json.loads(process.stdout.read())
        self.assertEqual((result["outcome"], result["evidence"]["source"]), ("clean", None))
        self.assertFalse(os.path.exists(source.PATH))
