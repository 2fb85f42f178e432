"""Write one JSON line per host event, so that a run ends when *its* host is done.

orion-schedd reads the file while the play is still going. Nothing here may make
a play fail: a line that can't be written is lost, and the host is then treated
as one without a result (queued again), which is the safe reading.
"""

from __future__ import annotations

import json
import os
import re

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: orion_events
type: notification
short_description: one JSON line per host event, for orion-schedd
description:
  - Appends one JSON object per line to the file named by C(ORION_EVENTS).
  - Events are C(start), C(ok), C(failed), C(unreachable) for each host, and C(end).
  - Does nothing when C(ORION_EVENTS) is not set.
requirements:
  - enable it in ansible.cfg with C(callbacks_enabled = orion_events)
"""

MAX_DETAIL_CHARS = 2000
MAX_EVIDENCE_BYTES = 8192
MAX_LINE_BYTES = 32768

# Left out of evidence that is too long, in this order, until it is not.
CLIENTS_LISTS = ("files", "processes", "unmounted")

# What ansible-core 2.14 to 2.19 and OpenSSH 9.2 to 10.0 print; the first match
# wins, so the ones that name a cause stand before those that name a symptom.
REASONS = (
    ("timeout", r"in the expected time frame|Timed out after \d+ second|waiting for privilege escalation"),
    ("host_key_mismatch", r"REMOTE HOST IDENTIFICATION HAS CHANGED"),
    ("host_key_unknown", r"Host key verification failed|host key is known for"),
    ("auth", r"Permission denied \(|Too many authentication failures"),
    ("sudo", r"Missing sudo password|sudo: |is not in the sudoers file"),
    ("python", r"interpreter .* was not found|need to set the interpreter|python3: not found"),
    ("connect", r"Connection (?:refused|timed out|reset|closed)|No route|unreachable|Could not resolve|Broken pipe"),
)

# A crypt(3) hash must not get out through any text, whoever quoted it.
HASH = re.compile(r"\$(?:[1-9]|[0-9][a-z]?|y|gy|2[abxy]|sha1|md5)\$[./0-9A-Za-z$=,]{8,}")


def printable(text: object, limit: int) -> str:
    """`text` on one line, without control characters or hashes, at most `limit` characters."""
    flat = HASH.sub("[hash]", str(text)[: limit * 4])
    flat = "".join(c if c.isprintable() else " " for c in flat)
    flat = " ".join(flat.split())
    return flat if len(flat) <= limit else flat[: limit - 1] + "…"


def cleaned(value: object, depth: int = 0) -> object:
    """`value` as plain JSON with every text made printable."""
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if depth < 5 and isinstance(value, dict):
        return {printable(k, 80): cleaned(v, depth + 1) for k, v in value.items()}
    if depth < 5 and isinstance(value, (list, tuple)):
        return [cleaned(v, depth + 1) for v in value]
    return printable(value, 400)


def bounded_evidence(value: object) -> dict:
    """The module's evidence, or a remark in its place when it is no dict or too long.

    The lists that a client can lengthen go first: nobody hides an account behind long names.
    """
    if not isinstance(value, dict):
        return {}
    evidence = cleaned(value)
    for key in (None, *CLIENTS_LISTS):
        evidence.pop(key, None)
        size = len(json.dumps(evidence).encode())
        if size <= MAX_EVIDENCE_BYTES:
            return evidence
    return {"too_long": size}


def detail_of(result: dict) -> str:
    """The module's own sentence, or what Ansible and ssh had to say."""
    if isinstance(result.get("detail"), str):
        return printable(result["detail"], MAX_DETAIL_CHARS)
    parts = [result.get(key) for key in ("msg", "censored", "module_stderr", "module_stdout")]
    return printable(" | ".join(str(part) for part in parts if part), MAX_DETAIL_CHARS)


def reason_of(result: dict) -> str | None:
    """Why there is no outcome, as one word; None when it is not known."""
    text = " ".join(str(result.get(key, "")) for key in ("msg", "module_stderr", "module_stdout"))
    return next((word for word, pattern in REASONS if re.search(pattern, text)), None)


class CallbackModule(CallbackBase):
    """Appends host events to the file named by ORION_EVENTS."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "notification"
    CALLBACK_NAME = "orion_events"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._fd = None
        path = os.environ.get("ORION_EVENTS")
        if not path:
            self.disabled = True
            return
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        try:
            self._fd = os.open(path, flags, 0o600)
        except OSError as err:
            self._display.warning(f"orion_events: {path}: {err.strerror}")
            self.disabled = True

    def _write(self, event: dict) -> None:
        """One write(2) per line: a killed play leaves whole lines, none of them held back."""
        line = json.dumps(event, ensure_ascii=True).encode() + b"\n"
        if len(line) > MAX_LINE_BYTES:
            event = {**event, "evidence": {"too_long": len(line)}, "detail": event.get("detail", "")[:200]}
            line = json.dumps(event, ensure_ascii=True).encode() + b"\n"
        try:
            os.write(self._fd, line)
        except OSError as err:
            self._display.warning(f"orion_events: {err.strerror}")

    def _result(self, event: str, task_result) -> None:
        # The names with an underscore exist in 2.14 and in 2.19; those without, only in 2.19.
        result = task_result._result
        outcome = result.get("outcome")
        outcome = printable(outcome, 40) if isinstance(outcome, str) else None
        line = {
            "event": event,
            "host": task_result._host.get_name(),
            "task": printable(task_result._task.get_name(), 80),
            "outcome": outcome,
            "detail": detail_of(result),
            "evidence": bounded_evidence(result.get("evidence")),
        }
        if outcome is None:
            line["reason"] = reason_of(result)
        self._write(line)

    def v2_runner_on_start(self, host, task):
        self._write({"event": "start", "host": host.get_name(), "task": printable(task.get_name(), 80)})

    def v2_runner_on_ok(self, result):
        self._result("ok", result)

    def v2_runner_on_failed(self, result, ignore_errors=False):
        self._result("failed", result)

    def v2_runner_on_unreachable(self, result):
        self._result("unreachable", result)

    def v2_playbook_on_stats(self, stats):
        self._write({"event": "end"})
