//! `GET /api/health`, and the watch over the database that decides whether the daemon is ready.

use std::sync::Arc;
use std::time::Duration;

use orion_core::api::Health;
use orion_daemon::Readiness;
use orion_store::{SchemaFit, Store, StoreError};
use tokio_util::sync::CancellationToken;

use crate::app::App;
use crate::http::problem::{Failure, chain};
use crate::http::reply::Reply;
use crate::http::request::Call;

/// The operation that is answered also when nothing else is.
pub const OPERATION: &str = "health";

/// What must be ready before the daemon is.
pub const COMPONENTS: [&str; 2] = ["database", "schema"];

/// Between two looks at the database.
const INTERVAL: Duration = Duration::from_secs(1);

/// 200 `healthy` while the database answers within 2 s, else 503 `unhealthy`.
///
/// # Errors
/// None that can happen.
pub async fn health(call: Call) -> Result<Reply, Failure> {
    let healthy = call.app.gate.is_open() && call.app.store.ping().await.is_ok();
    if healthy {
        Reply::ok(&Health {
            status: "healthy".to_owned(),
        })
    } else {
        Reply::unavailable(&Health {
            status: "unhealthy".to_owned(),
        })
    }
}

/// Looks at the database every second until `stop`, opens the gate when its schema is one we know, and keeps
/// `/readyz` right. A database that goes away is no reason to end: requests say so one by one until it is back.
pub async fn watch(app: Arc<App>, ready: Readiness, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut schema_known = false;
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = stop.cancelled() => return,
        }
        match look(&app.store, schema_known).await {
            Ok(reason) => {
                schema_known = reason.is_none();
                app.gate.set(schema_known);
                ready.set_ready("database");
                match reason {
                    None => ready.set_ready("schema"),
                    Some(reason) => ready.set_not_ready("schema", reason),
                }
            }
            Err(error) => {
                // Whatever comes back may be another database.
                schema_known = false;
                ready.set_not_ready("database", chain(&error));
            }
        }
    }
}

/// Why the schema can't be used, or nothing.
async fn look(store: &Store, schema_known: bool) -> Result<Option<String>, StoreError> {
    store.ping().await?;
    if schema_known {
        return Ok(None);
    }
    Ok(match store.schema_fits().await? {
        SchemaFit::Fits => None,
        SchemaFit::Absent => Some("there is none: run `orion-apid schema apply`".to_owned()),
        SchemaFit::TooOld { found, needed } => Some(format!(
            "it has version {found} and {needed} is needed: run `orion-apid schema apply`"
        )),
        SchemaFit::TooNew { found, known } => Some(format!(
            "it has version {found} and {known} is known: upgrade this daemon"
        )),
    })
}
