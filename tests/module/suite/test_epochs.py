"""The epoch decides, whatever comes late, twice or at the same time."""

import fcntl
import json
import os
import random
import subprocess

from support import HASH, WorkerTest, command, hash_of, login, read


class Epochs(WorkerTest):
    def test_a_late_create_does_not_undo_a_newer_delete(self):
        account = self.account()
        account.create(epoch=1)
        account.delete(epoch=2)
        for epoch in (1, 2):
            self.assert_outcome(account.create(epoch=epoch), "stale_epoch")
            self.assert_gone(account)

    def test_a_create_that_comes_after_its_delete_makes_nothing(self):
        account = self.account()
        self.assert_outcome(account.delete(epoch=5), "gone")
        self.assert_outcome(account.create(epoch=4), "stale_epoch")
        self.assert_gone(account)

    def test_a_late_delete_does_not_undo_a_newer_create(self):
        account = self.account()
        account.create(epoch=3, password_hash=hash_of("pw"))
        process = account.start("sleep", "1000")
        result = account.delete(epoch=2)
        self.assert_outcome(result, "stale_epoch")
        self.assertEqual(result["evidence"]["epoch_seen"], 3)
        self.assertIsNone(process.poll())
        process.kill()
        process.wait()
        self.assertEqual(login(account.name, "pw").stdout, "let-in\n")

    def test_a_newer_create_after_a_delete_makes_the_account_anew(self):
        account = self.account()
        account.create(epoch=1)
        account.delete(epoch=2)
        self.assert_outcome(account.create(epoch=3), "present")
        self.assertTrue(account.exists())

    def test_a_uid_that_is_recorded_under_another_name_is_not_made(self):
        account = self.account()
        account.create(epoch=1)
        account.delete(epoch=2)
        account.name = "somebodyelse"
        self.assert_outcome(account.create(epoch=3), "failed", "recorded")

    def test_at_the_same_time_the_highest_epoch_wins(self):
        dice = random.Random(7)
        for round_number in range(12):
            account = self.account()
            steps = [("create", 1), ("delete", 2)] if round_number % 2 else [("create", 2), ("delete", 1)]
            dice.shuffle(steps)
            running = []
            for op, epoch in steps + steps:
                argv, stdin = command(account.arguments(op, epoch))
                process = subprocess.Popen(
                    argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
                )
                process.stdin.write(stdin)
                process.stdin.close()
                running.append((op, epoch, process))
            for op, epoch, process in running:
                result = json.loads(process.stdout.read())
                process.wait()
                process.stdout.close()
                best = {"create": "present", "delete": "gone"}[op]
                allowed = (best,) if epoch == 2 else (best, "stale_epoch")
                self.assertIn(result["outcome"], allowed, result)
            with self.subTest(steps=steps):
                if ("delete", 2) in steps:
                    self.assert_gone(account)
                else:
                    self.assertTrue(account.exists())
                    self.assertIn(HASH, read("/etc/shadow"))
                    self.assertEqual(account.record()["epoch"], 2)

    def test_the_wait_for_the_lock_is_bounded(self):
        account = self.account()
        account.create()
        fd = os.open("/var/lib/orion-node/lock", os.O_RDWR)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            self.assert_outcome(account.delete(limit_s=2), "failed", "lock")
        finally:
            os.close(fd)
        self.assertTrue(account.exists())
