//! Queues a run for every debt that has none.

use orion_store::StoreError;

use super::{BATCH, Counts, JobContext};

/// One tick.
///
/// # Errors
/// When the database is away.
pub(super) async fn run(context: &JobContext) -> Result<Counts, StoreError> {
    let queued = context.store.queue_cleaning(BATCH).await?;
    if queued > 0 {
        context.executor.wake();
    }
    Ok(Counts::from([("queued", queued)]))
}
