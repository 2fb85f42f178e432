//! The agent's settings. `etc/orion-agentd.toml` shows every key at its default.

use std::io::ErrorKind;
use std::path::PathBuf;

use orion_core::{HostName, JoinLine};
use orion_daemon::{Faults, LogSettings, OpsSettings, SecretError, Settings, secret_file};
use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};

use crate::endpoint::Endpoint;

/// Everything that can be set.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentSettings {
    /// The control plane's base URL for agents (`http://orion.example`), or the full URL of its register path; the join
    /// line's when not set.
    pub api_endpoint: Option<String>,
    /// The join line, as `orion-agentd join` writes it.
    pub join_file: PathBuf,
    /// The SSH port as reached from outside.
    pub ssh_port: u16,
    /// The name to register under; the system's when not set.
    pub hostname: Option<String>,
    /// The SSH host public keys; one `*` in the file name stands for anything.
    pub host_keys: PathBuf,
    /// Where the account module keeps its records, and the agent its key.
    pub state_dir: PathBuf,
    /// The home of `orion-node`, as whom the control plane logs in.
    pub login_dir: PathBuf,
    /// What rent returns to clients.
    pub advertise: Address,
    /// Where the control plane dials, if that differs from what clients use.
    pub contact: Address,
    /// The log.
    pub log: LogSettings,
    /// The ops listener.
    pub ops: OpsSettings,
}

/// An address of this worker; what is not set is found out.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Address {
    /// An IP address or a host name.
    pub host: Option<String>,
    /// A TCP port.
    pub port: Option<u16>,
}

impl Default for AgentSettings {
    fn default() -> Self {
        Self {
            api_endpoint: None,
            join_file: PathBuf::from("/etc/orion/agentd/join"),
            ssh_port: 22,
            hostname: None,
            host_keys: PathBuf::from("/etc/ssh/ssh_host_*_key.pub"),
            state_dir: PathBuf::from("/var/lib/orion-node"),
            login_dir: PathBuf::from("/var/lib/orion-login"),
            advertise: Address::default(),
            contact: Address::default(),
            log: LogSettings::default(),
            ops: OpsSettings::on_port(9303),
        }
    }
}

impl AgentSettings {
    /// The join line; `None` where there is no file.
    ///
    /// # Errors
    /// A sentence about `join_file` that holds nothing of the line.
    pub fn join_line(&self) -> Result<Option<JoinLine>, String> {
        match secret_file(&self.join_file) {
            Ok(text) => text.expose_secret().parse().map(Some).map_err(|reason| {
                format!(
                    "{} {reason}: run orion-agentd join",
                    self.join_file.display()
                )
            }),
            Err(SecretError::Unreadable(_, error)) if error.kind() == ErrorKind::NotFound => {
                Ok(None)
            }
            Err(error) => Err(error.to_string()),
        }
    }

    /// The control plane.
    ///
    /// # Errors
    /// A sentence about `api_endpoint`.
    pub fn endpoint(&self, line: Option<&JoinLine>) -> Result<Endpoint, String> {
        match (&self.api_endpoint, line) {
            (Some(text), _) => Endpoint::parse(text),
            (None, Some(line)) => Endpoint::parse(&line.endpoint),
            (None, None) => Err(
                "must be set to the control plane's URL, as http://orion.example, or come from a join line \
                 (orion-agentd join)"
                    .to_owned(),
            ),
        }
    }

    /// The rules that hold before the worker has joined, too.
    fn check_without_join_line(&self, faults: &mut Faults) {
        faults.require(self.ssh_port != 0, "ssh_port", "must be 1 to 65535");
        if let Some(Err(message)) = self.hostname.as_deref().map(HostName::parse) {
            faults.add("hostname", message);
        }
        for (table, address) in [("advertise", &self.advertise), ("contact", &self.contact)] {
            let host = address.host.as_deref();
            let good = host.is_none_or(|host| is_ip(host) || HostName::parse(host).is_ok());
            faults.require(
                good,
                &format!("{table}.host"),
                "must be an IP address or a host name",
            );
            faults.require(
                address.port != Some(0),
                &format!("{table}.port"),
                "must be 1 to 65535",
            );
        }
        let one_star = |text: &str| text.matches('*').count() <= 1;
        let name = self.host_keys.file_name().and_then(|name| name.to_str());
        let parent = self.host_keys.parent().and_then(|parent| parent.to_str());
        faults.require(
            self.host_keys.is_absolute()
                && name.is_some_and(one_star)
                && parent.is_some_and(|p| !p.contains('*')),
            "host_keys",
            "must be an absolute path with at most one `*`, in the file name",
        );
        faults.require(
            self.state_dir.is_absolute(),
            "state_dir",
            "must be an absolute path",
        );
        for (key, path) in [
            ("join_file", &self.join_file),
            ("login_dir", &self.login_dir),
        ] {
            faults.require(path.is_absolute(), key, "must be an absolute path");
        }
    }
}

const ENV_ALIASES: &[(&str, &str)] = &[
    ("API_ENDPOINT", "api_endpoint"),
    ("MY_HOST_PORT", "ssh_port"),
];

impl Settings for AgentSettings {
    const NAME: &'static str = "orion-agentd";
    const ENV_ALIASES: &'static [(&'static str, &'static str)] = ENV_ALIASES;
    // A client of this machine can take any port: that must not keep the agent from ending its access.
    const OPS_MAY_WAIT: bool = true;

    fn check(&self, faults: &mut Faults) {
        self.check_without_join_line(faults);
        let line = self.join_line().unwrap_or_else(|message| {
            faults.add("join_file", message);
            None
        });
        if let Err(message) = self.endpoint(line.as_ref()) {
            faults.add("api_endpoint", message);
        }
    }

    fn log(&self) -> &LogSettings {
        &self.log
    }

    fn ops(&self) -> &OpsSettings {
        &self.ops
    }
}

/// The settings for a command that makes the worker join: it has no join line yet, or a bad one.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct JoinSettings(pub(crate) AgentSettings);

impl Settings for JoinSettings {
    const NAME: &'static str = AgentSettings::NAME;
    const ENV_ALIASES: &'static [(&'static str, &'static str)] = ENV_ALIASES;

    fn check(&self, faults: &mut Faults) {
        self.0.check_without_join_line(faults);
    }

    fn log(&self) -> &LogSettings {
        &self.0.log
    }

    fn ops(&self) -> &OpsSettings {
        &self.0.ops
    }
}

fn is_ip(text: &str) -> bool {
    text.parse::<std::net::IpAddr>().is_ok()
}

#[cfg(test)]
mod tests;
