//! Judges the database's clock by the time that passes on this machine; nothing here asks a database.

use rustix::time::{ClockId, clock_gettime};
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use time::{Duration, PrimitiveDateTime};

/// A jump beyond this is a step (DESIGN rule 10).
pub(super) const STEP: Duration = Duration::seconds(30);

/// A reading that took longer says too little to follow the clock by.
const SHARP: Duration = Duration::seconds(1);

/// How far the database's clock is from where it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClockStep(pub(super) Duration);

impl ClockStep {
    /// Seconds that it is ahead; negative when it is behind.
    pub fn ahead_s(self) -> f64 {
        self.0.as_seconds_f64()
    }

    pub(super) fn microseconds(self) -> i64 {
        i64::try_from(self.0.whole_microseconds()).unwrap_or(i64::MAX)
    }
}

impl fmt::Display for ClockStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.whole_seconds();
        let word = if seconds < 0 { "behind" } else { "ahead of" };
        write!(f, "{} s {word} the time that has passed", seconds.abs())
    }
}

/// One look at both clocks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reading {
    pub(crate) database: PrimitiveDateTime,
    /// Since this machine's boot, before and after the database was asked: anything in between may be the moment at
    /// which it looked at its clock. A process that is stopped meanwhile has seen no step.
    pub(crate) before: Duration,
    pub(crate) after: Duration,
}

/// When this machine booted, by the clock that is believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Known {
    pub(super) booted_at: PrimitiveDateTime,
    /// False where nobody counted for a while: that clock is as late as this, or later.
    pub(super) exact: bool,
}

impl Known {
    /// The clock is `now` at the end of the reading.
    pub(super) fn at(now: PrimitiveDateTime, reading: &Reading, exact: bool) -> Self {
        Self {
            booted_at: now - reading.after,
            exact,
        }
    }

    fn step(&self, reading: &Reading) -> Option<ClockStep> {
        let ahead = reading.database - (self.booted_at + reading.after);
        let behind = (self.booted_at + reading.before) - reading.database;
        if behind > STEP {
            Some(ClockStep(-behind))
        } else if ahead > STEP && self.exact {
            Some(ClockStep(ahead))
        } else {
            None
        }
    }
}

/// The row of the table `clock`.
pub(crate) struct ClockRow {
    pub(super) boot_id: String,
    pub(super) booted_at: PrimitiveDateTime,
    pub(super) seen_at: PrimitiveDateTime,
    pub(super) step: Duration,
}

/// What a transaction takes for the time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Judged {
    pub(crate) now: PrimitiveDateTime,
    pub(crate) step: Option<ClockStep>,
    pub(super) known: Known,
}

/// What a daemon knows of the database's clock.
pub(crate) struct ClockWatch {
    /// Empty where this machine has none.
    pub(super) boot_id: String,
    known: Mutex<Option<Known>>,
}

impl ClockWatch {
    pub(crate) fn of_boot(boot_id: &str) -> Self {
        Self {
            boot_id: boot_id.trim().to_owned(),
            known: Mutex::new(None),
        }
    }

    pub(crate) fn of_this_boot() -> Self {
        let read = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
        Self::of_boot(&read.unwrap_or_default())
    }

    /// The usual case, without another question: the clock is where it should be, and is followed. `None` where the
    /// row must be asked.
    pub(crate) fn agree(&self, reading: &Reading) -> Option<Judged> {
        let mut slot = self.lock();
        let mut known = (*slot)?;
        if known.step(reading).is_some() {
            return None;
        }
        if reading.after - reading.before < SHARP {
            known = Known::at(reading.database, reading, true);
            *slot = Some(known);
        }
        Some(Judged {
            now: reading.database,
            step: None,
            known,
        })
    }

    /// Takes up what the row says, and judges by it.
    pub(crate) fn judge(&self, reading: &Reading, row: Option<&ClockRow>) -> Judged {
        let mut slot = self.lock();
        let known = self.learn(*slot, reading, row);
        *slot = Some(known);
        let step = known.step(reading);
        let now = match step {
            None => reading.database,
            Some(_) => known.booted_at + reading.after,
        };
        Judged { now, step, known }
    }

    fn learn(&self, known: Option<Known>, reading: &Reading, row: Option<&ClockRow>) -> Known {
        let believed = || Known::at(reading.database, reading, true);
        let Some(row) = row else {
            return known.unwrap_or_else(believed);
        };
        if row.boot_id == self.boot_id && !self.boot_id.is_empty() {
            return Known {
                booted_at: row.booted_at,
                exact: true,
            };
        }
        // Another machine's: as wrong as it was found, or right again; the earlier of the two ends nobody's rental early,
        // and neither can lie before what was seen.
        let possible = [reading.database, reading.database - row.step];
        let possible = possible
            .into_iter()
            .filter(|now| *now >= row.seen_at - STEP)
            .min();
        match (known, possible) {
            // Who leads has just judged the clock: this machine may have been paused, or the clock was accepted.
            (Some(_), Some(now)) if now <= row.seen_at + STEP => Known::at(now, reading, true),
            (Some(known), _) => known,
            (None, Some(now)) => Known::at(now, reading, true),
            (None, None) => Known::at(row.seen_at, reading, false),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(crate) fn since_boot() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    Duration::new(now.tv_sec, i32::try_from(now.tv_nsec).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::datetime;

    #[test]
    fn a_process_that_was_stopped_while_it_asked_has_seen_no_step() {
        let watch = ClockWatch::of_boot("b");
        let noon = datetime!(2026-01-01 12:00);
        let reading = |at_s, before_s, after_s| Reading {
            database: noon + Duration::seconds(at_s),
            before: Duration::seconds(before_s),
            after: Duration::seconds(after_s),
        };
        assert_eq!(watch.judge(&reading(0, 0, 0), None).step, None);
        // The database looked at its clock at the beginning, in the middle, at the end of an hour.
        for at_s in [100, 1800, 3700] {
            assert!(watch.agree(&reading(at_s, 100, 3700)).is_some());
        }
        assert!(watch.agree(&reading(3700, 3700, 3700)).is_some());
        assert!(watch.agree(&reading(3800, 3701, 3702)).is_none());
    }
}
