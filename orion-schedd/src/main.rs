//! orion-schedd, the process.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use orion_daemon::{ConfigArgs, Threads, run};
use orion_schedd::config::ScheddSettings;

/// Orion's scheduler: runs ansible-playbook and the cron jobs
#[derive(Parser)]
#[command(name = "orion-schedd", version)]
struct Arguments {
    #[command(flatten)]
    config: ConfigArgs,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Run the daemon (the default)
    Serve,
    /// Make the pool's SSH key pair, where it is missing
    Init,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match arguments.command {
        None | Some(Command::Serve) => run(&arguments.config, Threads::Many, orion_schedd::serve),
        Some(Command::Init) => run(
            &arguments.config,
            Threads::One,
            async |settings: ScheddSettings| {
                let public = orion_schedd::init(&settings)?;
                tracing::info!(file = %public.display(), "workers must let this key in");
                Ok(())
            },
        ),
    }
}
