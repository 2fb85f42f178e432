//! The clocks that countdowns run on.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};

use crate::identity;

/// One look at both clocks.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Now {
    /// Seconds of CLOCK_BOOTTIME: they include suspend, nobody sets them, and they start anew with each boot.
    pub boot_s: f64,
    /// Seconds since 1970 by the machine's own clock, which anybody may have set to anything.
    pub wall_s: f64,
}

/// What tells the time, so that tests can tell another one.
pub trait Clock: fmt::Debug + Send + Sync {
    /// The time.
    fn now(&self) -> Now;
    /// Changes with each boot; empty where there is none.
    fn boot_id(&self) -> String;
}

/// The machine's clocks.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Now {
        Now {
            boot_s: boot_seconds(),
            wall_s: wall_seconds(SystemTime::now()),
        }
    }

    fn boot_id(&self) -> String {
        identity::boot_id()
    }
}

fn boot_seconds() -> f64 {
    let now = clock_gettime(ClockId::Boottime);
    std::time::Duration::try_from(now).map_or(0.0, |now| now.as_secs_f64())
}

/// Seconds since 1970, negative before.
pub(crate) fn wall_seconds(time: SystemTime) -> f64 {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => after.as_secs_f64(),
        Err(before) => -before.duration().as_secs_f64(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machines_clocks_go_on_and_know_their_boot() {
        let clock = SystemClock;
        let (first, second) = (clock.now(), clock.now());
        assert!(first.boot_s > 0.0 && second.boot_s >= first.boot_s);
        assert!(first.wall_s > 1.7e9, "{first:?}");
        assert_eq!(clock.boot_id().len(), 36);
    }
}
