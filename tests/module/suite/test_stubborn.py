"""Clients that do not want to go, and mounts in the way."""

import ctypes
import json
import os
import subprocess
import sys
import unittest

from support import FORK_LOOP, UNDER_SYSTEMD, WorkerTest, command, hash_of, login, read, wait_until, write

PRECIOUS = "/var/lib/precious"
DAEMON = "setsid sh -c 'trap \"\" TERM HUP INT; while :; do sleep 1000; done' >/dev/null 2>&1 </dev/null & exit"


def mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


def dead_fuse(point: str, uid: int) -> None:
    """What a client's FUSE file system looks like when its server was killed: nobody can even look at it."""
    libc = ctypes.CDLL(None, use_errno=True)
    fuse = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={fuse},rootmode=40000,user_id={uid},group_id={uid}".encode()
    made = libc.mount(b"client", point.encode(), b"fuse.client", 0, options)
    os.close(fuse)
    assert made == 0, os.strerror(ctypes.get_errno())


@unittest.skipUnless(UNDER_SYSTEMD, "needs systemd, and the right to mount")
class Stubborn(WorkerTest):
    def precious(self, account):
        """Something of the machine's, with a file in it that the client owns."""
        os.makedirs(PRECIOUS, exist_ok=True)
        self.addCleanup(subprocess.run, ["rm", "-rf", PRECIOUS], check=True)
        return write(f"{PRECIOUS}/note", "stays", account.uid)

    def assert_stays(self, note):
        """The client's file that the machine keeps is still there; then it is nobody's any more."""
        self.assertEqual(read(note), "stays")
        os.chown(PRECIOUS, 0, 0)
        os.chown(note, 0, 0)

    def test_a_client_that_does_everything_to_stay_is_gone(self):
        account = self.account()
        account.create(password_hash=hash_of("pw"))
        self.assertEqual(login(account.name, "pw", DAEMON).returncode, 0)
        subprocess.run(["loginctl", "enable-linger", account.name], check=True)
        wait_until(lambda: os.path.exists(f"/run/user/{account.uid}/systemd/private"), "the user's systemd")
        subprocess.run(["crontab", "-u", account.name, "-"], input=b"* * * * * sleep 1000\n", check=True)
        at = ["su", account.name, "-s", "/bin/sh", "-c", "echo sleep 1000 | at now; echo true | at now + 5 hours"]
        subprocess.run(at, check=True, capture_output=True)
        note = self.precious(account)
        os.makedirs(f"{account.home}/disk/deeper")
        os.makedirs(f"{account.home}/files")
        mount("-t", "tmpfs", "tmpfs", f"{account.home}/disk")
        mount("--bind", PRECIOUS, f"{account.home}/files")
        os.makedirs(f"{account.home}/disk/inner")
        mount("--bind", PRECIOUS, f"{account.home}/disk/inner")
        # A mount with an open file does not go by umount(8).
        holder = subprocess.Popen(["sleep", "1000"], cwd=f"{account.home}/files")
        self.addCleanup(holder.wait)
        self.addCleanup(holder.kill)
        account.start(sys.executable, "-c", FORK_LOOP)
        wait_until(lambda: len(account.pids()) >= 80, "many processes")
        result = account.delete(keep_home_s=3600)
        self.assert_outcome(result, "gone", f"{account.home}/disk", f"{account.home}/files")
        self.assert_stays(note)
        self.assert_gone(account)
        self.assertNotIn(account.home, read("/proc/self/mountinfo"))
        self.assertIsNone(holder.poll(), "a process of root's was ended")
        subprocess.run(["rm", result["evidence"]["kept_home"]["path"]], check=True)

    def test_a_home_that_something_is_mounted_over_is_removed_and_what_was_mounted_is_not(self):
        account = self.account()
        account.create()
        write(f"{account.home}/under", "x", account.uid)
        note = self.precious(account)
        os.chown(PRECIOUS, account.uid, account.uid)
        mount("--bind", PRECIOUS, account.home)
        self.assert_outcome(account.delete(), "gone", account.home)
        self.assert_stays(note)
        self.assert_gone(account)

    @unittest.skipUnless(os.path.exists("/dev/fuse"), "needs FUSE")
    def test_a_dead_fuse_mount_of_the_client_is_gone_wherever_it_is(self):
        account = self.account()
        account.create()
        for point in (f"{account.home}/with blank\\", f"/tmp/of-{account.name}"):
            os.mkdir(point)
            os.chown(point, account.uid, account.uid)
            dead_fuse(point, account.uid)
            self.assertRaises(OSError, os.listdir, point)
        self.assert_outcome(account.delete(), "gone", f"/tmp/of-{account.name}")
        self.assert_gone(account)
        self.assertNotIn("fuse.client", read("/proc/self/mountinfo"))

    @unittest.skipUnless(os.path.exists("/dev/fuse"), "needs FUSE")
    def test_a_dead_fuse_mount_of_somebody_else_is_left_and_in_nobodys_way(self):
        account = self.account()
        account.create()
        os.mkdir("/tmp/of-somebody")
        dead_fuse("/tmp/of-somebody", 12345)
        try:
            self.assert_outcome(account.delete(), "gone")
            self.assertIn("fuse.client", read("/proc/self/mountinfo"))
        finally:
            subprocess.run(["umount", "/tmp/of-somebody"], check=True)
            os.rmdir("/tmp/of-somebody")

    def test_what_can_not_be_unmounted_is_named_and_left_alone(self):
        account = self.account()
        account.create()
        note = self.precious(account)
        point = f"{account.home}/files"
        os.mkdir(point)
        mount("--bind", PRECIOUS, point)
        argv, stdin = command(account.arguments("delete", 2, keep_home_s=3600))
        argv = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin", *argv]
        done = subprocess.run(argv, input=stdin, capture_output=True, text=True, check=False)
        result = json.loads(done.stdout)
        self.assert_outcome(result, "not_gone", point, "Operation not permitted")
        self.assertEqual(read(note), "stays")
        self.assertEqual((account.record()["state"], account.record()["ends_at_wall"]), ("present", 0))
        self.assertTrue(account.exists())
        result = account.delete(epoch=3, keep_home_s=3600)
        self.assert_outcome(result, "gone", point)
        self.assert_stays(note)
        self.assertTrue(result["evidence"]["kept_home"]["path"].endswith("-2.tar"))
        self.assertTrue(result["evidence"]["kept_home"]["truncated"])
        subprocess.run(["rm", result["evidence"]["kept_home"]["path"]], check=True)
        self.assert_gone(account)

    def test_an_immutable_file_of_roots_is_named_and_the_account_stays_locked(self):
        account = self.account()
        account.create(password_hash=hash_of("pw"))
        os.makedirs(f"{account.home}/inner")
        stuck = write(f"{account.home}/inner/stuck", "x")
        subprocess.run(["chattr", "+i", stuck], check=True)
        try:
            for epoch in (2, 3):
                self.assert_outcome(account.delete(epoch=epoch), "not_gone", stuck, "Operation not permitted")
                self.assertNotEqual(login(account.name, "pw").returncode, 0)
                self.assertEqual(account.pids(), [])
        finally:
            subprocess.run(["chattr", "-i", stuck], check=True)
        self.assert_outcome(account.delete(epoch=4), "gone")
        self.assert_gone(account)
