//! The job that heals what nobody finished: runs whose claimant is gone, requests past their deadline.

use orion_store::StoreError;

use super::{Counts, JobContext};

/// One tick.
///
/// # Errors
/// When the database is away.
pub(super) async fn run(context: &JobContext) -> Result<Counts, StoreError> {
    let done = context.store.reconcile().await?;
    for request in &done.undone {
        context.settled.tell(*request);
    }
    let undone = u64::try_from(done.undone.len()).unwrap_or(u64::MAX);
    if done.requeued > 0 || undone > 0 {
        tracing::info!(requeued = done.requeued, undone, "reconciled");
        context.executor.wake();
    }
    Ok(Counts::from([
        ("requeued", done.requeued),
        ("undone", undone),
    ]))
}
