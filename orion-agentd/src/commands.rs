//! The command line, and the administrator's commands on a worker.

use std::io::{self, IsTerminal, Read, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::{Parser, Subcommand};
use orion_core::JoinLine;
use orion_daemon::{ConfigArgs, Threads};

use crate::config::{AgentSettings, JoinSettings};
use crate::endpoint::Endpoint;
use crate::files;
use crate::state::{self, Rotation};

/// No join line is longer (bytes).
const MAX_LINE: u64 = 4096;

/// Registers this worker with Orion's control plane and beats.
#[derive(Debug, Parser)]
#[command(name = "orion-agentd", version)]
struct Arguments {
    #[command(flatten)]
    config: ConfigArgs,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Clone, Copy, Subcommand)]
enum Command {
    /// Take the join line that an administrator made; it is asked for, or read from standard input
    Join,
    /// Give this worker's agent a new key; the running agent does the rest
    RotateKey,
}

/// The agent, or one of the commands.
pub fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        // clap would repeat a token that somebody put there.
        Err(_) if std::env::args_os().any(|argument| has_token(&argument.to_string_lossy())) => {
            let told = io::stderr().write_all(
                b"orion-agentd: a join line is never an argument, where others see it: run orion-agentd join and paste \
                  it there. This one has been seen: an administrator should revoke it\n",
            );
            // Nobody is left to tell.
            told.unwrap_or_default();
            return ExitCode::from(2);
        }
        Err(error) => error.exit(),
    };
    let config = &arguments.config;
    match arguments.command {
        None => orion_daemon::run(config, Threads::One, async |settings: AgentSettings| {
            crate::run(settings).await
        }),
        Some(Command::Join) => {
            orion_daemon::run(config, Threads::One, async |settings: JoinSettings| {
                join(&settings.0)
            })
        }
        Some(Command::RotateKey) => {
            orion_daemon::run(config, Threads::One, async |settings: JoinSettings| {
                rotate_key(&settings.0)
            })
        }
    }
}

fn has_token(argument: &str) -> bool {
    argument.contains('#')
}

/// `orion-agentd join`
fn join(settings: &AgentSettings) -> anyhow::Result<()> {
    let text = read_line().context("the join line can't be read")?;
    let line: JoinLine = match text.parse() {
        Ok(line) => line,
        Err(reason) => bail!("the join line {reason}; nothing was changed"),
    };
    if let Err(reason) = Endpoint::parse(&line.endpoint) {
        bail!("the join line's address {reason}; nothing was changed");
    }
    let path = &settings.join_file;
    write_line(path, &line).with_context(|| format!("{} can't be written", path.display()))?;
    say(&format!("{} written", path.display()))?;
    if let Some(endpoint) = &settings.api_endpoint {
        say(&format!(
            "api_endpoint is set, so the agent goes on asking {endpoint}"
        ))?;
    }
    say("now restart the agent: systemctl restart orion-agentd")
}

fn write_line(path: &Path, line: &JoinLine) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        files::make_private_directory(parent)?;
    }
    files::replace(path, format!("{}\n", line.expose()).as_bytes(), 0o600)
}

/// Asks on a terminal, without echo; else takes standard input.
fn read_line() -> io::Result<String> {
    if io::stdin().is_terminal() {
        return rpassword::prompt_password("Join line (not shown): ");
    }
    let mut text = String::new();
    io::stdin().take(MAX_LINE).read_to_string(&mut text)?;
    Ok(text)
}

/// `orion-agentd rotate-key`
fn rotate_key(settings: &AgentSettings) -> anyhow::Result<()> {
    if !state::is_trusting(&settings.state_dir) {
        bail!(
            "this worker's agent has not joined a control plane: only one whose answers are signed can take a new key"
        );
    }
    match state::rotate_key(&settings.state_dir)? {
        Rotation::Begun => {
            say("a new key was made; the running agent registers it with its next beat")
        }
        Rotation::UnderWay => say("a new key waits already for the running agent to register it"),
    }
}

fn say(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}").context("standard output can't be written")
}
