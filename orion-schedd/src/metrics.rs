//! What `/metrics` shows.

use std::sync::atomic::AtomicU64;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use orion_core::{RunKind, RunOutcome};
use orion_daemon::Registry;
use orion_store::Debts;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

type Label = (&'static str, &'static str);

/// Cheap to clone; clones count together.
#[derive(Debug, Clone)]
pub(crate) struct Metrics {
    plays: Family<[Label; 1], Counter>,
    playing: Family<[Label; 1], Gauge>,
    hosts: Family<[Label; 1], Histogram, fn() -> Histogram>,
    play_seconds: Family<[Label; 1], Histogram, fn() -> Histogram>,
    runs: Family<[Label; 2], Counter>,
    lost: Counter,
    probes: Family<[Label; 1], Counter>,
    jobs: Family<[Label; 2], Counter>,
    job_success: Family<[Label; 1], Gauge<f64, AtomicU64>>,
    leads: Gauge,
    migration_suspended: Gauge,
    clock_step_seconds: Gauge<f64, AtomicU64>,
    debts: Gauge,
    oldest_debt: Gauge<f64, AtomicU64>,
    database_outdated: Gauge,
    agents_down: Gauge,
}

fn hosts_buckets() -> Histogram {
    Histogram::new([1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0])
}

fn seconds_buckets() -> Histogram {
    Histogram::new([1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0, 30.0, 60.0])
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            plays: Family::default(),
            playing: Family::default(),
            hosts: Family::new_with_constructor(hosts_buckets as fn() -> Histogram),
            play_seconds: Family::new_with_constructor(seconds_buckets as fn() -> Histogram),
            runs: Family::default(),
            lost: Counter::default(),
            probes: Family::default(),
            jobs: Family::default(),
            job_success: Family::default(),
            leads: Gauge::default(),
            migration_suspended: Gauge::default(),
            clock_step_seconds: Gauge::default(),
            debts: Gauge::default(),
            oldest_debt: Gauge::default(),
            database_outdated: Gauge::default(),
            agents_down: Gauge::default(),
        }
    }
}

impl Metrics {
    /// Registers everything.
    pub(crate) fn new(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let registry = registry.sub_registry_with_prefix("orion_schedd");
        metrics.register_alarms(registry);
        registry.register("plays", "Plays that ended, by kind", metrics.plays.clone());
        registry.register(
            "plays_running",
            "Plays that run, by kind",
            metrics.playing.clone(),
        );
        registry.register("play_hosts", "Hosts of a play", metrics.hosts.clone());
        registry.register(
            "play_seconds",
            "From a play's start to its end",
            metrics.play_seconds.clone(),
        );
        registry.register(
            "runs",
            "Runs recorded, by kind and outcome",
            metrics.runs.clone(),
        );
        registry.register(
            "runs_lost",
            "Runs whose claim was somebody else's by then",
            metrics.lost.clone(),
        );
        registry.register(
            "probes",
            "Dials of nodes, by result",
            metrics.probes.clone(),
        );
        registry.register(
            "job_ticks",
            "Ticks of cron jobs, by job and result",
            metrics.jobs.clone(),
        );
        registry.register(
            "job_last_success_timestamp_seconds",
            "When a job last succeeded, in seconds since 1970",
            metrics.job_success.clone(),
        );
        registry.register(
            "leads",
            "1 while this instance leads the cron jobs",
            metrics.leads.clone(),
        );
        metrics
    }

    /// What an administrator is to act on.
    fn register_alarms(&self, registry: &mut Registry) {
        registry.register(
            "migration_suspended",
            "1 while nothing moves because too much fails at once",
            self.migration_suspended.clone(),
        );
        registry.register(
            "database_outdated",
            "1 while nothing is provisioned because workers hold accounts that were never given out",
            self.database_outdated.clone(),
        );
        registry.register(
            "agents_down",
            "Nodes whose agent is silent although SSH works",
            self.agents_down.clone(),
        );
        registry.register(
            "clock_step_seconds",
            "How far ahead the database's clock is after a step, until it is back or accepted",
            self.clock_step_seconds.clone(),
        );
        registry.register(
            "debts",
            "Accounts that must still go, as the leader last saw",
            self.debts.clone(),
        );
        registry.register(
            "oldest_debt_seconds",
            "Age of the oldest account that must still go, as the leader last saw",
            self.oldest_debt.clone(),
        );
    }

    /// A play over so many hosts starts.
    pub(crate) fn play_started(&self, kind: RunKind, hosts: usize) {
        let label = [("kind", kind.as_str())];
        self.playing.get_or_create(&label).inc();
        let hosts = u32::try_from(hosts).unwrap_or(u32::MAX);
        self.hosts.get_or_create(&label).observe(hosts.into());
    }

    /// A play is over.
    pub(crate) fn play_ended(&self, kind: RunKind, took: Duration) {
        let label = [("kind", kind.as_str())];
        self.playing.get_or_create(&label).dec();
        self.plays.get_or_create(&label).inc();
        self.play_seconds
            .get_or_create(&label)
            .observe(took.as_secs_f64());
    }

    /// A run is recorded.
    pub(crate) fn run_recorded(&self, kind: RunKind, outcome: RunOutcome) {
        self.runs
            .get_or_create(&[("kind", kind.as_str()), ("outcome", outcome.as_str())])
            .inc();
    }

    /// A run was somebody else's when its result came.
    pub(crate) fn run_lost(&self) {
        self.lost.inc();
    }

    /// A dial is over.
    pub(crate) fn probed(&self, result: &'static str) {
        self.probes.get_or_create(&[("result", result)]).inc();
    }

    /// A job's tick is over, or did not lead to anything.
    pub(crate) fn job_ticked(&self, job: &'static str, result: &'static str) {
        self.jobs
            .get_or_create(&[("job", job), ("result", result)])
            .inc();
        if result == "done"
            && let Ok(since_1970) = SystemTime::now().duration_since(UNIX_EPOCH)
        {
            self.job_success
                .get_or_create(&[("job", job)])
                .set(since_1970.as_secs_f64());
        }
    }

    /// Whether nothing moves because too much fails at once.
    pub(crate) fn migration_suspended(&self, suspended: bool) {
        self.migration_suspended.set(i64::from(suspended));
    }

    /// How far ahead the database's clock is; 0 where it did not step.
    pub(crate) fn clock_step(&self, ahead_s: f64) {
        self.clock_step_seconds.set(ahead_s);
    }

    /// What must still go.
    pub(crate) fn debts(&self, debts: Debts) {
        self.debts
            .set(i64::try_from(debts.count).unwrap_or(i64::MAX));
        self.oldest_debt.set(debts.oldest.as_secs_f64());
    }

    /// Whether workers hold accounts that the database never gave out.
    pub(crate) fn database_outdated(&self, outdated: bool) {
        self.database_outdated.set(i64::from(outdated));
    }

    /// So many agents are silent on machines that are alive.
    pub(crate) fn agents_down(&self, nodes: u64) {
        self.agents_down
            .set(i64::try_from(nodes).unwrap_or(i64::MAX));
    }

    /// Whether this instance leads.
    pub(crate) fn leads(&self, leads: bool) {
        self.leads.set(leads.into());
    }
}
