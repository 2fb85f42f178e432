//! The brakes: how fast anything moves, and that nothing does while so much fails at once that it is likelier us.

use crate::edges::About;
use crate::row::column;
use crate::tx::{Finish, Tx, unit};
use crate::{Store, StoreError};
use std::time::Duration;

/// Moves that may begin at once, and how fast the allowance comes back: one in 5 s.
const BURST: f64 = 5.0;
const MOVES_PER_S: f64 = 0.2;

/// Nodes that turned bad within this time turned bad together (seconds): a thousand that are silent are found out within
/// three minutes, 64 at once and 12 s each.
const TOGETHER_S: u32 = 300;
/// Fewer nodes that fail together are their own fault.
const TOGETHER_LEAST: u64 = 3;

/// How long an administrator's word lets moves go on while much has failed.
const OVERRIDE: Duration = Duration::from_secs(600);

/// When much that failed is back, the rest gets this time to come back, too.
pub(crate) const AFTER_RESUME: Duration = Duration::from_secs(60);

/// No grace is longer; what says so was written by another clock.
const LONGEST_GRACE_S: u32 = 3600;

/// How many nodes are bad, and whether more are good. The good ones are not counted to the end: there may be very many,
/// and this is asked each second.
struct Health {
    bad: u64,
    /// Of these, those that did not turn bad long before moves were suspended; none while they are not.
    still: u64,
    /// Turned bad together, lately.
    together: u64,
    /// At most one more than `bad`.
    good: u64,
}

impl Health {
    /// When so much fails at once, it is likelier us.
    fn is_us(&self) -> bool {
        let half = self.together * 2 >= self.bad + self.good && self.together >= TOGETHER_LEAST;
        let everything = self.good == 0 && self.bad >= 2 && self.together > 0;
        half || everything
    }

    /// Who was bad long before is no sign that it is still us.
    fn is_over(&self) -> bool {
        self.still == 0 || self.good > self.still
    }
}

struct Brakes {
    suspended_because: Option<String>,
    overridden: bool,
}

impl Store {
    /// No node is decided dead for `grace` from now on: after a start, and after the database was away.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn begin_grace(&self, grace: Duration) -> Result<(), StoreError> {
        unit!(self, |tx| {
            tx.begin_grace(grace).await?;
            Finish::Commit(())
        })
    }

    /// Lets rentals move for ten minutes although much has failed: for an administrator who knows that the loss is real.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn override_brakes(&self) -> Result<(), StoreError> {
        unit!(self, |tx| {
            tx.lock_brakes().await?;
            let until = tx.now + OVERRIDE;
            tx.change(
                "UPDATE migration SET override_until = ? WHERE id = 1",
                (until,),
            )
            .await?;
            tx.event("migration_override", About::default(), None)
                .await?;
            Finish::Commit(())
        })
    }

    /// Why nothing moves now; `None` when rentals may.
    pub(super) async fn judge_brakes(&self) -> Result<Option<String>, StoreError> {
        unit!(self, |tx| {
            if tx.step.is_some() {
                return Ok(Some("the database's clock stepped".to_owned()));
            }
            let brakes = tx.lock_brakes().await?;
            let health = tx.health().await?;
            let because = match brakes.suspended_because {
                None if health.is_us() => Some(tx.suspend(&health).await?),
                Some(_) if health.is_over() => {
                    tx.resume().await?;
                    None
                }
                known => known,
            };
            Finish::Commit(because.filter(|_| !brakes.overridden))
        })
    }
}

impl Tx {
    async fn lock_brakes(&mut self) -> Result<Brakes, StoreError> {
        let now = self.now;
        self.change(
            "INSERT INTO migration (id, tokens, refilled_at) VALUES (1, ?, ?) ON DUPLICATE KEY UPDATE id = id",
            (BURST, now),
        )
        .await?;
        let row = self
            .first(
                "SELECT suspended_because, override_until IS NOT NULL AND override_until > ? \
                 AND override_until <= ? AS overridden FROM migration WHERE id = 1 FOR UPDATE",
                (now, now + OVERRIDE),
            )
            .await?;
        let mut row = row.ok_or(StoreError::Corrupt {
            column: "migration.id",
            reason: "no row".to_owned(),
        })?;
        Ok(Brakes {
            suspended_because: column(&mut row, "suspended_because")?,
            overridden: column(&mut row, "overridden")?,
        })
    }

    pub(crate) async fn begin_grace(&mut self, grace: Duration) -> Result<(), StoreError> {
        self.lock_brakes().await?;
        let until = self.now + grace;
        self.change(
            // A longer one goes on, unless another clock wrote it.
            "UPDATE migration SET grace_until = IF(grace_until > ? AND grace_until <= ? + INTERVAL ? SECOND, grace_until, ?) \
             WHERE id = 1",
            (until, self.now, LONGEST_GRACE_S, until),
        )
        .await?;
        Ok(())
    }

    async fn health(&mut self) -> Result<Health, StoreError> {
        let lately = self.now - Duration::from_secs(u64::from(TOGETHER_S));
        let row = self
            .first(
                "SELECT COUNT(*) AS bad, CAST(IFNULL(SUM(failing_since >= ?), 0) AS UNSIGNED) AS together, \
                 CAST(IFNULL(SUM(failing_since >= m.suspended_since - INTERVAL ? SECOND), 0) AS UNSIGNED) AS still \
                 FROM nodes JOIN migration m ON m.id = 1 \
                 WHERE forgotten_at IS NULL AND status IN ('suspect', 'dead') AND awaits_approval = FALSE",
                (lately, TOGETHER_S),
            )
            .await?;
        let mut row = row.ok_or(StoreError::Corrupt {
            column: "nodes",
            reason: "no count".to_owned(),
        })?;
        let bad: u64 = column(&mut row, "bad")?;
        let good = self
            .number(
                "SELECT COUNT(*) FROM (SELECT id FROM nodes WHERE forgotten_at IS NULL AND status = 'alive' \
                 AND awaits_approval = FALSE LIMIT ?) AS some",
                (bad + 1,),
            )
            .await?;
        Ok(Health {
            bad,
            still: column(&mut row, "still")?,
            together: column(&mut row, "together")?,
            good,
        })
    }

    async fn suspend(&mut self, health: &Health) -> Result<String, StoreError> {
        let because = format!(
            "{} of {} nodes fail, {} of them since less than {TOGETHER_S} s: it may be us. If they are lost: POST /api/migration/override",
            health.bad,
            health.bad + health.good,
            health.together
        );
        let now = self.now;
        self.change(
            "UPDATE migration SET suspended_since = ?, suspended_because = ? WHERE id = 1",
            (now, &because),
        )
        .await?;
        self.event("migration_suspended", About::default(), Some(&because))
            .await?;
        Ok(because)
    }

    async fn resume(&mut self) -> Result<(), StoreError> {
        let grace_until = self.now + AFTER_RESUME;
        self.change(
            "UPDATE migration SET suspended_since = NULL, suspended_because = NULL, override_until = NULL, \
             grace_until = ? WHERE id = 1",
            (grace_until,),
        )
        .await?;
        self.event("migration_resumed", About::default(), None)
            .await
    }

    /// Takes one move from the bucket.
    pub(super) async fn take_allowance(&mut self) -> Result<bool, StoreError> {
        let now = self.now;
        // A time of filling that lies ahead was written by another clock.
        let filled = "IF(refilled_at > ?, ?, LEAST(?, tokens + TIMESTAMPDIFF(MICROSECOND, refilled_at, ?) / 1000000 * ?))";
        let changed = self
            .change(
                &format!(
                    "UPDATE migration SET tokens = {filled} - 1, refilled_at = ? WHERE id = 1 AND {filled} >= 1"
                ),
                (
                    now, BURST, BURST, now, MOVES_PER_S, now, now, BURST, BURST, now, MOVES_PER_S,
                ),
            )
            .await?;
        Ok(changed == 1)
    }

    /// Whether a node may be decided dead now: not within a grace, not while so much fails that it is likelier us, and not
    /// by a clock that stepped.
    pub(crate) async fn may_die(&mut self) -> Result<bool, StoreError> {
        if self.step.is_some() {
            return Ok(false);
        }
        let now = self.now;
        let forbidden = self
            .number(
                "SELECT COUNT(*) FROM migration WHERE (grace_until > ? AND grace_until <= ? + INTERVAL ? SECOND) \
                 OR (suspended_because IS NOT NULL AND \
                     (override_until IS NULL OR override_until <= ? OR override_until > ?))",
                (now, now, LONGEST_GRACE_S, now, now + OVERRIDE),
            )
            .await?;
        Ok(forbidden == 0)
    }
}
