//! The administrator's commands.

use std::io::{self, IsTerminal, Read, Write};

use anyhow::{Context, bail};
use clap::{Args, Parser, Subcommand};
use orion_core::{Password, Role, UserName};
use orion_daemon::ConfigArgs;
use orion_store::{DatabaseSettings, Raise};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;

use crate::auth::password::PasswordHasher;
use crate::config::ApidSettings;
use crate::serve::open;

/// Orion's REST API: decides, records, answers.
#[derive(Debug, Parser)]
#[command(name = "orion-apid", version)]
pub struct Arguments {
    #[command(flatten)]
    pub(crate) config: ConfigArgs,
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Serve the API (without a command: this)
    Serve,
    /// Bring the database's schema up to date
    Schema {
        #[command(subcommand)]
        action: SchemaAction,
    },
    /// Make database, database users, schema and secrets on a fresh host; what exists stays as it is
    Init {
        /// The first UID of the accounts on workers; fixed for ever by the first run
        #[arg(long, value_name = "UID", default_value_t = 1_000_000)]
        uid_base: u32,
        #[command(flatten)]
        database: DatabaseArgs,
    },
    /// Make a new key that signs answers to agents, beside the one there is; then restart every orion-apid
    RotateSigningKey,
    /// Take the older signing keys away, once every agent believes the newest; then restart every orion-apid
    RetireSigningKey(DatabaseArgs),
    /// Set the counter of rentals above every account that workers reported, after an old database was restored
    RaiseCounter(DatabaseArgs),
    /// Make an administrator; the password is asked for, or read from standard input
    CreateAdmin {
        /// The administrator's name
        name: String,
        #[command(flatten)]
        database: DatabaseArgs,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum SchemaAction {
    /// Apply the steps that are missing
    Apply(DatabaseArgs),
}

#[derive(Debug, Args)]
pub(crate) struct DatabaseArgs {
    /// Connect as this database user; for root on the server's host that is root, for others the configured one
    #[arg(long, value_name = "USER")]
    database_user: Option<String>,
}

impl DatabaseArgs {
    /// Over its socket MariaDB lets everybody in under their own name only, which for root is root.
    pub(crate) fn apply(&self, configured: &DatabaseSettings) -> DatabaseSettings {
        let over_socket = !configured.socket.as_os_str().is_empty();
        let user = match &self.database_user {
            Some(user) => user.clone(),
            None if over_socket && rustix::process::geteuid().is_root() => "root".to_owned(),
            None => configured.user.clone(),
        };
        DatabaseSettings {
            user,
            ..configured.clone()
        }
    }
}

/// `orion-apid schema apply`
pub(crate) async fn schema(
    settings: &ApidSettings,
    SchemaAction::Apply(database): SchemaAction,
) -> anyhow::Result<()> {
    let store = open(&database.apply(&settings.database))?;
    let applied = store.apply_schema().await?;
    store.close().await?;
    say(&format!(
        "schema version {} ({} steps applied)",
        applied.version, applied.steps
    ))
}

/// `orion-apid raise-counter`
pub(crate) async fn raise_counter(
    settings: &ApidSettings,
    database: &DatabaseArgs,
) -> anyhow::Result<()> {
    let store = open(&database.apply(&settings.database))?;
    let raised = store.raise_counter().await?;
    store.close().await?;
    match raised {
        Raise::To(next) => say(&format!(
            "the next rental has the id {next}; nodes with accounts that nobody knows stay quarantined: clean them and release them"
        )),
        Raise::NotNeeded => {
            say("no node reported an account above the counter; nothing was changed")
        }
        Raise::Incredible { hostname, uid } => bail!(
            "{hostname} reports UID {uid}, which is too high to be believed; delete that node first; nothing was changed"
        ),
    }
}

/// `orion-apid create-admin NAME`
pub(crate) async fn create_admin(
    settings: &ApidSettings,
    name: &str,
    database: &DatabaseArgs,
) -> anyhow::Result<()> {
    // Reserved names are fine: administrators look after nodes and need not rent.
    let Ok(name) = UserName::stored(name) else {
        bail!("the name must match ^[a-z][a-z0-9_-]{{0,30}}$");
    };
    let text = read_password().context("the password can't be read")?;
    let password = match Password::parse(&text, settings.auth.min_password_length) {
        Ok(password) => password,
        Err(reason) => bail!("the password {reason}"),
    };
    let hasher = PasswordHasher::new(1, Gauge::default(), Counter::default());
    let Ok(phc) = hasher.hash(password).await else {
        bail!("the password can't be hashed");
    };
    let store = open(&database.apply(&settings.database))?;
    let created = store.create_user(&name, &phc, Role::Admin).await?;
    store.close().await?;
    if created.is_none() {
        bail!("there is a user {name} already; nothing was changed");
    }
    say(&format!("administrator {name} created"))
}

/// Asks twice on a terminal; else takes standard input without the newline at its end.
fn read_password() -> anyhow::Result<String> {
    if io::stdin().is_terminal() {
        let first = rpassword::prompt_password("Password: ")?;
        if first != rpassword::prompt_password("Again: ")? {
            bail!("the two differ");
        }
        return Ok(first);
    }
    let mut text = String::new();
    io::stdin().take(4096).read_to_string(&mut text)?;
    let end = text.strip_suffix('\n').map_or(text.len(), str::len);
    text.truncate(end);
    Ok(text)
}

/// Says it to the administrator.
///
/// # Errors
/// When nobody listens any more.
pub(crate) fn say(line: &str) -> anyhow::Result<()> {
    Ok(writeln!(io::stdout(), "{line}")?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;
    use std::path::PathBuf;

    #[test]
    fn the_command_line_is_well_formed() {
        Arguments::command().debug_assert();
        let parsed = Arguments::try_parse_from(["orion-apid"]).unwrap();
        assert!(parsed.command.is_none());
        for good in [
            &["orion-apid", "serve"][..],
            &["orion-apid", "--config", "x", "schema", "apply"],
            &[
                "orion-apid",
                "schema",
                "apply",
                "--database-user",
                "root",
                "--config",
                "x",
            ],
            &["orion-apid", "create-admin", "root"],
        ] {
            assert!(Arguments::try_parse_from(good).is_ok(), "{good:?}");
        }
        assert!(Arguments::try_parse_from(["orion-apid", "create-admin"]).is_err());
    }

    #[test]
    fn another_database_user_can_be_named() {
        let configured = DatabaseSettings::for_user("orion-apid");
        let named = DatabaseArgs {
            database_user: Some("x".to_owned()),
        };
        assert_eq!(named.apply(&configured).user, "x");
        let tcp = DatabaseSettings {
            socket: PathBuf::new(),
            ..configured
        };
        assert_eq!(
            DatabaseArgs {
                database_user: None
            }
            .apply(&tcp)
            .user,
            "orion-apid"
        );
    }
}
