//! Ends access on time, whoever answers and whether anybody does.
//!
//! A loop of its own, so that nothing that the network does delays it: it looks at the records, lets the countdowns run,
//! keeps them over restarts (`STATE_DIR/agent/countdowns`), has the control plane asked when one is at zero, and locks
//! what is over until it is seen to be done. Before that it tells the client's terminals. The agent's other loop tells it
//! of verified answers, and asks what was locked.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use orion_core::api::{BeatReply, ReportedAccount};
use orion_core::{AccountState, Uid};
use orion_daemon::Registry;
use prometheus_client::metrics::counter::Counter;
use tokio::sync::{Notify, watch};

use crate::clock::{Clock, Now};
use crate::countdown::{Countdowns, Over, Sent, Why};
use crate::lock::{Access, Ended};
use crate::machine::Machine;
use crate::notices::{self, Terminals};
use crate::reserve::Reserve;
use crate::{files, records};

/// Between two looks at most; earlier when a countdown reaches zero.
const LOOK: Duration = Duration::from_secs(1);
/// Looks at the records although their directory seems not to have changed.
const LOOKS_WITHOUT_READING: u32 = 60;
/// Seconds for which the account module may hold the worker's lock before an account is locked without it.
const BUSY_S: f64 = 15.0;

/// What the warden counts.
#[derive(Debug, Clone, Default)]
pub(crate) struct Metrics {
    locked: Counter,
    failures: Counter,
}

impl Metrics {
    /// Metrics that `registry` shows.
    pub(crate) fn registered(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register(
            "orion_agent_accounts_locked",
            "Accounts that the agent locked because their time was over",
            metrics.locked.clone(),
        );
        registry.register(
            "orion_agent_lock_failures",
            "Times that an account whose time is over could not be locked, or a process of it not be ended",
            metrics.failures.clone(),
        );
        metrics
    }
}

/// A handle; all of them are the same warden.
#[derive(Debug, Clone)]
pub(crate) struct Warden(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    clock: Arc<dyn Clock>,
    access: Arc<dyn Access>,
    terminals: Arc<dyn Terminals>,
    state_dir: PathBuf,
    reserve: Reserve,
    metrics: Metrics,
    book: Mutex<Book>,
    asks: watch::Sender<()>,
    /// An account is to be locked at once.
    hurry: Notify,
}

/// What changes.
#[derive(Debug)]
struct Book {
    countdowns: Countdowns,
    /// When the records' directory had changed last, and how long ago it was read (looks).
    read: Option<(Option<SystemTime>, u32)>,
    /// The last thing said of each account that is over, by UID and epoch; the same again is not news.
    said: BTreeMap<(Uid, u64), Option<String>>,
    said_here: Option<String>,
}

impl Warden {
    /// Goes on with what was written before. To be called when the state directory is there.
    pub(crate) fn new(state_dir: &Path, machine: &Machine, metrics: Metrics) -> Self {
        let clock = Arc::clone(&machine.clock);
        let countdowns = read_countdowns(&countdowns_file(state_dir), &*clock);
        Self(Arc::new(Inner {
            clock,
            access: Arc::clone(&machine.access),
            terminals: Arc::clone(&machine.terminals),
            state_dir: state_dir.to_owned(),
            reserve: Reserve::new(&state_dir.join("agent/reserve")),
            metrics,
            book: Mutex::new(Book {
                countdowns,
                read: None,
                said: BTreeMap::new(),
                said_here: None,
            }),
            asks: watch::Sender::new(()),
            hurry: Notify::new(),
        }))
    }

    /// Does its work for ever; drop the future to stop.
    pub(crate) async fn run(self) {
        loop {
            let pause = self.look().await;
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.0.hurry.notified() => {}
            }
        }
    }

    /// Changes whenever the control plane is to be asked at once.
    pub(crate) fn asks(&self) -> watch::Receiver<()> {
        self.0.asks.subscribe()
    }

    /// To be called right before a request is sent: what it is answered counts from now.
    pub(crate) fn sending(&self) -> Sent {
        let now = self.0.clock.now();
        let mut book = self.book();
        self.read_records(&mut book, now);
        book.countdowns.sending(now)
    }

    /// Follows a beat's answer, which must be *verified*.
    pub(crate) fn hear(&self, sent: &Sent, reply: &BeatReply) {
        let now = self.0.clock.now();
        let mut book = self.book();
        if book.countdowns.hear(sent, reply, now) {
            self.0.hurry.notify_one();
        }
        self.save(&mut book, now);
    }

    /// The accounts that this worker knows of, and whether each was locked here: seen to be, in this epoch. `None` when
    /// their records can't be read: a beat then says nothing of them.
    pub(crate) fn reported(&self) -> Option<Vec<ReportedAccount>> {
        let mut accounts = match records::read(&self.0.state_dir) {
            Ok(accounts) => accounts,
            Err(error) => {
                tracing::warn!(%error, "the records of this worker's accounts can't be read, so that they are not reported");
                return None;
            }
        };
        let book = self.book();
        for account in &mut accounts {
            let said = book.said.get(&(account.uid, account.epoch));
            account.locked = account.state == AccountState::Present && said == Some(&None);
        }
        Some(accounts)
    }

    /// One look at everything. Returns how long it may be until the next.
    pub(crate) async fn look(&self) -> Duration {
        let (due, notices) = {
            let now = self.0.clock.now();
            let mut book = self.book();
            self.read_records(&mut book, now);
            let due = book.countdowns.advance(now);
            let notices = book.countdowns.notices(now);
            if due.over.is_empty() {
                self.fill_reserve();
            }
            self.save(&mut book, now);
            (due, notices)
        };
        for (uid, left_s) in notices {
            let terminals = self.0.terminals.tell(uid, &notices::text(left_s));
            tracing::info!(
                uid = uid.0,
                left_s,
                terminals,
                "the client was told of its end"
            );
        }
        if due.ask {
            self.0.asks.send_replace(());
        }
        for over in due.over {
            self.end(over).await;
        }
        let next_s = self.book().countdowns.next_s(self.0.clock.now());
        let next = next_s.and_then(|next_s| Duration::try_from_secs_f64(next_s).ok());
        // A moment later rather than a moment too early, which would be a look for nothing.
        next.map_or(LOOK, |next| LOOK.min(next + Duration::from_millis(5)))
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        // Whatever panicked has changed nothing halfway that the next look would not mend.
        self.0.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the records where they may have changed: each is put in place by a rename, which the directory shows.
    fn read_records(&self, book: &mut Book, now: Now) {
        let directory = self.0.state_dir.join("accounts");
        let changed = std::fs::metadata(directory).and_then(|metadata| metadata.modified());
        let changed = changed.ok();
        match &mut book.read {
            Some((last, looks))
                if *last == changed && (1..LOOKS_WITHOUT_READING).contains(looks) =>
            {
                *looks += 1;
                return;
            }
            // Read twice after each change: another one in the same tick of the file system's clock would not show.
            Some((last, looks)) if *last == changed => *looks = 1,
            read => *read = Some((changed, 0)),
        }
        match records::held(&self.0.state_dir) {
            Ok(held) => {
                book.countdowns.follow(&held, now);
                let is_held = |uid: &Uid, epoch: u64| match held.get(uid) {
                    Some(Some(held)) => held.epoch == epoch,
                    Some(None) => true,
                    None => false,
                };
                book.said.retain(|(uid, epoch), _| is_held(uid, *epoch));
            }
            Err(error) => {
                book.read = None;
                book.complain(format!("the accounts' records can't be read: {error}"));
            }
        }
    }

    /// A disk that takes nothing stops no countdown; it is tried again with the next look.
    fn save(&self, book: &mut Book, now: Now) {
        if !book.countdowns.needs_saving(now) {
            return;
        }
        let path = countdowns_file(&self.0.state_dir);
        let text = book.countdowns.text(now).map_err(std::io::Error::from);
        match text.and_then(|text| files::replace(&path, text.as_bytes(), 0o600)) {
            Ok(()) => {
                book.countdowns.was_saved(now);
                book.said_here = None;
            }
            Err(error) => book.complain(format!("{} can't be written: {error}", path.display())),
        }
    }

    fn fill_reserve(&self) {
        if let Err(error) = self.0.reserve.fill() {
            tracing::debug!(%error, "no room can be kept for locking accounts on a full disk");
        }
    }

    async fn end(&self, over: Over) {
        let lock = match files::try_lock(&self.0.state_dir.join("lock")) {
            // The module is at work: on this account, most likely, which is then as good as locked.
            Ok(None) if self.0.clock.now().boot_s - over.since_s < BUSY_S => return,
            Ok(lock) => lock,
            // Without room for a lock file the account is locked all the same.
            Err(_) => None,
        };
        // Under the lock: the module may have made the account anew, or removed it, since the records were read. A record
        // that can't be read is no reason to let somebody stay.
        let held = records::held_one(&self.0.state_dir, over.uid);
        if held.is_ok_and(|held| held.is_none_or(|held| held.epoch != over.epoch)) {
            return;
        }
        let mut outcome = self.0.access.end(over.uid).await;
        if outcome.is_err() && self.0.reserve.release() {
            outcome = self.0.access.end(over.uid).await;
        }
        drop(lock);
        self.tell(over, outcome);
    }

    fn tell(&self, over: Over, outcome: Result<Ended, String>) {
        let (uid, epoch) = (over.uid.0, over.epoch);
        let mut book = self.book();
        let said = book.said.get(&(over.uid, over.epoch)).cloned();
        let news = match outcome {
            // Done before; or by the module, which says so itself.
            Ok(ended) if said == Some(None) || (said.is_none() && ended == Ended::default()) => {
                None
            }
            Ok(ended) => {
                let why = match over.why {
                    Why::TimeOver => "its time is over and no answer gave it more",
                    Why::Told => "the control plane said so",
                    Why::ToGo => "its record says that it is to go",
                };
                let processes = ended.processes;
                tracing::warn!(uid, epoch, processes, "the account was locked: {why}");
                self.0.metrics.locked.inc();
                None
            }
            Err(error) => {
                self.0.metrics.failures.inc();
                // Locked before, and something came back: that is news again.
                if said != Some(Some(error.clone())) {
                    tracing::error!(uid, epoch, "the account can't be locked yet: {error}");
                }
                Some(error)
            }
        };
        book.said.insert((over.uid, over.epoch), news);
    }
}

/// Waits until the control plane is to be asked.
pub(crate) async fn asked(asks: &mut watch::Receiver<()>) {
    if asks.changed().await.is_err() {
        // Nobody is left to ask for anything.
        std::future::pending().await
    }
}

/// Waits that long, or until the control plane is to be asked.
pub(crate) async fn rest(pause: Duration, asks: &mut watch::Receiver<()>) {
    tokio::select! {
        () = tokio::time::sleep(pause) => {}
        () = asked(asks) => {}
    }
}

impl Book {
    fn complain(&mut self, text: String) {
        if self.said_here.as_ref() != Some(&text) {
            tracing::error!("{text}");
            self.said_here = Some(text);
        }
    }
}

fn countdowns_file(state_dir: &Path) -> PathBuf {
    state_dir.join("agent/countdowns")
}

/// Without the file, or with a damaged one, the records' bounds count.
fn read_countdowns(path: &Path, clock: &dyn Clock) -> Countdowns {
    let boot_id = clock.boot_id();
    let read = match files::read(path) {
        Ok(Some(text)) => Countdowns::parse(&text, boot_id.clone(), clock.now())
            .ok_or_else(|| "it holds no countdowns".to_owned()),
        Ok(None) => Ok(Countdowns::new(boot_id.clone())),
        Err(error) => Err(error.to_string()),
    };
    read.unwrap_or_else(|error| {
        tracing::error!(path = %path.display(), "{error}; accounts end when their records say");
        Countdowns::new(boot_id)
    })
}

#[cfg(test)]
mod tests;
