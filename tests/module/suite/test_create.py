"""op create."""

import os
import pwd
import stat
import subprocess
import time

from support import HASH, UID_BASE, WorkerTest, hash_of, inspect, kept, login, read, run, stand_in, write


class Create(WorkerTest):
    def test_an_account_is_made_as_asked(self):
        account = self.account()
        self.assert_outcome(account.create(), "present")
        entry = pwd.getpwnam(account.name)
        self.assertEqual(
            (entry.pw_uid, entry.pw_gid, entry.pw_dir, entry.pw_shell),
            (account.uid, account.uid, account.home, "/bin/bash"),
        )
        home = os.lstat(account.home)
        self.assertEqual((home.st_uid, home.st_gid, stat.S_IMODE(home.st_mode)), (account.uid, account.uid, 0o700))
        self.assertEqual(os.lstat(f"{account.home}/.bashrc").st_uid, account.uid)
        done = subprocess.run(["id", "-Gn", account.name], capture_output=True, text=True, check=True)
        self.assertEqual(sorted(done.stdout.split()), sorted([account.name, "orion-client"]))
        self.assertFalse([p for p in os.listdir("/home") if p.startswith(".orion")])

    def test_the_account_has_no_subordinate_ids(self):
        account = self.account()
        self.assert_outcome(account.create(), "present")
        for table in ("/etc/subuid", "/etc/subgid"):
            self.assertNotIn(account.name, read(table))

    def test_the_record_has_the_end_as_an_upper_bound(self):
        account = self.account()
        before = time.time(), time.clock_gettime(time.CLOCK_BOOTTIME)
        account.create(epoch=4)
        after = time.time(), time.clock_gettime(time.CLOCK_BOOTTIME)
        record = account.record()
        self.assertEqual((record["uid"], record["name"]), (account.uid, account.name))
        self.assertEqual((record["epoch"], record["state"]), (4, "present"))
        self.assertEqual(record["boot_id"], read("/proc/sys/kernel/random/boot_id").strip())
        for key, low, high in zip(("ends_at_wall", "ends_at_boot"), before, after, strict=True):
            self.assertTrue(low + 3600.4 <= record[key] <= high + 3600.6, record)
        self.assertEqual(stat.S_IMODE(os.stat("/var/lib/orion-node").st_mode), 0o700)

    def test_repeating_it_changes_nothing(self):
        account = self.account()
        account.create()
        note = write(f"{account.home}/note", "mine", account.uid)
        before = {table: read(f"/etc/{table}") for table in ("passwd", "shadow", "group", "gshadow")}
        self.assert_outcome(account.create(), "present")
        self.assertEqual(before, {table: read(f"/etc/{table}") for table in before})
        self.assertEqual(read(note), "mine")

    def test_repeating_it_never_shortens_the_countdown(self):
        account = self.account()
        account.create(ends_in_s=1000)
        first = account.record()["ends_at_wall"]
        account.create(ends_in_s=10)
        self.assertEqual(account.record()["ends_at_wall"], first)
        account.create(ends_in_s=2000)
        self.assertGreater(account.record()["ends_at_wall"], first + 900)

    def test_repeating_it_brings_the_hash_to_what_is_asked_and_unlocks(self):
        account = self.account()
        account.create(password_hash=hash_of("first"))
        subprocess.run(["usermod", "--lock", "--expiredate", "1970-01-02", account.name], check=True)
        self.assertNotEqual(login(account.name, "first").returncode, 0)
        self.assert_outcome(account.create(epoch=2, password_hash=hash_of("second")), "present")
        self.assertNotEqual(login(account.name, "first").returncode, 0)
        self.assertEqual(login(account.name, "second").stdout, "let-in\n")

    def test_an_account_that_the_agent_locked_is_open_again_at_a_higher_epoch(self):
        account = self.account()
        password_hash = hash_of("pw")
        account.create(password_hash=password_hash)
        # As orion-agentd does it.
        subprocess.run(["usermod", "--lock", "--expiredate", "1", account.name], check=True)
        self.assertNotEqual(login(account.name, "pw").returncode, 0)
        self.assert_outcome(inspect(), "dirty", '"locked": true')
        self.assert_outcome(account.create(epoch=2, password_hash=password_hash), "present")
        self.assertEqual(login(account.name, "pw").stdout, "let-in\n")
        self.assertGreater(account.record()["ends_at_wall"], time.time())

    def test_any_password_logs_in_over_sshd(self):
        for password in ("pass", 'it\'s "quoted"', "$HOME `id` $6$x", "{{ 7*7 }} {% x %}", "pässwörd €😀", " a  b\\n "):
            with self.subTest(password):
                account = self.account()
                self.assert_outcome(account.create(password_hash=hash_of(password)), "present")
                done = login(account.name, password, "id -u; pwd")
                self.assertEqual(done.stdout.split(), [str(account.uid), account.home], done.stderr)

    def test_the_hash_is_in_no_argv_and_no_environment(self):
        account = self.account()
        seen = "/tmp/orion-argv-seen"
        account.delete()
        spy = f'tr "\\0" "\\n" </proc/$$/cmdline >>{seen}; env >>{seen}; exec "$0.real" "$@"'
        try:
            with (
                stand_in("useradd", spy),
                stand_in("groupadd", spy),
                stand_in("chpasswd", spy),
                stand_in("usermod", spy),
            ):
                self.assert_outcome(account.create(epoch=3), "present")
                subprocess.run(["usermod", "--expiredate", "2000-01-01", account.name], check=True)
                self.assert_outcome(account.create(epoch=3, password_hash=hash_of("other")), "present")
            said = read(seen)
        finally:
            os.unlink(seen)
        for tool in ("useradd", "chpasswd", "usermod"):
            self.assertIn(tool, said)
        self.assertNotIn("$6$", said)


class NameTaken(WorkerTest):
    def assert_untouched(self, account, outcome, *words):
        before = {table: read(f"/etc/{table}") for table in ("passwd", "shadow", "group", "gshadow")}
        self.assert_outcome(account.create(), outcome, *words)
        self.assertEqual(before, {table: read(f"/etc/{table}") for table in before})
        self.assertFalse(os.path.exists(f"/var/lib/orion-node/accounts/{account.uid}.json"))

    def test_by_a_user(self):
        subprocess.run(["useradd", "--create-home", "taken1"], check=True)
        self.addCleanup(subprocess.run, ["userdel", "--remove", "taken1"], check=True, stderr=subprocess.DEVNULL)
        self.assert_untouched(self.account("taken1"), "name_taken")

    def test_by_a_user_of_the_system(self):
        for name in ("root", "daemon", "orion-node", "nobody"):
            with self.subTest(name):
                self.assert_untouched(self.account(name), "name_taken")

    def test_by_a_group(self):
        subprocess.run(["groupadd", "taken2"], check=True)
        self.addCleanup(subprocess.run, ["groupdel", "taken2"], check=True)
        self.assert_untouched(self.account("taken2"), "name_taken", "group")

    def test_by_a_membership_that_would_give_rights(self):
        with kept("/etc/group"):
            text = read("/etc/group")
            write("/etc/group", text.replace("sudo:x:27:", "sudo:x:27:taken3"))
            self.assertIn("taken3", read("/etc/group"))
            self.assert_untouched(self.account("taken3"), "name_taken", "sudo")

    def test_by_rights_that_sudo_would_give(self):
        path = "/etc/sudoers.d/test"
        for line in ("taken6 ALL=(ALL) NOPASSWD: ALL", "User_Alias ADMINS = somebody,taken6"):
            with self.subTest(line), kept(path):
                write(path, f"# taken7\n%taken8 ALL=(ALL) ALL\n{line}\n")
                self.assert_untouched(self.account("taken6"), "name_taken", path)
                self.assert_outcome(self.account("taken7").create(), "present")
                self.made.pop().delete()

    def test_by_a_home(self):
        os.mkdir("/home/taken4")
        self.addCleanup(os.rmdir, "/home/taken4")
        self.assert_untouched(self.account("taken4"), "name_taken", "/home/taken4")

    def test_by_a_link_at_the_home(self):
        os.symlink("/etc", "/home/taken5")
        self.addCleanup(os.unlink, "/home/taken5")
        self.assert_untouched(self.account("taken5"), "name_taken")

    def test_by_another_rental_is_debris_not_taken(self):
        other = self.account("debris1")
        other.create()
        result = self.account("debris1").create()
        self.assert_outcome(result, "failed", f"debris of uid {other.uid}")
        self.assertEqual(result["evidence"]["debris_uid"], other.uid)
        self.assertTrue(other.exists())


class Refused(WorkerTest):
    def test_a_uid_in_a_range_of_subordinate_ids(self):
        for table in ("/etc/subuid", "/etc/subgid"):
            with self.subTest(table), kept(table):
                account = self.account()
                write(table, f"{read(table)}somebody:{account.uid - 100}:65536\n")
                self.assert_outcome(account.create(), "refused", table)
                self.assertFalse(account.exists())

    def test_a_uid_that_is_not_managed(self):
        for uid in (0, 1000, UID_BASE - 1, UID_BASE + 1_000_000_000):
            account = self.account()
            for op in ("create", "delete"):
                with self.subTest(uid=uid, op=op):
                    self.assert_outcome(run(account.arguments(op, 1, uid=uid)), "refused")

    def test_names_that_are_not_safe(self):
        for name in ("", "-rf", "../x", "a;b", "Alice", "a" * 32, "é", "a\nb", "{{ 1 }}", "a:b", "a "):
            account = self.account()
            for op in ("create", "delete"):
                with self.subTest(name=name, op=op):
                    self.assert_outcome(run(account.arguments(op, 1, name=name)), "refused")

    def test_what_is_no_hash_no_epoch_or_no_end(self):
        account = self.account()
        for bad in (
            {"password_hash": ""},
            {"password_hash": "secret"},
            {"password_hash": HASH + "\nroot:x"},
            {"password_hash": HASH.replace("$6$", "$1$")},
            {"epoch": 0},
            {"ends_in_s": 0},
            {"ends_in_s": -1},
            {"ends_in_s": "nan"},
            {"ends_in_s": "inf"},
        ):
            with self.subTest(bad):
                self.assert_outcome(run(account.arguments("create", 1) | bad), "refused")
        self.assertFalse(account.exists())


class CreateUnderTrouble(WorkerTest):
    def test_a_user_that_sshd_denies_is_not_present(self):
        for line in (
            "DenyUsers {0}",
            "AllowUsers somebody",
            "AllowGroups staff",
            "Match User {0}\nPasswordAuthentication no",
        ):
            account = self.account()
            with self.subTest(line), kept("/etc/ssh/sshd_config.d/10-test.conf"):
                text = line.format(account.name)
                write("/etc/ssh/sshd_config.d/10-test.conf", f"{text}\nMatch all\n")
                self.assert_outcome(account.create(), "failed", "sshd")

    def test_closed_logins_are_not_present(self):
        account = self.account()
        with kept("/etc/nologin"):
            write("/etc/nologin", "closed")
            self.assert_outcome(account.create(), "failed", "/etc/nologin")
        self.assert_outcome(account.create(), "present")

    def test_a_damaged_record_is_never_overwritten_by_a_create(self):
        account = self.account()
        account.create()
        write(f"/var/lib/orion-node/accounts/{account.uid}.json", "{")
        self.assert_outcome(account.create(epoch=9), "failed", "damaged")
        self.assert_outcome(account.delete(epoch=10), "gone")

    def test_a_tool_that_hangs_ends_at_the_limit_and_leaves_no_process(self):
        account = self.account()
        with stand_in("useradd", "exec sleep 321.5"):
            before = time.monotonic()
            self.assert_outcome(account.create(limit_s=2), "failed", "not through after 2 seconds")
            self.assertLess(time.monotonic() - before, 60)
        done = subprocess.run(["pgrep", "-f", "sleep 321.5"], check=False, stdout=subprocess.DEVNULL)
        self.assertEqual(done.returncode, 1)
        self.assert_outcome(account.create(), "present")

    def test_a_lock_file_of_a_killed_tool_whose_pid_was_given_away_is_no_hindrance(self):
        account = self.account()
        write("/etc/passwd.lock", str(os.getpid()))
        os.utime("/etc/passwd.lock", (1, 1))
        self.assert_outcome(account.create(), "present")
