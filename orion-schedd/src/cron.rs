//! When the jobs run. tokio-cron-scheduler only ticks; here each job has one slot, a time limit and a last result.
//!
//! Its ticks overlap when a job is slow, its shutdown does not wait, and what it keeps is lost with the process (tried):
//! so no job's work is in its hands, and no deadline either.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;
use orion_core::UtcTime;
use orion_store::{Lead, StoreError};
use serde::Serialize;
use time::{OffsetDateTime, PrimitiveDateTime};
use tokio::sync::mpsc;
use tokio::time::{interval, timeout};
use tokio_cron_scheduler::JobScheduler;
use tokio_util::sync::CancellationToken;

use crate::config::CronSettings;
use crate::jobs::{Counts, Job, JobContext};
use crate::leader::Leader;
use crate::metrics::Metrics;

/// A tick that takes longer is broken off; every job goes on at its next tick where it was.
const LIMIT: Duration = Duration::from_secs(60);
/// More ticks than that waiting means that nothing moves anyway.
const WAITING: usize = 32;

/// How often this machine's own clock is looked at, and what is a step of it.
const LOOK: Duration = Duration::from_secs(1);
const OWN_STEP: Duration = Duration::from_secs(2);

fn schedule(settings: &CronSettings, job: Job) -> &str {
    match job {
        Job::Expire => &settings.expire,
        Job::Reconcile => &settings.reconcile,
        Job::Cleanup => &settings.cleanup,
        Job::HealthCheck => &settings.health_check,
        Job::Migrate => &settings.migrate,
    }
}

/// What is known of the jobs' ticks; cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct JobBook(Arc<Mutex<BTreeMap<Job, Entry>>>);

#[derive(Debug, Clone, Default, Serialize)]
struct Entry {
    running: bool,
    /// Ticks that found the job still running.
    skipped: u64,
    last: Option<LastTick>,
    /// When a tick last did what it should; the daemon's clock, UTC.
    last_success_at: Option<UtcTime>,
}

#[derive(Debug, Clone, Serialize)]
struct LastTick {
    ended_at: UtcTime,
    took_ms: u128,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    counts: Counts,
}

impl JobBook {
    /// The page `/jobs` of the ops listener.
    pub(crate) fn page(&self, settings: &CronSettings, leader: &Leader) -> serde_json::Value {
        let entries = self.lock();
        let jobs: serde_json::Map<_, _> = Job::ALL
            .iter()
            .map(|job| {
                let entry = entries.get(job).cloned().unwrap_or_default();
                let page =
                    serde_json::json!({"schedule": schedule(settings, *job), "ticks": entry});
                (job.name().to_owned(), page)
            })
            .collect();
        let epoch = leader.lead().map(Lead::epoch);
        serde_json::json!({"leads": epoch.is_some(), "epoch": epoch, "jobs": jobs})
    }

    /// Takes the job's slot; false when it is taken.
    fn begin(&self, job: Job) -> bool {
        let mut entries = self.lock();
        let entry = entries.entry(job).or_default();
        entry.skipped += u64::from(entry.running);
        !std::mem::replace(&mut entry.running, true)
    }

    fn end(&self, job: Job, took: Duration, result: Result<Counts, String>) {
        let ended_at = now();
        let mut entries = self.lock();
        let entry = entries.entry(job).or_default();
        entry.running = false;
        let (error, counts) = match result {
            Ok(counts) => (None, counts),
            Err(error) => (Some(error), Counts::new()),
        };
        if error.is_none() {
            entry.last_success_at = Some(ended_at);
        }
        entry.last = Some(LastTick {
            ended_at,
            took_ms: took.as_millis(),
            error,
            counts,
        });
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Job, Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// For people, so this machine's clock will do.
fn now() -> UtcTime {
    let now = OffsetDateTime::now_utc();
    UtcTime(PrimitiveDateTime::new(now.date(), now.time()))
}

/// Runs jobs as they tick.
#[derive(Clone)]
pub(crate) struct Cron {
    context: JobContext,
    leader: Leader,
    book: JobBook,
    metrics: Metrics,
}

impl Cron {
    /// Jobs run only while `leader` leads.
    pub(crate) fn new(
        context: JobContext,
        leader: Leader,
        book: JobBook,
        metrics: Metrics,
    ) -> Self {
        Self {
            context,
            leader,
            book,
            metrics,
        }
    }

    /// Ticks until `shutdown`; ticks under way are broken off then, since every job may be repeated.
    ///
    /// # Errors
    /// When the scheduler can't be started.
    pub(crate) async fn run(
        self,
        settings: &CronSettings,
        shutdown: CancellationToken,
    ) -> anyhow::Result<()> {
        let (ticks, mut ticked) = mpsc::channel(WAITING);
        let mut scheduler = start_scheduler(settings, &ticks)
            .await
            .context("the cron scheduler")?;
        let mut looks = interval(LOOK);
        let mut own_clock = OwnClock::now();
        loop {
            tokio::select! {
                Some(job) = ticked.recv() => self.tick(job),
                _ = looks.tick() => {
                    // It waits for a time of day, which a clock that was set back reaches hours later.
                    if own_clock.stepped() {
                        tracing::warn!("this machine slept, or its clock stepped: the cron scheduler starts anew");
                        self.context.grace.forget();
                        scheduler.shutdown().await.context("the cron scheduler's end")?;
                        scheduler = start_scheduler(settings, &ticks)
                            .await
                            .context("the cron scheduler")?;
                    }
                }
                () = shutdown.cancelled() => break,
            }
        }
        scheduler
            .shutdown()
            .await
            .context("the cron scheduler's end")
    }

    /// Starts the job in its slot, or counts why not.
    fn tick(&self, job: Job) {
        let Some(lead) = self.leader.lead() else {
            self.context.forget_alarms();
            return self.metrics.job_ticked(job.name(), "not_leader");
        };
        if !self.book.begin(job) {
            return self.metrics.job_ticked(job.name(), "skipped");
        }
        let cron = self.clone();
        tokio::spawn(async move {
            let start = Instant::now();
            let result = cron.guarded(job, lead).await;
            let word = if result.is_ok() { "done" } else { "failed" };
            cron.metrics.job_ticked(job.name(), word);
            cron.book.end(job, start.elapsed(), result);
        });
    }

    /// One tick, whatever happens in it.
    async fn guarded(&self, job: Job, lead: Lead) -> Result<Counts, String> {
        let context = self.context.leading(lead);
        let mut task = tokio::spawn(async move { job.run(&context).await });
        let error = match timeout(LIMIT, &mut task).await {
            Ok(Ok(Ok(counts))) => return Ok(counts),
            // An outage is said once, by readiness, and not by each tick; and that another instance leads, by `Leader`.
            Ok(Ok(Err(error)))
                if error.is_unavailable() || matches!(error, StoreError::NotLeading) =>
            {
                return Err(error.to_string());
            }
            Ok(Ok(Err(error))) => format!("{:#}", anyhow::Error::from(error)),
            Ok(Err(broken)) => format!("panicked: {broken}"),
            Err(_) => {
                task.abort();
                format!("took longer than {} s", LIMIT.as_secs())
            }
        };
        tracing::error!(job = job.name(), error, "a job failed");
        Err(error)
    }
}

/// This machine's clock beside one that nobody sets.
struct OwnClock {
    wall: SystemTime,
    steady: Instant,
}

impl OwnClock {
    fn now() -> Self {
        Self {
            wall: SystemTime::now(),
            steady: Instant::now(),
        }
    }

    /// Whether the clock jumped since the last look, to either side.
    fn stepped(&mut self) -> bool {
        let before = std::mem::replace(self, Self::now());
        let passed = self.steady - before.steady;
        let shown = self.wall.duration_since(before.wall);
        shown.map_or(true, |shown| shown.abs_diff(passed) > OWN_STEP)
    }
}

async fn start_scheduler(
    settings: &CronSettings,
    ticks: &mpsc::Sender<Job>,
) -> anyhow::Result<JobScheduler> {
    let scheduler = JobScheduler::new().await?;
    for job in Job::ALL {
        let ticks = ticks.clone();
        let tick = move |_, _: JobScheduler| {
            // Full means that nothing moves; another tick would not help.
            ticks.try_send(job).unwrap_or_default();
        };
        scheduler
            .add(tokio_cron_scheduler::Job::new(
                schedule(settings, job),
                tick,
            )?)
            .await?;
    }
    scheduler.start().await?;
    Ok(scheduler)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ScheddSettings;
    use orion_testkit::{PATIENCE, wait_until};

    #[test]
    fn a_job_has_one_slot_and_ticks_that_find_it_taken_are_counted() {
        let book = JobBook::default();
        assert!(book.begin(Job::Expire));
        assert!(!book.begin(Job::Expire));
        assert!(!book.begin(Job::Expire));
        assert!(book.begin(Job::Cleanup));
        book.end(
            Job::Expire,
            Duration::from_millis(7),
            Ok(Counts::from([("expired", 2)])),
        );
        assert!(book.begin(Job::Expire));
        let page = book.page(&ScheddSettings::default().cron, &Leader::default());
        let ticks = &page["jobs"]["expire"]["ticks"];
        assert_eq!(ticks["skipped"], 2);
        assert_eq!(ticks["running"], true);
        assert_eq!(ticks["last"]["counts"]["expired"], 2);
        assert_eq!(ticks["last"]["took_ms"], 7);
        assert_eq!(page["leads"], false);
    }

    #[test]
    fn a_failure_is_kept_and_does_not_count_as_success() {
        let book = JobBook::default();
        for result in [Ok(Counts::new()), Err("the database is away".to_owned())] {
            assert!(book.begin(Job::Cleanup));
            book.end(Job::Cleanup, Duration::ZERO, result);
        }
        let entries = book.lock();
        let entry = entries.get(&Job::Cleanup).unwrap();
        assert_eq!(
            entry.last.as_ref().unwrap().error.as_deref(),
            Some("the database is away")
        );
        assert!(entry.last_success_at.unwrap() <= entry.last.as_ref().unwrap().ended_at);
    }

    #[tokio::test]
    async fn the_ticker_ticks_every_job() {
        let every_second = "* * * * * *".to_owned();
        let settings = CronSettings {
            expire: every_second.clone(),
            reconcile: every_second.clone(),
            cleanup: every_second.clone(),
            health_check: every_second.clone(),
            migrate: every_second,
        };
        let (ticks, mut ticked) = mpsc::channel(WAITING);
        let mut scheduler = start_scheduler(&settings, &ticks).await.unwrap();
        let mut seen = Vec::new();
        wait_until("each job has ticked twice", PATIENCE, || {
            seen.extend(std::iter::from_fn(|| ticked.try_recv().ok()));
            let twice = |job: &Job| seen.iter().filter(|is| *is == job).count() >= 2;
            if Job::ALL.iter().all(twice) {
                Ok(())
            } else {
                Err(format!("{seen:?}"))
            }
        })
        .await;
        scheduler.shutdown().await.unwrap();
    }
}
