"""The archive of the home that op delete keeps."""

import errno
import json
import os
import stat
import subprocess
import sys
import tarfile
import tempfile
import time
import unittest
from unittest import mock

from ansible.module_utils.orion import archive
from ansible.module_utils.orion.job import Deadline, Job
from ansible.module_utils.orion.state import ACCOUNTS_DIR
from support import UID_BASE, UNDER_SYSTEMD, WorkerTest, inspect, stand_in, write

HOMES = "/var/lib/orion-node/homes"


def members(path: str) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(path) as tar:
        return {member.name: member for member in tar}


def content(path: str, name: str) -> bytes:
    with tarfile.open(path) as tar:
        return tar.extractfile(name).read()


class KeptHome(WorkerTest):
    def setUp(self):
        super().setUp()
        self.addCleanup(subprocess.run, f"rm -rf {HOMES}/*", shell=True, check=True)

    def deleted(self, account, epoch=2):
        """What is said of the archive."""
        result = account.delete(epoch=epoch, keep_home_s=3600)
        self.assert_outcome(result, "gone")
        self.assert_gone(account)
        return result["evidence"]["kept_home"]

    def test_files_directories_and_links_are_kept_for_root_alone_until_the_time_is_over(self):
        account = self.account()
        account.create()
        account.python(
            f"import os; os.chdir('{account.home}'); os.umask(0o022); os.makedirs('project/deep')\n"
            "open('project/deep/note', 'w').write('mine'); os.link('project/deep/note', 'twin')\n"
            "os.symlink('/etc/shadow', 'link'); open(b'odd\\n\\xff', 'w').close(); os.chmod('project/deep/note', 0o4751)"
        )
        before = time.time()
        kept = self.deleted(account)
        self.assertEqual(kept["path"], f"{HOMES}/{account.uid}-2.tar")
        self.assertFalse(kept["truncated"])
        info = os.lstat(kept["path"])
        self.assertEqual(kept["bytes"], info.st_size)
        self.assertEqual((info.st_uid, info.st_gid, stat.S_IMODE(info.st_mode)), (0, 0, 0o600))
        self.assertEqual(stat.S_IMODE(os.lstat(HOMES).st_mode), 0o700)
        self.assertTrue(before + 3600 <= info.st_mtime <= time.time() + 3600)
        found, name = members(kept["path"]), account.name
        self.assertEqual(found[f"{name}/link"].linkname, "/etc/shadow")
        pair = [found[f"{name}/twin"], found[f"{name}/project/deep/note"]]
        self.assertEqual(sorted(member.type for member in pair), [tarfile.REGTYPE, tarfile.LNKTYPE])
        self.assertEqual({member.mode for member in pair}, {0o751})
        self.assertEqual(content(kept["path"], f"{name}/twin"), b"mine")
        self.assertIn(f"{name}/odd\n\udcff", found)
        self.assertTrue(found[f"{name}/project/deep"].isdir())
        self.assertEqual(kept["files"], sum(member.isreg() for member in found.values()))

    def test_without_a_time_nothing_is_kept(self):
        account = self.account()
        account.create()
        self.assertNotIn("kept_home", account.delete()["evidence"])
        self.assertFalse(os.path.exists(f"{HOMES}/{account.uid}-2.tar"))

    def test_a_time_that_is_none_is_refused(self):
        account = self.account()
        self.assert_outcome(account.delete(keep_home_s=-1), "refused", "keep_home_s")

    def test_a_worker_with_an_archive_is_clean(self):
        account = self.account()
        account.create()
        self.deleted(account)
        self.assert_outcome(inspect(), "clean")

    def test_pipes_sockets_and_devices_are_not_opened(self):
        account = self.account()
        account.create()
        account.python(
            f"import os, socket; os.chdir('{account.home}'); os.mkfifo('pipe'); socket.socket(1).bind('socket')"
        )
        os.mknod(f"{account.home}/null", 0o600 | stat.S_IFREG)
        if UNDER_SYSTEMD:
            os.mknod(f"{account.home}/tty", 0o666 | stat.S_IFCHR, os.makedev(5, 0))
        kept = self.deleted(account)
        self.assertFalse(kept["truncated"])
        names = {os.path.basename(name) for name in members(kept["path"])}
        self.assertTrue({".bashrc", "null"} <= names)
        self.assertFalse({"pipe", "socket", "tty"} & names)

    def test_a_sparse_bomb_leaves_room_for_the_rest(self):
        account = self.account()
        account.create()
        account.python(
            f"import os; os.chdir('{account.home}'); open('aaa', 'w').truncate(1 << 40)\n"
            "open('bbb', 'w').truncate(1 << 40); open('zzz', 'w').write('x' * 3000000)"
        )
        kept = self.deleted(account)
        self.assertTrue(kept["truncated"])
        names = {os.path.basename(name) for name in members(kept["path"])}
        self.assertTrue({".bashrc", "zzz"} <= names)
        self.assertFalse({"aaa", "bbb"} & names)

    def test_a_repeated_delete_keeps_the_first_archive(self):
        """The first one keeps the home and removes it, and then can't go on."""
        account = self.account()
        account.create()
        write(f"{account.home}/note", "mine", account.uid)
        with stand_in("userdel", "exit 1"):
            self.assert_outcome(account.delete(epoch=2, keep_home_s=3600), "failed", "userdel")
        self.assertFalse(os.path.exists(account.home))
        for epoch in (3, 3, 4):
            kept = self.deleted(account, epoch)
            self.assertEqual(kept["path"], f"{HOMES}/{account.uid}-2.tar")
            self.assertEqual((kept["files"] > 1, kept["truncated"]), (True, False))
        self.assertEqual(content(kept["path"], f"{account.name}/note"), b"mine")

    def test_an_emptier_home_does_not_replace_a_good_archive(self):
        """The first one can't remove everything; the second finds what is left."""
        account = self.account()
        account.create()
        write(f"{account.home}/note", "mine", account.uid)
        with stand_in("userdel", "exit 1"):
            account.delete(epoch=2, keep_home_s=3600)
        os.mkdir(account.home, 0o700)
        write(f"{account.home}/other", "left", account.uid)
        os.chown(account.home, account.uid, account.uid)
        kept = self.deleted(account, 3)
        self.assertEqual(content(kept["path"], f"{account.name}/note"), b"mine")
        self.assertEqual(os.listdir(HOMES), [f"{account.uid}-2.tar"])

    def test_an_archive_that_was_broken_off_is_not_tried_again(self):
        """Its job was killed on a slow disk: the next one would be, too, and nothing ever removed."""
        account = self.account()
        account.create()
        path = f"{account.uid}.json"
        with open(f"{ACCOUNTS_DIR}/{path}", encoding="utf-8") as file:
            record = json.load(file)
        record |= {"epoch": 2, "ends_at_wall": 0, "kept_home": {"path": f"{HOMES}/{account.uid}-2.tar"}}
        write(f"{ACCOUNTS_DIR}/{path}", json.dumps(record))
        os.makedirs(HOMES, exist_ok=True)
        write(f"{HOMES}/{account.uid}-2.tar.new", "half")
        # The last is one whose predecessor's answer was lost.
        for epoch in (3, 4):
            kept = self.deleted(account, epoch)
            self.assertEqual(kept, {"path": None, "truncated": True, "error": "broken off"})
            self.assertEqual(os.listdir(HOMES), [])

    def test_an_account_that_is_made_anew_has_an_archive_of_its_own(self):
        account = self.account()
        account.create()
        self.deleted(account)
        account.create(epoch=5)
        write(f"{account.home}/second", "life", account.uid)
        kept = self.deleted(account, 6)
        self.assertEqual(content(kept["path"], f"{account.name}/second"), b"life")
        self.assertEqual(sorted(os.listdir(HOMES)), [f"{account.uid}-{epoch}.tar" for epoch in (2, 6)])

    def test_an_archive_that_can_not_be_written_keeps_nobody(self):
        account = self.account()
        account.create()
        subprocess.run(["rm", "-rf", HOMES], check=True)
        write(HOMES, "in the way")
        self.addCleanup(lambda: os.path.isfile(HOMES) and os.unlink(HOMES))
        kept = self.deleted(account)
        self.assertIsNone(kept["path"])
        self.assertTrue(kept["error"])
        os.unlink(HOMES)

    @unittest.skipUnless(UNDER_SYSTEMD, "needs the right to mount")
    def test_a_full_disk_keeps_nobody(self):
        account = self.account()
        account.create()
        os.makedirs(HOMES, exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", HOMES], check=True)
        self.addCleanup(subprocess.run, ["umount", HOMES], check=True)
        subprocess.run(f"cat /dev/zero >{HOMES}/of-others", shell=True, check=False, stderr=subprocess.DEVNULL)
        kept = self.deleted(account)
        self.assertEqual((kept["path"], kept["error"]), (None, "No space left on device"))
        self.assertEqual(os.listdir(HOMES), ["of-others"])

    @unittest.skipUnless(UNDER_SYSTEMD, "needs the right to mount")
    def test_on_a_small_disk_half_of_what_is_free_is_used(self):
        account = self.account()
        account.create()
        for number in range(40):
            write(f"{account.home}/{number}", "x" * 200_000, account.uid)
        os.makedirs(HOMES, exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", HOMES], check=True)
        self.addCleanup(subprocess.run, ["umount", HOMES], check=True)
        kept = self.deleted(account)
        self.assertTrue(kept["truncated"])
        self.assertTrue(500_000 < kept["bytes"] <= 2 << 20, kept)
        self.assertLess(len(members(kept["path"])), 20)


class Bounds(unittest.TestCase):
    """The writer alone, with limits that a test reaches."""

    def filled(self, make, seconds=60.0, budget=100 << 20, **limits):
        """An archive of the directory that `make` has filled."""
        with tempfile.TemporaryDirectory(dir="/var/tmp") as top:
            os.mkdir(f"{top}/home")
            make(f"{top}/home")
            fd = os.open(f"{top}/home", os.O_RDONLY | os.O_DIRECTORY)
            try:
                limits = {"MAX_ENTRIES": archive.MAX_ENTRIES} | limits
                with mock.patch.multiple(archive, **limits), open(f"{top}/tar", "wb") as file:
                    made = archive.Archive(file, budget, Deadline(seconds))
                    made.fill(fd, "home")
                self.assertLessEqual(os.path.getsize(f"{top}/tar"), max(budget, 10240))
                return made, members(f"{top}/tar")
            finally:
                os.close(fd)

    def test_small_files_come_first_and_what_does_not_fit_is_left_out(self):
        def make(home):
            for name, size in (("a", 5 << 20), ("b", 1000), ("c", 2 << 20)):
                write(f"{home}/{name}", "x" * size)

        made, found = self.filled(make, budget=3 << 20)
        self.assertEqual(list(found), ["home/b", "home/c"])
        self.assertEqual((made.files, made.truncated), (2, True))

    def test_nothing_is_left_of_an_archive_that_can_not_be_finished_or_has_no_room(self):
        job = Job(uid_base=UID_BASE, deadline=Deadline(60), uid=UID_BASE, name="home", keep_home_s=60)
        home = os.open("/etc/skel", os.O_RDONLY | os.O_DIRECTORY)
        self.addCleanup(os.close, home)
        full = OSError(errno.ENOSPC, "full")
        for fault in ({"os.fsync": mock.Mock(side_effect=full)}, {"room": lambda: archive.MARGIN_BYTES}):
            with (
                self.subTest(fault),
                tempfile.TemporaryDirectory(dir="/var/tmp") as top,
                mock.patch.object(archive, "HOMES_DIR", top),
                mock.patch(f"{archive.__name__}.{next(iter(fault))}", next(iter(fault.values()))),
            ):
                with self.assertRaises(OSError) as raised:
                    archive.keep(job, home, f"{top}/x.tar", Deadline(60))
                self.assertEqual((raised.exception.errno, os.listdir(top)), (errno.ENOSPC, []))

    def test_endless_names_end(self):
        def make(home):
            for number in range(300):
                write(f"{home}/{number}", "x")

        made, found = self.filled(make, MAX_ENTRIES=100)
        self.assertEqual((len(found), made.truncated), (100, True))
        made, found = self.filled(make, MAX_PATH_BYTES=7)
        self.assertEqual((len(found), made.truncated), (100, True))

    def test_a_time_that_is_over_in_the_middle_of_a_file_leaves_a_good_archive(self):
        def make(home):
            write(f"{home}/small", "x")
            write(f"{home}/large", "x" * (8 << 20))

        ticks = iter([1.0] * 7 + [0.0] * 100)
        with mock.patch.object(Deadline, "left", lambda _: next(ticks)):
            made, found = self.filled(make)
        self.assertEqual((list(found), made.truncated), (["home/small"], True))

    def test_a_file_that_shrinks_while_it_is_read_keeps_its_size(self):
        read_it = archive.Contents(open(os.devnull, "rb"), lambda: None)
        self.assertEqual(read_it.read(10), b"\0" * 10)

    def test_a_deep_tree_ends(self):
        def make(home):
            code = "import os\nos.chdir(os.environ['TOP'])\nfor n in range(200): os.mkdir('d'); os.chdir('d')"
            subprocess.run([sys.executable, "-c", code], env={"TOP": home}, check=True)

        made, found = self.filled(make)
        self.assertTrue(made.truncated)
        self.assertEqual(len(found), 64)
