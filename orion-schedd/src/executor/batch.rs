//! The runs of one play: each is recorded as soon as its host is done, and none is forgotten.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use orion_core::{NodeId, RunId, RunKind, RunOutcome};
use orion_store::{ClaimedRun, Recorded, RunReport};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{Ended, HOLD, Shared};
use crate::ansible::{CheckedTarget, OutputTail, PlayEnd, Step, Target, Verdict};

/// How long a result is tried to be recorded while the database is away. After that the claim has long expired, and
/// the run is done again at a higher epoch.
const RECORD_FOR: Duration = Duration::from_secs(60);

/// Verdicts on their way from the play.
const VERDICTS: usize = 64;

pub(super) struct Batch {
    shared: Arc<Shared>,
    kind: RunKind,
    /// By node; those whose host is not done.
    open: HashMap<NodeId, ClaimedRun>,
    /// Claims to renew.
    unrecorded: Unrecorded,
    recording: JoinSet<()>,
    output: OutputTail,
    verdicts: usize,
}

/// Runs that are claimed and not recorded yet.
#[derive(Clone, Default)]
struct Unrecorded(Arc<Mutex<BTreeSet<RunId>>>);

impl Unrecorded {
    fn lock(&self) -> MutexGuard<'_, BTreeSet<RunId>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Batch {
    pub(super) fn new(shared: Arc<Shared>, kind: RunKind, runs: Vec<ClaimedRun>) -> Self {
        let mut batch = Self {
            shared,
            kind,
            open: HashMap::new(),
            unrecorded: Unrecorded::default(),
            recording: JoinSet::new(),
            output: OutputTail::default(),
            verdicts: 0,
        };
        for run in runs {
            batch.unrecorded.lock().insert(run.id);
            // One host of a play is one node; a second run for it waits for another play.
            if let Some(second) = batch.open.insert(run.node, run) {
                let detail = "another run of this kind is under way on the node";
                batch.record(second, report(RunOutcome::NoResult, detail.to_owned()));
            }
        }
        batch
    }

    /// Runs the play to its end and records every run.
    pub(super) async fn run(mut self) -> Ended {
        let stop = self.shared.stop_plays.child_token();
        let renewing = self.renew_claims(stop.clone());
        let targets = self.targets();
        let mut stopped = stop.is_cancelled();
        if !targets.is_empty() {
            stopped |= self.play(targets, &stop).await;
        }
        while self.recording.join_next().await.is_some() {}
        drop(renewing);
        Ended {
            fruitless: self.verdicts == 0 && !stopped,
        }
    }

    /// The hosts of the play. A run that can't be part of one fails here, with words for an operator.
    fn targets(&mut self) -> Vec<CheckedTarget> {
        let mut targets = Vec::new();
        for (_, run) in std::mem::take(&mut self.open) {
            let ansible = &self.shared.parts.ansible;
            match target_of(&run).map(|target| ansible.check(target)) {
                Some(Ok(target)) => {
                    targets.push(target);
                    self.open.insert(run.node, run);
                }
                Some(Err(bad)) => self.fail(run, bad.outcome(), bad.to_string()),
                None => {
                    let detail = "the run has no account to act on";
                    self.fail(run, RunOutcome::Failed, detail.to_owned());
                }
            }
        }
        targets
    }

    fn fail(&mut self, run: ClaimedRun, outcome: RunOutcome, detail: String) {
        self.verdicts += 1;
        self.record(run, report(outcome, detail));
    }

    /// Tells whether the play was stopped from outside.
    async fn play(&mut self, targets: Vec<CheckedTarget>, stop: &CancellationToken) -> bool {
        let start = Instant::now();
        let hosts = targets.len();
        self.shared.parts.metrics.play_started(self.kind, hosts);
        let (sender, mut verdicts) = mpsc::channel(VERDICTS);
        let play = {
            let (shared, kind, output, stop) = (
                Arc::clone(&self.shared),
                self.kind,
                self.output.clone(),
                stop.clone(),
            );
            tokio::spawn(async move {
                shared
                    .parts
                    .ansible
                    .play(kind, &targets, sender, &output, &stop)
                    .await
            })
        };
        while let Some((node, verdict)) = verdicts.recv().await {
            self.conclude(node, verdict);
        }
        let (detail, stopped) = match play.await {
            Ok(Ok(end)) => (end.describe(), end == PlayEnd::Stopped),
            Ok(Err(error)) => {
                tracing::error!(error = format!("{error:#}"), "a play could not start");
                (error.to_string(), false)
            }
            Err(error) => {
                tracing::error!(%error, "a play broke off");
                ("the play broke off".to_owned(), false)
            }
        };
        let took = start.elapsed();
        self.shared.parts.metrics.play_ended(self.kind, took);
        let (kind, silent) = (self.kind, self.open.len());
        tracing::info!(%kind, hosts, silent, took_ms = took.as_millis(), "play ended");
        for (_, run) in std::mem::take(&mut self.open) {
            let mut report = report(RunOutcome::NoResult, detail.clone());
            report.output = self.output.text();
            self.record(run, report);
        }
        stopped
    }

    /// The first word about a host is the one that counts.
    fn conclude(&mut self, node: NodeId, verdict: Verdict) {
        let Some(run) = self.open.remove(&node) else {
            return;
        };
        self.verdicts += 1;
        let good = is_good(verdict.outcome);
        let report = RunReport {
            outcome: verdict.outcome,
            detail: verdict.detail,
            evidence: verdict.evidence,
            output: if good { None } else { self.output.text() },
        };
        self.record(run, report);
    }

    fn record(&mut self, run: ClaimedRun, report: RunReport) {
        let (shared, unrecorded) = (Arc::clone(&self.shared), self.unrecorded.clone());
        self.recording.spawn(async move {
            record(&shared, &run, &report).await;
            unrecorded.lock().remove(&run.id);
        });
    }

    /// Renews the claims until the guard is dropped. When none is ours any more, the play is stopped: somebody else does
    /// its work.
    fn renew_claims(&self, stop: CancellationToken) -> DropGuard {
        let done = CancellationToken::new();
        let (shared, unrecorded, until) = (
            Arc::clone(&self.shared),
            self.unrecorded.clone(),
            done.clone(),
        );
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    () = tokio::time::sleep(HOLD / 3) => {}
                    () = until.cancelled() => return,
                }
                let claimed: Vec<RunId> = unrecorded.lock().iter().copied().collect();
                match shared
                    .parts
                    .store
                    .renew_claims(&shared.parts.instance, &claimed, HOLD)
                    .await
                {
                    Ok(ours)
                        if ours.is_empty()
                            && !claimed.is_empty()
                            && !unrecorded.lock().is_empty() =>
                    {
                        tracing::warn!("a play's claims are somebody else's: it is stopped");
                        stop.cancel();
                        return;
                    }
                    Ok(_) => {}
                    Err(error) => tracing::debug!(%error, "claims can't be renewed"),
                }
            }
        });
        done.drop_guard()
    }
}

fn report(outcome: RunOutcome, detail: String) -> RunReport {
    RunReport {
        outcome,
        detail: Some(detail),
        evidence: None,
        output: None,
    }
}

/// What the play does for a run; nothing when the run lacks what its kind needs.
fn target_of(run: &ClaimedRun) -> Option<Target> {
    let step = match (run.kind, &run.account) {
        (RunKind::Inspect, _) => Step::Inspect,
        (RunKind::Clean, Some(account)) => Step::Delete {
            uid: account.uid,
            name: account.name.clone(),
            epoch: run.epoch,
            keep_home: account.keep_home,
        },
        (RunKind::Provision, Some(account)) => Step::Create {
            uid: account.uid,
            name: account.name.clone(),
            password_hash: account.password_hash.clone()?,
            epoch: run.epoch,
            ends_in: account.ends_in?,
            moved: account.is_moved,
        },
        (RunKind::Clean | RunKind::Provision, None) => return None,
    };
    Some(Target {
        node: run.node,
        host: run.contact.host.clone(),
        port: run.contact.port,
        host_keys: run.host_keys.clone(),
        uid_base: run.uid_base,
        step,
    })
}

/// Records one result, through an outage too, and tells who waits for what follows from it.
async fn record(shared: &Shared, run: &ClaimedRun, report: &RunReport) {
    let start = Instant::now();
    let mut pause = Duration::from_millis(100);
    loop {
        let recorded = {
            // Never closed.
            let _slot = shared.recording.acquire().await;
            shared
                .parts
                .store
                .record_run(&shared.parts.instance, run, report)
                .await
        };
        match recorded {
            Ok(Recorded::Done { settled, queued }) => {
                shared.parts.metrics.run_recorded(run.kind, report.outcome);
                if let Some(request) = settled {
                    shared.parts.settled.tell(request);
                }
                if queued {
                    shared.parts.wake.wake();
                }
                return said(run, report);
            }
            Ok(Recorded::Lost) => {
                shared.parts.metrics.run_lost();
                tracing::warn!(run = %run.id, outcome = %report.outcome, "a result came too late: the run is somebody else's");
                return;
            }
            Err(error) if error.is_unavailable() && start.elapsed() < RECORD_FOR => {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_secs(2));
            }
            Err(error) => {
                let error = format!("{:#}", anyhow::Error::from(error));
                tracing::error!(run = %run.id, error, "a result can't be recorded: the run will be done again");
                return;
            }
        }
    }
}

fn said(run: &ClaimedRun, report: &RunReport) {
    let (id, kind, node, outcome) = (run.id, run.kind, run.node, report.outcome);
    let detail = report.detail.as_deref().unwrap_or_default();
    if is_good(outcome) {
        tracing::info!(run = %id, %kind, %node, %outcome, "run done");
    } else {
        tracing::warn!(run = %id, %kind, %node, %outcome, detail, "run failed");
    }
}

fn is_good(outcome: RunOutcome) -> bool {
    matches!(
        outcome,
        RunOutcome::Present | RunOutcome::Gone | RunOutcome::Clean
    )
}
