//! Which instance runs the cron jobs. All instances execute runs.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use orion_store::{InstanceId, Store};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;

/// The row's name.
const LEAD: &str = "jobs";
const HOLD: Duration = Duration::from_secs(15);
const RENEW: Duration = Duration::from_secs(5);
/// How often the lead is asked for while somebody else has it.
const ASK: Duration = Duration::from_secs(1);

/// Whether this instance leads, as far as it knows.
#[derive(Debug, Clone, Default)]
pub(crate) struct Leader(Arc<Mutex<Option<Lead>>>);

#[derive(Debug, Clone, Copy)]
struct Lead {
    epoch: u64,
    until: Instant,
}

impl Leader {
    /// The lead's epoch while the lead lasts.
    pub(crate) fn epoch(&self) -> Option<u64> {
        let lead = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lead.filter(|lead| Instant::now() < lead.until)
            .map(|lead| lead.epoch)
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
            match store.lead(LEAD, &instance, HOLD).await {
                Ok(epoch) => self.take(epoch.map(|epoch| Lead { epoch, until })),
                // The lead lasts until its time is over, here as in the row.
                Err(error) => tracing::debug!(%error, "the lead can't be renewed"),
            }
            let leads = self.epoch().is_some();
            metrics.leads(leads);
            tokio::select! {
                () = sleep(if leads { RENEW } else { ASK }) => {}
                () = jobs_over.cancelled() => {}
            }
        }
        self.take(None);
        metrics.leads(false);
        if let Err(error) = store.resign(LEAD, &instance).await {
            tracing::warn!(%error, "the lead can't be given back: no job runs until its {HOLD:?} are over");
        }
    }

    fn take(&self, new: Option<Lead>) {
        let mut lead = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match (lead.as_ref(), new) {
            (None, Some(new)) => {
                tracing::info!(epoch = new.epoch, "this instance leads the cron jobs")
            }
            (Some(_), None) => tracing::info!("this instance no longer leads the cron jobs"),
            _ => {}
        }
        *lead = new;
    }
}
