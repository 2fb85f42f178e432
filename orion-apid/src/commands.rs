//! The administrator's commands.

use std::fs::{self, DirBuilder, File};
use std::io::{self, IsTerminal, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, lchown};
use std::path::Path;

use anyhow::{Context, bail};
use clap::{Args, Parser, Subcommand};
use orion_core::{Password, Role, UserName};
use orion_daemon::{
    ConfigArgs, KeyId, Keyring, SecretError, Settings, generate_key_line, secret_file,
    write_secret_new,
};
use orion_store::{DatabaseSettings, Raise, bootstrap};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use rustix::fs::{FlockOperation, flock};
use secrecy::{ExposeSecret, SecretString};

use crate::auth::password::PasswordHasher;
use crate::config::ApidSettings;
use crate::serve::{open, signing_keys};

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
    fn apply(&self, configured: &DatabaseSettings) -> DatabaseSettings {
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

/// `orion-apid init`
pub(crate) async fn init(
    settings: &ApidSettings,
    uid_base: u32,
    database: &DatabaseArgs,
) -> anyhow::Result<()> {
    let admin = database.apply(&settings.database);
    bootstrap::init(&admin, &settings.database.name, uid_base).await?;
    say(&format!("database {} is there", settings.database.name))?;
    for path in [
        &settings.auth.jwt_keys_file,
        &settings.rent.server_keys_file,
        &settings.registration.signing_keys_file,
    ] {
        match new_secret(path) {
            Ok(()) => say(&format!("{} written", path.display()))?,
            Err(SecretError::Exists(_)) => say(&format!("{} is there", path.display()))?,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Writes a file with one new key, in a directory that only its owner enters. As root both go to the daemon's user.
fn new_secret(path: &Path) -> Result<(), SecretError> {
    let unwritable = |path: &Path| {
        let path = path.to_owned();
        move |error| SecretError::Unwritable(path, error)
    };
    let owner = daemon_owner();
    let give = |path: &Path| match owner {
        Some((uid, gid)) => lchown(path, Some(uid), Some(gid)).map_err(unwritable(path)),
        None => Ok(()),
    };
    if let Some(parent) = path.parent().filter(|parent| !parent.exists()) {
        let mut builder = DirBuilder::new();
        builder
            .recursive(true)
            .mode(0o700)
            .create(parent)
            .map_err(unwritable(parent))?;
        give(parent)?;
    }
    write_secret_new(path, new_key_line()?.expose_secret().as_bytes())?;
    give(path)
}

/// A line with a new key under a name of its own.
fn new_key_line() -> Result<SecretString, SecretError> {
    let mut id = [0; 4];
    getrandom::fill(&mut id).map_err(|error| SecretError::NoRandom(error.to_string()))?;
    let id = KeyId::new(&format!("k{:08x}", u32::from_be_bytes(id)));
    let id = id.ok_or_else(|| SecretError::NoRandom("a key id".to_owned()))?;
    generate_key_line(&id)
}

/// Puts another text in a secret file's place, with its owner; a crash leaves the old file or the new one.
fn replace_secret(path: &Path, text: &SecretString) -> anyhow::Result<()> {
    let metadata = fs::metadata(path)?;
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = Path::new(&new);
    match fs::remove_file(new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
        Ok(()) | Err(_) => {}
    }
    write_secret_new(new, text.expose_secret().as_bytes())?;
    lchown(new, Some(metadata.uid()), Some(metadata.gid()))?;
    fs::rename(new, path)?;
    if let Some(parent) = path.parent() {
        File::open(parent)?.sync_all()?;
    }
    Ok(())
}

/// Held while the keys' directory is changed: two of these commands at once would write the same file.
fn lock_directory(file: &Path) -> anyhow::Result<File> {
    let parent = file.parent().context("the file is in no directory")?;
    let directory = File::open(parent).with_context(|| parent.display().to_string())?;
    flock(&directory, FlockOperation::NonBlockingLockExclusive)
        .context("another command works on the keys")?;
    Ok(directory)
}

const RESTART: &str =
    "now restart orion-apid, on every host that has one (each with this same file)";

/// `orion-apid rotate-signing-key`: answers are signed with all keys of the file, so agents that know the old one believe
/// the answer that tells them the new one.
pub(crate) fn rotate_signing_key(settings: &ApidSettings) -> anyhow::Result<()> {
    let path = &settings.registration.signing_keys_file;
    let _lock = lock_directory(path)?;
    let keys = signing_keys(&Keyring::load(path)?)?;
    if keys.len() > 1 {
        bail!(
            "there are {} signing keys already: retire-signing-key comes first",
            keys.len()
        );
    }
    let text = format!(
        "{}{}\n",
        new_key_line()?.expose_secret(),
        secret_file(path)?.expose_secret()
    );
    replace_secret(path, &SecretString::from(text))?;
    say(&format!(
        "{} has a new key on top; {RESTART}",
        path.display()
    ))
}

/// `orion-apid retire-signing-key`
pub(crate) async fn retire_signing_key(
    settings: &ApidSettings,
    database: &DatabaseArgs,
) -> anyhow::Result<()> {
    let path = &settings.registration.signing_keys_file;
    let _lock = lock_directory(path)?;
    let keys = signing_keys(&Keyring::load(path)?)?;
    let (Some(newest), true) = (keys.first(), keys.len() > 1) else {
        return say("there is one signing key; nothing is to be retired");
    };
    let store = open(&database.apply(&settings.database))?;
    let behind = store
        .nodes_that_believe_another_key(&newest.public())
        .await?;
    let lines = store.join_tokens_for_another_key(&newest.public()).await?;
    store.close().await?;
    if !lines.is_empty() {
        let ids: Vec<String> = lines.iter().map(ToString::to_string).collect();
        bail!(
            "join lines with the older key may still be used: revoke these join tokens, or wait until they expire: {}",
            ids.join(", ")
        );
    }
    if !behind.is_empty() {
        bail!(
            "these nodes have not heard of the newest key yet: {}; is orion-apid restarted, do their agents run?",
            behind.join(", ")
        );
    }
    let text = secret_file(path)?;
    let is_key = |line: &&str| !line.is_empty() && !line.starts_with('#');
    let first = text.expose_secret().lines().map(str::trim).find(is_key);
    let first = first.context("the file has no key")?;
    replace_secret(path, &SecretString::from(format!("{first}\n")))?;
    say(&format!(
        "{} has its newest key alone; {RESTART}",
        path.display()
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

/// UID and GID of the daemon's system user; `None` where there is none, or we could not give files away.
fn daemon_owner() -> Option<(u32, u32)> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let users = fs::read_to_string("/etc/passwd").ok()?;
    let line = users
        .lines()
        .find_map(|line| line.strip_prefix(ApidSettings::NAME)?.strip_prefix(':'))?;
    let mut fields = line.split(':').skip(1);
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
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

fn say(line: &str) -> anyhow::Result<()> {
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
