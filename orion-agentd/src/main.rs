//! orion-agentd, the process.

use std::process::ExitCode;

use clap::Parser;
use orion_agentd::AgentSettings;
use orion_daemon::{ConfigArgs, Threads};

/// Registers this worker with Orion's control plane and beats.
#[derive(Debug, Parser)]
#[command(name = "orion-agentd", version)]
struct Arguments {
    #[command(flatten)]
    config: ConfigArgs,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    orion_daemon::run(
        &arguments.config,
        Threads::One,
        async |settings: AgentSettings| orion_agentd::run(settings).await,
    )
}
