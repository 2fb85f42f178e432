//! After an inspection: a joining node is ready, a leased one has what it should have, or somebody must look after it.

use super::{MORE_WORK, NOTHING_MORE, Recorded, RunReport};
use crate::edges::{About, HeldAccount, short};
use crate::reports::{Seen, SeenAccount, Tenant};
use crate::row::column;
use crate::tx::Tx;
use crate::{ClaimedRun, StoreError};
use orion_core::{AccountState, Availability, NodeId, RunId, RunOutcome, Uid};
use serde::Deserialize;
use time::PrimitiveDateTime;

/// No account is acted on so often; a worker that reports more is broken, or lies.
const MAX_EPOCH: u64 = 1 << 48;

/// An account that was seen gone so often and is there again can't be cleaned by us.
const MAX_PAID_AND_BACK: u64 = 3;

impl Tx {
    pub(super) async fn inspected(
        &mut self,
        run: &ClaimedRun,
        tenant: Option<&Tenant>,
        report: &RunReport,
    ) -> Result<Recorded, StoreError> {
        let now = self.now;
        self.change(
            "UPDATE nodes SET last_inspected_at = ? WHERE id = ?",
            (now, run.node.0),
        )
        .await?;
        match report.outcome {
            RunOutcome::Clean | RunOutcome::Dirty => {
                let begun = self.queued_at(run.id).await?;
                // Asked before the look itself makes it join.
                let joined_after = self.joined_after(run.node, begun).await?;
                let seen = Seen::from(report);
                let repairing = self.compare(run.node, tenant, &seen, begun).await?;
                if tenant.is_some() {
                    return Ok(if repairing { MORE_WORK } else { NOTHING_MORE });
                }
                if joined_after {
                    // Whatever made it join may have been seen, or not.
                    self.queue_inspection(run.node).await?;
                    return Ok(MORE_WORK);
                }
                if report.outcome == RunOutcome::Clean {
                    return self.found_clean(run.node).await;
                }
                self.no_more_ready(run.node, report, begun).await?;
                self.found_dirty(run, report).await
            }
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

    async fn queued_at(&mut self, run: RunId) -> Result<PrimitiveDateTime, StoreError> {
        let found = self
            .first("SELECT created_at FROM runs WHERE id = ?", (run.0,))
            .await?;
        match found {
            Some(mut row) => column(&mut row, "created_at"),
            None => Ok(self.now),
        }
    }

    /// Whether the node began to join only after the inspection had: what that saw says nothing of why.
    async fn joined_after(
        &mut self,
        node: NodeId,
        begun: PrimitiveDateTime,
    ) -> Result<bool, StoreError> {
        let sql = "SELECT COUNT(*) FROM nodes WHERE id = ? AND availability = 'joining' AND availability_since > ?";
        Ok(self.number(sql, (node.0, begun)).await? > 0)
    }

    async fn found_clean(&mut self, node: NodeId) -> Result<Recorded, StoreError> {
        let held = self
            .number(
                "SELECT COUNT(*) FROM accounts WHERE held_node = ?",
                (node.0,),
            )
            .await?;
        if held == 0
            && self
                .move_node(node, Availability::Joining, Availability::Ready, None)
                .await?
        {
            self.event("node_ready", node.into(), None).await?;
        }
        Ok(NOTHING_MORE)
    }

    /// `ready -> joining`, unless the node was still somebody's when the inspection began.
    async fn no_more_ready(
        &mut self,
        node: NodeId,
        report: &RunReport,
        begun: PrimitiveDateTime,
    ) -> Result<(), StoreError> {
        let ready = self
            .number(
                "SELECT COUNT(*) FROM nodes WHERE id = ? AND availability = 'ready' AND availability_since <= ?",
                (node.0, begun),
            )
            .await?;
        if ready == 1 {
            let (from, to) = (Availability::Ready, Availability::Joining);
            self.move_node(node, from, to, Some(&dirty(report))).await?;
        }
        Ok(())
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
        for account in Seen::from(report).accounts {
            if self.reopen_debt(run, &account).await? {
                return Ok(MORE_WORK);
            }
        }
        self.quarantine(run.node, &dirty(report)).await?;
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

fn dirty(report: &RunReport) -> String {
    let detail = report.detail.as_deref();
    format!("dirty: {}", detail.unwrap_or("something managed is there"))
}

/// The part of an inspection's evidence that decisions are made from.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Evidence {
    accounts: Vec<AccountThere>,
    processes: Vec<ProcessThere>,
    max_uid: Option<u32>,
    counts: Option<Counts>,
}

#[derive(Deserialize)]
struct AccountThere {
    uid: u32,
    #[serde(default)]
    epoch: Option<u64>,
    #[serde(default)]
    locked: bool,
}

#[derive(Deserialize)]
struct ProcessThere {
    uid: u32,
}

/// How many there are; only some are listed.
#[derive(Deserialize)]
struct Counts {
    accounts: usize,
}

impl From<&RunReport> for Seen {
    /// Evidence of another form explains nothing.
    fn from(report: &RunReport) -> Self {
        let evidence: Evidence = report
            .evidence
            .clone()
            .and_then(|evidence| serde_json::from_value(evidence).ok())
            .unwrap_or_default();
        let listed = evidence.accounts.len();
        let mut accounts: Vec<SeenAccount> = evidence
            .accounts
            .iter()
            .map(|account| SeenAccount {
                uid: account.uid,
                epoch: account.epoch,
                state: AccountState::Present,
                locked: account.locked,
            })
            .collect();
        let is_known = |uid: u32| evidence.accounts.iter().any(|account| account.uid == uid);
        // Whose process runs may come back, account or not.
        let of_processes = evidence.processes.iter().map(|process| process.uid);
        accounts.extend(
            of_processes
                .filter(|uid| !is_known(*uid))
                .map(|uid| SeenAccount {
                    uid,
                    epoch: None,
                    state: AccountState::Present,
                    locked: true,
                }),
        );
        let uids = accounts.iter().map(|account| account.uid);
        Self {
            highest_uid: uids.chain(evidence.max_uid).max(),
            is_complete: evidence.counts.is_some_and(|all| all.accounts == listed),
            accounts,
        }
    }
}
