//! Orion's agent on a worker: it registers, retries for ever, and beats.
//!
//! It speaks plain HTTP and therefore signs what it says, and believes nothing that gives or takes access unless the
//! control plane has signed it. [`Agent`] is the loop; `state` is what it keeps over restarts, `login` what it lets the
//! control plane in with.
//!
//! Beside the loop and independent of it, `warden` ends each account's access when its time is over, also while nobody
//! answers: `countdown` knows how long each has, `notices` tells its client, `lock` and `processes` act. Silence ends
//! nothing before its time. `homes` removes what the account module kept of accounts that are gone.

mod client;
mod clock;
mod commands;
mod config;
mod countdown;
mod endpoint;
mod failure;
mod files;
mod heartbeat;
mod homes;
mod identity;
mod lock;
mod login;
mod machine;
mod metrics;
mod notices;
mod pace;
mod processes;
mod records;
mod reserve;
mod ssh_key;
mod state;
mod warden;

use std::time::Duration;

use orion_daemon::{OpsPages, Registry, Shell};

pub use clock::{Clock, Now};
pub use commands::main;
pub use config::{Address, AgentSettings};
pub use endpoint::Endpoint;
pub use heartbeat::Agent;
pub use lock::{Access, Ended, Ending};
pub use machine::Machine;
pub use metrics::Metrics;
pub use notices::Terminals;
pub use pace::Pace;

/// The agent holds nothing that must be drained; a request in progress is simply dropped.
const DRAIN: Duration = Duration::from_secs(5);

/// Runs the agent until SIGTERM or SIGINT. It is ready at once: a worker boots well also while the control plane is
/// away, or somebody has the ops listener's port.
///
/// # Errors
/// When the endpoint or the join line is no good, or the state can't be kept.
pub async fn run(settings: AgentSettings) -> anyhow::Result<()> {
    let mut registry = Registry::default();
    let metrics = Metrics::registered(&mut registry);
    let shell = Shell::start(&settings, &[], OpsPages::new(registry)).await?;
    let agent = Agent::new(
        settings,
        Machine::default(),
        Pace::default(),
        metrics,
        shell.ready().clone(),
    )?;
    let shutdown = shell.shutdown();
    let body = async move {
        tokio::select! {
            () = Box::pin(agent.run()) => {}
            () = shutdown.cancelled() => {}
        }
        Ok(())
    };
    shell.run(DRAIN, body).await
}
