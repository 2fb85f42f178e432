//! After a clean run: a debt paid, or one that stays.

use super::{NOTHING_MORE, Recorded, RunReport, Subject};
use crate::edges::About;
use crate::tx::Tx;
use crate::{ClaimedRun, StoreError};
use orion_core::{Availability, NodeId, RunOutcome};
use serde_json::Value;

/// So many cleanings that failed although the node answered make it an administrator's matter; the debt is still retried.
const FAILED_CLEANINGS_TO_QUARANTINE: u64 = 5;

/// How the reasons of a quarantine begin that a verified clean lifts.
const NOT_GONE: &str = "not_gone";
pub(crate) const FOREIGN_ACCOUNT: &str = "foreign_account";

/// What an administrator can do about a node that can't be cleaned.
const WHAT_TO_DO: &str =
    "log in to the worker, remove what is named, then release it from quarantine";

/// How much of what a worker said goes into a reason, so that what to do is not cut off (characters).
const SAID_CHARS: usize = 150;

/// The longest path of an archive that is shown (characters).
const PATH_CHARS: usize = 255;

impl Tx {
    pub(super) async fn cleaned(
        &mut self,
        run: &ClaimedRun,
        subject: &Subject,
        report: &RunReport,
    ) -> Result<Recorded, StoreError> {
        let now = self.now;
        self.note_evidence(subject.account.id, report).await?;
        if report.outcome != RunOutcome::Gone {
            self.count_failed_cleaning(run, subject, report).await?;
            return Ok(NOTHING_MORE);
        }
        let changed = self
            .change(
                "UPDATE accounts SET state = 'gone', state_since = ? WHERE id = ? AND state = 'leaving' AND epoch = ?",
                (now, subject.account.id.0, run.epoch),
            )
            .await?;
        if changed == 0 {
            return Ok(NOTHING_MORE);
        }
        if let Some((kind, detail)) = kept_home(report) {
            let about = About {
                node: Some(run.node),
                rental: Some(subject.rental),
            };
            self.event(kind, about, Some(&detail)).await?;
        }
        self.end_if_gone(subject.rental).await?;
        let ready = self
            .move_node(run.node, Availability::Cleaning, Availability::Ready, None)
            .await?;
        let joining = !ready && self.lift_after_clean(run.node).await?;
        Ok(Recorded::Done {
            settled: None,
            queued: joining,
        })
    }

    async fn count_failed_cleaning(
        &mut self,
        run: &ClaimedRun,
        subject: &Subject,
        report: &RunReport,
    ) -> Result<(), StoreError> {
        if !has_answered(report.outcome) {
            return Ok(());
        }
        let failures = self
            .number(
                "SELECT COUNT(*) FROM runs WHERE account_id = ? AND kind = 'clean' \
                 AND outcome IN ('not_gone', 'failed', 'refused', 'stale_epoch')",
                (subject.account.id.0,),
            )
            .await?;
        if failures >= FAILED_CLEANINGS_TO_QUARANTINE {
            self.quarantine(run.node, &why_not_gone(report)).await?;
        }
        Ok(())
    }

    /// A node that was joining, or quarantined only because it could not be cleaned or held another account beside this
    /// one, is inspected now.
    async fn lift_after_clean(&mut self, node: NodeId) -> Result<bool, StoreError> {
        let now = self.now;
        self.change(
            "UPDATE nodes SET availability = 'joining', availability_reason = NULL, availability_since = ? WHERE id = ? AND availability = 'quarantined' \
             AND SUBSTRING_INDEX(availability_reason, ':', 1) IN (?, ?)",
            (now, node.0, NOT_GONE, FOREIGN_ACCOUNT),
        )
        .await?;
        let joining = self
            .number("SELECT COUNT(*) FROM nodes WHERE id = ? AND availability = 'joining' AND forgotten_at IS NULL", (node.0,))
            .await?;
        if joining == 0 {
            return Ok(false);
        }
        self.queue_inspection(node).await
    }
}

/// Whether the node was there, and the account could not be removed all the same.
fn has_answered(outcome: RunOutcome) -> bool {
    match outcome {
        RunOutcome::NotGone | RunOutcome::Failed | RunOutcome::Refused | RunOutcome::StaleEpoch => {
            true
        }
        RunOutcome::Present
        | RunOutcome::Gone
        | RunOutcome::Clean
        | RunOutcome::Dirty
        | RunOutcome::NameTaken
        | RunOutcome::Unreachable
        | RunOutcome::HostKeyMismatch
        | RunOutcome::NoResult
        | RunOutcome::Superseded => false,
    }
}

/// What is left and what to do, and then the whole list of what is left, as far as the worker said it.
fn why_not_gone(report: &RunReport) -> String {
    let said = report.detail.as_deref().unwrap_or("no detail");
    let said: String = said.chars().take(SAID_CHARS).collect();
    let left = report
        .evidence
        .as_ref()
        .and_then(|evidence| evidence.get("left"))
        .and_then(Value::as_array)
        .map(|left| left.iter().filter_map(Value::as_str).collect::<Vec<_>>())
        .filter(|left| !left.is_empty());
    let left = left.map_or_else(String::new, |left| format!("; left: {}", left.join(", ")));
    format!("{NOT_GONE}: {said}; {WHAT_TO_DO}{left}")
}

/// The event of the archive of the client's home that the worker says it made, or could not make, and that in words.
fn kept_home(report: &RunReport) -> Option<(&'static str, String)> {
    let kept = report.evidence.as_ref()?.get("kept_home")?;
    let path = kept.get("path")?;
    if path.is_null() {
        let error = kept.get("error").and_then(Value::as_str);
        let error = error.unwrap_or("the worker does not say why");
        let error: String = error.chars().take(SAID_CHARS).collect();
        let detail = format!("the files could not be kept: {error}");
        return Some(("home_not_kept", detail));
    }
    let path: String = path.as_str()?.chars().take(PATH_CHARS).collect();
    let bytes = kept.get("bytes").and_then(Value::as_u64).unwrap_or(0);
    let is_truncated = kept.get("truncated").and_then(Value::as_bool) == Some(true);
    let whole = if is_truncated { ", not whole" } else { "" };
    let detail = format!("the files are in {path} ({bytes} bytes{whole})");
    Some(("home_kept", detail))
}
