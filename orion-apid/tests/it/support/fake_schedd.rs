//! Stands in for orion-schedd: claims runs and records what a script says was seen.

use orion_core::{RunKind, RunOutcome};
use orion_store::{ClaimedRun, InstanceId, RunReport, Store};
use std::thread::{self, JoinHandle};
use std::time::Duration;
use tokio::runtime;
use tokio::sync::oneshot::{self, error::TryRecvError};
use tokio::time::interval;

/// What is seen when this run is done; `None` keeps silent about it, for ever.
pub(crate) type Script = fn(&ClaimedRun) -> Option<RunOutcome>;

/// Works until it is dropped, on a thread of its own: a test that asks the database keeps its own thread, and would wait
/// for a lock that a transaction on this thread holds.
pub(crate) struct FakeSchedd {
    /// Dropped to end the work.
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl FakeSchedd {
    pub(crate) fn start(store: Store, script: Script) -> Self {
        let (stop, stopped) = oneshot::channel();
        let runtime = runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.expect("a runtime");
        let thread = thread::spawn(move || runtime.block_on(work(store, script, stopped)));
        Self {
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    /// Every step succeeds.
    pub(crate) fn all_well(run: &ClaimedRun) -> Option<RunOutcome> {
        Some(match run.kind {
            RunKind::Provision => RunOutcome::Present,
            RunKind::Clean => RunOutcome::Gone,
            RunKind::Inspect => RunOutcome::Clean,
        })
    }
}

impl Drop for FakeSchedd {
    fn drop(&mut self) {
        drop(self.stop.take());
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(thread::panicking() || !matches!(ended, Some(Err(_))));
    }
}

/// Asks for work as orion-schedd does where nobody tells it: again and again.
async fn work(store: Store, script: Script, mut stopped: oneshot::Receiver<()>) {
    let instance = InstanceId::from_random([5; 16]);
    let mut rounds = interval(Duration::from_millis(10));
    while stopped.try_recv() == Err(TryRecvError::Empty) {
        rounds.tick().await;
        for kind in [RunKind::Provision, RunKind::Clean, RunKind::Inspect] {
            let hold = Duration::from_secs(60);
            // The database may be stopped by the test; the next round finds it again.
            let runs = store
                .claim_runs(&instance, kind, 16, hold)
                .await
                .unwrap_or_default();
            for run in runs {
                if let Some(outcome) = script(&run) {
                    let report = RunReport {
                        outcome,
                        detail: None,
                        evidence: None,
                        output: None,
                    };
                    store
                        .record_run(&instance, &run, &report)
                        .await
                        .expect("recorded");
                }
            }
        }
    }
}
