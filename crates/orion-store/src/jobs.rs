//! What the cron jobs ask: small batches, no input, the same answer however often they are asked.

use crate::edges::HeldAccount;
use crate::record::Claim;
use crate::row::{column, word};
use crate::tx::{Finish, bounded, unit};
use crate::{Store, StoreError};
use mysql_async::Row;
use mysql_async::prelude::Queryable;
use orion_core::{AccountId, EndReason, NodeId, RentalId, RequestId, RunId, RunKind, UndoReason};

/// What `reconcile` healed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reconciled {
    /// Runs whose claimant let the claim expire.
    pub requeued: u64,
    /// Requests whose deadline passed undecided.
    pub undone: Vec<RequestId>,
}

/// Rows looked at in one go; the next tick does the rest.
const BATCH: u32 = 200;

impl Store {
    /// Ids that a statement finds, as of the database's clock. Only to know where to look: each is decided anew under
    /// its lock.
    async fn found(&self, sql: &str, limit: u32) -> Result<Vec<u64>, StoreError> {
        let now = self.now().await?.0;
        bounded(async { Ok(self.conn().await?.exec(sql, (now, limit)).await?) }).await
    }

    /// Gives back runs whose claimant is gone and undoes requests past their deadline.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn reconcile(&self) -> Result<Reconciled, StoreError> {
        let mut done = Reconciled::default();
        let expired = "SELECT id FROM runs WHERE state = 'claimed' AND claim_expires_at < ? ORDER BY id LIMIT ?";
        for id in self.found(expired, BATCH).await? {
            done.requeued += u64::from(self.take_back(RunId(id)).await?);
        }
        let overdue =
            "SELECT id FROM requests WHERE state = 'open' AND deadline_at < ? ORDER BY id LIMIT ?";
        for id in self.found(overdue, BATCH).await? {
            if self
                .undo_request(RequestId(id), UndoReason::Deadline)
                .await?
            {
                done.undone.push(RequestId(id));
            }
        }
        Ok(done)
    }

    /// `claimed -> queued`, for a claim that expired.
    async fn take_back(&self, run: RunId) -> Result<bool, StoreError> {
        unit!(self, |tx| {
            let found = tx
                .first(
                    "SELECT kind, claimed_by, attempt FROM runs WHERE id = ? AND state = 'claimed' AND claim_expires_at < ?",
                    (run.0, tx.now),
                )
                .await?;
            let Some(mut row) = found else {
                return Ok(false);
            };
            let by: String = column(&mut row, "claimed_by")?;
            let claim = Claim {
                run,
                kind: word(&mut row, "kind")?,
                by: &by,
                attempt: column(&mut row, "attempt")?,
            };
            Finish::Commit(tx.requeue_claimed(&claim).await?)
        })
    }

    /// Ends up to `limit` rentals whose time is over by the database's clock; tells how many.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn expire_rentals(&self, limit: u32) -> Result<u64, StoreError> {
        let over = "SELECT id FROM rentals WHERE state IN ('active', 'degraded') AND leased_until <= ? \
                    ORDER BY leased_until LIMIT ?";
        let mut ended = 0;
        for id in self.found(over, limit).await? {
            ended += u64::from(self.end_live(RentalId(id), EndReason::Expired).await?);
        }
        Ok(ended)
    }

    /// Queues a clean run for up to `limit` debts that have none open, after 1, 2, 4 … 60 s since the last one failed.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn queue_cleaning(&self, limit: u32) -> Result<u64, StoreError> {
        let now = self.now().await?.0;
        let debts: Vec<Row> = bounded(async {
            let sql = "SELECT a.id, a.node_id, a.epoch FROM accounts a WHERE a.state = 'leaving' \
                 AND NOT EXISTS (SELECT 1 FROM runs u WHERE u.open_for = CONCAT('clean ', a.id)) \
                 AND IFNULL((SELECT MAX(u.finished_at) + INTERVAL LEAST(60, POW(2, LEAST(COUNT(*), 7) - 1)) SECOND \
                             FROM runs u WHERE u.account_id = a.id AND u.kind = 'clean'), ?) <= ? \
                 ORDER BY a.state_since LIMIT ?";
            Ok(self.conn().await?.exec(sql, (now, now, limit)).await?)
        })
        .await?;
        let mut queued = 0;
        for mut row in debts {
            let debt = HeldAccount {
                id: AccountId(column(&mut row, "id")?),
                node: NodeId(column(&mut row, "node_id")?),
                epoch: column(&mut row, "epoch")?,
            };
            queued += u64::from(self.retry_debt(debt).await?);
        }
        Ok(queued)
    }

    /// A new attempt at a debt, at a higher epoch than the one before.
    async fn retry_debt(&self, debt: HeldAccount) -> Result<bool, StoreError> {
        unit!(self, |tx| {
            let changed = tx
                .change(
                    "UPDATE accounts SET epoch = epoch + 1 WHERE id = ? AND state = 'leaving' AND epoch = ? \
                     AND NOT EXISTS (SELECT 1 FROM runs u WHERE u.open_for = CONCAT('clean ', accounts.id))",
                    (debt.id.0, debt.epoch),
                )
                .await?;
            if changed == 0 {
                Finish::Rollback(false)
            } else {
                let next = HeldAccount {
                    epoch: debt.epoch + 1,
                    ..debt
                };
                Finish::Commit(tx.queue_account_run(RunKind::Clean, &next).await?)
            }
        })
    }

    /// Queues an inspection for up to `limit` joining nodes that hold no account and have none open, after 1, 2, 4 …
    /// 60 s since the last look, by the number of failed ones.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn queue_inspections(&self, limit: u32) -> Result<u64, StoreError> {
        let now = self.now().await?.0;
        let joining: Vec<u64> = bounded(async {
            let sql = "SELECT n.id FROM nodes n WHERE n.availability = 'joining' AND n.forgotten_at IS NULL \
                 AND n.contact_host IS NOT NULL \
                 AND NOT EXISTS (SELECT 1 FROM accounts a WHERE a.held_node = n.id) \
                 AND NOT EXISTS (SELECT 1 FROM runs u WHERE u.open_for = CONCAT('inspect ', n.id)) \
                 AND IFNULL((SELECT MAX(u.finished_at) FROM runs u WHERE u.node_id = n.id AND u.kind = 'inspect') \
                            + INTERVAL LEAST(60, POW(2, LEAST(n.failed_checks, 6))) SECOND, ?) <= ? \
                 ORDER BY n.availability_since LIMIT ?";
            Ok(self.conn().await?.exec(sql, (now, now, limit)).await?)
        })
        .await?;
        let mut queued = 0;
        for id in joining {
            queued += u64::from(unit!(self, |tx| {
                Finish::Commit(tx.queue_inspection(NodeId(id)).await?)
            })?);
        }
        Ok(queued)
    }
}
