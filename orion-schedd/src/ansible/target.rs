//! One host of a play and what is done there, checked once more whoever checked it before: nothing of it can be a
//! pattern, a template or an option in a file that Ansible or ssh reads.

use std::fmt;
use std::time::Duration;

use orion_core::{AddressGuard, NodeId, RunOutcome, Uid, UserName};

/// One host of a play and what is done there.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    /// Which node.
    pub node: NodeId,
    /// Where to dial: an IP address or a listed host name.
    pub host: String,
    /// The SSH port.
    pub port: u16,
    /// The pinned SSH host keys, `type base64`.
    pub host_keys: Vec<String>,
    /// The first managed UID.
    pub uid_base: u32,
    /// What is done.
    pub step: Step,
}

/// What is done on one host.
#[derive(Clone)]
pub(crate) enum Step {
    /// Make an account.
    Create {
        /// Its UID and GID.
        uid: Uid,
        /// Its name.
        name: UserName,
        /// The sha512crypt hash of its password.
        password_hash: String,
        /// Fences off older steps.
        epoch: u64,
        /// From now to the latest possible end.
        ends_in: Duration,
        /// Its rental was on another node before: its client is told that files are not here.
        moved: bool,
    },
    /// Remove an account.
    Delete {
        /// Its UID.
        uid: Uid,
        /// Its name.
        name: UserName,
        /// Fences off older steps.
        epoch: u64,
        /// Its rental was moved off: the home is put into an archive, where that is configured.
        keep_home: bool,
    },
    /// Look.
    Inspect,
}

impl fmt::Debug for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Create { uid, .. } => write!(f, "Create({uid})"),
            Self::Delete { uid, .. } => write!(f, "Delete({uid})"),
            Self::Inspect => f.write_str("Inspect"),
        }
    }
}

/// Why a host can't be part of a play.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadTarget {
    /// Not where a worker may be; a sentence that says what it must be.
    #[error("not dialled: its address {0}")]
    Address(String),
    /// Port 0.
    #[error("its contact port is 0")]
    Port,
    /// No usable pinned key.
    #[error("it has no usable pinned SSH host key")]
    HostKeys,
    /// Not what crypt(3) calls sha512crypt.
    #[error("the password hash is not in sha512crypt form")]
    Hash,
}

impl BadTarget {
    /// What this means for the run.
    pub(crate) fn outcome(&self) -> RunOutcome {
        match self {
            Self::Address(_) => RunOutcome::Unreachable,
            Self::Port | Self::HostKeys | Self::Hash => RunOutcome::Failed,
        }
    }
}

/// A [`Target`] that may be dialled and written into files.
#[derive(Debug)]
pub(crate) struct CheckedTarget {
    pub(super) target: Target,
    /// An IP address or a listed host name.
    pub(super) host: String,
    /// `type base64` each.
    pub(super) host_keys: Vec<String>,
}

impl Target {
    /// Refuses addresses where no worker may be, and whatever could be more than data in a file that Ansible or ssh
    /// reads.
    ///
    /// # Errors
    /// What is wrong, in words for an operator.
    pub(super) fn checked(self, addresses: &AddressGuard) -> Result<CheckedTarget, BadTarget> {
        let host = addresses.check(&self.host).map_err(BadTarget::Address)?;
        let host = host.to_string();
        if self.port == 0 {
            return Err(BadTarget::Port);
        }
        let host_keys: Vec<String> = self
            .host_keys
            .iter()
            .filter_map(|key| plain_key(key))
            .collect();
        if host_keys.is_empty() {
            return Err(BadTarget::HostKeys);
        }
        if let Step::Create { password_hash, .. } = &self.step
            && !is_sha512crypt(password_hash)
        {
            return Err(BadTarget::Hash);
        }
        Ok(CheckedTarget {
            target: self,
            host,
            host_keys,
        })
    }
}

/// `type base64` and nothing else; what follows in `text` is dropped as a comment.
pub(crate) fn plain_key(text: &str) -> Option<String> {
    let mut words = text.split_ascii_whitespace();
    let (kind, key) = (words.next()?, words.next()?);
    let kind_is_plain = kind
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || b"-@.".contains(&b));
    let key_is_plain = key
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || b"+/=".contains(&b));
    (kind_is_plain && key_is_plain && kind.len() <= 64 && key.len() <= 8192)
        .then(|| format!("{kind} {key}"))
}

fn is_sha512crypt(hash: &str) -> bool {
    hash.starts_with("$6$")
        && hash.len() <= 200
        && hash
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"$./=".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ansible::testing::{HASH, addresses, create, target};

    fn check(target: Target) -> Result<(), BadTarget> {
        target.checked(&addresses()).map(drop)
    }

    #[test]
    fn an_address_that_is_more_than_an_address_is_refused() {
        for host in [
            "",
            "-oProxyCommand=touch /tmp/x",
            "192.0.2.1 ansible_connection=local",
            "{{ lookup('pipe', 'id') }}",
            "host;id",
            "$(id)",
            "a\nb",
            "user@host",
            "[::1]",
            "127.0.0.1",
            "::ffff:192.0.2.7",
            "169.254.169.254",
            "8.8.8.8",
            "worker1",
        ] {
            let bad = Target {
                host: host.to_owned(),
                ..target(1)
            };
            let refused = check(bad).unwrap_err();
            assert!(
                matches!(refused, BadTarget::Address(_)),
                "{host}: {refused}"
            );
            assert_eq!(refused.outcome(), RunOutcome::Unreachable);
        }
        for host in ["192.0.2.7", "2001:db8::1", "host.docker.internal"] {
            let good = Target {
                host: host.to_owned(),
                ..target(1)
            };
            assert_eq!(check(good), Ok(()), "{host}");
        }
    }

    #[test]
    fn a_hash_that_is_more_than_a_hash_is_refused() {
        for hash in [
            "",
            "!",
            "$6$salt$hash{{ 1 }}",
            "$6$salt$hash:0:0",
            "$6$salt$\n",
            "plain",
        ] {
            let bad = Target {
                step: create(hash),
                ..target(1)
            };
            assert_eq!(check(bad), Err(BadTarget::Hash), "{hash}");
        }
    }

    #[test]
    fn a_node_without_a_pinned_key_is_refused() {
        let bad = Target {
            host_keys: vec!["nonsense".to_owned()],
            ..target(1)
        };
        assert_eq!(check(bad), Err(BadTarget::HostKeys));
    }

    #[test]
    fn the_debug_text_of_a_step_has_no_hash() {
        assert!(!format!("{:?}", create(HASH)).contains("$6$"));
    }
}
