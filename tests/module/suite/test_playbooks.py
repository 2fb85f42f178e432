"""The three playbooks and the callback, through ansible-playbook and a real sshd."""

import json
import os
import subprocess
import tempfile
import unittest

from support import HASH, LIMIT_S, PLAYBOOKS, UID_BASE, UNDER_SYSTEMD, WorkerTest, read, wait_until, write

CONFIG = """[defaults]
library = {playbooks}/library
module_utils = {playbooks}/module_utils
callback_plugins = {playbooks}/callback_plugins
callbacks_enabled = orion_events
stdout_callback = default
private_key_file = {play}/key
interpreter_python = /usr/bin/python3
local_tmp = {play}/tmp
timeout = 60
nocolor = True
[ssh_connection]
pipelining = True
ssh_args = -F none -o ControlMaster=no -o StrictHostKeyChecking=yes -o UserKnownHostsFile={play}/known_hosts
"""
SECRET = HASH.rpartition("$")[2]


class Play:
    """A private directory as orion-schedd makes one, with this machine as `node-1`."""

    def __init__(self, test: unittest.TestCase) -> None:
        self.dir = tempfile.mkdtemp(prefix="play-")
        test.addCleanup(subprocess.run, ["rm", "-rf", self.dir], check=True)
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", f"{self.dir}/key"], check=True)
        os.makedirs("/home/orion-node/.ssh", exist_ok=True)
        write("/home/orion-node/.ssh/authorized_keys", read(f"{self.dir}/key.pub"))
        host_key = " ".join(read("/etc/ssh/ssh_host_ed25519_key.pub").split()[:2])
        write(f"{self.dir}/known_hosts", f"node-1 {host_key}\nnode-2 {read(f'{self.dir}/key.pub')}")
        write(f"{self.dir}/ansible.cfg", CONFIG.format(play=self.dir, playbooks=PLAYBOOKS))
        self.events: list[dict] = []
        self.text = ""

    def run(self, playbook: str, arguments: dict, hosts: tuple[str, ...] = ("node-1",), **more: object) -> list[dict]:
        """Run the playbook with -v; its events."""
        process = self.start(playbook, arguments, hosts, **more)
        stdout, stderr = process.communicate()
        said = read(f"{self.dir}/events.jsonl")
        self.text = stdout + stderr + said
        self.events = [json.loads(line) for line in said.splitlines()]
        os.unlink(f"{self.dir}/events.jsonl")
        return self.events

    def start(
        self, playbook: str, arguments: dict, hosts: tuple[str, ...] = ("node-1",), **more: object
    ) -> subprocess.Popen:
        """Start the playbook with -v."""
        inventory = {"all": {"vars": {"orion_host_timeout_s": 3 * LIMIT_S} | more, "hosts": {}}}
        for host in hosts:
            inventory["all"]["hosts"][host] = {
                "ansible_host": "127.0.0.1",
                "ansible_user": "orion-node",
                "ansible_ssh_common_args": f"-o HostKeyAlias={host}",
                "orion_account": {k: v for k, v in arguments.items() if k != "op"},
            }
        write(f"{self.dir}/inventory.json", json.dumps(inventory))
        env = {
            "PATH": "/usr/bin:/bin",
            "LC_ALL": "C.UTF-8",
            "HOME": self.dir,
            "ANSIBLE_HOME": self.dir,
            "ANSIBLE_CONFIG": f"{self.dir}/ansible.cfg",
            "ORION_EVENTS": f"{self.dir}/events.jsonl",
        }
        argv = ["ansible-playbook", "-v", "-i", f"{self.dir}/inventory.json", os.path.join(PLAYBOOKS, playbook)]
        pipe = subprocess.PIPE
        return subprocess.Popen(argv, env=env, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True)

    def stub(self, code: str) -> str:
        """Put a module with that code in the place of orion_account; the playbook to run it with."""
        os.mkdir(f"{self.dir}/stub")
        write(f"{self.dir}/stub/orion_account.py", f"#!/usr/bin/python3\nimport json\n{code}\n")
        config = f"{self.dir}/ansible.cfg"
        write(config, read(config).replace(f"library = {PLAYBOOKS}/library", f"library = {self.dir}/stub"))
        return write(f"{self.dir}/stub/book.yml", read(f"{PLAYBOOKS}/create_user.yml"))


class Playbooks(WorkerTest):
    def test_create_inspect_and_delete_run_over_ssh_and_say_what_they_saw(self):
        play, account = Play(self), self.account()
        start, event, end = play.run("create_user.yml", account.arguments("create", 1))
        self.assertEqual((start["event"], start["host"], end), ("start", "node-1", {"event": "end"}))
        self.assertEqual((event["event"], event["host"], event["outcome"]), ("ok", "node-1", "present"), event)
        self.assertEqual(event["evidence"]["uid"], account.uid)
        _, event, _ = play.run("health_check.yml", {"uid_base": UID_BASE, "limit_s": LIMIT_S})
        self.assertEqual((event["event"], event["outcome"]), ("ok", "dirty"))
        _, event, _ = play.run("delete_user.yml", account.arguments("delete", 2))
        self.assertEqual((event["event"], event["outcome"]), ("ok", "gone"))
        _, event, _ = play.run("health_check.yml", {"uid_base": UID_BASE, "limit_s": LIMIT_S})
        self.assertEqual((event["event"], event["outcome"]), ("ok", "clean"))

    def test_what_is_asked_beside_the_account_reaches_the_module(self):
        play, account = Play(self), self.account()
        for moved in (True, False):
            play.run("create_user.yml", account.arguments("create", 1, moved=moved))
            self.assertEqual("former machine" in read("/etc/motd.d/orion"), moved)
        _, event, _ = play.run("delete_user.yml", account.arguments("delete", 2, keep_home_s=60))
        self.assertEqual((event["event"], event["outcome"]), ("ok", "gone"))
        os.unlink(event["evidence"]["kept_home"]["path"])

    def test_a_failure_keeps_its_outcome_detail_and_evidence(self):
        play, account = Play(self), self.account()
        play.run("delete_user.yml", account.arguments("delete", 2))
        _, event, _ = play.run("create_user.yml", account.arguments("create", 1))
        self.assertEqual((event["event"], event["outcome"]), ("failed", "stale_epoch"))
        self.assertIn("epoch 2", event["detail"])
        self.assertEqual(event["evidence"], {"epoch_seen": 2})

    def test_the_hash_is_nowhere_to_be_read(self):
        play, account = Play(self), self.account()
        for arguments in (
            account.arguments("create", 1),
            account.arguments("create", 2, name="root"),
            account.arguments("create", 3, uid=5),
        ):
            play.run("create_user.yml", arguments)
            self.assertTrue(play.events[1]["outcome"], play.text)
            self.assertNotIn(SECRET, play.text)
        if UNDER_SYSTEMD:
            journal = subprocess.run(["journalctl", "--no-pager"], capture_output=True, text=True, check=True).stdout
            self.assertIn("orion_account", journal)
            self.assertNotIn(SECRET, journal)

    def test_the_hash_of_a_module_that_crashes_is_not_in_the_events(self):
        play, account = Play(self), self.account()
        book = play.stub(f"raise RuntimeError('{HASH}')")
        _, event, _ = play.run(book, account.arguments("create", 1))
        self.assertEqual((event["event"], event["outcome"], event["reason"]), ("failed", None, None))
        self.assertNotIn(SECRET, json.dumps(event))
        self.assertIn("[hash]", event["detail"])

    def test_long_and_odd_answers_are_cut_and_made_printable(self):
        play, account = Play(self), self.account()
        answer = {"outcome": "present", "detail": "a\n\x1b[31m" + "b" * 5000, "evidence": {"list": ["c" * 300] * 100}}
        book = play.stub(f"print(json.dumps({answer!r}))")
        _, event, _ = play.run(book, account.arguments("create", 1))
        self.assertEqual((event["event"], event["outcome"]), ("ok", "present"))
        self.assertTrue(event["detail"].startswith("a [31mbbb"), event["detail"][:20])
        self.assertLessEqual(len(event["detail"]), 2000)
        self.assertEqual(list(event["evidence"]), ["too_long"])

    def test_long_names_of_files_hide_no_account(self):
        play, account = Play(self), self.account()
        account.create()
        for number in range(20):
            write(f"/tmp/{number:02}{'é' * 120}", "x", account.uid)
        _, event, _ = play.run("health_check.yml", {"uid_base": UID_BASE, "limit_s": LIMIT_S})
        evidence = event["evidence"]
        self.assertEqual((event["outcome"], evidence["counts"]["accounts"]), ("dirty", 1))
        self.assertEqual([seen["uid"] for seen in evidence["accounts"]], [account.uid])
        self.assertEqual(evidence["max_uid"], account.uid)
        self.assertNotIn("files", evidence)
        self.assertIn("processes", evidence)

    def test_events_are_there_at_once_and_whole_after_a_kill(self):
        play, account = Play(self), self.account()
        book = play.stub("import time; time.sleep(60)")
        process = play.start(book, account.arguments("create", 1))
        events = f"{play.dir}/events.jsonl"
        wait_until(lambda: os.path.exists(events) and read(events).endswith("\n"), "the first event")
        self.assertIsNone(process.poll())
        process.kill()
        process.communicate()
        self.assertEqual([json.loads(line)["event"] for line in read(events).splitlines()], ["start"])

    def test_reasons_tell_a_wrong_host_key_from_an_unknown_one(self):
        play, account = Play(self), self.account()
        events = play.run("create_user.yml", account.arguments("create", 1), ("node-1", "node-2", "node-3"))
        said = {
            e["host"]: (e["event"], e["outcome"], e.get("reason")) for e in events if e["event"] not in ("start", "end")
        }
        self.assertEqual(said["node-1"], ("ok", "present", None))
        self.assertEqual(said["node-2"], ("unreachable", None, "host_key_mismatch"))
        self.assertEqual(said["node-3"], ("unreachable", None, "host_key_unknown"))

    def test_a_host_that_hangs_ends_at_its_own_limit(self):
        play, account = Play(self), self.account()
        account.create()
        lock = subprocess.Popen(["flock", "/var/lib/orion-node/lock", "sleep", "300"])
        self.addCleanup(lock.wait)
        self.addCleanup(lock.kill)
        self.addCleanup(subprocess.run, ["pkill", "-P", str(lock.pid)], check=False)
        _, event, _ = play.run("delete_user.yml", account.arguments("delete", 2, limit_s=300), orion_host_timeout_s=15)
        self.assertEqual((event["event"], event["outcome"], event["reason"]), ("failed", None, "timeout"))
