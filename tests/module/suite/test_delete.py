"""op delete."""

import os
import subprocess
import sys
import threading
import time
import unittest

from support import FORK_LOOP, UNDER_SYSTEMD, WorkerTest, hash_of, login, read, wait_until, write

THREAD_STAYS = """
import ctypes, threading, time
threading.Thread(target=time.sleep, args=(1000,)).start()
ctypes.CDLL(None).pthread_exit(None)
"""
HOPPER = """
import os
while True:
    if os.fork():
        os._exit(0)
"""


class Delete(WorkerTest):
    def test_nothing_of_the_account_is_left(self):
        account = self.account()
        account.create(password_hash=hash_of("pw"))
        self.assertEqual(login(account.name, "pw").stdout, "let-in\n")
        self.assert_outcome(account.delete(), "gone")
        self.assert_gone(account)
        self.assertNotEqual(login(account.name, "pw").returncode, 0)

    def test_repeating_it_is_gone_again(self):
        account = self.account()
        account.create()
        account.delete()
        self.assert_outcome(account.delete(), "gone")
        self.assert_outcome(account.delete(epoch=3), "gone")

    def test_what_never_was_is_gone(self):
        account = self.account()
        self.assert_outcome(account.delete(epoch=1), "gone")
        self.assert_gone(account)

    def test_daemons_and_sessions_end(self):
        account = self.account()
        account.create(password_hash=hash_of("pw"))
        daemons = "setsid -f sleep 1000 >/dev/null 2>&1 </dev/null; nohup sleep 1001 >/dev/null 2>&1 & exit"
        done = login(account.name, "pw", daemons)
        self.assertEqual(done.returncode, 0, done.stderr)
        session = threading.Thread(target=login, args=(account.name, "pw", "sleep 1002"))
        session.start()
        self.addCleanup(session.join)
        wait_until(lambda: len(account.pids()) >= 4, "daemons and a session")
        self.assert_outcome(account.delete(), "gone")
        self.assert_gone(account)

    def test_a_process_with_only_its_saved_uid_left_ends(self):
        account = self.account()
        account.create()
        other = 12345
        code = f"import os, time; os.setresuid({other}, {other}, {account.uid}); time.sleep(1000)"
        process = subprocess.Popen([sys.executable, "-c", code])
        saved = f"\t{other}\t{other}\t{account.uid}\t"
        wait_until(lambda: saved in read(f"/proc/{process.pid}/status"), "the change of uid")
        self.assert_outcome(account.delete(), "gone")
        self.assertEqual(process.wait(5), -9)

    def test_a_process_whose_first_thread_ended_ends(self):
        account = self.account()
        account.create()
        process = account.start(sys.executable, "-c", THREAD_STAYS)
        wait_until(lambda: "State:\tZ" in read(f"/proc/{process.pid}/status"), "the end of the first thread")
        self.assert_outcome(account.delete(), "gone")
        self.assertEqual(process.wait(5), -9)

    def test_a_fork_loop_loses(self):
        account = self.account()
        account.create()
        account.start(sys.executable, "-c", FORK_LOOP)
        wait_until(lambda: len(account.pids()) >= 100, "a hundred processes")
        self.assert_outcome(account.delete(), "gone")
        self.assertEqual(account.pids(), [])

    def test_a_process_that_changes_its_pid_all_the_time_loses(self):
        account = self.account()
        account.create()
        first = account.start(sys.executable, "-c", HOPPER)
        first.wait(10)
        self.assert_outcome(account.delete(), "gone")
        time.sleep(0.1)
        self.assertEqual(account.pids(), [])

    def test_crontab_at_job_linger_mail_and_temporary_files_go(self):
        account = self.account()
        account.create()
        subprocess.run(["crontab", "-u", account.name, "-"], input=b"* * * * * true\n", check=True)
        at = ["su", account.name, "-s", "/bin/sh", "-c", "echo true | at now + 5 hours"]
        subprocess.run(at, check=True, capture_output=True)
        os.makedirs("/var/lib/systemd/linger", exist_ok=True)
        write(f"/var/lib/systemd/linger/{account.name}", "")
        write(f"/var/mail/{account.name}", "mail", account.uid)
        os.makedirs(f"/run/user/{account.uid}/deep", exist_ok=True)
        os.chown(f"/run/user/{account.uid}", account.uid, account.uid)
        places = [p for p in ("/tmp", "/var/tmp", "/dev/shm", "/run/lock", "/dev/mqueue") if os.path.isdir(p)]
        for place in places:
            os.mknod(f"{place}/of-{account.name}", 0o600)
            os.chown(f"{place}/of-{account.name}", account.uid, account.uid)
        os.makedirs("/tmp/of-root/deeper", exist_ok=True)
        write("/tmp/of-root/deeper/of-client", "x", account.uid)
        write("/tmp/of-root/deeper/of-root", "x")
        account.python(
            "import os; os.makedirs('/tmp/tree/a/b')\n"
            "open('/tmp/tree/a/b/\\nodd\\udcff \\x1b', 'w'); os.chmod('/tmp/tree/a', 0)"
        )
        self.assert_outcome(account.delete(), "gone")
        self.assert_gone(account)
        self.assertFalse(os.path.exists(f"/var/lib/systemd/linger/{account.name}"))
        self.assertEqual(os.listdir("/tmp/of-root/deeper"), ["of-root"])

    def test_system_v_ipc_goes(self):
        account = self.account()
        account.create()
        other = self.account()
        other.create()
        for one in (account, other):
            for kind in (("-M", "4096"), ("-Q",), ("-S", "2")):
                subprocess.run(
                    ["ipcmk", *kind],
                    user=one.uid,
                    group=one.uid,
                    extra_groups=[],
                    check=True,
                    stdout=subprocess.DEVNULL,
                )
        listed = subprocess.run(["ipcs", "-c"], capture_output=True, text=True, check=True).stdout
        self.assert_outcome(account.delete(), "gone")
        self.assert_gone(account)
        left = subprocess.run(["ipcs", "-c"], capture_output=True, text=True, check=True).stdout
        self.assertGreaterEqual(left.count(other.name), 3)
        self.assertEqual(left.count(other.name), listed.count(other.name))

    def test_a_very_deep_tree_goes(self):
        account = self.account()
        account.create()
        # Docker's file system ends at PATH_MAX; tmpfs, which /tmp is under systemd, does not.
        for place, depth in ((account.home, 1000), ("/tmp", 3000 if UNDER_SYSTEMD else 1000)):
            code = f"import os; os.chdir('{place}')\nfor n in range({depth}): os.mkdir('d'); os.chdir('d')"
            account.python(code)
        self.assert_outcome(account.delete(), "gone")
        self.assert_gone(account)

    def test_another_account_is_left_alone(self):
        kept_one, account = self.account(), self.account()
        kept_one.create(password_hash=hash_of("stays"))
        account.create()
        process = kept_one.start("sleep", "1000")
        note = write(f"/tmp/of-{kept_one.name}", "stays", kept_one.uid)
        self.assert_outcome(account.delete(), "gone")
        self.assertIsNone(process.poll())
        self.assertEqual(read(note), "stays")
        self.assertEqual(login(kept_one.name, "stays").stdout, "let-in\n")
        process.kill()
        process.wait()

    def test_somebody_elses_account_of_the_same_name_is_left_alone(self):
        subprocess.run(["useradd", "--create-home", "foreign1"], check=True)
        self.addCleanup(subprocess.run, ["userdel", "--remove", "foreign1"], check=True, stderr=subprocess.DEVNULL)
        account = self.account("foreign1")
        before = read("/etc/passwd"), read("/etc/shadow"), read("/etc/group")
        process = account.start("sleep", "1000")
        ours = write("/tmp/ours", "x", account.uid)
        self.assert_outcome(account.create(), "name_taken")
        self.assert_outcome(account.delete(), "gone")
        self.assertEqual(before, (read("/etc/passwd"), read("/etc/shadow"), read("/etc/group")))
        self.assertTrue(os.path.isdir("/home/foreign1"))
        self.assertFalse(os.path.exists(ours))
        self.assertEqual(process.wait(5), -9)

    @unittest.skipUnless(UNDER_SYSTEMD, "needs systemd")
    def test_a_lingering_user_manager_goes_with_its_services(self):
        account = self.account()
        account.create()
        subprocess.run(["loginctl", "enable-linger", account.name], check=True)
        runtime = f"/run/user/{account.uid}"
        wait_until(lambda: os.path.exists(f"{runtime}/systemd/private"), "the user's systemd")
        write(f"{runtime}/of-client", "x", account.uid)
        self.assert_outcome(account.delete(), "gone")
        self.assert_gone(account)
        self.assertFalse(os.path.exists(runtime))


class NotGone(WorkerTest):
    def test_a_home_elsewhere_is_not_removed(self):
        account = self.account()
        account.create()
        os.makedirs("/srv/elsewhere", exist_ok=True)
        note = write("/srv/elsewhere/note", "stays", account.uid)
        subprocess.run(["usermod", "--home", "/srv/elsewhere", account.name], check=True)
        self.assert_outcome(account.delete(), "not_gone", "/srv/elsewhere")
        self.assertEqual(read(note), "stays")
        subprocess.run(["usermod", "--home", account.home, account.name], check=True)
        self.assert_outcome(account.delete(), "gone")
        os.unlink(note)


class Links(WorkerTest):
    def test_links_in_home_and_tmp_lead_nowhere(self):
        account = self.account()
        account.create()
        os.makedirs("/var/lib/precious", exist_ok=True)
        note = write("/var/lib/precious/note", "stays", account.uid)
        before = sorted(os.listdir("/etc"))
        account.python(
            f"import os\nfor place in ('{account.home}', '/tmp', '/var/tmp'):\n"
            " os.symlink('/etc', place + '/etc'); os.symlink('/var/lib/precious', place + '/p');"
            " os.symlink('/etc/passwd', place + '/file'); os.symlink('nowhere', place + '/dangling')"
        )
        self.assert_outcome(account.delete(), "gone")
        self.assertEqual(before, sorted(os.listdir("/etc")))
        self.assertEqual(read(note), "stays")
        os.unlink(note)
        self.assert_gone(account)

    def test_a_directory_that_turns_into_a_link_meanwhile_leads_nowhere(self):
        """Somebody else swaps a directory and a link in /tmp while the module looks through it."""
        account = self.account()
        os.makedirs("/var/lib/precious/inner", exist_ok=True)
        note = write("/var/lib/precious/inner/note", "stays", account.uid)
        os.makedirs("/tmp/swapped", exist_ok=True)
        os.chmod("/tmp/swapped", 0o777)
        code = (
            "import os\nos.chdir('/tmp/swapped')\nos.makedirs('real/inner', exist_ok=True)\n"
            "os.symlink('/var/lib/precious', 'link')\n"
            "while True:\n \n  for name in ('real', 'link'):\n   os.rename(name, 'd'); os.rename('d', name)"
        )
        process = subprocess.Popen([sys.executable, "-c", code], user=65534, group=65534, extra_groups=[])
        try:
            wait_until(lambda: os.path.lexists("/tmp/swapped/d"), "the swapping")
            for epoch in range(2, 12):
                self.assert_outcome(account.delete(epoch=epoch), "gone")
            self.assertIsNone(process.poll())
        finally:
            process.kill()
            process.wait()
        self.assertEqual(read(note), "stays")
        subprocess.run(["rm", "-rf", "/tmp/swapped", "/var/lib/precious"], check=True)
