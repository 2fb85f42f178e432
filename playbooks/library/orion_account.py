#!/usr/bin/python3
"""Ansible module orion_account: create, delete or inspect a rental's account on a worker."""

from __future__ import annotations

DOCUMENTATION = r"""
module: orion_account
short_description: One remote step for one account of a rental
description:
  - Takes the worker's lock, compares the epoch with the highest one recorded there, acts, looks, and reports.
  - Any step may be repeated, come late, or be killed half-way; the next one of the highest epoch puts things right.
  - Never touches an account, group or home that is not of the managed UID.
options:
  op:
    description: What to do.
    type: str
    choices: [create, delete, inspect]
    required: true
  uid_base:
    description: The first managed UID; a thousand million of them belong to Orion.
    type: int
    required: true
  uid:
    description: UID and GID of the account. Not for C(inspect).
    type: int
  name:
    description: Name of the account and its group. Not for C(inspect).
    type: str
  password_hash:
    description: crypt(3) hash, sha512crypt. Only for C(create).
    type: str
  epoch:
    description: Counts per account; the worker refuses one older than the highest it has seen.
    type: int
  ends_in_s:
    description: Seconds until the account must have ended, as an upper bound. Only for C(create).
    type: float
  keep_home_s:
    description:
      - Seconds for which the home is kept, as an archive that root alone can read; 0 keeps nothing. Only for C(delete).
      - A bounded part of a large home is kept, and none of it where it can't be written. The account goes in any case.
    type: float
    default: 0
  moved:
    description: Whether the rental had another machine before, which the login message then tells. Only for C(create).
    type: bool
    default: false
  limit_s:
    description: Seconds after which the module ends itself, one way or the other.
    type: float
    default: 15
author:
  - The Orion authors
"""

EXAMPLES = r"""
- name: Create and verify the account
  orion_account:
    op: create
    uid_base: 1000000
    uid: 1000002
    name: alice
    password_hash: "{{ hash }}"
    epoch: 1
    ends_in_s: 7260
"""

RETURN = r"""
outcome:
  description:
    - C(present), C(gone), C(clean) and C(dirty) are successes.
    - C(name_taken), C(stale_epoch), C(refused), C(not_gone) and C(failed) set C(failed).
  returned: always
  type: str
detail:
  description: One sentence on the outcome.
  returned: always
  type: str
evidence:
  description: What was seen.
  returned: always
  type: dict
"""

import os
import signal
import threading

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.orion import source
from ansible.module_utils.orion.create import create
from ansible.module_utils.orion.delete import delete
from ansible.module_utils.orion.inspection import inspect
from ansible.module_utils.orion.job import Deadline, Expired, Job, Verdict

OPERATIONS = {"create": create, "delete": delete, "inspect": inspect}
GOOD = {"present", "gone", "clean", "dirty"}
CHANGED = {"present", "gone"}
AT_EXPIRY = {"create": "failed", "delete": "not_gone", "inspect": "failed"}


def argument_spec() -> dict:
    """The module's arguments; `password_hash` is masked by Ansible wherever it would show."""
    return {
        "op": {"type": "str", "required": True, "choices": list(OPERATIONS)},
        "uid_base": {"type": "int", "required": True},
        "uid": {"type": "int", "default": 0},
        "name": {"type": "str", "default": ""},
        "password_hash": {"type": "str", "default": "", "no_log": True},
        "epoch": {"type": "int", "default": 0},
        "ends_in_s": {"type": "float", "default": 0.0},
        "keep_home_s": {"type": "float", "default": 0.0},
        "moved": {"type": "bool", "default": False},
        "limit_s": {"type": "float", "default": 15.0},
    }


def limit_self(seconds: float) -> None:
    """Raise Expired after `seconds`; a second later end the process even if that does not get through."""

    def expire(_signal: int, _frame: object) -> None:
        raise Expired

    signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    guard = threading.Timer(seconds + 1.0, os.kill, (os.getpid(), signal.SIGKILL))
    guard.daemon = True
    guard.start()


def run(params: dict) -> Verdict:
    """Do what was asked for; whatever goes wrong becomes a Verdict."""
    limit = params["limit_s"]
    job = Job(
        uid_base=params["uid_base"],
        deadline=Deadline(limit),
        uid=params["uid"],
        name=params["name"],
        password_hash=params["password_hash"],
        epoch=params["epoch"],
        ends_in_s=params["ends_in_s"],
        keep_home_s=params["keep_home_s"],
        moved=params["moved"],
    )
    try:
        try:
            limit_self(limit)
            job.source = source.record()
            return OPERATIONS[params["op"]](job)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except Verdict as verdict:
        return verdict
    except Expired:
        return Verdict(AT_EXPIRY[params["op"]], f"not through after {limit:g} seconds")
    except Exception as err:
        # The words of an unforeseen error may quote anything, the hash too: only its kind and place go out.
        place = err.__traceback__
        while place is not None and place.tb_next is not None:
            place = place.tb_next
        where = f"{os.path.basename(place.tb_frame.f_code.co_filename)}:{place.tb_lineno}" if place else "?"
        number = f" {os.strerror(err.errno)}" if isinstance(err, OSError) and err.errno else ""
        return Verdict("failed", f"unforeseen {type(err).__name__}{number} in {where}")


def main() -> None:
    """Entry point."""
    os.umask(0o022)
    module = AnsibleModule(argument_spec=argument_spec())
    verdict = run(module.params)
    result = {"outcome": verdict.outcome, "detail": verdict.detail[:1000], "evidence": verdict.evidence}
    if verdict.outcome in GOOD:
        module.exit_json(changed=verdict.outcome in CHANGED, **result)
    module.fail_json(msg=result["detail"], **result)


if __name__ == "__main__":
    main()
