"""sshd-dropin: what the agent's package adds to sshd's configuration."""

import contextlib
import os
import subprocess
import tempfile

from support import UNDER_SYSTEMD, WorkerTest, kept, read, stand_in, write

PROGRAM = "/src/packaging/lib/sshd-dropin"
FOLDER = "/etc/ssh/sshd_config.d"
DROPIN = f"{FOLDER}/60-orion.conf"
EXEMPT = "/var/lib/orion-node/exempt"
ADDRESSES = "192.0.2.9,2001:db8::5"


def start() -> subprocess.Popen:
    return subprocess.Popen([PROGRAM, "apply"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


class DropIn(WorkerTest):
    def setUp(self):
        super().setUp()
        stack = contextlib.ExitStack()
        self.addCleanup(stack.close)
        os.makedirs(os.path.dirname(EXEMPT), exist_ok=True)
        for path in (DROPIN, EXEMPT):
            stack.enter_context(kept(path))
        # The running sshd serves the other tests: it is not reloaded.
        if UNDER_SYSTEMD:
            stack.enter_context(stand_in("systemctl", "exit 1"))
        else:
            stack.enter_context(kept("/run/sshd.pid"))
            os.unlink("/run/sshd.pid")
        self.scratch = stack.enter_context(tempfile.TemporaryDirectory())
        os.unlink(DROPIN)
        write(EXEMPT, f"{ADDRESSES}\n")

    def apply(self) -> str:
        process = start()
        said, _ = process.communicate()
        self.assertEqual(process.returncode, 0, said)
        return said

    def files(self) -> list[str]:
        return sorted(name for name in os.listdir(FOLDER) if "orion" in name)

    def sshd(self, script: str) -> contextlib.AbstractContextManager:
        """Have `script` run before each question that sshd-dropin asks sshd; FILE is the configuration asked about."""
        return stand_in("sshd", f'''case "$*" in
*-h*) for FILE; do :; done
{script}
;;
esac
exec /usr/sbin/sshd.real "$@"''')

    def asked_at(self, number: int) -> str:
        """A line of script that is true at the question of that number."""
        count = f"{self.scratch}/count"
        write(count, "")
        return f'echo >>{count}; [ "$(wc -l <{count})" -eq {number} ]'

    def test_it_has_the_lines_that_this_sshd_knows(self):
        self.assertEqual(self.apply(), "")
        text = read(DROPIN)
        for line in ("Match Group orion-client", "    PasswordAuthentication yes"):
            self.assertIn(f"{line}\n", text)
        settings = subprocess.run(["/usr/sbin/sshd", "-T"], capture_output=True, text=True, check=True).stdout
        exempt = "persourcepenaltyexemptlist" in settings
        self.assertEqual(f"PerSourcePenaltyExemptList {ADDRESSES}\n" in text, exempt)
        self.assertEqual(f"persourcepenaltyexemptlist {ADDRESSES}\n" in settings, exempt)
        self.assertEqual(os.stat(DROPIN).st_mode & 0o777, 0o644)
        # And none of what is no list of addresses.
        write(EXEMPT, "192.0.2.9 *\n")
        self.apply()
        self.assertNotIn("PerSource", read(DROPIN))
        self.assertEqual(self.files(), ["60-orion.conf"])

    def test_what_sshd_refuses_with_this_machines_settings_is_not_there_for_a_moment(self):
        # Good by itself, but not as a part of this machine's configuration.
        refused = f'''[ ! -e {DROPIN} ] || echo there >>{self.scratch}/seen
            ! grep -qi "^include" "$FILE" || [ ! -e "$(dirname "$FILE")/whole.d/60-orion.conf" -a ! -e {DROPIN} ] || exit 1'''
        with self.sshd(refused):
            self.assertIn("left as it was", self.apply())
        self.assertFalse(os.path.exists(f"{self.scratch}/seen"))
        self.assertEqual(self.files(), [])
        # Likewise what was there before stays.
        write(DROPIN, "# old\n")
        with self.sshd(refused.replace(f" -a ! -e {DROPIN}", "")):
            self.assertIn("left as it was", self.apply())
        self.assertEqual(read(DROPIN), "# old\n")

    def test_an_old_one_that_sshd_refuses_is_taken_away(self):
        write(DROPIN, "NoSuchWord yes\n")
        with self.sshd('! grep -qi "^include" "$FILE" || [ ! -e "$(dirname "$FILE")/whole.d/60-orion.conf" ] || exit 1'):
            self.assertIn("taken away", self.apply())
        self.assertEqual(self.files(), [])

    def test_nothing_is_changed_while_this_machines_settings_are_bad(self):
        other = f"{FOLDER}/10-other.conf"
        self.addCleanup(os.unlink, other)
        write(other, "NoSuchWord yes\n")
        self.assertIn("this machine's own settings", self.apply())
        self.assertEqual(self.files(), [])

    def test_a_kill_leaves_the_old_one_or_the_new_one(self):
        self.apply()
        new = read(DROPIN)
        for number in range(1, 30):
            write(DROPIN, "# old\n")
            with self.sshd(f'if {self.asked_at(number)}; then kill -9 "$PPID"; fi'):
                process = start()
                said, _ = process.communicate()
            self.assertIn(read(DROPIN), ("# old\n", new))
            if process.returncode == 0:
                break
            self.assertEqual(process.returncode, -9, said)
        self.assertGreater(number, 3)
        self.assertEqual((read(DROPIN), self.files()), (new, ["60-orion.conf"]))

    def test_what_a_killed_one_left_is_swept(self):
        for name in ("new", "new.Ab3xYz"):
            write(f"{DROPIN}.{name}", "# half\n")
        self.apply()
        self.assertEqual(self.files(), ["60-orion.conf"])

    def test_one_at_a_time_acts(self):
        log = f"{self.scratch}/log"
        with self.sshd(f'echo "$PPID" >>{log}'):
            processes = [start() for _ in range(6)]
            for process in processes:
                said, _ = process.communicate()
                self.assertEqual((process.returncode, said), (0, ""))
        asked = read(log).split()
        turns = [pid for pid, before in zip(asked, [None, *asked]) if pid != before]
        self.assertEqual(len(turns), 6, asked)
        self.assertEqual(self.files(), ["60-orion.conf"])
