//! Stands in for orion-schedd: claims runs and records what a script says was seen.

use orion_core::{RunKind, RunOutcome};
use orion_store::{ClaimedRun, InstanceId, RunReport, Store};
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::interval;

/// What is seen when this run is done; `None` keeps silent about it, for ever.
pub(crate) type Script = fn(&ClaimedRun) -> Option<RunOutcome>;

/// Works until it is dropped.
pub(crate) struct FakeSchedd(JoinHandle<()>);

impl FakeSchedd {
    pub(crate) fn start(store: Store, script: Script) -> Self {
        Self(tokio::spawn(work(store, script)))
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
        self.0.abort();
    }
}

/// Asks for work as orion-schedd does where nobody tells it: again and again.
async fn work(store: Store, script: Script) {
    let instance = InstanceId::from_random([5; 16]);
    let mut rounds = interval(Duration::from_millis(10));
    loop {
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
