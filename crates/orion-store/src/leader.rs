//! Which orion-schedd leads the cron jobs, and that nobody else writes what only the leader may.

use crate::row::column;
use crate::tx::{Finish, Tx, unit};
use crate::{Store, StoreError};
use std::time::Duration;

/// One process of orion-schedd, from its start to its end: 32 hexadecimal digits, random.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct InstanceId(String);

impl InstanceId {
    /// From 16 random bytes.
    pub fn from_random(bytes: [u8; 16]) -> Self {
        Self(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// The digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for InstanceId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// The row's name.
const JOBS: &str = "jobs";

/// The right to write what only the leader of the jobs may, until another instance has the lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lead {
    epoch: u64,
}

impl Lead {
    /// Counts how often the lead has passed from one instance to another.
    pub fn epoch(self) -> u64 {
        self.epoch
    }
}

impl Store {
    /// Takes or renews the lead for `hold`; `None` while another instance has it.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn lead(
        &self,
        instance: &InstanceId,
        hold: Duration,
    ) -> Result<Option<Lead>, StoreError> {
        unit!(self, |tx| {
            let now = tx.now;
            let until = now + hold;
            // Asked first without a lock: those that wait for the lead must not make the leader's transactions wait.
            let others = tx
                .number(
                    "SELECT COUNT(*) FROM leader WHERE name = ? AND holder <> ? AND expires_at > ?",
                    (JOBS, instance.as_str(), now),
                )
                .await?;
            if others > 0 {
                return Ok(None);
            }
            let params = (
                instance.as_str(),
                instance.as_str(),
                until,
                JOBS,
                instance.as_str(),
                now,
            );
            let changed = tx
                .change(
                    "UPDATE leader SET epoch = IF(holder = ?, epoch, epoch + 1), holder = ?, expires_at = ? \
                     WHERE name = ? AND (holder = ? OR expires_at <= ?)",
                    params,
                )
                .await?;
            if changed == 0 {
                tx.change(
                    "INSERT INTO leader (name, holder, epoch, expires_at) VALUES (?, ?, 1, ?) \
                     ON DUPLICATE KEY UPDATE epoch = epoch",
                    (JOBS, instance.as_str(), until),
                )
                .await?;
            }
            let lead = match tx
                .first(
                    "SELECT epoch FROM leader WHERE name = ? AND holder = ?",
                    (JOBS, instance.as_str()),
                )
                .await?
            {
                Some(mut row) => Some(Lead {
                    epoch: column(&mut row, "epoch")?,
                }),
                None => None,
            };
            Finish::Commit(lead)
        })
    }

    /// The same database for the leader's work: every transaction fails with `NotLeading` once another instance leads.
    /// An instance that was suspended, and believes that it still leads, so changes nothing.
    #[must_use]
    pub fn leading(&self, lead: Lead) -> Self {
        Self {
            lead: Some(lead),
            ..self.clone()
        }
    }

    /// Gives the lead back where `instance` has it: who asks next has it at once.
    ///
    /// # Errors
    /// When the database is away; the lead is free when its time is over.
    pub async fn resign(&self, instance: &InstanceId) -> Result<(), StoreError> {
        unit!(self, |tx| {
            let now = tx.now;
            tx.change(
                "UPDATE leader SET expires_at = ? WHERE name = ? AND holder = ?",
                (now, JOBS, instance.as_str()),
            )
            .await?;
            Finish::Commit(())
        })
    }
}

impl Tx {
    /// Keeps the lead from passing to another instance before the transaction ends.
    pub(crate) async fn hold_lead(&mut self, lead: Lead) -> Result<(), StoreError> {
        self.first(
            "SELECT epoch FROM leader WHERE name = ? AND epoch = ? LOCK IN SHARE MODE",
            (JOBS, lead.epoch),
        )
        .await?
        .map(drop)
        .ok_or(StoreError::NotLeading)
    }
}
