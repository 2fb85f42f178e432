//! Which play may start when: bounds, gathering, and a pause when Ansible itself does not work.

use std::time::Duration;

use orion_core::RunKind;
use tokio::time::Instant;

use crate::config::ExecutorSettings;

/// While a play of a kind runs, the next one of that kind waits so long after that one's start, so that what comes
/// meanwhile leaves with it: a play's start alone costs 0.9 s of CPU here, each of its hosts 0.25 s.
pub(super) const GATHER: Duration = Duration::from_millis(250);
/// Cleaning has few slots, and what comes after they are taken waits for a whole play. So the next play waits until
/// nobody has said that there is work for `QUIET`, yet no longer than `GATHER_MOST`. Of five releases one after the other,
/// the last login was let in 5.5 and 6.6 s after its release without that, 2.9 and 4.0 s with it. Provisioning has more
/// slots, and a client waits for its answer.
const QUIET: Duration = Duration::from_millis(150);
const GATHER_MOST: Duration = Duration::from_secs(1);
/// After plays without any result the next one waits twice as long each time.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Whether a play may start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum May {
    Now,
    /// Not before.
    At(Instant),
    /// The slots are taken.
    WhenOneEnds,
}

#[derive(Debug)]
pub(super) struct Slots {
    all: usize,
    provisioning: usize,
    others: usize,
    provision: Kind,
    clean: Kind,
    inspect: Kind,
    last_word: Option<Instant>,
}

#[derive(Debug, Default)]
struct Kind {
    running: usize,
    last_start: Option<Instant>,
    fruitless: u32,
    paused_until: Option<Instant>,
}

impl Slots {
    pub(super) fn new(settings: &ExecutorSettings) -> Self {
        Self {
            all: settings.plays,
            provisioning: settings.plays_for_provisioning(),
            others: settings.plays_for_others(),
            provision: Kind::default(),
            clean: Kind::default(),
            inspect: Kind::default(),
            last_word: None,
        }
    }

    /// Somebody said that there may be work.
    pub(super) fn told(&mut self, now: Instant) {
        self.last_word = Some(now);
    }

    pub(super) fn may_start(&self, kind: RunKind, now: Instant) -> May {
        let others = self.clean.running + self.inspect.running;
        let free = match kind {
            RunKind::Provision => self.provision.running < self.provisioning,
            RunKind::Clean => others < self.others,
            // Inspections leave cleaning one of the others' slots, where there are two.
            RunKind::Inspect => {
                others < self.others && self.inspect.running < self.others.saturating_sub(1).max(1)
            }
        };
        let free = free && others + self.provision.running < self.all;
        if !free {
            return May::WhenOneEnds;
        }
        match self
            .gathered(kind)
            .max(self.kind(kind).paused_until)
            .filter(|instant| *instant > now)
        {
            Some(instant) => May::At(instant),
            None => May::Now,
        }
    }

    /// Until when what comes is waited for.
    fn gathered(&self, which: RunKind) -> Option<Instant> {
        let kind = self.kind(which);
        let start = kind.last_start.filter(|_| kind.running > 0)?;
        let least = start + GATHER;
        Some(match (which, self.last_word) {
            (RunKind::Clean, Some(word)) => least.max(word + QUIET).min(start + GATHER_MOST),
            _ => least,
        })
    }

    pub(super) fn started(&mut self, kind: RunKind, now: Instant) {
        let kind = self.kind_mut(kind);
        kind.running += 1;
        kind.last_start = Some(now);
    }

    pub(super) fn ended(&mut self, kind: RunKind, fruitless: bool, now: Instant) {
        let kind = self.kind_mut(kind);
        kind.running = kind.running.saturating_sub(1);
        if fruitless {
            let pause = FIRST_PAUSE * 2_u32.saturating_pow(kind.fruitless.min(10));
            kind.fruitless += 1;
            kind.paused_until = Some(now + pause.min(LONGEST_PAUSE));
        } else {
            kind.fruitless = 0;
            kind.paused_until = None;
        }
    }

    fn kind(&self, kind: RunKind) -> &Kind {
        match kind {
            RunKind::Provision => &self.provision,
            RunKind::Clean => &self.clean,
            RunKind::Inspect => &self.inspect,
        }
    }

    fn kind_mut(&mut self, kind: RunKind) -> &mut Kind {
        match kind {
            RunKind::Provision => &mut self.provision,
            RunKind::Clean => &mut self.clean,
            RunKind::Inspect => &mut self.inspect,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ScheddSettings;

    fn slots(plays: usize) -> Slots {
        Slots::new(&ExecutorSettings {
            plays,
            ..ScheddSettings::default().executor
        })
    }

    /// Starts as many as may be, each after the one before has gathered.
    fn fill(slots: &mut Slots, kind: RunKind, now: &mut Instant) -> usize {
        let mut started = 0;
        loop {
            match slots.may_start(kind, *now) {
                May::Now => slots.started(kind, *now),
                May::At(instant) => {
                    *now = instant;
                    continue;
                }
                May::WhenOneEnds => return started,
            }
            started += 1;
        }
    }

    #[test]
    fn an_idle_executor_starts_at_once_and_a_busy_one_gathers() {
        let mut slots = slots(4);
        let now = Instant::now();
        assert_eq!(slots.may_start(RunKind::Provision, now), May::Now);
        slots.started(RunKind::Provision, now);
        assert_eq!(
            slots.may_start(RunKind::Provision, now),
            May::At(now + GATHER)
        );
        assert_eq!(slots.may_start(RunKind::Provision, now + GATHER), May::Now);
        // Ended within the time to gather: idle again.
        slots.ended(RunKind::Provision, false, now);
        assert_eq!(slots.may_start(RunKind::Provision, now), May::Now);
    }

    #[test]
    fn cleaning_gathers_until_it_is_quiet_but_not_for_ever() {
        let mut slots = slots(4);
        let start = Instant::now();
        slots.told(start);
        assert_eq!(slots.may_start(RunKind::Clean, start), May::Now);
        slots.started(RunKind::Clean, start);
        assert_eq!(
            slots.may_start(RunKind::Clean, start),
            May::At(start + GATHER)
        );
        let mut now = start;
        while now < start + GATHER_MOST {
            slots.told(now);
            let until = (now + QUIET).max(start + GATHER).min(start + GATHER_MOST);
            assert_eq!(slots.may_start(RunKind::Clean, now), May::At(until));
            now += QUIET / 2;
        }
        assert_eq!(slots.may_start(RunKind::Clean, now), May::Now);
        // A rent does not wait for others to be quiet.
        slots.started(RunKind::Provision, now);
        slots.told(now + GATHER);
        assert_eq!(slots.may_start(RunKind::Provision, now + GATHER), May::Now);
    }

    #[test]
    fn whatever_else_runs_two_provisioning_plays_may_start() {
        for plays in 3..10 {
            let mut slots = slots(plays);
            let mut now = Instant::now();
            let others = fill(&mut slots, RunKind::Inspect, &mut now)
                + fill(&mut slots, RunKind::Clean, &mut now);
            let provisioning = fill(&mut slots, RunKind::Provision, &mut now);
            assert!(
                others >= 1 && provisioning >= 2,
                "{plays}: {others} {provisioning}"
            );
            assert!(
                others + provisioning <= plays,
                "{plays}: {others} {provisioning}"
            );
        }
    }

    #[test]
    fn whatever_is_provisioned_cleaning_goes_on() {
        for plays in 3..10 {
            let mut slots = slots(plays);
            let mut now = Instant::now();
            fill(&mut slots, RunKind::Provision, &mut now);
            assert_ne!(slots.may_start(RunKind::Clean, now), May::WhenOneEnds);
        }
    }

    #[test]
    fn when_ansible_does_not_work_attempts_become_rare_and_one_result_ends_that() {
        let mut slots = slots(4);
        let now = Instant::now();
        let mut pauses = Vec::new();
        for _ in 0..8 {
            slots.started(RunKind::Clean, now);
            slots.ended(RunKind::Clean, true, now);
            match slots.may_start(RunKind::Clean, now) {
                May::At(instant) => pauses.push((instant - now).as_secs()),
                May::Now | May::WhenOneEnds => panic!("no pause"),
            }
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 30, 30, 30]);
        assert_eq!(slots.may_start(RunKind::Provision, now), May::Now);
        slots.started(RunKind::Clean, now);
        slots.ended(RunKind::Clean, false, now);
        assert_eq!(slots.may_start(RunKind::Clean, now), May::Now);
    }
}
