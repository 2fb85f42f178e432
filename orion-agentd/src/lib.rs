//! Orion's agent on a worker: it registers, retries for ever, and beats.
//!
//! It speaks plain HTTP and therefore believes nothing that gives or takes access: what an answer says about accounts
//! is ignored until answers are signed.

mod client;
mod config;
mod heartbeat;
mod identity;
mod pace;
mod records;

use std::time::Duration;

use orion_daemon::{Misconfigured, OpsPages, Registry, Shell};

pub use client::Endpoint;
pub use config::{Address, AgentSettings};
pub use heartbeat::{Agent, Metrics};
pub use pace::Pace;

/// The agent holds nothing that must be drained; a request in progress is simply dropped.
const DRAIN: Duration = Duration::from_secs(5);

/// Runs the agent until SIGTERM or SIGINT. It is ready as soon as its ops listener answers: a worker boots well also
/// while the control plane is away.
///
/// # Errors
/// When the endpoint is no URL or the ops listener can't be bound.
pub async fn run(settings: AgentSettings) -> anyhow::Result<()> {
    let endpoint = settings.endpoint().map_err(Misconfigured)?;
    let mut registry = Registry::default();
    let metrics = Metrics::registered(&mut registry);
    let shell = Shell::start(&settings, &[], OpsPages::new(registry)).await?;
    let agent = Agent::new(
        settings,
        endpoint,
        Pace::default(),
        metrics,
        shell.ready().clone(),
    );
    let shutdown = shell.shutdown();
    let body = async move {
        tokio::select! {
            () = agent.run() => {}
            () = shutdown.cancelled() => {}
        }
        Ok(())
    };
    shell.run(DRAIN, body).await
}
