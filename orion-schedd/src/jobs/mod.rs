//! The cron jobs. Each may be repeated at any time, takes no input and does a small batch; deadlines are rows, never
//! jobs.

mod cleanup;
mod expire;
mod grace;
mod health_check;
mod migrate;
mod reconcile;

use std::collections::BTreeMap;
use std::time::Duration;

use orion_daemon::Readiness;
use orion_store::{Lead, Store, StoreError};

pub(crate) use grace::Grace;
pub(crate) use health_check::Ticks;

use crate::metrics::Metrics;
use crate::notify::{Settled, Wake};
use crate::probe::Prober;

/// Rows of one tick; the next tick does the rest.
const BATCH: u32 = 200;

/// What a tick did, for `/jobs`.
pub(crate) type Counts = BTreeMap<&'static str, u64>;

/// What jobs work with.
#[derive(Clone)]
pub(crate) struct JobContext {
    /// The truth.
    pub store: Store,
    /// The executor, to be woken where runs were queued.
    pub executor: Wake,
    /// Who waits for requests.
    pub settled: Settled,
    /// Dials nodes.
    pub prober: Prober,
    /// Keeps a start from being the end of nodes.
    pub grace: Grace,
    /// What one tick of the health check tells the next.
    pub ticks: Ticks,
    /// How often each node is inspected.
    pub deep_every: Duration,
    /// Where alarms are shown.
    pub ready: Readiness,
    /// Counts.
    pub metrics: Metrics,
}

impl JobContext {
    /// The same for the leader's work.
    pub(crate) fn leading(&self, lead: Lead) -> Self {
        Self {
            store: self.store.leading(lead),
            prober: self.prober.leading(lead),
            ..self.clone()
        }
    }

    /// Only the leader knows of these; an instance that leads no more must not go on saying what it saw.
    pub(crate) fn forget_alarms(&self) {
        self.ready
            .forget(&[migrate::SUSPENDED, health_check::OUTDATED]);
        self.metrics.migration_suspended(false);
        self.metrics.database_outdated(false);
        self.metrics.agents_down(0);
    }
}

/// A job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Job {
    /// Ends rentals whose time is over.
    Expire,
    /// Gives back lost runs, undoes requests past their deadline.
    Reconcile,
    /// Queues cleaning for debts, and tells of those that somebody must look after.
    Cleanup,
    /// Queues inspections and dials every node.
    HealthCheck,
    /// Moves rentals off nodes that died or drain.
    Migrate,
}

impl Job {
    /// Every job.
    pub(crate) const ALL: [Self; 5] = [
        Self::Expire,
        Self::Reconcile,
        Self::Cleanup,
        Self::HealthCheck,
        Self::Migrate,
    ];

    /// Its name in the configuration, logs and metrics.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Expire => "expire",
            Self::Reconcile => "reconcile",
            Self::Cleanup => "cleanup",
            Self::HealthCheck => "health_check",
            Self::Migrate => "migrate",
        }
    }

    /// One tick.
    ///
    /// # Errors
    /// When the database is away.
    pub(crate) async fn run(self, context: &JobContext) -> Result<Counts, StoreError> {
        match self {
            Self::Expire => expire::run(context).await,
            Self::Reconcile => reconcile::run(context).await,
            Self::Cleanup => cleanup::run(context).await,
            Self::HealthCheck => health_check::run(context).await,
            Self::Migrate => migrate::run(context).await,
        }
    }
}

/// The part of the health check that is done at once when somebody said `look`.
///
/// # Errors
/// When the database is away.
pub(crate) async fn newcomers(context: &JobContext) -> Result<(), StoreError> {
    health_check::newcomers(context).await
}
