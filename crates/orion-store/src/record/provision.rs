//! After a provision run: present, replaced by another node, or the whole request undone.

use super::{MORE_WORK, NOTHING_MORE, Recorded, RunReport, Subject};
use crate::edges::About;
use crate::tx::Tx;
use crate::{ClaimedRun, StoreError};
use orion_core::{AccountState, NodeId, RentalId, RequestState, RunOutcome, UndoReason};

/// Two provisionings in a row that failed for the node's own reasons make it look broken.
const FAILED_PROVISIONS_TO_QUARANTINE: u32 = 2;

fn about(node: NodeId, rental: RentalId) -> About {
    About {
        node: Some(node),
        rental: Some(rental),
    }
}

impl Tx {
    pub(super) async fn provisioned(
        &mut self,
        run: &ClaimedRun,
        subject: &Subject,
        report: &RunReport,
        compensates: bool,
    ) -> Result<Recorded, StoreError> {
        let now = self.now;
        self.note_evidence(subject.account.id, report).await?;
        if report.outcome == RunOutcome::Present {
            let changed = self
                .change(
                    "UPDATE accounts SET state = 'present', state_since = ? WHERE id = ? AND state = 'making' AND epoch = ?",
                    (now, subject.account.id.0, run.epoch),
                )
                .await?;
            self.change(
                "UPDATE nodes SET failed_provisions = 0 WHERE id = ?",
                (run.node.0,),
            )
            .await?;
            if subject.state == AccountState::Present {
                self.event("account_repaired", about(run.node, subject.rental), None)
                    .await?;
            }
            if changed == 1 && subject.request_state == RequestState::Active {
                self.arrive(subject.rental, &subject.account, compensates)
                    .await?;
            }
            let settled = changed == 1
                && subject.request_state == RequestState::Open
                && self.settle_if_complete(subject.request).await?;
            return Ok(Recorded::Done {
                settled: settled.then_some(subject.request),
                // What the rental had before must go now.
                queued: subject.request_state == RequestState::Active,
            });
        }
        match subject.state {
            AccountState::Making => {}
            // It was being made again, and what the worker says next leads to the next attempt.
            AccountState::Present => {
                self.provision_failed(run, subject, report).await?;
                return Ok(NOTHING_MORE);
            }
            AccountState::Leaving | AccountState::Gone => return Ok(NOTHING_MORE),
        }
        self.leave(&subject.account).await?;
        self.provision_failed(run, subject, report).await?;
        if subject.request_state != RequestState::Open {
            return Ok(MORE_WORK);
        }
        let reason = self.replace(subject, report.outcome).await?;
        let settled = match reason {
            Some(reason) => self
                .undo(subject.request, reason)
                .await?
                .then_some(subject.request),
            None => None,
        };
        Ok(Recorded::Done {
            settled,
            queued: true,
        })
    }

    async fn provision_failed(
        &mut self,
        run: &ClaimedRun,
        subject: &Subject,
        report: &RunReport,
    ) -> Result<(), StoreError> {
        let about = about(run.node, subject.rental);
        self.event("provision_failed", about, Some(report.outcome.as_str()))
            .await?;
        if matches!(
            report.outcome,
            RunOutcome::Failed | RunOutcome::Refused | RunOutcome::StaleEpoch
        ) {
            self.count_failed_provision(run.node, report).await?;
        }
        Ok(())
    }

    /// Another node for the rental, or why the whole request must be undone.
    async fn replace(
        &mut self,
        subject: &Subject,
        outcome: RunOutcome,
    ) -> Result<Option<UndoReason>, StoreError> {
        let taken = outcome == RunOutcome::NameTaken;
        // The name may be free elsewhere: one further node is tried, not the whole pool.
        if taken && self.names_taken(subject.rental).await? >= 2 {
            return Ok(Some(UndoReason::NameTaken));
        }
        let replaced = self
            .replace_account(subject.request, subject.rental)
            .await?
            .is_some();
        Ok(match (replaced, taken) {
            (true, _) => None,
            (false, true) => Some(UndoReason::NameTaken),
            (false, false) => Some(UndoReason::NoNode),
        })
    }

    /// On so many nodes the rental's name was somebody else's. One where it had its account is not among them: a name that
    /// was taken away there later is that machine's matter.
    pub(crate) async fn names_taken(&mut self, rental: RentalId) -> Result<u64, StoreError> {
        self.number(
            "SELECT COUNT(DISTINCT u.node_id) FROM runs u JOIN accounts a ON a.id = u.account_id \
             WHERE a.rental_id = ? AND u.kind = 'provision' AND u.outcome = 'name_taken' AND NOT EXISTS \
             (SELECT 1 FROM runs made WHERE made.account_id = a.id AND made.outcome = 'present')",
            (rental.0,),
        )
        .await
    }

    async fn count_failed_provision(
        &mut self,
        node: NodeId,
        report: &RunReport,
    ) -> Result<(), StoreError> {
        self.change(
            "UPDATE nodes SET failed_provisions = failed_provisions + 1 WHERE id = ?",
            (node.0,),
        )
        .await?;
        let failed = self
            .number(
                "SELECT failed_provisions FROM nodes WHERE id = ?",
                (node.0,),
            )
            .await?;
        if failed >= u64::from(FAILED_PROVISIONS_TO_QUARANTINE) {
            let reason = format!(
                "provision_failed: {}",
                report.detail.as_deref().unwrap_or("no detail")
            );
            self.quarantine(node, &reason).await?;
        }
        Ok(())
    }
}
