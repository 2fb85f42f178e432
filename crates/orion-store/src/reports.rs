//! What workers say of the accounts on them, compared with what the database wants of them.
//!
//! An account that should be there and is not is made again. One that nobody explains keeps its node from new rentals.

use crate::counter::UidCounter;
use crate::edges::{About, HeldAccount};
use crate::record::FOREIGN_ACCOUNT;
use crate::row::{column, word};
use crate::tx::{Finish, Tx, unit};
use crate::{Store, StoreError};
use orion_core::api::{MAX_REPORTED, ReportedAccount};
use orion_core::{
    AccountId, AccountState, Availability, NodeId, RentalId, RequestId, RunKind, Uid,
};
use std::time::Duration;
use time::PrimitiveDateTime;

/// A beat may be on its way for so long, and an account is not made again sooner after it was looked at.
const SETTLED: Duration = Duration::from_secs(30);

/// An account that ends sooner than this is not made again.
const WORTH_IT: Duration = Duration::from_secs(10);

/// What the agent of a node says under its signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccountsReport {
    /// The node.
    pub node: NodeId,
    /// Its accounts, also those that are gone from it.
    pub accounts: Vec<ReportedAccount>,
}

/// The account that is not gone from a node; there is never a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeldOnNode {
    /// Its UID.
    pub uid: Uid,
    /// Its epoch.
    pub epoch: u64,
    /// What is wanted.
    pub wanted: Wanted,
}

/// What the control plane wants of an account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// That it stays for so long from now on.
    For(Duration),
    /// That it goes.
    Gone,
    /// Nothing is decided yet.
    Undecided,
}

/// An account that was seen on a node, or a trace of one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SeenAccount {
    pub(crate) uid: u32,
    pub(crate) epoch: Option<u64>,
    pub(crate) state: AccountState,
    pub(crate) locked: bool,
}

/// What was seen on a node.
pub(crate) struct Seen {
    pub(crate) accounts: Vec<SeenAccount>,
    /// Of accounts, processes and records.
    pub(crate) highest_uid: Option<u32>,
    /// Whether an account that is not among them is not there.
    pub(crate) is_complete: bool,
}

impl From<&AccountsReport> for Seen {
    fn from(report: &AccountsReport) -> Self {
        let seen = |account: &ReportedAccount| SeenAccount {
            uid: account.uid.0,
            epoch: Some(account.epoch),
            state: account.state,
            locked: account.locked,
        };
        let uids = report.accounts.iter().map(|account| account.uid.0);
        Self {
            highest_uid: uids.max(),
            is_complete: report.accounts.len() < MAX_REPORTED,
            accounts: report.accounts.iter().map(seen).collect(),
        }
    }
}

impl Seen {
    fn foreign(&self, counter: UidCounter, own: Option<Uid>) -> impl Iterator<Item = u32> {
        let uids = self.accounts.iter().filter(move |account| {
            account.state != AccountState::Gone
                && counter.manages(account.uid)
                && Some(account.uid) != own.map(|own| own.0)
        });
        uids.map(|account| account.uid)
    }

    /// Whether the client of this account can't get in, as of this epoch or an earlier one.
    fn lacks(&self, uid: Uid, epoch: u64) -> bool {
        match self.accounts.iter().find(|account| account.uid == uid.0) {
            None => self.is_complete,
            Some(seen) => {
                (seen.locked || seen.state == AccountState::Gone)
                    && seen.epoch.is_none_or(|of| of <= epoch)
            }
        }
    }

    fn above(&self, counter: UidCounter) -> Option<u32> {
        self.highest_uid.filter(|uid| counter.never_gave(*uid))
    }
}

impl AccountsReport {
    /// Whether the database has something to say to it.
    pub(crate) fn differs(&self, held: Option<&HeldOnNode>, counter: UidCounter) -> bool {
        let seen = Seen::from(self);
        let own = held.map(|held| held.uid);
        seen.above(counter).is_some()
            || seen.foreign(counter, own).next().is_some()
            || held.is_some_and(|held| {
                matches!(held.wanted, Wanted::For(_)) && seen.lacks(held.uid, held.epoch)
            })
    }
}

/// The account that a node holds, locked after its request.
pub(crate) struct Tenant {
    account: HeldAccount,
    state: AccountState,
    uid: Uid,
    rental: RentalId,
}

impl Store {
    /// Follows what a beat said and the database did not: an account is made again, or the node takes no new rental. True
    /// where a run was queued.
    ///
    /// # Errors
    /// When the database is away; the next beat says it again.
    pub async fn follow_report(&self, report: &AccountsReport) -> Result<bool, StoreError> {
        unit!(self, |tx| {
            let interval_s = tx
                .number(
                    "SELECT interval_s FROM beats WHERE node_id = ?",
                    (report.node.0,),
                )
                .await?;
            let on_its_way = Duration::from_secs(interval_s.saturating_mul(2)).max(SETTLED);
            let before = tx.now - on_its_way;
            let tenant = tx.lock_tenant(report.node).await?;
            let seen = Seen::from(report);
            Finish::Commit(
                tx.compare(report.node, tenant.as_ref(), &seen, before)
                    .await?,
            )
        })
    }
}

impl Tx {
    /// Locks the request of the account that a node holds, then the account.
    pub(crate) async fn lock_tenant(&mut self, node: NodeId) -> Result<Option<Tenant>, StoreError> {
        let found = self
            .first(
                "SELECT a.id, a.rental_id, r.request_id FROM accounts a JOIN rentals r ON r.id = a.rental_id \
                 WHERE a.held_node = ?",
                (node.0,),
            )
            .await?;
        let Some(mut row) = found else {
            return Ok(None);
        };
        let id = AccountId(column(&mut row, "id")?);
        self.lock_request(RequestId(column(&mut row, "request_id")?))
            .await?;
        let found = self
            .first(
                "SELECT uid, epoch, state FROM accounts WHERE id = ? AND state <> 'gone' FOR UPDATE",
                (id.0,),
            )
            .await?;
        let Some(mut account) = found else {
            return Ok(None);
        };
        Ok(Some(Tenant {
            account: HeldAccount {
                id,
                node,
                epoch: column(&mut account, "epoch")?,
            },
            state: word(&mut account, "state")?,
            uid: Uid(column(&mut account, "uid")?),
            rental: RentalId(column(&mut row, "rental_id")?),
        }))
    }

    /// Compares what was seen on a node with what should be there. What changed here after `before` may not have been
    /// seen yet. True where a run was queued.
    pub(crate) async fn compare(
        &mut self,
        node: NodeId,
        tenant: Option<&Tenant>,
        seen: &Seen,
        before: PrimitiveDateTime,
    ) -> Result<bool, StoreError> {
        let counter = self.uid_counter().await?;
        if let Some(uid) = seen.above(counter) {
            self.never_given_out(node, Uid(uid), counter).await?;
        }
        let own = tenant.map(|tenant| tenant.uid);
        for uid in seen.foreign(counter, own).collect::<Vec<_>>() {
            if !self.held_lately(node, uid, before).await? {
                self.found_foreign(node, Uid(uid), before).await?;
            }
        }
        match tenant {
            Some(tenant)
                if tenant.state == AccountState::Present
                    && seen.lacks(tenant.uid, tenant.account.epoch) =>
            {
                self.repair(tenant, before).await
            }
            Some(_) | None => Ok(false),
        }
    }

    async fn held_lately(
        &mut self,
        node: NodeId,
        uid: u32,
        before: PrimitiveDateTime,
    ) -> Result<bool, StoreError> {
        let held = self
            .number(
                "SELECT COUNT(*) FROM accounts WHERE node_id = ? AND uid = ? AND (state <> 'gone' OR state_since > ?)",
                (node.0, uid, before),
            )
            .await?;
        Ok(held > 0)
    }

    /// An account that the node should not have: nobody gets the node before it was inspected.
    async fn found_foreign(
        &mut self,
        node: NodeId,
        uid: Uid,
        before: PrimitiveDateTime,
    ) -> Result<(), StoreError> {
        let found = self
            .first(
                "SELECT availability, availability_since <= ? AS settled FROM nodes \
                 WHERE id = ? AND forgotten_at IS NULL FOR UPDATE",
                (before, node.0),
            )
            .await?;
        let Some(mut row) = found else {
            return Ok(());
        };
        let reason = format!("{FOREIGN_ACCOUNT}: UID {uid} is there and should not be");
        match word(&mut row, "availability")? {
            Availability::Ready if column(&mut row, "settled")? => {
                let (from, to) = (Availability::Ready, Availability::Joining);
                self.move_node(node, from, to, Some(&reason)).await?;
            }
            // Two clients' accounts on one node; once its own is gone it is inspected.
            Availability::Leased | Availability::Cleaning => {
                self.quarantine(node, &reason).await?;
            }
            Availability::Ready | Availability::Joining | Availability::Quarantined => {
                return Ok(());
            }
        }
        self.event(FOREIGN_ACCOUNT, node.into(), Some(&reason))
            .await
    }

    /// Provisions an account again, at a higher epoch, while it stays `present` and its rental active.
    async fn repair(
        &mut self,
        tenant: &Tenant,
        before: PrimitiveDateTime,
    ) -> Result<bool, StoreError> {
        let now = self.now;
        let settled = before.min(now - SETTLED);
        // What was recorded an hour ahead was so by another clock.
        let due = self
            .number(
                "SELECT COUNT(*) FROM accounts a JOIN rentals r ON r.id = a.rental_id JOIN nodes n ON n.id = a.node_id \
                 WHERE a.id = ? AND (a.evidence_at <= ? OR a.evidence_at > ? + INTERVAL 1 HOUR) \
                 AND r.state = 'active' AND r.leased_until > ? AND n.status = 'alive' \
                 AND NOT EXISTS (SELECT 1 FROM runs u WHERE u.open_for = CONCAT('provision ', a.id))",
                (tenant.account.id.0, settled, now, now + WORTH_IT),
            )
            .await?;
        if due == 0 || self.step.is_some() || self.is_outdated().await? {
            return Ok(false);
        }
        let epoch = tenant.account.epoch + 1;
        let changed = self
            .change(
                "UPDATE accounts SET epoch = ? WHERE id = ? AND state = 'present' AND epoch = ?",
                (epoch, tenant.account.id.0, tenant.account.epoch),
            )
            .await?;
        if changed == 0 {
            return Ok(false);
        }
        let again = HeldAccount {
            epoch,
            ..tenant.account
        };
        self.queue_account_run(RunKind::Provision, &again).await?;
        let about = About {
            node: Some(again.node),
            rental: Some(tenant.rental),
        };
        let detail = "the account is missing or locked on its machine, and is made again";
        self.event("account_repair", about, Some(detail)).await?;
        Ok(true)
    }
}
