//! How fast the agent tries, and how long it waits for others.

use std::time::Duration;

/// The times the agent keeps.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// The first pause after a failure is at most this long.
    pub first: Duration,
    /// No pause after a failure is longer.
    pub longest: Duration,
    /// For connecting to one address.
    pub connect: Duration,
    /// For a whole exchange, name lookup and connecting included.
    pub exchange: Duration,
    /// The shortest and the longest interval of beats that an answer may ask for.
    pub beat_bounds: (Duration, Duration),
    /// When the control plane is shut out sooner than this after its keys were bound to an address, it was for that.
    pub proven: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            first: Duration::from_millis(200),
            longest: Duration::from_secs(60),
            connect: Duration::from_secs(5),
            exchange: Duration::from_secs(15),
            beat_bounds: (Duration::from_secs(1), Duration::from_secs(300)),
            proven: Duration::from_secs(60),
        }
    }
}

/// Pauses after failures: each ceiling is double the last, and each pause a random part of its ceiling ("full
/// jitter"), so that many agents that lost the control plane together do not come back together.
#[derive(Debug)]
pub(crate) struct Backoff {
    first: Duration,
    longest: Duration,
    ceiling: Duration,
}

impl Backoff {
    pub(crate) fn new(first: Duration, longest: Duration) -> Self {
        let first = first.min(longest);
        Self {
            first,
            longest,
            ceiling: first,
        }
    }

    pub(crate) fn next(&mut self) -> Duration {
        let ceiling = self.ceiling;
        self.ceiling = ceiling.saturating_mul(2).min(self.longest);
        // Never nothing: a pause of zero would be a busy loop.
        ceiling.mul_f64(random_share()).max(self.first / 10)
    }

    /// For a refusal that trying again soon will not change: between half of the longest pause and all of it.
    pub(crate) fn slow(&mut self) -> Duration {
        self.ceiling = self.longest;
        self.longest.mul_f64(0.5 + random_share() / 2.0)
    }
}

/// A random number from 0 up to 1. Without random bytes from the system: one half.
pub(crate) fn random_share() -> f64 {
    getrandom::u32().map_or(0.5, |bits| f64::from(bits) / (f64::from(u32::MAX) + 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_from_the_first_to_the_longest_and_are_jittered() {
        let (first, longest) = (Duration::from_millis(200), Duration::from_secs(60));
        let mut highest = [Duration::ZERO; 12];
        let mut lowest = [longest; 12];
        for _ in 0..300 {
            let mut backoff = Backoff::new(first, longest);
            for (high, low) in highest.iter_mut().zip(&mut lowest) {
                let pause = backoff.next();
                *high = pause.max(*high);
                *low = pause.min(*low);
            }
        }
        assert!(highest[0] <= first && highest[0] > first / 2);
        assert!(highest[1] <= first * 2 && highest[1] > first);
        assert!(highest[11] <= longest && highest[11] > longest / 2);
        assert!(lowest[11] < longest / 2, "not jittered");
        assert!(lowest.iter().all(|pause| *pause >= first / 10));
    }

    #[test]
    fn a_slow_pause_is_near_the_longest() {
        let (first, longest) = (Duration::from_millis(200), Duration::from_secs(60));
        let mut backoff = Backoff::new(first, longest);
        for _ in 0..100 {
            assert!((longest / 2..=longest).contains(&backoff.slow()));
        }
    }
}
