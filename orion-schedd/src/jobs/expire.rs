//! Ends rentals whose time is over by the database's clock.

use orion_store::StoreError;

use super::{BATCH, Counts, JobContext};

/// One tick.
///
/// # Errors
/// When the database is away.
pub(super) async fn run(context: &JobContext) -> Result<Counts, StoreError> {
    let expired = context.store.expire_rentals(BATCH).await?;
    if expired > 0 {
        tracing::info!(expired, "rentals ended by themselves");
        context.executor.wake();
    }
    Ok(Counts::from([("expired", expired)]))
}
