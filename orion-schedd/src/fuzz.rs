//! What fuzz targets call; not an interface.

use orion_core::{NodeId, RunKind, RunOutcome};
use serde_json::Value;

use crate::ansible::verdicts_in;

/// A host's result, as schedd would record it.
pub type Believed = (NodeId, RunOutcome, Option<String>, Option<Value>);

/// What the bytes, as the callback's file of a play of each kind, make schedd believe.
pub fn event_lines(bytes: &[u8]) -> Vec<Believed> {
    let verdicts = RunKind::ALL
        .iter()
        .flat_map(|kind| verdicts_in(*kind, bytes));
    verdicts
        .map(|(node, verdict)| (node, verdict.outcome, verdict.detail, verdict.evidence))
        .collect()
}

/// As [`event_lines`], for one line without its end.
pub fn event_line(line: &[u8]) -> Vec<Believed> {
    let mut line = line.to_vec();
    line.push(b'\n');
    event_lines(&line)
}
