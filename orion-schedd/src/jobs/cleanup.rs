//! Queues a run for every debt that has none, and tells of debts that somebody must look after.

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
    let alarms = context.store.alarm_debts(BATCH).await?;
    for alarm in &alarms {
        let (node, rental, uid) = (alarm.node, alarm.rental, alarm.uid);
        let detail = alarm.detail.as_str();
        tracing::error!(%node, %rental, %uid, detail, "an account can't be removed");
    }
    let debts = context.store.debts().await?;
    context.metrics.debts(debts);
    Ok(Counts::from([
        ("queued", queued),
        ("debts", debts.count),
        ("alarms", u64::try_from(alarms.len()).unwrap_or(u64::MAX)),
    ]))
}
