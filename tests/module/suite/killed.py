"""Run the module and kill it with -9 at its Nth act.

    killed.py N before|during     (the module's arguments on standard input)

An act is whatever changes the system: a tool that is started, a file that is written, renamed,
removed, or given away. `before` kills the module alone, just before the act. `during` kills it
together with the tool that it has just started. Exit status 3: there are fewer than N acts.
"""

import os
import runpy
import signal
import sys
import threading
import time

ACTS = {
    "os.chmod",
    "os.chown",
    "os.kill",
    "os.mkdir",
    "os.remove",
    "os.rename",
    "os.rmdir",
    "resource.prlimit",
    "subprocess.Popen",
}


def acts(event: str, details: tuple) -> bool:
    """Whether Python's audit event is an act."""
    if event != "open":
        return event in ACTS
    path, _, flags = details
    return isinstance(path, str) and not path.startswith("/dev/") and flags & (os.O_WRONLY | os.O_RDWR) != 0


def main() -> None:
    wanted, mode = int(sys.argv[1]), sys.argv[2]
    count = 0

    def watch(event: str, details: tuple) -> None:
        nonlocal count
        if not (event == "subprocess.Popen" if mode == "during" else acts(event, details)):
            return
        count += 1
        if count != wanted:
            return
        if mode == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        threading.Thread(target=kill_group, daemon=True).start()

    def kill_group() -> None:
        time.sleep(0.004)
        os.killpg(0, signal.SIGKILL)

    os.setpgid(0, 0)
    sys.argv = [os.environ["ORION_MODULE"]]
    sys.addaudithook(watch)
    try:
        runpy.run_path(os.environ["ORION_MODULE"], run_name="__main__")
    finally:
        os._exit(3)


main()
