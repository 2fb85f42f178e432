//! Watches the database's clock: whoever leads keeps what is known of it, and every instance raises the alarm.

use std::time::Duration;

use orion_daemon::Readiness;
use orion_store::{ClockStep, Store};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::leader::Leader;
use crate::metrics::Metrics;

/// What `/readyz` names while the clock is in doubt.
const COMPONENT: &str = "clock";
const LOOK: Duration = Duration::from_secs(1);

/// Looks until `shutdown`.
pub(crate) async fn watch(
    store: Store,
    leader: Leader,
    ready: Readiness,
    metrics: Metrics,
    shutdown: CancellationToken,
) {
    let mut looks = interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut said = None;
    loop {
        tokio::select! {
            _ = looks.tick() => {}
            () = shutdown.cancelled() => return,
        }
        let looked = match leader.lead() {
            Some(lead) => store.leading(lead).watch_clock().await,
            None => store.watch_clock().await,
        };
        match looked {
            // Said once: parts of a second come and go.
            Ok(Some(step)) if said.is_none_or(|said| differ(said, step)) => {
                ready.set_not_ready(COMPONENT, what_to_do(step));
                metrics.clock_step(step.ahead_s());
                said = Some(step);
            }
            Ok(Some(_)) => {}
            Ok(None) => {
                ready.set_ready(COMPONENT);
                metrics.clock_step(0.0);
                said = None;
            }
            Err(error) => tracing::debug!(%error, "the clock can't be looked at"),
        }
    }
}

fn differ(one: ClockStep, other: ClockStep) -> bool {
    (one.ahead_s() - other.ahead_s()).abs() > 1.0
}

fn what_to_do(step: ClockStep) -> String {
    format!(
        "the database's clock is {step}: rentals end by the time that passes, no node dies, nothing is moved, rented or \
         extended; set that clock right, or, where it is right as it is, accept it: POST /api/clock/accept"
    )
}
