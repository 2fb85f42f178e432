//! Looks at every node: an inspection for the joining ones, a login for all, a dial of the addresses that are claimed.

use std::time::Duration;

use orion_core::NodeStatus;
use orion_store::{ProbeTarget, StoreError};

use super::{BATCH, Counts, JobContext};

/// How long a tick waits for its probes; slower ones go on beside later ticks.
const WAIT: Duration = Duration::from_secs(4);

/// One tick.
///
/// # Errors
/// When the database is away.
pub(super) async fn run(context: &JobContext) -> Result<Counts, StoreError> {
    context.grace.before_a_look(&context.store).await?;
    let inspections = queue_inspections(context).await?;
    let targets = context.store.probe_targets().await?;
    context.grace.looked();
    let nodes = u64::try_from(targets.len()).unwrap_or(u64::MAX);
    let mut counts = context.prober.probe(targets, WAIT).await;
    counts.insert("nodes", nodes);
    counts.insert("inspections", inspections);
    Ok(counts)
}

/// What can't wait for the next tick when somebody said `look`: nodes never dialled, and claimed addresses.
///
/// # Errors
/// When the database is away.
pub(super) async fn newcomers(context: &JobContext) -> Result<(), StoreError> {
    queue_inspections(context).await?;
    let is_new =
        |target: &ProbeTarget| target.status == NodeStatus::Unknown || target.pending.is_some();
    let targets = context.store.probe_targets().await?;
    let targets: Vec<_> = targets.into_iter().filter(is_new).collect();
    if !targets.is_empty() {
        context.prober.probe(targets, WAIT).await;
    }
    Ok(())
}

async fn queue_inspections(context: &JobContext) -> Result<u64, StoreError> {
    let queued = context.store.queue_inspections(BATCH).await?;
    if queued > 0 {
        context.executor.wake();
    }
    Ok(queued)
}
