//! The database's UTC clock decides ends and deaths; this is what is done when it steps.
//!
//! Each transaction reads it, and compares it with the time that has passed on this machine (CLOCK_BOOTTIME: it includes
//! suspend, and nobody sets it). As long as they agree, slowly drifting apart included, a transaction's `now` is the
//! database's clock. Once it has jumped by more than [`watch::STEP`], `now` is the clock as it was, counted on by the time that
//! passes: so rentals end after the time they were promised, not earlier and not later, and all instants that are written
//! are still of one clock. What can't be taken back waits: no node dies, nothing is moved, rented or extended, and
//! workers are told no ends. That lasts until the clock is back where it should be, or an administrator accepts it.
//!
//! The table `clock` keeps what the leading orion-schedd knows, for daemons that start while the clock is wrong, and for
//! other machines. Daemons and database may all be restarted, and lead may go to another machine: whoever comes takes it
//! up. What can't be seen is a clock that was set *forward* while every daemon's machine was off, since then nobody
//! counted.

pub(crate) mod watch;

use crate::edges::About;
use crate::migrate::AFTER_RESUME;
use crate::row::column;
use crate::tx::{Finish, Tx, unit};
use crate::{Store, StoreError};
use mysql_async::Value;
use time::Duration;
use watch::{ClockRow, ClockStep, ClockWatch, Judged, Known, STEP};

/// The row is that old at most while somebody leads.
const KEPT_EVERY: Duration = Duration::seconds(10);

/// What the lead and claims of runs are still good for when a clock is accepted: as long as their holders count on
/// without renewing them.
const HELD_ANEW: Duration = Duration::seconds(15);

impl Store {
    /// Whether the database's clock is wrong now. Who leads keeps what is known for others, and says once in the events
    /// that it stepped, or is back.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn watch_clock(&self) -> Result<Option<ClockStep>, StoreError> {
        unit!(self, |tx| {
            if self.lead.is_none() {
                return Ok(tx.step);
            }
            // Judged again under the lock: it may have been accepted a moment ago.
            let row = tx.clock_row("FOR UPDATE").await?;
            let agree = self.clock.agree(&tx.reading);
            let judged = agree.unwrap_or_else(|| self.clock.judge(&tx.reading, row.as_ref()));
            tx.now = judged.now;
            tx.keep_clock(&self.clock, &judged, row.as_ref()).await?;
            Finish::Commit(judged.step)
        })
    }

    /// An administrator says that the database's clock is right as it is: every daemon decides by it from now on. False
    /// where it has not stepped.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn accept_clock(&self) -> Result<bool, StoreError> {
        unit!(self, |tx| {
            // Changed at the end, and locked first, as by the leader's transactions.
            tx.rows("SELECT name FROM leader FOR UPDATE", ()).await?;
            let row = tx.clock_row("FOR UPDATE").await?;
            let found = row.map(|row| ClockStep(row.step));
            let found = found.filter(|step| !step.0.is_zero());
            let Some(step) = tx.step.or(found) else {
                return Ok(false);
            };
            tx.now = tx.reading.database;
            let judged = Judged {
                now: tx.now,
                step: None,
                known: Known::at(tx.now, &tx.reading, true),
            };
            tx.write_clock(&self.clock, &judged).await?;
            tx.begin_by_another_clock(step).await?;
            let detail = format!("it is {step}");
            tx.event("clock_accepted", About::default(), Some(&detail))
                .await?;
            Finish::Commit(true)
        })
    }
}

impl Tx {
    pub(crate) async fn clock_row(&mut self, lock: &str) -> Result<Option<ClockRow>, StoreError> {
        let sql =
            format!("SELECT boot_id, booted_at, seen_at, step_us FROM clock WHERE id = 1 {lock}");
        let Some(mut row) = self.first(&sql, ()).await? else {
            return Ok(None);
        };
        Ok(Some(ClockRow {
            boot_id: column(&mut row, "boot_id")?,
            booted_at: column(&mut row, "booted_at")?,
            seen_at: column(&mut row, "seen_at")?,
            step: Duration::microseconds(column(&mut row, "step_us")?),
        }))
    }

    /// Writes the row when it is old or wrong. What is not known exactly is not worth keeping.
    async fn keep_clock(
        &mut self,
        watch: &ClockWatch,
        judged: &Judged,
        row: Option<&ClockRow>,
    ) -> Result<(), StoreError> {
        if !judged.known.exact {
            return Ok(());
        }
        let step = judged.step.map_or(Duration::ZERO, |step| step.0);
        let before = row.map_or(Duration::ZERO, |row| row.step);
        let changed = (step - before).abs() > STEP || step.is_zero() != before.is_zero();
        let old = row.is_none_or(|row| (judged.now - row.seen_at).abs() >= KEPT_EVERY);
        if !changed && !old {
            return Ok(());
        }
        self.write_clock(watch, judged).await?;
        if changed {
            let (kind, detail) = match judged.step {
                Some(step) => (
                    "clock_stepped",
                    Some(format!("the database's clock is {step}")),
                ),
                None => ("clock_back", None),
            };
            self.event(kind, About::default(), detail.as_deref())
                .await?;
        }
        Ok(())
    }

    async fn write_clock(&mut self, watch: &ClockWatch, judged: &Judged) -> Result<(), StoreError> {
        let step_us = judged.step.map_or(0, ClockStep::microseconds);
        self.change(
            "INSERT INTO clock (id, boot_id, booted_at, seen_at, step_us) VALUES (1, ?, ?, ?, ?) \
             ON DUPLICATE KEY UPDATE boot_id = VALUES(boot_id), booted_at = VALUES(booted_at), \
             seen_at = VALUES(seen_at), step_us = VALUES(step_us)",
            (&watch.boot_id, judged.known.booted_at, judged.now, step_us),
        )
        .await?;
        Ok(())
    }

    /// What is held is held anew, what was lost or failed by the clock before is as long ago by this one, and nothing that
    /// is over lies ahead. Ends of rentals stay as they are.
    async fn begin_by_another_clock(&mut self, step: ClockStep) -> Result<(), StoreError> {
        let now = self.now;
        for sql in OVER_BY_NOW {
            let places = sql.matches('?').count();
            self.change(sql, vec![Value::from(now); places]).await?;
        }
        let step_us = step.microseconds();
        self.change(
            "UPDATE rentals SET lost_since = lost_since + INTERVAL ? MICROSECOND WHERE state = 'degraded'",
            (step_us,),
        )
        .await?;
        self.change(
            "UPDATE nodes SET failed_checks = 0, failing_since = LEAST(?, failing_since + INTERVAL ? MICROSECOND) \
             WHERE failing_since IS NOT NULL",
            (now, step_us),
        )
        .await?;
        let held = now + HELD_ANEW;
        self.change(
            "UPDATE runs SET claim_expires_at = ? WHERE state = 'claimed'",
            (held,),
        )
        .await?;
        self.begin_grace(AFTER_RESUME).await?;
        self.change("UPDATE leader SET expires_at = ?", (held,))
            .await?;
        Ok(())
    }
}

/// Each `?` is the time by the accepted clock.
const OVER_BY_NOW: &[&str] = &[
    // They were opened before the step, since nothing is rented afterwards: undone next.
    "UPDATE requests SET deadline_at = ? WHERE state = 'open'",
    "UPDATE accounts SET state_since = ? WHERE state_since > ?",
    "UPDATE accounts SET evidence_at = ? WHERE state <> 'gone' AND evidence_at > ?",
    "UPDATE nodes SET status_since = ? WHERE status_since > ?",
    "UPDATE nodes SET availability_since = ? WHERE availability_since > ?",
    "UPDATE nodes SET last_inspected_at = ? WHERE last_inspected_at > ?",
    "UPDATE nodes SET died_at = ? WHERE died_at > ?",
    // Inspections under way speak of nothing that changed meanwhile.
    "UPDATE runs SET created_at = ? - INTERVAL 1 SECOND WHERE state IN ('queued', 'claimed') AND created_at >= ?",
    // Attempts that failed are what the next ones wait for.
    "UPDATE runs u JOIN accounts a ON a.id = u.account_id SET u.finished_at = ? \
     WHERE a.state = 'leaving' AND u.finished_at > ?",
    "UPDATE runs u JOIN nodes n ON n.id = u.node_id SET u.finished_at = ? \
     WHERE n.availability = 'joining' AND u.finished_at > ?",
    // No agent is silent for that.
    "UPDATE beats SET beat_at = ?",
];
