//! Who this worker is: its name, its addresses, its SSH host keys. Read anew for every beat, because each may change
//! while the agent runs.

use std::fs::File;
use std::io::Read;
use std::net::IpAddr;
use std::path::Path;

use orion_core::api::{Contact, RegisterRequest};
use orion_core::{HostName, PublicKey};

use crate::config::AgentSettings;
use crate::ssh_key;

/// What the control plane is told about this worker, and what makes the agent register again when it changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) hostname: String,
    pub(crate) ip: String,
    pub(crate) ssh_port: u16,
    pub(crate) contact: Option<Contact>,
    pub(crate) host_keys: Vec<String>,
}

/// Why the worker can't say who it is, yet.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IdentityError {
    #[error("this worker has no SSH host keys at {0} yet")]
    NoHostKeys(String),
    #[error("this worker's own host name can't be used: it {0}")]
    HostName(&'static str),
}

impl Identity {
    /// `local` is this machine's end of a connection to the control plane.
    pub(crate) fn read(settings: &AgentSettings, local: IpAddr) -> Result<Self, IdentityError> {
        let hostname = match &settings.hostname {
            Some(name) => name.clone(),
            None => read_line("/proc/sys/kernel/hostname"),
        };
        let hostname = HostName::parse(&hostname).map_err(IdentityError::HostName)?;
        let host_keys = host_keys(&settings.host_keys);
        if host_keys.is_empty() {
            return Err(IdentityError::NoHostKeys(
                settings.host_keys.display().to_string(),
            ));
        }
        let ip = match &settings.advertise.host {
            Some(host) => host.clone(),
            None => local.to_canonical().to_string(),
        };
        let ssh_port = settings.advertise.port.unwrap_or(settings.ssh_port);
        let contact = &settings.contact;
        let contact = (contact.host.is_some() || contact.port.is_some()).then(|| Contact {
            host: contact.host.clone().unwrap_or_else(|| ip.clone()),
            port: contact.port.unwrap_or(ssh_port),
        });
        Ok(Self {
            hostname: hostname.as_str().to_owned(),
            ip,
            ssh_port,
            contact,
            host_keys,
        })
    }

    pub(crate) fn request(&self, boot_id: &str, believed: Option<PublicKey>) -> RegisterRequest {
        RegisterRequest {
            hostname: self.hostname.clone(),
            ip: self.ip.clone(),
            ssh_port: self.ssh_port,
            contact: self.contact.clone(),
            host_keys: self.host_keys.clone(),
            agent: Some(VERSION.to_owned()),
            boot_id: Some(boot_id.to_owned()),
            signing_key: believed,
        }
    }

    /// The first thing that differs, in words.
    pub(crate) fn difference(&self, newer: &Self) -> Option<&'static str> {
        if self.hostname != newer.hostname {
            Some("the host name changed")
        } else if (&self.ip, self.ssh_port) != (&newer.ip, newer.ssh_port) {
            Some("the address changed")
        } else if self.contact != newer.contact {
            Some("the contact address changed")
        } else if self.host_keys != newer.host_keys {
            Some("the SSH host keys changed")
        } else {
            None
        }
    }
}

/// The agent's version, as sent.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Changes with each boot (in a container: with each boot of its host).
pub(crate) fn boot_id() -> String {
    read_line("/proc/sys/kernel/random/boot_id")
}

fn read_line(path: &str) -> String {
    match std::fs::read_to_string(path) {
        Ok(text) => text.trim().to_owned(),
        Err(_) => String::new(),
    }
}

/// The keys of all files that match, without comments, in the order of the files' names.
fn host_keys(pattern: &Path) -> Vec<String> {
    let (Some(directory), Some(name)) = (
        pattern.parent(),
        pattern.file_name().and_then(|n| n.to_str()),
    ) else {
        return Vec::new();
    };
    let mut files = Vec::new();
    if let Some((before, after)) = name.split_once('*') {
        let Ok(entries) = std::fs::read_dir(directory) else {
            return Vec::new();
        };
        for entry in entries.filter_map(Result::ok) {
            let found = entry.file_name();
            let matches = found.to_str().is_some_and(|found| {
                found.len() >= before.len() + after.len()
                    && found.starts_with(before)
                    && found.ends_with(after)
            });
            if matches {
                files.push(entry.path());
            }
        }
        files.sort();
    } else {
        files.push(pattern.to_owned());
    }
    files.iter().filter_map(|file| host_key(file)).collect()
}

fn host_key(path: &Path) -> Option<String> {
    let mut text = String::new();
    File::open(path)
        .ok()?
        .take(16 * 1024)
        .read_to_string(&mut text)
        .ok()?;
    ssh_key::without_comment(&text)
}

#[cfg(test)]
mod tests;
