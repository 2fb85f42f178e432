"""What a client reads on login."""

import os
import pty
import select
import subprocess
import time

from support import LIMIT_S, WorkerTest, hash_of, inspect, read, write

PATH = "/etc/motd.d/orion"


def greeting(name: str, password: str, *word: str) -> str:
    """What a terminal shows from the login over the real sshd until the session's end, or of `word`."""
    options = ("StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "PubkeyAuthentication=no")
    argv = ["sshpass", "-e", "ssh", "-F", "none", *(part for o in options for part in ("-o", o))]
    outer, inner = pty.openpty()
    env = os.environ | {"SSHPASS": password, "TERM": "dumb"}
    shell = subprocess.Popen(
        [*argv, "-tt", f"{name}@127.0.0.1", *word], env=env, stdin=subprocess.PIPE, stdout=inner, stderr=inner
    )
    os.close(inner)
    shell.stdin.write(b"exit\n")
    shell.stdin.flush()
    said, end = b"", time.monotonic() + LIMIT_S
    while time.monotonic() < end:
        if select.select([outer], [], [], 0.1)[0]:
            try:
                said += os.read(outer, 65536)
            except OSError:
                break
    shell.kill()
    shell.communicate()
    os.close(outer)
    return said.decode(errors="replace").replace("\r\n", "\n")


class Message(WorkerTest):
    def test_a_client_is_told_whose_machine_it_is_and_what_becomes_of_the_files(self):
        account = self.account()
        account.create(password_hash=hash_of("pw"))
        said = greeting(account.name, "pw")
        self.assertIn(f"rented through Orion as rental {account.uid - 1_000_000}.", said)
        self.assertIn(f"the account {account.name} and everything in it is removed", said)
        self.assertIn("Your files do not", said)
        self.assertNotIn("former machine", said)
        self.assertEqual(said.count("rented through Orion"), 1)
        account.create(epoch=2, password_hash=hash_of("pw"), moved=True)
        said = greeting(account.name, "pw")
        self.assertIn("Your former machine was lost or drained", said)
        self.assertIn("An administrator may still have the home", said)

    def test_nobody_else_is_told(self):
        account = self.account()
        account.create()
        subprocess.run(["useradd", "--create-home", "--groups", "orion-client", "other1"], check=True)
        self.addCleanup(subprocess.run, ["userdel", "--remove", "other1"], check=True, stderr=subprocess.DEVNULL)
        subprocess.run(["chpasswd"], input="other1:pw\n", text=True, check=True)
        said = greeting("other1", "pw")
        self.assertIn("Debian GNU/Linux", said)
        self.assertNotIn("rented through Orion", said)

    def test_a_clients_terminal_belongs_to_it(self):
        """orion-agentd tells those that do of the end."""
        account = self.account()
        account.create(password_hash=hash_of("pw"))
        self.assertIn(f"{account.uid} /dev/pts/", greeting(account.name, "pw", "stat -c '%u %n' $(tty)"))

    def test_it_goes_with_its_account_and_with_no_other(self):
        account, other = self.account(), self.account()
        account.create()
        self.assert_outcome(other.delete(), "gone")
        self.assertIn(account.name, read(PATH))
        self.assert_outcome(account.delete(), "gone")
        self.assertFalse(os.path.lexists(PATH))

    def test_one_that_is_left_is_dirty(self):
        write(PATH, "left")
        self.assert_outcome(inspect(), "dirty", PATH)
        os.unlink(PATH)
        self.assert_outcome(inspect(), "clean")

    def test_a_link_in_its_place_leads_nowhere(self):
        account = self.account()
        note = write("/tmp/precious-note", "stays")
        os.makedirs("/etc/motd.d", exist_ok=True)
        os.symlink(note, PATH)
        account.create()
        self.assertFalse(os.path.islink(PATH))
        self.assertEqual(read(note), "stays")
        os.unlink(note)

    def test_an_account_is_made_also_where_it_can_not_be_written(self):
        account = self.account()
        os.makedirs("/etc/motd.d", exist_ok=True)
        os.rename("/etc/motd.d", "/etc/motd.d.aside")
        write("/etc/motd.d", "in the way")
        try:
            result = account.create()
        finally:
            os.unlink("/etc/motd.d")
            os.rename("/etc/motd.d.aside", "/etc/motd.d")
        self.assert_outcome(result, "present")
        self.assertFalse(result["evidence"]["login_message"])
