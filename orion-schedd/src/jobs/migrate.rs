//! Moves rentals off nodes that died or drain. What may move, and how fast, the database decides.

use orion_store::StoreError;

use super::{BATCH, Counts, JobContext};

/// What `/readyz` names while nothing moves.
pub(super) const SUSPENDED: &str = "migration";

/// One tick.
///
/// # Errors
/// When the database is away.
pub(super) async fn run(context: &JobContext) -> Result<Counts, StoreError> {
    context.grace.before_a_look(&context.store).await?;
    let done = context.store.migrate(BATCH).await?;
    context.grace.looked();
    if done.moving > 0 || done.stopped > 0 {
        context.executor.wake();
    }
    if done.degraded > 0 || done.healed > 0 || done.moving > 0 || done.stopped > 0 {
        let (degraded, healed, moving) = (done.degraded, done.healed, done.moving);
        let stopped = done.stopped;
        tracing::info!(
            degraded,
            healed,
            moving,
            stopped,
            "rentals of nodes that died or drain"
        );
    }
    match &done.suspended {
        Some(because) => context.ready.set_not_ready(SUSPENDED, because.as_str()),
        None => context.ready.set_ready(SUSPENDED),
    }
    context
        .metrics
        .migration_suspended(done.suspended.is_some());
    Ok(Counts::from([
        ("degraded", done.degraded),
        ("healed", done.healed),
        ("moving", done.moving),
        ("stopped", done.stopped),
        ("suspended", u64::from(done.suspended.is_some())),
    ]))
}
