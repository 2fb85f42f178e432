"""kill -9 at any act, then the same step again: it converges."""

import json
import os
import platform
import subprocess
import sys
import tarfile
import unittest

from ansible.module_utils.orion.archive import HOMES_DIR
from support import MODULE, UNDER_SYSTEMD, WorkerTest, write

HERE = os.path.dirname(os.path.abspath(__file__))


def debian_version() -> str:
    return platform.freedesktop_os_release()["VERSION_ID"]


def run_killed(arguments: dict, act: int, mode: str) -> bool:
    """Whether the module was killed, i.e. has that many acts."""
    done = subprocess.run(
        [sys.executable, f"{HERE}/killed.py", str(act), mode],
        input=json.dumps({"ANSIBLE_MODULE_ARGS": arguments}),
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"ORION_MODULE": MODULE},
    )
    assert done.returncode in (-9, 3), done
    return done.returncode == -9


@unittest.skipUnless(UNDER_SYSTEMD, "once for each Debian is enough")
class Killed(WorkerTest):
    def acts(self, least: int):
        """The numbers of the acts, each with both ways to be killed, until there are no more."""
        for mode, fewest in (("before", least), ("during", 2)):
            for act in range(1, 200):
                self.went_on = False
                yield act, mode
                if not self.went_on:
                    self.assertGreater(act, fewest, f"only {act - 1} acts were seen, {mode}")
                    break

    def test_a_create_that_was_killed_anywhere_is_done_by_the_next_or_undone_by_a_delete(self):
        # Every second act is followed by the one, the others by the other: here these, on the other Debian those.
        turn = int(debian_version()) % 2
        for act, mode in self.acts(least=12):
            account = self.account()
            with self.subTest(act=act, mode=mode):
                self.went_on = run_killed(account.arguments("create", 1), act, mode)
                if act % 2 == turn:
                    self.assert_outcome(account.create(epoch=1), "present")
                self.assert_outcome(account.delete(), "gone")
                self.assert_gone(account)

    def test_a_delete_that_was_killed_anywhere_is_done_by_the_next_one(self):
        broken_off = 0
        for act, mode in self.acts(least=8):
            account = self.account()
            with self.subTest(act=act, mode=mode):
                account.create()
                process = account.start("sleep", "1000")
                write(f"/tmp/of-{account.name}", "x", account.uid)
                write(f"{account.home}/note", "mine", account.uid)
                self.went_on = run_killed(account.arguments("delete", 2, keep_home_s=60), act, mode)
                if account.record()["epoch"] == 2:
                    self.assert_outcome(account.create(epoch=1), "stale_epoch")
                result = account.delete(epoch=3, keep_home_s=60)
                self.assert_outcome(result, "gone")
                self.assert_gone(account)
                self.assertEqual(process.wait(5), -9)
                kept = result["evidence"]["kept_home"]
                self.assertFalse([name for name in os.listdir(HOMES_DIR) if name.endswith(".new")])
                if kept["path"] is None:
                    # Killed while it made the archive: not tried again.
                    self.assertEqual(kept["error"], "broken off")
                    broken_off += 1
                    continue
                with tarfile.open(kept["path"]) as tar:
                    self.assertIn(f"{account.name}/note", tar.getnames())
        # From the plan's being in place until the archive is.
        self.assertTrue(1 <= broken_off <= 8, broken_off)
