//! The agent's settings. `etc/orion-agentd.toml` shows every key at its default.

use std::path::PathBuf;

use orion_core::HostName;
use orion_daemon::{Faults, LogSettings, OpsSettings, Settings};
use serde::{Deserialize, Serialize};

use crate::client::Endpoint;

/// Everything that can be set.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentSettings {
    /// The control plane's base URL for agents (`http://orion.example`), or the full URL of its register path.
    pub api_endpoint: Option<String>,
    /// The SSH port as reached from outside.
    pub ssh_port: u16,
    /// The name to register under; the system's when not set.
    pub hostname: Option<String>,
    /// The SSH host public keys; one `*` in the file name stands for anything.
    pub host_keys: PathBuf,
    /// Where the account module keeps its records.
    pub state_dir: PathBuf,
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
            ssh_port: 22,
            hostname: None,
            host_keys: PathBuf::from("/etc/ssh/ssh_host_*_key.pub"),
            state_dir: PathBuf::from("/var/lib/orion-node"),
            advertise: Address::default(),
            contact: Address::default(),
            log: LogSettings::default(),
            ops: OpsSettings::on_port(9303),
        }
    }
}

impl AgentSettings {
    /// The control plane.
    ///
    /// # Errors
    /// A sentence about `api_endpoint`.
    pub fn endpoint(&self) -> Result<Endpoint, String> {
        match &self.api_endpoint {
            Some(text) => Endpoint::parse(text),
            None => {
                Err("must be set to the control plane's URL, as http://orion.example".to_owned())
            }
        }
    }
}

impl Settings for AgentSettings {
    const NAME: &'static str = "orion-agentd";
    const ENV_ALIASES: &'static [(&'static str, &'static str)] = &[
        ("API_ENDPOINT", "api_endpoint"),
        ("MY_HOST_PORT", "ssh_port"),
    ];

    fn check(&self, faults: &mut Faults) {
        if let Err(message) = self.endpoint() {
            faults.add("api_endpoint", message);
        }
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
    }

    fn log(&self) -> &LogSettings {
        &self.log
    }

    fn ops(&self) -> &OpsSettings {
        &self.ops
    }
}

fn is_ip(text: &str) -> bool {
    text.parse::<std::net::IpAddr>().is_ok()
}

#[cfg(test)]
mod tests;
