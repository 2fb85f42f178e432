//! After a clean run: a debt paid, or one that stays.

use super::{NOTHING_MORE, Recorded, RunReport, Subject};
use crate::tx::Tx;
use crate::{ClaimedRun, StoreError};
use orion_core::{Availability, NodeId, RunOutcome};

/// So many cleanings that found something left make it an administrator's matter; the debt is still retried.
const FAILED_CLEANINGS_TO_QUARANTINE: u64 = 5;

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
            let failures = self
                .number(
                    "SELECT COUNT(*) FROM runs WHERE account_id = ? AND kind = 'clean' AND outcome = 'not_gone'",
                    (subject.account.id.0,),
                )
                .await?;
            if report.outcome == RunOutcome::NotGone && failures >= FAILED_CLEANINGS_TO_QUARANTINE {
                let reason = format!(
                    "not_gone: {}",
                    report.detail.as_deref().unwrap_or("no detail")
                );
                self.quarantine(run.node, &reason).await?;
            }
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

    /// A node that was joining, or quarantined only because it could not be cleaned or held another account beside this
    /// one, is inspected now.
    async fn lift_after_clean(&mut self, node: NodeId) -> Result<bool, StoreError> {
        let now = self.now;
        self.change(
            "UPDATE nodes SET availability = 'joining', availability_reason = NULL, availability_since = ? WHERE id = ? AND availability = 'quarantined' \
             AND (availability_reason LIKE 'not\\_gone%' OR availability_reason LIKE 'foreign\\_account%')",
            (now, node.0),
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
