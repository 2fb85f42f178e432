//! What the callback plugin writes: one JSON line per host event, read while the play goes on.
//!
//! The file may end in half a line (the play was killed), hold garbage, or lines of any length; what does not fit is
//! skipped, and its host is one without a result.

use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;

use orion_core::{NodeId, RunKind, RunOutcome};
use serde::Deserialize;
use serde_json::Value;

use super::inventory::node_of;

/// The plugin's lines have at most 32 KiB.
const MAX_LINE: usize = 64 * 1024;
/// The plugin's details have at most 2,000 characters, and so has the column.
const MAX_DETAIL_CHARS: usize = 2000;
/// The plugin's evidence has at most 8 KiB.
const MAX_EVIDENCE: usize = 16 * 1024;

/// What is known of one host at the end of its part of a play.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Verdict {
    /// In one word.
    pub outcome: RunOutcome,
    /// In one sentence; printable and bounded.
    pub detail: Option<String>,
    /// The module's evidence; bounded.
    pub evidence: Option<Value>,
}

#[derive(Deserialize)]
struct Line {
    event: String,
    host: Option<String>,
    outcome: Option<String>,
    detail: Option<String>,
    evidence: Option<Value>,
    /// The plugin's word for why there is no outcome.
    reason: Option<String>,
}

/// Reads the file of one play as it grows.
#[derive(Debug)]
pub(super) struct EventFile {
    path: PathBuf,
    file: Option<File>,
    lines: Lines,
    kind: RunKind,
}

impl EventFile {
    pub(super) fn new(path: PathBuf, kind: RunKind) -> Self {
        Self {
            path,
            file: None,
            lines: Lines::default(),
            kind,
        }
    }

    /// The verdicts that were added since the last call. The file lies in memory, so this does not block.
    pub(super) fn read_new(&mut self) -> io::Result<Vec<(NodeId, Verdict)>> {
        let file = match &mut self.file {
            Some(file) => file,
            None => match File::open(&self.path) {
                Ok(file) => self.file.insert(file),
                // The plugin makes it when Ansible has started.
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
                Err(error) => return Err(error),
            },
        };
        let mut verdicts = Vec::new();
        let mut chunk = [0; 16 * 1024];
        loop {
            let length = file.read(&mut chunk)?;
            let Some(new) = chunk.get(..length).filter(|new| !new.is_empty()) else {
                return Ok(verdicts);
            };
            self.lines.take(new, |line| {
                verdicts.extend(verdict_of(self.kind, line));
            });
        }
    }
}

/// Cuts bytes into lines; lines that are too long are dropped.
#[derive(Debug, Default)]
struct Lines {
    partial: Vec<u8>,
    skipping: bool,
}

impl Lines {
    fn take(&mut self, bytes: &[u8], mut whole: impl FnMut(&[u8])) {
        let mut rest = bytes;
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let (line, after) = rest.split_at(end);
            self.keep(line);
            if !self.skipping {
                whole(&self.partial);
            }
            self.skipping = false;
            self.partial.clear();
            rest = after.get(1..).unwrap_or_default();
        }
        self.keep(rest);
    }

    fn keep(&mut self, piece: &[u8]) {
        if self.partial.len() + piece.len() > MAX_LINE {
            self.skipping = true;
            self.partial = Vec::new();
        }
        if !self.skipping {
            self.partial.extend_from_slice(piece);
        }
    }
}

/// The verdict a line gives; none for starts, the end, garbage, and hosts that are not ours.
fn verdict_of(kind: RunKind, line: &[u8]) -> Option<(NodeId, Verdict)> {
    let line: Line = serde_json::from_slice(line).ok()?;
    let node = node_of(line.host.as_deref()?)?;
    let said = line.outcome.as_deref().map(str::parse::<RunOutcome>);
    let outcome = match (line.event.as_str(), said) {
        ("ok", Some(Ok(outcome))) if succeeds(kind, outcome) => outcome,
        ("failed", Some(Ok(outcome))) if is_the_modules_failure(outcome) => outcome,
        ("failed", None) => without_outcome(line.reason.as_deref(), RunOutcome::Failed),
        ("unreachable", _) => without_outcome(line.reason.as_deref(), RunOutcome::Unreachable),
        ("ok" | "failed", _) => return Some((node, contradiction(kind, &line))),
        _ => return None,
    };
    let verdict = Verdict {
        outcome,
        detail: line.detail.as_deref().and_then(sentence),
        evidence: line.evidence.filter(is_bounded_object),
    };
    Some((node, verdict))
}

/// The module never spoke. The plugin's reason decides, because ansible-core 2.14 and 2.19 call the same cause `failed`
/// and `unreachable`; without a reason the event's word does.
fn without_outcome(reason: Option<&str>, word: RunOutcome) -> RunOutcome {
    match reason {
        // At least one key is pinned, so ssh that knows no key of the type it met has met another one.
        Some("host_key_mismatch" | "host_key_unknown") => RunOutcome::HostKeyMismatch,
        Some("timeout" | "connect" | "auth") => RunOutcome::Unreachable,
        Some("sudo" | "python") => RunOutcome::Failed,
        Some(_) | None => word,
    }
}

/// What the module may report as success of a kind of run.
fn succeeds(kind: RunKind, outcome: RunOutcome) -> bool {
    match kind {
        RunKind::Provision => outcome == RunOutcome::Present,
        RunKind::Clean => outcome == RunOutcome::Gone,
        RunKind::Inspect => matches!(outcome, RunOutcome::Clean | RunOutcome::Dirty),
    }
}

/// The module's own words for a failure; the other outcomes are not its to say.
fn is_the_modules_failure(outcome: RunOutcome) -> bool {
    matches!(
        outcome,
        RunOutcome::NameTaken
            | RunOutcome::StaleEpoch
            | RunOutcome::Refused
            | RunOutcome::NotGone
            | RunOutcome::Failed
    )
}

/// An event and an outcome that do not belong together prove nothing, so this is a failure.
fn contradiction(kind: RunKind, line: &Line) -> Verdict {
    let said = line
        .outcome
        .as_deref()
        .map_or("nothing".to_owned(), |word| format!("`{word}`"));
    let text = format!(
        "the play said {} and the module said {said} to a {kind} run",
        line.event
    );
    Verdict {
        outcome: RunOutcome::Failed,
        detail: sentence(&text),
        evidence: None,
    }
}

/// Printable and bounded; nothing when nothing is left.
fn sentence(text: &str) -> Option<String> {
    let printable = |c: char| if c.is_control() { ' ' } else { c };
    let text: String = text.chars().take(MAX_DETAIL_CHARS).map(printable).collect();
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

fn is_bounded_object(value: &Value) -> bool {
    value.is_object() && serde_json::to_vec(value).is_ok_and(|text| text.len() <= MAX_EVIDENCE)
}

/// Every verdict in these bytes, as if they were a whole file.
pub(crate) fn verdicts_in(kind: RunKind, bytes: &[u8]) -> Vec<(NodeId, Verdict)> {
    let mut verdicts = Vec::new();
    let mut lines = Lines::default();
    lines.take(bytes, |line| verdicts.extend(verdict_of(kind, line)));
    verdicts
}

#[cfg(test)]
mod tests {
    use super::*;
    use orion_testkit::Scratch;
    use std::io::Write;

    fn verdict(kind: RunKind, line: &str) -> Option<RunOutcome> {
        verdict_of(kind, line.as_bytes()).map(|(node, verdict)| {
            assert_eq!(node, NodeId(42));
            verdict.outcome
        })
    }

    #[test]
    fn each_kind_of_run_has_its_own_success() {
        for (kind, outcome) in [
            (RunKind::Provision, RunOutcome::Present),
            (RunKind::Clean, RunOutcome::Gone),
            (RunKind::Inspect, RunOutcome::Clean),
            (RunKind::Inspect, RunOutcome::Dirty),
        ] {
            let line = format!(r#"{{"event":"ok","host":"node-42","outcome":"{outcome}"}}"#);
            for asked in RunKind::ALL {
                let expected = if *asked == kind {
                    outcome
                } else {
                    RunOutcome::Failed
                };
                assert_eq!(verdict(*asked, &line), Some(expected), "{asked} {outcome}");
            }
        }
    }

    #[test]
    fn a_failed_task_is_never_a_success_whatever_the_module_said() {
        for outcome in RunOutcome::ALL {
            let line = format!(r#"{{"event":"failed","host":"node-42","outcome":"{outcome}"}}"#);
            let seen = verdict(RunKind::Clean, &line).unwrap();
            assert!(is_the_modules_failure(seen), "{outcome} gave {seen}");
        }
        let line = r#"{"event":"failed","host":"node-42","outcome":"name_taken","detail":"it is"}"#;
        assert_eq!(
            verdict(RunKind::Provision, line),
            Some(RunOutcome::NameTaken)
        );
    }

    #[test]
    fn an_unreachable_host_and_one_with_another_key_are_told_apart() {
        let line = |event, reason| {
            format!(r#"{{"event":"{event}","host":"node-42","outcome":null,"reason":{reason}}}"#)
        };
        for (reason, outcome) in [
            ("\"host_key_mismatch\"", RunOutcome::HostKeyMismatch),
            ("\"host_key_unknown\"", RunOutcome::HostKeyMismatch),
            ("\"connect\"", RunOutcome::Unreachable),
            ("\"auth\"", RunOutcome::Unreachable),
            ("\"timeout\"", RunOutcome::Unreachable),
            ("\"sudo\"", RunOutcome::Failed),
        ] {
            for event in ["failed", "unreachable"] {
                assert_eq!(
                    verdict(RunKind::Inspect, &line(event, reason)),
                    Some(outcome),
                    "{event} {reason}"
                );
            }
        }
        assert_eq!(
            verdict(RunKind::Inspect, &line("failed", "null")),
            Some(RunOutcome::Failed)
        );
        assert_eq!(
            verdict(RunKind::Inspect, &line("unreachable", "null")),
            Some(RunOutcome::Unreachable)
        );
    }

    #[test]
    fn garbage_and_foreign_hosts_say_nothing() {
        for line in [
            "",
            "\u{0}\u{1}",
            "{",
            "[]",
            "null",
            r#"{"event":"ok"}"#,
            r#"{"event":"ok","host":"localhost","outcome":"present"}"#,
            r#"{"event":"ok","host":42,"outcome":"present"}"#,
            r#"{"event":"start","host":"node-42"}"#,
            r#"{"event":"end"}"#,
            r#"{"event":"skipped","host":"node-42"}"#,
        ] {
            assert_eq!(verdict(RunKind::Provision, line), None, "{line}");
        }
    }

    #[test]
    fn text_from_a_worker_is_bounded_and_printable() {
        let detail = "x\u{1b}[31m\n".repeat(2000);
        let line = serde_json::json!({
            "event": "failed", "host": "node-42", "outcome": "failed", "detail": detail,
            "evidence": {"files": "y".repeat(MAX_EVIDENCE)},
        });
        let (_, verdict) = verdict_of(RunKind::Clean, line.to_string().as_bytes()).unwrap();
        let detail = verdict.detail.unwrap();
        assert!(detail.chars().count() <= MAX_DETAIL_CHARS && !detail.contains(char::is_control));
        assert_eq!(verdict.evidence, None);
    }

    #[test]
    fn lines_are_put_together_from_pieces_and_huge_ones_are_skipped() {
        let mut lines = Lines::default();
        let mut seen = Vec::new();
        let huge = vec![b'x'; 3 * MAX_LINE];
        for piece in [
            &b"on"[..],
            b"e\ntwo\n",
            b"thr",
            &huge,
            b"ee\nfo",
            b"ur\n",
            b"half",
        ] {
            lines.take(piece, |line| {
                seen.push(String::from_utf8_lossy(line).into_owned())
            });
        }
        assert_eq!(seen, ["one", "two", "four"]);
        assert!(lines.partial.capacity() <= 2 * MAX_LINE);
    }

    #[test]
    fn a_growing_file_gives_each_verdict_once() {
        let scratch = Scratch::new("events");
        let path = scratch.join("events.jsonl");
        let mut events = EventFile::new(path.clone(), RunKind::Inspect);
        assert!(events.read_new().unwrap().is_empty());
        let mut file = File::create(&path).unwrap();
        file.write_all(b"{\"event\":\"ok\",\"host\":\"node-1\",\"outcome\":\"clean\"}\n{\"event\":\"ok\",\"host\":\"node-2\"").unwrap();
        let nodes = |events: &mut EventFile| -> Vec<NodeId> {
            events
                .read_new()
                .unwrap()
                .into_iter()
                .map(|(node, _)| node)
                .collect()
        };
        assert_eq!(nodes(&mut events), [NodeId(1)]);
        assert!(nodes(&mut events).is_empty());
        file.write_all(b",\"outcome\":\"clean\"}\n").unwrap();
        assert_eq!(nodes(&mut events), [NodeId(2)]);
    }
}
