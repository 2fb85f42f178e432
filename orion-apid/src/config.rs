//! The configuration of orion-apid. `etc/orion-apid.toml` explains each key; a test keeps the two equal.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::Uri;
use orion_core::{AddressRules, Password, UserName};
use orion_daemon::{Faults, LogSettings, OpsSettings, Settings};
use orion_store::DatabaseSettings;
use serde::{Deserialize, Serialize};

/// Everything that can be set.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApidSettings {
    /// The two listeners.
    pub listen: ListenSettings,
    /// The ops listener.
    pub ops: OpsSettings,
    /// Where MariaDB is.
    pub database: DatabaseSettings,
    /// Users, passwords and tokens.
    pub auth: AuthSettings,
    /// What may be rented, and how long a rent may take.
    pub rent: RentSettings,
    /// How workers come in.
    pub registration: RegistrationSettings,
    /// Where workers may be; orion-schedd has the same table.
    pub addresses: AddressRules,
    /// The way to orion-schedd.
    pub schedd: ScheddSettings,
    /// Switches that no production sets.
    pub dev: DevSettings,
    /// The log.
    pub log: LogSettings,
}

/// `[listen]`: HTTP without TLS; Caddy stands in front.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListenSettings {
    /// For clients.
    pub clients: SocketAddr,
    /// For agents: registration and beats, nothing else.
    pub agents: SocketAddr,
}

/// `[auth]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuthSettings {
    /// How long a token is good (seconds).
    pub token_lifetime_s: u32,
    /// The shortest password accepted (characters).
    pub min_password_length: usize,
    /// The keys that sign tokens, `id:base64` a line, the current one first.
    pub jwt_keys_file: PathBuf,
    /// Names that nobody may sign up with, beside the packaged list.
    pub reserved_names: Vec<String>,
    /// Passwords that may wait to be hashed; beyond that the answer is 429.
    pub hash_queue: usize,
}

/// `[rent]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RentSettings {
    /// The longest rental, extensions included (hours).
    pub max_hours: u32,
    /// The most machines of one call.
    pub max_count: u32,
    /// The most machines of one user, counting everything not proven clean.
    pub max_active_per_user: u32,
    /// How long a rent may take until everything is undone (seconds).
    pub deadline_s: u32,
    /// The keys that passwords and digests derive from, `id:base64` a line, the current one first.
    pub server_keys_file: PathBuf,
}

impl RentSettings {
    /// The longest rental, extensions included.
    pub fn max_duration(&self) -> Duration {
        Duration::from_secs(u64::from(self.max_hours) * 3600)
    }

    /// How long a rent may take.
    pub fn deadline(&self) -> Duration {
        Duration::from_secs(u64::from(self.deadline_s))
    }
}

/// `[registration]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegistrationSettings {
    /// What lets a new worker in.
    pub mode: RegistrationMode,
    /// The base URL that join lines carry: the agents' listener as agents reach it, as `http://orion.example`.
    pub endpoint: Option<String>,
    /// The seeds of the keys that sign answers to agents, `id:base64` a line, the current one first; all of them sign.
    pub signing_keys_file: PathBuf,
}

/// What lets a new worker in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RegistrationMode {
    /// A join token.
    Token,
    /// Nothing: whoever reaches the agents' listener is in.
    Open,
    /// An administrator, for each node.
    Approve,
}

/// `[schedd]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScheddSettings {
    /// The socket on which orion-schedd is told to look and tells what is settled; without it the database is polled.
    pub socket: PathBuf,
}

/// `[dev]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DevSettings {
    /// Lets administrators end everything at once with `POST /api/reset`.
    pub allow_reset: bool,
}

impl Default for ApidSettings {
    fn default() -> Self {
        let loopback = |port| SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port);
        Self {
            listen: ListenSettings {
                clients: loopback(8080),
                agents: loopback(8081),
            },
            ops: OpsSettings::on_port(9301),
            database: DatabaseSettings::for_user("orion-apid"),
            auth: AuthSettings {
                token_lifetime_s: 3600,
                min_password_length: 8,
                jwt_keys_file: PathBuf::from("/etc/orion/apid/jwt.keys"),
                reserved_names: Vec::new(),
                hash_queue: 64,
            },
            rent: RentSettings {
                max_hours: 720,
                max_count: 16,
                max_active_per_user: 16,
                deadline_s: 60,
                server_keys_file: PathBuf::from("/etc/orion/apid/server.keys"),
            },
            registration: RegistrationSettings {
                mode: RegistrationMode::Token,
                endpoint: None,
                signing_keys_file: PathBuf::from("/etc/orion/apid/signing.keys"),
            },
            addresses: AddressRules::default(),
            schedd: ScheddSettings {
                socket: PathBuf::from("/run/orion-schedd/notify.sock"),
            },
            dev: DevSettings { allow_reset: false },
            log: LogSettings::default(),
        }
    }
}

impl Settings for ApidSettings {
    const NAME: &'static str = "orion-apid";

    fn check(&self, faults: &mut Faults) {
        self.listen.check(&self.ops, faults);
        self.auth.check(faults);
        self.rent.check(faults);
        self.registration.check(faults);
        absolute(faults, "schedd.socket", &self.schedd.socket);
        faults.require(
            self.database.pool_max >= 2,
            "database.pool_max",
            "must be at least 2",
        );
        let files = [
            ("auth.jwt_keys_file", &self.auth.jwt_keys_file),
            ("rent.server_keys_file", &self.rent.server_keys_file),
            (
                "registration.signing_keys_file",
                &self.registration.signing_keys_file,
            ),
        ];
        for (index, (key, file)) in files.iter().enumerate() {
            let before = files.iter().take(index);
            if let Some((other, _)) = before.clone().find(|(_, before)| before == file) {
                faults.add(
                    *key,
                    format!(
                        "must be another file than {other}: each sort of keys is rotated apart"
                    ),
                );
            }
        }
    }

    fn log(&self) -> &LogSettings {
        &self.log
    }

    fn ops(&self) -> &OpsSettings {
        &self.ops
    }
}

impl ListenSettings {
    fn check(&self, ops: &OpsSettings, faults: &mut Faults) {
        let same = |a: SocketAddr, b: SocketAddr| a == b && a.port() != 0;
        faults.require(
            !same(self.clients, self.agents),
            "listen.agents",
            "must differ from listen.clients: agents and clients have their own listeners",
        );
        for (key, address) in [
            ("listen.clients", self.clients),
            ("listen.agents", self.agents),
        ] {
            faults.require(
                !same(address, ops.listen),
                key,
                "must differ from ops.listen",
            );
        }
    }
}

impl RegistrationSettings {
    fn check(&self, faults: &mut Faults) {
        if let Some(Err(reason)) = self.endpoint.as_deref().map(parse_endpoint) {
            faults.add("registration.endpoint", reason);
        }
        let file = &self.signing_keys_file;
        absolute(faults, "registration.signing_keys_file", file);
    }
}

/// The base URL of the agents' listener, without a slash at its end. Agents speak plain HTTP.
///
/// # Errors
/// A sentence about what it must be.
pub fn parse_endpoint(text: &str) -> Result<String, String> {
    let must = || "must be a URL like http://orion.example or http://10.0.0.1:8081".to_owned();
    let uri: Uri = text.parse().map_err(|_| must())?;
    let plain =
        uri.scheme_str() == Some("http") && uri.query().is_none() && !text.contains(['#', '@']);
    if plain && uri.host().is_some_and(|host| !host.is_empty()) {
        Ok(text.trim_end_matches('/').to_owned())
    } else {
        Err(must())
    }
}

impl AuthSettings {
    fn check(&self, faults: &mut Faults) {
        within(
            faults,
            "auth.token_lifetime_s",
            u64::from(self.token_lifetime_s),
            60,
            2_592_000,
        );
        let length = u64::try_from(self.min_password_length).unwrap_or(u64::MAX);
        let longest = u64::try_from(Password::MAX_CHARS).unwrap_or(u64::MAX);
        within(faults, "auth.min_password_length", length, 1, longest);
        let queue = u64::try_from(self.hash_queue).unwrap_or(u64::MAX);
        within(faults, "auth.hash_queue", queue, 1, 10_000);
        absolute(faults, "auth.jwt_keys_file", &self.jwt_keys_file);
        for name in &self.reserved_names {
            if let Err(reason) = UserName::stored(name) {
                faults.add(
                    "auth.reserved_names",
                    format!("each {reason}: no other name can sign up"),
                );
            }
        }
    }
}

impl RentSettings {
    fn check(&self, faults: &mut Faults) {
        within(
            faults,
            "rent.max_hours",
            u64::from(self.max_hours),
            1,
            87_600,
        );
        within(faults, "rent.max_count", u64::from(self.max_count), 1, 256);
        within(
            faults,
            "rent.max_active_per_user",
            u64::from(self.max_active_per_user),
            1,
            100_000,
        );
        within(
            faults,
            "rent.deadline_s",
            u64::from(self.deadline_s),
            1,
            600,
        );
        faults.require(
            self.max_active_per_user >= self.max_count,
            "rent.max_count",
            "must not exceed rent.max_active_per_user: such a rent could never succeed",
        );
        absolute(faults, "rent.server_keys_file", &self.server_keys_file);
    }
}

fn within(faults: &mut Faults, key: &str, value: u64, least: u64, most: u64) {
    faults.require(
        (least..=most).contains(&value),
        key,
        format!("must be {least} to {most}"),
    );
}

fn absolute(faults: &mut Faults, key: &str, path: &Path) {
    faults.require(path.is_absolute(), key, "must be an absolute path");
}

#[cfg(test)]
mod tests;
