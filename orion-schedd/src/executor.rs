//! Executes runs, by group commit: an idle executor starts at once; while it is busy, runs gather and leave together as
//! one play over many hosts.

mod batch;
mod slots;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use orion_core::RunKind;
use orion_daemon::Readiness;
use orion_store::{InstanceId, Store, StoreError};
use tokio::sync::Semaphore;
use tokio::task::{Id, JoinSet};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::ansible::Ansible;
use crate::config::ExecutorSettings;
use crate::metrics::Metrics;
use crate::notify::{Settled, Wake};
use batch::Batch;
use slots::{May, Slots};

/// How long a claim lasts; each play's claims are renewed at a third of it.
const HOLD: Duration = Duration::from_secs(15);
/// How often the database is asked without being told to.
const POLL: Duration = Duration::from_secs(1);
/// Results recorded at once; each takes a connection of the pool.
const RECORDING: usize = 8;
/// What stopping plays by the ladder and recording that may take.
const STOPPING: Duration = Duration::from_secs(18);

/// What the executor works with.
pub(crate) struct Parts {
    /// The truth.
    pub store: Store,
    /// Who claims.
    pub instance: InstanceId,
    /// Who acts.
    pub ansible: Ansible,
    /// Woken when there may be runs.
    pub wake: Wake,
    /// Told when a request is decided.
    pub settled: Settled,
    /// Counts.
    pub metrics: Metrics,
    /// Says whether the database answers.
    pub ready: Readiness,
}

/// What batches share with the executor.
struct Shared {
    parts: Parts,
    recording: Semaphore,
    /// Stops every play.
    stop_plays: CancellationToken,
}

/// Claims runs and starts plays.
pub(crate) struct Executor {
    shared: Arc<Shared>,
    settings: ExecutorSettings,
    slots: Slots,
    plays: JoinSet<Ended>,
    kinds: HashMap<Id, RunKind>,
}

/// How a batch ended.
struct Ended {
    /// No host had a result, and nobody had stopped it: Ansible itself does not work.
    fruitless: bool,
}

impl Executor {
    /// An executor that has claimed nothing yet.
    pub(crate) fn new(parts: Parts, settings: ExecutorSettings) -> Self {
        let shared = Shared {
            parts,
            recording: Semaphore::new(RECORDING),
            stop_plays: CancellationToken::new(),
        };
        Self {
            shared: Arc::new(shared),
            slots: Slots::new(&settings),
            settings,
            plays: JoinSet::new(),
            kinds: HashMap::new(),
        }
    }

    /// The longest that the executor goes on after it shall stop.
    pub(crate) fn longest_drain(settings: &ExecutorSettings) -> Duration {
        Duration::from_secs(settings.drain_s.into()) + STOPPING
    }

    /// Claims and executes runs until `shutdown`, then lets running plays end, and stops those that take too long.
    pub(crate) async fn run(mut self, shutdown: CancellationToken) {
        while !shutdown.is_cancelled() {
            let look_again = self.fill().await;
            tokio::select! {
                Some(ended) = self.plays.join_next_with_id() => self.free(ended),
                () = self.shared.parts.wake.woken() => self.slots.told(Instant::now()),
                () = sleep_until(look_again) => {}
                () = shutdown.cancelled() => {}
            }
        }
        self.drain().await;
    }

    async fn drain(mut self) {
        let patience = Duration::from_secs(self.settings.drain_s.into());
        let all = async { while self.plays.join_next().await.is_some() {} };
        if timeout(patience, all).await.is_ok() {
            return;
        }
        tracing::warn!(plays = self.plays.len(), "plays are stopped");
        self.shared.stop_plays.cancel();
        while self.plays.join_next().await.is_some() {}
    }

    /// Starts what may start now; tells when to look again at the latest.
    async fn fill(&mut self) -> Instant {
        let mut look_again = Instant::now() + POLL;
        // Provisioning first: a client waits for it.
        for kind in [RunKind::Provision, RunKind::Clean, RunKind::Inspect] {
            loop {
                match self.slots.may_start(kind, Instant::now()) {
                    May::Now => {}
                    May::At(instant) => {
                        look_again = look_again.min(instant);
                        break;
                    }
                    May::WhenOneEnds => break,
                }
                match self.claim(kind).await {
                    Ok(0) => break,
                    Ok(_) => {}
                    Err(error) => {
                        self.report(&error);
                        return look_again;
                    }
                }
            }
        }
        self.shared.parts.ready.set_ready("database");
        look_again
    }

    /// Starts one play over what is queued; tells over how many hosts.
    async fn claim(&mut self, kind: RunKind) -> Result<usize, StoreError> {
        let limit = u32::try_from(self.settings.hosts_per_play).unwrap_or(u32::MAX);
        let shared = &self.shared;
        let parts = &shared.parts;
        let runs = parts
            .store
            .claim_runs(&parts.instance, kind, limit, HOLD)
            .await?;
        let claimed = runs.len();
        if claimed > 0 {
            self.slots.started(kind, Instant::now());
            let batch = Batch::new(Arc::clone(shared), kind, runs);
            let play = self.plays.spawn(batch.run());
            self.kinds.insert(play.id(), kind);
        }
        Ok(claimed)
    }

    fn free(&mut self, ended: Result<(Id, Ended), tokio::task::JoinError>) {
        let (id, fruitless) = match &ended {
            Ok((id, ended)) => (*id, ended.fruitless),
            Err(error) => {
                // Its claims expire, and its processes carry the mark.
                tracing::error!(%error, "a play's task broke off");
                (error.id(), true)
            }
        };
        if let Some(kind) = self.kinds.remove(&id) {
            self.slots.ended(kind, fruitless, Instant::now());
        }
    }

    fn report(&self, error: &StoreError) {
        if error.is_unavailable() {
            self.shared
                .parts
                .ready
                .set_not_ready("database", error.to_string());
        } else {
            tracing::error!(error = format!("{error:#}"), "runs can't be claimed");
        }
    }
}
