"""op inspect."""

import os
import sys

from support import STATE, UID_BASE, WorkerTest, inspect, wait_until, write


class Inspect(WorkerTest):
    def test_an_untouched_worker_is_clean(self):
        result = inspect()
        self.assert_outcome(result, "clean")
        self.assertEqual(result["evidence"]["accounts"], [])
        self.assertTrue(result["evidence"]["sshd_password_ok"])
        self.assertEqual(result["evidence"]["python"], ".".join(map(str, sys.version_info[:3])))
        self.assertIn("Debian", result["evidence"]["os"])

    def test_an_account_is_dirty_until_it_is_deleted(self):
        account = self.account()
        account.create(epoch=7)
        result = inspect()
        self.assert_outcome(result, "dirty", account.home)
        self.assertEqual(
            result["evidence"]["accounts"],
            [{"uid": account.uid, "name": account.name, "epoch": 7, "state": "present", "locked": False}],
        )
        account.delete(epoch=8)
        result = inspect()
        self.assert_outcome(result, "clean")
        self.assertEqual(result["evidence"]["max_uid"], account.uid)

    def test_a_process_without_an_account_is_dirty(self):
        account = self.account()
        process = account.start("sleep", "1000")
        wait_until(account.pids, "the process")
        result = inspect()
        self.assert_outcome(result, "dirty")
        self.assertEqual(result["evidence"]["processes"], [{"pid": process.pid, "uid": account.uid}])
        self.assertEqual(result["evidence"]["max_uid"], account.uid)
        process.kill()
        process.wait()

    def test_a_file_without_an_account_is_dirty(self):
        account = self.account()
        for place in ("/tmp", "/var/tmp", "/dev/shm", "/home", "/var/mail", "/var/spool/cron/crontabs"):
            with self.subTest(place):
                path = write(f"{place}/stray", "x", account.uid)
                self.assert_outcome(inspect(), "dirty", os.path.realpath(path))
                os.unlink(path)
        self.assert_outcome(inspect(), "clean")

    def test_a_record_without_an_account_is_dirty(self):
        account = self.account()
        account.create()
        account.delete()
        record = f"{STATE}/{account.uid}.json"
        with open(record, encoding="utf-8") as file:
            text = file.read()
        write(record, text.replace('"gone"', '"present"'))
        self.assert_outcome(inspect(), "dirty", account.name)

    def test_uids_outside_the_managed_range_do_not_count(self):
        path = write("/tmp/of-somebody", "x", UID_BASE - 1)
        self.addCleanup(os.unlink, path)
        self.assert_outcome(inspect(), "clean")
