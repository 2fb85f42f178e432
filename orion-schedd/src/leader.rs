//! Which instance runs the cron jobs. All instances execute runs.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use orion_store::{InstanceId, Lead, Store};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;

const HOLD: Duration = Duration::from_secs(15);
const RENEW: Duration = Duration::from_secs(5);
/// How often the lead is asked for while somebody else has it.
const ASK: Duration = Duration::from_secs(1);

/// Whether this instance leads, as far as it knows.
#[derive(Debug, Clone, Default)]
pub(crate) struct Leader(Arc<Mutex<Option<Held>>>);

#[derive(Debug, Clone, Copy)]
struct Held {
    lead: Lead,
    until: Instant,
}

impl Leader {
    /// The lead while it lasts.
    pub(crate) fn lead(&self) -> Option<Lead> {
        let held = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        held.filter(|held| Instant::now() < held.until)
            .map(|held| held.lead)
    }

    /// Takes and renews the lead until `jobs_over`, and gives it back then: the next instance need not wait for its end.
    pub(crate) async fn keep(
        self,
        store: Store,
        instance: InstanceId,
        metrics: Metrics,
        jobs_over: CancellationToken,
    ) {
        while !jobs_over.is_cancelled() {
            // Counted from before the question: the row's time begins while it is answered.
            let until = Instant::now() + HOLD;
            match store.lead(&instance, HOLD).await {
                Ok(lead) => self.take(lead.map(|lead| Held { lead, until })),
                // The lead lasts until its time is over, here as in the row.
                Err(error) => tracing::debug!(%error, "the lead can't be renewed"),
            }
            let leads = self.lead().is_some();
            metrics.leads(leads);
            tokio::select! {
                () = sleep(if leads { RENEW } else { ASK }) => {}
                () = jobs_over.cancelled() => {}
            }
        }
        self.take(None);
        metrics.leads(false);
        if let Err(error) = store.resign(&instance).await {
            tracing::warn!(%error, "the lead can't be given back: no job runs until its {HOLD:?} are over");
        }
    }

    fn take(&self, new: Option<Held>) {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match (held.as_ref(), new) {
            (None, Some(new)) => {
                tracing::info!(
                    epoch = new.lead.epoch(),
                    "this instance leads the cron jobs"
                );
            }
            (Some(_), None) => tracing::info!("this instance no longer leads the cron jobs"),
            _ => {}
        }
        *held = new;
    }
}
