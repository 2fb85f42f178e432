//! How long each account on this worker still has.
//!
//! Until the control plane has told an end, the bound counts that create left in the account's record: the latest end
//! that was possible then. The first verified answer starts the countdown, later ones may lengthen it; only a verified `end`, or a record that says its account is to go, shortens it. It runs on CLOCK_BOOTTIME, so
//! that neither suspend nor whoever sets the clock lengthens or shortens it. Nothing here looks at a clock, a file or
//! the network: see [`crate::warden`].

use std::collections::BTreeMap;

use orion_core::Uid;
use orion_core::api::BeatReply;
use serde::{Deserialize, Serialize};

use crate::clock::Now;
use crate::notices;
use crate::records::{Bound, Held};

/// Seconds in which the control plane may answer that an account has more time, once its time is over.
pub(crate) const ANSWER_S: f64 = 5.0;
/// A change of an end, or of the clock, that is worth a write (seconds).
const WORTH_S: f64 = 1.0;
/// What is left is written that often although it only counts down (seconds): after a reboot nothing has more time
/// than was written last.
const REFRESH_S: f64 = 30.0;
/// Countdowns written at most. A worker has one client; more would be debts, whose time is over anyway.
const MAX_SAVED: usize = 64;

/// Why an account's time is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Why {
    /// It counted down to zero, and the control plane gave no more.
    TimeOver,
    /// A verified answer said so.
    Told,
    /// Its record says that it is to go: the control plane has begun to delete it.
    ToGo,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Phase {
    Counting,
    /// Zero was reached, and the control plane was asked then (boot seconds).
    Asked(f64),
    /// Since then (boot seconds); final for this epoch.
    Over(Why, f64),
}

#[derive(Debug, Clone, PartialEq)]
struct Entry {
    epoch: u64,
    /// The record's bound that was followed last: it counts once, so that no later step of the clock moves the end.
    bound: Bound,
    /// The end in boot seconds; `None` until something tells one.
    end_s: Option<f64>,
    /// A verified answer told this epoch's end; until then `end_s` is no more than the record's bound.
    told: bool,
    phase: Phase,
    /// The [step](notices::step) that it was within when last looked at: the client was told, or was not there yet.
    noticed: Option<u32>,
}

/// When a request was sent, and what was known then.
#[derive(Debug, Clone)]
pub(crate) struct Sent {
    at_s: f64,
    epochs: BTreeMap<Uid, u64>,
}

/// An account whose time is over.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Over {
    pub(crate) uid: Uid,
    pub(crate) epoch: u64,
    pub(crate) why: Why,
    /// Boot seconds.
    pub(crate) since_s: f64,
}

/// What is to be done now.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Due {
    /// The control plane is to be asked, because some account has reached zero.
    pub(crate) ask: bool,
    pub(crate) over: Vec<Over>,
}

/// All countdowns.
#[derive(Debug)]
pub(crate) struct Countdowns {
    boot_id: String,
    entries: BTreeMap<Uid, Entry>,
    /// What was written last, and when.
    saved: Option<(Now, BTreeMap<Uid, Entry>)>,
}

/// The file's content.
#[derive(Serialize, Deserialize)]
struct File {
    boot_id: String,
    /// When it was written.
    boot_s: f64,
    wall_s: f64,
    accounts: Vec<Saved>,
}

#[derive(Serialize, Deserialize)]
struct Saved {
    uid: u32,
    epoch: u64,
    bound: Bound,
    end_s: Option<f64>,
    told: bool,
    asked_s: Option<f64>,
    over: Option<Why>,
    #[serde(default)]
    noticed: Option<u32>,
}

impl Countdowns {
    pub(crate) fn new(boot_id: String) -> Self {
        Self {
            boot_id,
            entries: BTreeMap::new(),
            saved: None,
        }
    }

    /// What `text` says, which this or an earlier boot wrote. `None` when it can't be read.
    pub(crate) fn parse(text: &str, boot_id: String, now: Now) -> Option<Self> {
        let file: File = serde_json::from_str(text).ok()?;
        let same_boot = file.boot_id == boot_id && !boot_id.is_empty();
        let away_s = (now.wall_s - file.wall_s).max(0.0);
        let mut countdowns = Self::new(boot_id);
        for saved in file.accounts {
            let end_s = saved.end_s.map(|end_s| {
                if same_boot {
                    return end_s;
                }
                // A clock that was set back must not give more than there was.
                now.boot_s + (end_s - file.boot_s - away_s).max(0.0)
            });
            let phase = match (saved.over, saved.asked_s) {
                (Some(why), _) => Phase::Over(why, now.boot_s),
                (None, Some(asked_s)) if same_boot => Phase::Asked(asked_s),
                (None, _) => Phase::Counting,
            };
            let entry = Entry {
                epoch: saved.epoch,
                bound: saved.bound,
                end_s,
                told: saved.told,
                phase,
                noticed: saved.noticed,
            };
            countdowns.entries.insert(Uid(saved.uid), entry);
        }
        Some(countdowns)
    }

    /// What [`Self::parse`] reads.
    pub(crate) fn text(&self, now: Now) -> serde_json::Result<String> {
        let accounts = self.entries.iter().take(MAX_SAVED);
        serde_json::to_string(&File {
            boot_id: self.boot_id.clone(),
            boot_s: now.boot_s,
            wall_s: now.wall_s,
            accounts: accounts.map(|(uid, entry)| entry.to_save(*uid)).collect(),
        })
    }

    /// Whether the file would say something else that matters.
    pub(crate) fn needs_saving(&self, now: Now) -> bool {
        let Some((then, saved)) = &self.saved else {
            return !self.entries.is_empty();
        };
        let stepped_s = (now.wall_s - now.boot_s) - (then.wall_s - then.boot_s);
        let counting = |entry: &Entry| !matches!(entry.phase, Phase::Over(..));
        let progress_s = if self.entries.values().any(counting) {
            now.boot_s - then.boot_s
        } else {
            0.0
        };
        let same = self.entries.len() == saved.len()
            && (self.entries.iter().zip(saved)).all(|((uid, entry), (saved_uid, saved))| {
                uid == saved_uid && entry.is_about(saved)
            });
        !same || stepped_s.abs() > WORTH_S || progress_s >= REFRESH_S
    }

    /// [`Self::text`] was written.
    pub(crate) fn was_saved(&mut self, now: Now) {
        self.saved = Some((now, self.entries.clone()));
    }

    /// Takes up what the records say: `None` is one that can't be read just now.
    pub(crate) fn follow(&mut self, records: &BTreeMap<Uid, Option<Held>>, now: Now) {
        self.entries.retain(|uid, _| records.contains_key(uid));
        for (uid, held) in records {
            let Some(held) = held else {
                continue;
            };
            let end_s = held.bound.end_s(&self.boot_id, now);
            match self.entries.get_mut(uid) {
                Some(entry) if entry.epoch == held.epoch => entry.follow(&held.bound, end_s, now),
                // Another epoch is another life of the account: whatever was over is so no more.
                Some(_) | None => {
                    let mut entry = Entry {
                        epoch: held.epoch,
                        bound: Bound::Unsaid,
                        end_s: None,
                        told: false,
                        phase: Phase::Counting,
                        noticed: None,
                    };
                    entry.follow(&held.bound, end_s, now);
                    entry.noticed = entry.step(now);
                    self.entries.insert(*uid, entry);
                }
            }
        }
    }

    /// To be taken right before a request is sent.
    pub(crate) fn sending(&self, now: Now) -> Sent {
        let epochs = self.entries.iter().map(|(uid, entry)| (*uid, entry.epoch));
        Sent {
            at_s: now.boot_s,
            epochs: epochs.collect(),
        }
    }

    /// Follows a *verified* answer. True when an account is to be locked now.
    pub(crate) fn hear(&mut self, sent: &Sent, reply: &BeatReply, now: Now) -> bool {
        for told in &reply.accounts {
            let Some(entry) = self.entries.get_mut(&told.uid) else {
                continue;
            };
            if told.epoch >= entry.epoch && told.ends_in_s.is_finite() {
                // From the sending on: at worst the answer's way makes it shorter than it is.
                entry.hear(sent.at_s + told.ends_in_s, now);
            }
        }
        let mut ended = false;
        for uid in &reply.end {
            let Some(entry) = self.entries.get_mut(uid) else {
                continue;
            };
            // `end` names no epoch: it is about the account that the control plane knew of when it was asked, not one
            // that was made since.
            if sent.epochs.get(uid) == Some(&entry.epoch) {
                ended |= entry.end(Why::Told, now);
            }
        }
        ended
    }

    /// Lets the time pass that did.
    pub(crate) fn advance(&mut self, now: Now) -> Due {
        let mut due = Due::default();
        for (uid, entry) in &mut self.entries {
            due.ask |= entry.advance(now);
            if let Phase::Over(why, since_s) = entry.phase {
                due.over.push(Over {
                    uid: *uid,
                    epoch: entry.epoch,
                    why,
                    since_s,
                });
            }
        }
        due
    }

    /// The accounts whose clients are to be told now how much time is left (seconds): once at each step.
    pub(crate) fn notices(&mut self, now: Now) -> Vec<(Uid, f64)> {
        let entries = self.entries.iter_mut();
        let due = entries.filter_map(|(uid, entry)| Some((*uid, entry.notice(now)?)));
        due.collect()
    }

    /// Seconds until [`Self::advance`] has something new; `None` while nothing counts.
    pub(crate) fn next_s(&self, now: Now) -> Option<f64> {
        let next = self.entries.values().filter_map(|entry| match entry.phase {
            Phase::Counting => entry.end_s,
            Phase::Asked(since_s) => Some(since_s + ANSWER_S),
            Phase::Over(..) => None,
        });
        let next_s = next.fold(f64::INFINITY, f64::min) - now.boot_s;
        next_s.is_finite().then_some(next_s.max(0.0))
    }

    /// The counting accounts' shortest rest in seconds.
    #[cfg(test)]
    pub(crate) fn left_s(&self, uid: u32, now: Now) -> Option<f64> {
        Some(self.entries.get(&Uid(uid))?.end_s? - now.boot_s)
    }
}

impl Entry {
    fn follow(&mut self, bound: &Bound, end_s: Option<f64>, now: Now) {
        if self.bound == *bound {
            return;
        }
        self.bound = bound.clone();
        if *bound == Bound::ToGo {
            self.end(Why::ToGo, now);
        } else if let Some(end_s) = end_s {
            self.lengthen(end_s, now);
        }
    }

    /// The control plane says when the account's time is over.
    fn hear(&mut self, end_s: f64, now: Now) {
        if !std::mem::replace(&mut self.told, true) {
            // The bound was made before the end was known, and may lie after it.
            self.end_s = None;
            // An account that has just been made: nobody could be told of the steps that its end is within already.
            self.noticed = self.noticed.or(notices::step(end_s - now.boot_s));
        }
        self.lengthen(end_s, now);
    }

    fn lengthen(&mut self, end_s: f64, now: Now) {
        if !end_s.is_finite() || self.end_s.is_some_and(|old_s| end_s <= old_s) {
            return;
        }
        self.end_s = Some(end_s);
        // Only with time that is still to come: else answers that give next to nothing would be asked for for ever.
        if end_s > now.boot_s && matches!(self.phase, Phase::Asked(_)) {
            self.phase = Phase::Counting;
        }
    }

    /// True when that is news.
    fn end(&mut self, why: Why, now: Now) -> bool {
        let news = !matches!(self.phase, Phase::Over(..));
        if news {
            self.phase = Phase::Over(why, now.boot_s);
        }
        news
    }

    /// True when the control plane is to be asked.
    fn advance(&mut self, now: Now) -> bool {
        let Some(end_s) = self.end_s else {
            return false;
        };
        match self.phase {
            Phase::Counting if end_s <= now.boot_s => {
                self.phase = Phase::Asked(now.boot_s);
                return true;
            }
            Phase::Asked(since_s) if now.boot_s - since_s >= ANSWER_S => {
                self.phase = Phase::Over(Why::TimeOver, now.boot_s);
            }
            Phase::Counting | Phase::Asked(_) | Phase::Over(..) => {}
        }
        false
    }

    fn step(&self, now: Now) -> Option<u32> {
        notices::step(self.end_s? - now.boot_s)
    }

    /// What is left (seconds), if a step was taken since the last look. An end that was moved away makes the steps that
    /// lie ahead new again.
    fn notice(&mut self, now: Now) -> Option<f64> {
        let left_s = self.end_s? - now.boot_s;
        if self.phase != Phase::Counting || left_s <= 0.0 {
            return None;
        }
        let step = self.step(now);
        let before = std::mem::replace(&mut self.noticed, step);
        let is_nearer = step.is_some_and(|step| before.is_none_or(|before| step < before));
        is_nearer.then_some(left_s)
    }

    /// Whether `saved` says the same, but for an end that crept by less than is worth a write.
    fn is_about(&self, saved: &Self) -> bool {
        let moved = match (self.end_s, saved.end_s) {
            (Some(end_s), Some(saved_s)) => (end_s - saved_s).abs() > WORTH_S,
            (None, None) => false,
            (Some(_), None) | (None, Some(_)) => true,
        };
        !moved
            && (self.epoch, &self.bound, self.told, self.phase, self.noticed)
                == (
                    saved.epoch,
                    &saved.bound,
                    saved.told,
                    saved.phase,
                    saved.noticed,
                )
    }

    fn to_save(&self, uid: Uid) -> Saved {
        let (asked_s, over) = match self.phase {
            Phase::Counting => (None, None),
            Phase::Asked(since_s) => (Some(since_s), None),
            Phase::Over(why, _) => (None, Some(why)),
        };
        Saved {
            uid: uid.0,
            epoch: self.epoch,
            bound: self.bound.clone(),
            end_s: self.end_s,
            told: self.told,
            asked_s,
            over,
            noticed: self.noticed,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
