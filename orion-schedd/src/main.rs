//! orion-schedd, the process.

use std::io::Write;
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
    /// Make a new key for the pool; the one before stays good until it is retired
    RotatePoolKey,
    /// Drop the pool's old key, once every node has let the new one in
    RetirePoolKey {
        /// Connect as this database user; for root on the server's host that is root, for others the configured one
        #[arg(long, value_name = "USER")]
        database_user: Option<String>,
    },
}

fn main() -> ExitCode {
    let Arguments { config, command } = Arguments::parse();
    match command {
        None | Some(Command::Serve) => run(&config, Threads::Many, orion_schedd::serve),
        Some(Command::Init) => act(&config, async |settings| {
            let public = orion_schedd::init(&settings)?;
            Ok(format!("{} is what workers let in", public.display()))
        }),
        Some(Command::RotatePoolKey) => {
            act(&config, async |settings| orion_schedd::rotate(&settings))
        }
        Some(Command::RetirePoolKey { database_user }) => act(&config, async |settings| {
            orion_schedd::retire(&settings, database_user.as_deref()).await
        }),
    }
}

/// A command that ends with something to say.
fn act(
    config: &ConfigArgs,
    command: impl AsyncFnOnce(ScheddSettings) -> anyhow::Result<String>,
) -> ExitCode {
    run(config, Threads::One, async |settings| {
        let said = command(settings).await?;
        Ok(writeln!(std::io::stdout(), "{said}")?)
    })
}
