//! Looks at nodes by logging in over SSH, in this process: half a millisecond of CPU a login, so every node can be
//! looked at every few seconds.
//!
//! The pinned host key is compared before anything is said about ourselves. What was met goes to the database, which
//! draws the conclusions.

mod dial;

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use orion_core::NodeId;
use orion_store::{Address, AddressClaim, Lead, ProbeResult, ProbeTarget, Store, StoreError};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

pub(crate) use dial::{Dial, Dialler};

use crate::metrics::Metrics;
use crate::notify::Wake;

/// Dials nodes, a bounded number at once and each of a node's addresses once at a time. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Prober {
    store: Store,
    dialler: Arc<Dialler>,
    slots: Arc<Semaphore>,
    under_way: Arc<Mutex<HashSet<Place>>>,
    logins: Arc<Logins>,
    /// Woken when a node became one that can be inspected.
    newcomers: Wake,
    metrics: Metrics,
}

/// Which of a node's addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Place {
    Contact(NodeId),
    Pending(NodeId),
}

impl Place {
    fn node(self) -> NodeId {
        match self {
            Self::Contact(node) | Self::Pending(node) => node,
        }
    }
}

/// What to look at there.
enum What {
    Contact(Address),
    Claim(AddressClaim),
}

/// What the database knows of the node that is looked at.
struct Known {
    host_keys: Vec<String>,
    login_key: Option<String>,
}

/// Taken from the list of what is under way when dropped, however a probe ended.
struct UnderWay {
    place: Place,
    list: Arc<Mutex<HashSet<Place>>>,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        lock(&self.list).remove(&self.place);
    }
}

/// Most looks end with a login, many at about the same time; a transaction for each would cost half as much again as the
/// logins. Whoever has the turn records all that wait.
#[derive(Default)]
struct Logins {
    waiting: Mutex<Vec<NodeId>>,
    turn: tokio::sync::Mutex<()>,
}

impl Logins {
    /// Returns when the node's login is recorded, or whoever had the turn was told that it is not.
    async fn record(&self, store: &Store, node: NodeId) -> Result<(), StoreError> {
        lock(&self.waiting).push(node);
        let _turn = self.turn.lock().await;
        let mut nodes = std::mem::take(&mut *lock(&self.waiting));
        nodes.sort_unstable();
        store.record_logins(&nodes).await
    }
}

fn lock<T>(list: &Mutex<T>) -> MutexGuard<'_, T> {
    list.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Known {
    fn of(target: &ProbeTarget) -> Self {
        Self {
            host_keys: target.host_keys.clone(),
            login_key: target.login_key.clone(),
        }
    }
}

impl Prober {
    /// At most `at_once` probes at a time.
    pub(crate) fn new(
        store: Store,
        dialler: Dialler,
        at_once: usize,
        newcomers: Wake,
        metrics: Metrics,
    ) -> Self {
        Self {
            store,
            dialler: Arc::new(dialler),
            slots: Arc::new(Semaphore::new(at_once)),
            under_way: Arc::default(),
            logins: Arc::default(),
            newcomers,
            metrics,
        }
    }

    /// The same for the leader's work: what is met is recorded only while it leads.
    pub(crate) fn leading(&self, lead: Lead) -> Self {
        Self {
            store: self.store.leading(lead),
            // What is recorded together is recorded as of one lead.
            logins: Arc::default(),
            ..self.clone()
        }
    }

    /// Starts a probe of each address that is not being probed already, and counts by what was met the ones that ended within
    /// `wait`; the rest goes on by itself.
    pub(crate) async fn probe(
        &self,
        targets: Vec<ProbeTarget>,
        wait: Duration,
    ) -> BTreeMap<&'static str, u64> {
        let deadline = Instant::now() + wait;
        let mut probes = JoinSet::new();
        let mut busy = 0;
        for target in targets {
            for (place, what) in places(&target) {
                match self.begin(place) {
                    Some(under_way) => {
                        let (prober, known) = (self.clone(), Known::of(&target));
                        probes.spawn(async move { prober.one(under_way, what, known).await });
                    }
                    None => busy += 1,
                }
            }
        }
        let mut counts = BTreeMap::new();
        while let Ok(Some(ended)) = timeout_at(deadline, probes.join_next()).await {
            let result = ended.unwrap_or_else(|error| {
                tracing::error!(%error, "a probe broke off");
                "broken"
            });
            *counts.entry(result).or_default() += 1;
        }
        busy += probes.len();
        if busy > 0 {
            counts.insert("under_way", u64::try_from(busy).unwrap_or(u64::MAX));
        }
        probes.detach_all();
        counts
    }

    fn begin(&self, place: Place) -> Option<UnderWay> {
        let new = lock(&self.under_way).insert(place);
        new.then(|| UnderWay {
            place,
            list: Arc::clone(&self.under_way),
        })
    }

    /// One look and what follows from it; the result in one word.
    async fn one(&self, under_way: UnderWay, what: What, known: Known) -> &'static str {
        // Never closed.
        let _slot = self.slots.acquire().await;
        let node = under_way.place.node();
        let (met, recorded) = match what {
            What::Contact(address) => {
                let met = self.dialler.dial(&address, &known.host_keys).await;
                let recorded = self.record_contact(node, &known, &met).await;
                (met, recorded)
            }
            What::Claim(claim) => {
                let met = self.dial_claim(&claim, &known.host_keys).await;
                let recorded = self.record_claim(node, &known, &claim, &met).await;
                (met, recorded)
            }
        };
        match recorded {
            // The other one looks for itself.
            Ok(()) | Err(StoreError::NotLeading) => {}
            Err(error) => tracing::warn!(%error, "what a probe met can't be recorded"),
        }
        self.metrics.probed(met.word());
        met.word()
    }

    /// Both addresses of a claim must lead to the node: clients send their passwords to the second.
    async fn dial_claim(&self, claim: &AddressClaim, keys: &[String]) -> Dial {
        let met = self.dialler.dial(&claim.contact, keys).await;
        match met {
            Dial::LoggedIn(_) | Dial::Refused(_) if claim.client != claim.contact => {
                self.dialler.dial(&claim.client, keys).await
            }
            Dial::LoggedIn(_)
            | Dial::Refused(_)
            | Dial::OtherKey(_)
            | Dial::FirstKey(_)
            | Dial::TurnedAway(_)
            | Dial::NoAnswer(_)
            | Dial::Forbidden(_) => met,
        }
    }

    async fn record_contact(
        &self,
        node: NodeId,
        known: &Known,
        met: &Dial,
    ) -> Result<(), StoreError> {
        let result = match met {
            Dial::LoggedIn(key) => {
                if known.login_key.as_ref() != Some(key) {
                    self.store.record_login_key(node, key).await?;
                }
                return self.logins.record(&self.store, node).await;
            }
            Dial::Refused(reason) => ProbeResult::Refused(reason.clone()),
            Dial::TurnedAway(said) => ProbeResult::TurnedAway(said),
            Dial::NoAnswer(reason) => ProbeResult::NoAnswer(reason.clone()),
            Dial::OtherKey(key) => ProbeResult::WrongHostKey(key.clone()),
            Dial::FirstKey(key) => return self.pin(node, key).await,
            Dial::Forbidden(reason) => {
                tracing::warn!(%node, reason, "a node is not dialled");
                ProbeResult::NoAnswer(format!("not dialled, {reason}"))
            }
        };
        self.store.record_probe(node, &result).await
    }

    /// What a node claims takes effect when its pinned key is met there.
    async fn record_claim(
        &self,
        node: NodeId,
        known: &Known,
        claim: &AddressClaim,
        met: &Dial,
    ) -> Result<(), StoreError> {
        match met {
            Dial::LoggedIn(_) | Dial::Refused(_) => {
                if self.store.confirm_address(node, claim).await? {
                    tracing::info!(%node, address = %claim.contact, "a node's new address is confirmed");
                    self.record_contact(node, known, met).await?;
                    self.newcomers.wake();
                }
                Ok(())
            }
            Dial::OtherKey(key) => {
                tracing::warn!(%node, address = %claim.contact, key, "another SSH host key answers at an address that a node claims");
                let reason = "another SSH host key answers there";
                self.store.refuse_address(node, claim, reason).await
            }
            Dial::FirstKey(key) => self.pin(node, key).await,
            // Whose sshd it is shows later.
            Dial::TurnedAway(_) => Ok(()),
            // Nobody there: the claim stays a claim.
            Dial::NoAnswer(reason) => self.store.refuse_address(node, claim, reason).await,
            Dial::Forbidden(reason) => {
                tracing::warn!(%node, contact = %claim.contact, client = %claim.client, reason, "an address that a node claims is not dialled");
                let reason = format!("not dialled, {reason}");
                self.store.refuse_address(node, claim, &reason).await
            }
        }
    }

    async fn pin(&self, node: NodeId, key: &str) -> Result<(), StoreError> {
        if self.store.pin_host_key(node, &[key.to_owned()]).await? {
            tracing::info!(%node, key, "a node's host key is pinned to what its first dial met");
            self.newcomers.wake();
        }
        Ok(())
    }
}

fn places(target: &ProbeTarget) -> impl Iterator<Item = (Place, What)> {
    let contact = target
        .contact
        .clone()
        .map(|address| (Place::Contact(target.node), What::Contact(address)));
    let pending = target
        .pending
        .clone()
        .map(|claim| (Place::Pending(target.node), What::Claim(claim)));
    contact.into_iter().chain(pending)
}
