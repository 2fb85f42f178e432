//! After an inspection: a joining node is ready, or somebody must look after it.

use super::{MORE_WORK, NOTHING_MORE, Recorded, RunReport};
use crate::edges::{About, HeldAccount, short};
use crate::tx::Tx;
use crate::{ClaimedRun, StoreError};
use orion_core::{Availability, RunOutcome, Uid};
use serde::Deserialize;

/// No account is acted on so often; a worker that reports more is broken, or lies.
const MAX_EPOCH: u64 = 1 << 48;

/// An account that was seen gone so often and is there again can't be cleaned by us.
const MAX_PAID_AND_BACK: u64 = 3;

impl Tx {
    pub(super) async fn inspected(
        &mut self,
        run: &ClaimedRun,
        report: &RunReport,
    ) -> Result<Recorded, StoreError> {
        match report.outcome {
            RunOutcome::Clean => {
                let held = self
                    .number(
                        "SELECT COUNT(*) FROM accounts WHERE held_node = ?",
                        (run.node.0,),
                    )
                    .await?;
                if held == 0
                    && self
                        .move_node(run.node, Availability::Joining, Availability::Ready, None)
                        .await?
                {
                    self.event("node_ready", run.node.into(), None).await?;
                }
                Ok(NOTHING_MORE)
            }
            RunOutcome::Dirty => self.found_dirty(run, report).await,
            RunOutcome::Present
            | RunOutcome::Gone
            | RunOutcome::NameTaken
            | RunOutcome::StaleEpoch
            | RunOutcome::Refused
            | RunOutcome::NotGone
            | RunOutcome::Failed
            | RunOutcome::Unreachable
            | RunOutcome::HostKeyMismatch
            | RunOutcome::NoResult
            | RunOutcome::Superseded => {
                let reason = format!(
                    "{}: {}",
                    report.outcome,
                    report.detail.as_deref().unwrap_or("no detail")
                );
                self.change(
                    "UPDATE nodes SET availability_reason = ? WHERE id = ? AND availability = 'joining'",
                    (short(&reason), run.node.0),
                )
                .await?;
                Ok(NOTHING_MORE)
            }
        }
    }

    /// Managed accounts on a joining node that the database believes gone become debts again; what nobody can explain
    /// is an administrator's matter.
    async fn found_dirty(
        &mut self,
        run: &ClaimedRun,
        report: &RunReport,
    ) -> Result<Recorded, StoreError> {
        let joining = self
            .number(
                "SELECT COUNT(*) FROM nodes WHERE id = ? AND availability = 'joining'",
                (run.node.0,),
            )
            .await?;
        let held = self
            .number(
                "SELECT COUNT(*) FROM accounts WHERE held_node = ?",
                (run.node.0,),
            )
            .await?;
        if joining == 0 || held > 0 {
            return Ok(NOTHING_MORE);
        }
        let seen = Seen::from(report);
        for account in &seen.accounts {
            if self.reopen_debt(run, account).await? {
                return Ok(MORE_WORK);
            }
        }
        let reason = format!(
            "dirty: {}",
            report
                .detail
                .as_deref()
                .unwrap_or("something managed is there")
        );
        self.quarantine(run.node, &reason).await?;
        Ok(NOTHING_MORE)
    }

    /// A debt for an account that was found although no row holds it. False when no such rental ever was.
    async fn reopen_debt(
        &mut self,
        run: &ClaimedRun,
        seen: &SeenAccount,
    ) -> Result<bool, StoreError> {
        let Some(rental) = Uid(seen.uid).rental(run.uid_base) else {
            return Ok(false);
        };
        let seen_epoch = seen.epoch.unwrap_or(0);
        if seen_epoch > MAX_EPOCH || self.request_of(rental).await?.is_none() {
            return Ok(false);
        }
        let paid_before = self
            .number(
                "SELECT COUNT(*) FROM accounts WHERE rental_id = ? AND node_id = ? AND state = 'gone'",
                (rental.0, run.node.0),
            )
            .await?;
        if paid_before >= MAX_PAID_AND_BACK {
            return Ok(false);
        }
        let highest = self
            .number(
                "SELECT IFNULL(MAX(epoch), 0) FROM accounts WHERE rental_id = ?",
                (rental.0,),
            )
            .await?;
        let epoch = highest.max(seen_epoch) + 1;
        let id = self.make_account(rental, run.node, epoch).await?;
        self.leave(&HeldAccount {
            id,
            node: run.node,
            epoch,
        })
        .await?;
        let about = About {
            node: Some(run.node),
            rental: Some(rental),
        };
        self.event("orphan_found", about, Some(&format!("uid {}", seen.uid)))
            .await?;
        Ok(true)
    }
}

/// The part of an inspection's evidence that decisions are made from.
#[derive(Default, Deserialize)]
struct Seen {
    #[serde(default)]
    accounts: Vec<SeenAccount>,
}

#[derive(Deserialize)]
struct SeenAccount {
    uid: u32,
    #[serde(default)]
    epoch: Option<u64>,
}

impl From<&RunReport> for Seen {
    /// Evidence of another form explains nothing.
    fn from(report: &RunReport) -> Self {
        report
            .evidence
            .clone()
            .and_then(|evidence| serde_json::from_value(evidence).ok())
            .unwrap_or_default()
    }
}
