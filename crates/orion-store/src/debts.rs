//! Debts as a whole: how many there are, how old, and those that somebody must look after.

use crate::row::{column, word};
use crate::tx::{Finish, bounded, unit};
use crate::{Store, StoreError};
use mysql_async::Row;
use mysql_async::prelude::Queryable;
use orion_core::{AccountId, Availability, NodeId, RentalId, Uid};
use std::time::Duration;

/// A debt this old on a node that answers is somebody's matter (seconds).
const OVERDUE_S: u32 = 600;

/// How much of what a worker said goes into an alarm, so that what to do is not cut off (characters).
const SAID_CHARS: usize = 1_000;

/// Every account that must still go from a node that was not forgotten.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Debts {
    /// How many.
    pub count: u64,
    /// The age of the oldest; zero without any.
    pub oldest: Duration,
}

/// A debt that Orion can't pay by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DebtAlarm {
    /// The node that owes.
    pub node: NodeId,
    /// Whose account it is.
    pub rental: RentalId,
    /// Its UID.
    pub uid: Uid,
    /// What is left and what to do, for an administrator.
    pub detail: String,
}

impl Store {
    /// How many debts there are, and how old the oldest is.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn debts(&self) -> Result<Debts, StoreError> {
        let now = self.now().await?.0;
        bounded(async {
            let sql = "SELECT COUNT(*) AS debts, \
                 CAST(GREATEST(0, IFNULL(TIMESTAMPDIFF(MICROSECOND, MIN(a.state_since), ?), 0)) AS UNSIGNED) AS oldest_us \
                 FROM accounts a JOIN nodes n ON n.id = a.node_id WHERE a.state = 'leaving' AND n.forgotten_at IS NULL";
            let found: Option<Row> = self.conn().await?.exec_first(sql, (now,)).await?;
            let Some(mut row) = found else {
                return Ok(Debts::default());
            };
            Ok(Debts {
                count: column(&mut row, "debts")?,
                oldest: Duration::from_micros(column(&mut row, "oldest_us")?),
            })
        })
        .await
    }

    /// Tells of up to `limit` debts that are ten minutes old on a node that answers, or that a cleaning left on a
    /// quarantined one: each once, and in the events.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn alarm_debts(&self, limit: u32) -> Result<Vec<DebtAlarm>, StoreError> {
        let now = self.now().await?.0;
        let due: Vec<Row> = bounded(async {
            let sql = "SELECT a.id, a.node_id, a.rental_id, a.uid, n.hostname, n.availability, \
                 (SELECT CONCAT_WS(': ', u.outcome, u.detail) FROM runs u WHERE u.account_id = a.id AND u.kind = 'clean' \
                  AND u.finished_at IS NOT NULL ORDER BY u.finished_at DESC, u.id DESC LIMIT 1) AS last_result \
                 FROM accounts a JOIN nodes n ON n.id = a.node_id \
                 WHERE a.state = 'leaving' AND a.alarmed_at IS NULL AND n.forgotten_at IS NULL \
                 AND ((n.status = 'alive' AND a.state_since <= ? - INTERVAL ? SECOND) OR (n.availability = 'quarantined' \
                 AND EXISTS (SELECT 1 FROM runs u WHERE u.account_id = a.id AND u.kind = 'clean' AND u.state = 'failed'))) \
                 ORDER BY a.state_since LIMIT ?";
            Ok(self
                .conn()
                .await?
                .exec(sql, (now, OVERDUE_S, limit))
                .await?)
        })
        .await?;
        let mut alarms = Vec::new();
        for row in due {
            let (account, alarm) = alarm(row)?;
            if self.raise(account, &alarm).await? {
                alarms.push(alarm);
            }
        }
        Ok(alarms)
    }

    async fn raise(&self, account: AccountId, alarm: &DebtAlarm) -> Result<bool, StoreError> {
        unit!(self, |tx| {
            let now = tx.now;
            let changed = tx
                .change(
                    "UPDATE accounts SET alarmed_at = ? WHERE id = ? AND state = 'leaving' AND alarmed_at IS NULL",
                    (now, account.0),
                )
                .await?;
            if changed == 1 {
                // Not about the rental: what a worker said is for administrators.
                tx.event("debt_alarm", alarm.node.into(), Some(&alarm.detail))
                    .await?;
            }
            Finish::Commit(changed == 1)
        })
    }
}

fn alarm(mut row: Row) -> Result<(AccountId, DebtAlarm), StoreError> {
    let hostname: String = column(&mut row, "hostname")?;
    let uid = Uid(column(&mut row, "uid")?);
    let last: Option<String> = column(&mut row, "last_result")?;
    let last = last.unwrap_or_else(|| "no cleaning is over yet".to_owned());
    let last: String = last.chars().take(SAID_CHARS).collect();
    let then = match word::<Availability>(&mut row, "availability")? {
        Availability::Quarantined => ", then release it from quarantine",
        Availability::Joining
        | Availability::Ready
        | Availability::Leased
        | Availability::Cleaning => "",
    };
    let alarm = DebtAlarm {
        node: NodeId(column(&mut row, "node_id")?),
        rental: RentalId(column(&mut row, "rental_id")?),
        uid,
        detail: format!(
            "the account with uid {uid} can't be removed from {hostname} ({last}); \
             log in to the worker and remove what is named{then}"
        ),
    };
    Ok((AccountId(column(&mut row, "id")?), alarm))
}
