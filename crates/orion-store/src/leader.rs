//! Which orion-schedd leads the cron jobs.

use crate::row::column;
use crate::tx::{Finish, unit};
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

impl Store {
    /// Takes or renews the lead called `name` for `hold`, and tells its epoch; `None` while somebody else has it.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn lead(
        &self,
        name: &str,
        instance: &InstanceId,
        hold: Duration,
    ) -> Result<Option<u64>, StoreError> {
        unit!(self, |tx| {
            let now = tx.now;
            let until = now + hold;
            let params = (
                instance.as_str(),
                instance.as_str(),
                until,
                name,
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
                    (name, instance.as_str(), until),
                )
                .await?;
            }
            let epoch = match tx
                .first(
                    "SELECT epoch FROM leader WHERE name = ? AND holder = ?",
                    (name, instance.as_str()),
                )
                .await?
            {
                Some(mut row) => Some(column(&mut row, "epoch")?),
                None => None,
            };
            Finish::Commit(epoch)
        })
    }

    /// Gives the lead called `name` back where `instance` has it: who asks next has it at once.
    ///
    /// # Errors
    /// When the database is away; the lead is free when its time is over.
    pub async fn resign(&self, name: &str, instance: &InstanceId) -> Result<(), StoreError> {
        unit!(self, |tx| {
            let now = tx.now;
            tx.change(
                "UPDATE leader SET expires_at = ? WHERE name = ? AND holder = ?",
                (now, name, instance.as_str()),
            )
            .await?;
            Finish::Commit(())
        })
    }
}
