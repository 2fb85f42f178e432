//! Orion's REST API: decides, records, answers. Stateless: whatever must survive is in the database.

pub mod app;
pub mod auth;
pub mod beats;
pub mod clock;
pub mod commands;
pub mod config;
pub mod health;
pub mod http;
mod init;
pub mod join_tokens;
pub mod metrics;
pub mod nodes;
pub mod rentals;
pub mod reset;
mod rotation;
pub mod runs;
pub mod schedd;
mod serve;
pub mod users;
pub mod workers;

use std::process::ExitCode;

use orion_daemon::Threads;

use crate::commands::{Arguments, Command};

/// Runs what the command line asks for.
pub fn main(arguments: Arguments) -> ExitCode {
    let Arguments { config, command } = arguments;
    orion_daemon::run(
        &config,
        Threads::Many,
        async move |settings| match command {
            None | Some(Command::Serve) => serve::serve(settings).await,
            Some(Command::Schema { action }) => commands::schema(&settings, action).await,
            Some(Command::Init { uid_base, database }) => {
                init::init(&settings, uid_base, &database).await
            }
            Some(Command::RotateSigningKey) => rotation::rotate(&settings),
            Some(Command::RetireSigningKey(database)) => {
                rotation::retire(&settings, &database).await
            }
            Some(Command::RaiseCounter(database)) => {
                commands::raise_counter(&settings, &database).await
            }
            Some(Command::CreateAdmin { name, database }) => {
                commands::create_admin(&settings, &name, &database).await
            }
        },
    )
}
