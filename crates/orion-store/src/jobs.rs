//! What the cron jobs ask: small batches, no input, the same answer however often they are asked.

use crate::edges::HeldAccount;
use crate::record::Claim;
use crate::row::{column, word};
use crate::tx::{Finish, bounded, unit};
use crate::{Store, StoreError};
use mysql_async::Row;
use mysql_async::prelude::Queryable;
use orion_core::{AccountId, EndReason, NodeId, RentalId, RequestId, RunId, RunKind, UndoReason};
use std::time::Duration;

/// What `reconcile` healed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reconciled {
    /// Runs whose claimant let the claim expire.
    pub requeued: u64,
    /// Requests whose deadline passed undecided.
    pub undone: Vec<RequestId>,
}

/// A job goes over many rows, and one that can't be handled must not keep the ones behind it waiting for ever.
#[derive(Default)]
struct Sweep {
    first_error: Option<StoreError>,
}

impl Sweep {
    /// What came of one row; nothing for one that failed by itself. A database that is away ends the sweep, and so does
    /// another leader.
    fn passed<T>(
        &mut self,
        id: u64,
        result: Result<T, StoreError>,
    ) -> Result<Option<T>, StoreError> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(error) if error.is_unavailable() || matches!(error, StoreError::NotLeading) => {
                Err(error)
            }
            Err(error) => {
                tracing::error!(
                    id,
                    error = &error as &dyn std::error::Error,
                    "a row is passed over"
                );
                self.first_error.get_or_insert(error);
                Ok(None)
            }
        }
    }

    fn end<T>(self, value: T) -> Result<T, StoreError> {
        self.first_error.map_or(Ok(value), Err)
    }
}

/// Rows looked at in one go; the next tick does the rest.
const BATCH: u32 = 200;

/// A node whose status comes and goes is not inspected more often than this.
const CALM: Duration = Duration::from_secs(60);

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
        let mut sweep = Sweep::default();
        let expired = "SELECT id FROM runs WHERE state = 'claimed' AND claim_expires_at < ? ORDER BY id LIMIT ?";
        for id in self.found(expired, BATCH).await? {
            let taken_back = self.take_back(RunId(id)).await;
            done.requeued += u64::from(sweep.passed(id, taken_back)?.unwrap_or(false));
        }
        let overdue =
            "SELECT id FROM requests WHERE state = 'open' AND deadline_at < ? ORDER BY id LIMIT ?";
        for id in self.found(overdue, BATCH).await? {
            let undone = self.undo_request(RequestId(id), UndoReason::Deadline).await;
            if sweep.passed(id, undone)? == Some(true) {
                done.undone.push(RequestId(id));
            }
        }
        sweep.end(done)
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
                expired_before: Some(tx.now),
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
        let (mut ended, mut sweep) = (0, Sweep::default());
        for id in self.found(over, limit).await? {
            let result = self.end_live(RentalId(id), EndReason::Expired).await;
            ended += u64::from(sweep.passed(id, result)?.unwrap_or(false));
        }
        sweep.end(ended)
    }

    /// Queues a clean run for up to `limit` debts that have none open, after 1, 2, 4 … 60 s since the last one failed.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn queue_cleaning(&self, limit: u32) -> Result<u64, StoreError> {
        let now = self.now().await?.0;
        let debts: Vec<Row> = bounded(async {
            let sql = "SELECT a.id, a.node_id, a.epoch FROM accounts a WHERE a.state = 'leaving' \
                 AND NOT EXISTS (SELECT 1 FROM nodes n WHERE n.id = a.node_id AND n.forgotten_at IS NOT NULL) \
                 AND NOT EXISTS (SELECT 1 FROM runs u WHERE u.open_for = CONCAT('clean ', a.id)) \
                 AND IFNULL((SELECT MAX(u.finished_at) + INTERVAL LEAST(60, POW(2, LEAST(COUNT(*), 7) - 1)) SECOND \
                             FROM runs u WHERE u.account_id = a.id AND u.kind = 'clean'), ?) <= ? \
                 ORDER BY a.state_since LIMIT ?";
            Ok(self.conn().await?.exec(sql, (now, now, limit)).await?)
        })
        .await?;
        let (mut queued, mut sweep) = (0, Sweep::default());
        for mut row in debts {
            let debt = HeldAccount {
                id: AccountId(column(&mut row, "id")?),
                node: NodeId(column(&mut row, "node_id")?),
                epoch: column(&mut row, "epoch")?,
            };
            let id = debt.id.0;
            let result = self.retry_debt(debt).await;
            queued += u64::from(sweep.passed(id, result)?.unwrap_or(false));
        }
        sweep.end(queued)
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

    /// Queues an inspection for up to `limit` joining nodes that are alive, hold no account and have none open, after
    /// 1, 2, 4 … 60 s since the last one, by the number that failed while the node was joining.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn queue_inspections(&self, limit: u32) -> Result<u64, StoreError> {
        let now = self.now().await?.0;
        let joining: Vec<u64> = bounded(async {
            let sql = "SELECT n.id FROM nodes n WHERE n.availability = 'joining' AND n.forgotten_at IS NULL \
                 AND n.contact_host IS NOT NULL AND n.status = 'alive' AND n.awaits_approval = FALSE \
                 AND NOT EXISTS (SELECT 1 FROM accounts a WHERE a.held_node = n.id) \
                 AND NOT EXISTS (SELECT 1 FROM runs u WHERE u.open_for = CONCAT('inspect ', n.id)) \
                 AND IFNULL((SELECT MAX(u.finished_at) FROM runs u WHERE u.node_id = n.id AND u.kind = 'inspect') \
                            + INTERVAL LEAST(60, POW(2, LEAST(6, (SELECT COUNT(*) FROM runs f WHERE f.node_id = n.id \
                              AND f.kind = 'inspect' AND f.state = 'failed' AND f.finished_at >= n.availability_since)))) \
                              SECOND, ?) <= ? \
                 ORDER BY n.availability_since LIMIT ?";
            Ok(self.conn().await?.exec(sql, (now, now, limit)).await?)
        })
        .await?;
        self.queue_inspections_of(joining).await
    }

    /// Queues an inspection for nodes that are not joining: at once where the status changed since the last one (suspect
    /// now, or back), and else each `every`. `tick` is how long ago this was called last: with it the pool of so many
    /// `nodes` is gone through evenly.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn queue_deep_inspections(
        &self,
        every: Duration,
        tick: Duration,
        nodes: u64,
    ) -> Result<u64, StoreError> {
        let now = self.now().await?.0;
        let of_a_tick = u128::from(nodes) * tick.as_millis();
        let evenly = of_a_tick.div_ceil(every.as_millis().max(1));
        let evenly = u32::try_from(evenly).unwrap_or(BATCH).clamp(1, BATCH);
        let of_those = |due: &str| {
            format!(
                "SELECT n.id FROM nodes n WHERE n.availability <> 'joining' AND n.forgotten_at IS NULL \
                 AND n.contact_host IS NOT NULL AND n.awaits_approval = FALSE AND n.status IN ('alive', 'suspect') \
                 AND NOT EXISTS (SELECT 1 FROM runs u WHERE u.open_for = CONCAT('inspect ', n.id)) \
                 AND ({due}) ORDER BY n.last_inspected_at LIMIT ?"
            )
        };
        let changed = of_those("n.last_inspected_at < n.status_since AND n.last_inspected_at <= ?");
        let rolling = of_those(
            "n.last_inspected_at IS NULL OR n.last_inspected_at <= ? OR n.last_inspected_at > ? + INTERVAL 1 HOUR",
        );
        let (calm, due) = (now - CALM, now - every);
        let mut ids: Vec<u64> =
            bounded(async { Ok(self.conn().await?.exec(changed, (calm, BATCH)).await?) }).await?;
        let others: Vec<u64> =
            bounded(async { Ok(self.conn().await?.exec(rolling, (due, now, evenly)).await?) })
                .await?;
        ids.extend(others);
        self.queue_inspections_of(ids).await
    }

    async fn queue_inspections_of(&self, nodes: Vec<u64>) -> Result<u64, StoreError> {
        let (mut queued, mut sweep) = (0, Sweep::default());
        for id in nodes {
            let result = unit!(self, |tx| {
                Finish::Commit(tx.queue_inspection(NodeId(id)).await?)
            });
            queued += u64::from(sweep.passed(id, result)?.unwrap_or(false));
        }
        sweep.end(queued)
    }
}
