//! One SSH login, bounded in time.

use std::borrow::Cow;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use orion_store::Address;
use russh::client::{AuthResult, Config, Handle, Handler};
use russh::keys::ssh_key::{Algorithm, EcdsaCurve};
use russh::keys::{PrivateKey, PrivateKeyWithHashAlg, PublicKeyOrCertificate};
use russh::{Disconnect, Preferred, compression, kex};
use tokio::time::timeout;

use crate::ansible::plain_key;

/// What a dial met.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Dial {
    /// A pinned key, and a login.
    LoggedIn,
    /// A pinned key, and no login; why.
    Refused(String),
    /// Another key than the pinned ones, `type base64`. Nothing was said about ourselves.
    OtherKey(String),
    /// The key of a node that has none pinned yet.
    FirstKey(String),
    /// Nobody, or nobody in time; why.
    NoAnswer(String),
}

impl Dial {
    /// For counting.
    pub(crate) fn word(&self) -> &'static str {
        match self {
            Self::LoggedIn => "logged_in",
            Self::Refused(_) => "refused",
            Self::OtherKey(_) => "other_key",
            Self::FirstKey(_) => "first_key",
            Self::NoAnswer(_) => "no_answer",
        }
    }
}

/// Logs in to nodes.
pub(crate) struct Dialler {
    key: PrivateKeyWithHashAlg,
    user: String,
    timeout: Duration,
}

/// The host key types that can be checked here, strongest habit first. RSA can't: a node with nothing else does not
/// answer.
const KEY_TYPES: [Algorithm; 4] = [
    Algorithm::Ed25519,
    Algorithm::Ecdsa {
        curve: EcdsaCurve::NistP256,
    },
    Algorithm::Ecdsa {
        curve: EcdsaCurve::NistP384,
    },
    Algorithm::Ecdsa {
        curve: EcdsaCurve::NistP521,
    },
];

/// One elliptic curve: the hybrid with ML-KEM that russh would prefer costs more than the rest of a login, and nothing
/// that goes through here is worth recording for a future decryption.
const KEX: &[kex::Name] = &[
    kex::CURVE25519,
    kex::CURVE25519_PRE_RFC_8731,
    kex::EXTENSION_SUPPORT_AS_CLIENT,
    kex::EXTENSION_OPENSSH_STRICT_KEX_AS_CLIENT,
];

impl Dialler {
    /// `timeout` bounds everything from the first packet to the login.
    pub(crate) fn new(key: PrivateKey, user: &str, timeout: Duration) -> Self {
        Self {
            key: PrivateKeyWithHashAlg::new(Arc::new(key), None),
            user: user.to_owned(),
            timeout,
        }
    }

    /// Dials an address where one of the `pinned` keys (`type base64`) is expected.
    pub(crate) async fn dial(&self, address: &Address, pinned: &[String]) -> Dial {
        let pinned: Vec<String> = pinned.iter().filter_map(|key| plain_key(key)).collect();
        let Some(config) = self.config(&pinned) else {
            return Dial::NoAnswer(
                "none of its pinned host keys is of a type that can be checked".to_owned(),
            );
        };
        let met = Arc::new(OnceLock::new());
        let no_key_yet = pinned.is_empty();
        let handler = Check {
            pinned,
            met: Arc::clone(&met),
        };
        let login = timeout(self.timeout, self.login(address, config, handler)).await;
        match (login, met.get()) {
            (
                _,
                Some(Met {
                    key,
                    expected: false,
                }),
            ) if no_key_yet => Dial::FirstKey(key.clone()),
            (
                _,
                Some(Met {
                    key,
                    expected: false,
                }),
            ) => Dial::OtherKey(key.clone()),
            (Ok(Ok(true)), Some(_)) => Dial::LoggedIn,
            (Ok(Ok(_)), _) => Dial::Refused("the pool's key is not accepted".to_owned()),
            (Ok(Err(error)), Some(_)) => Dial::Refused(error.to_string()),
            (Err(_), Some(_)) => {
                Dial::Refused(format!("no login within {} s", self.timeout.as_secs()))
            }
            (Ok(Err(error)), None) => Dial::NoAnswer(error.to_string()),
            (Err(_), None) => {
                Dial::NoAnswer(format!("nothing within {} s", self.timeout.as_secs()))
            }
        }
    }

    async fn login(
        &self,
        address: &Address,
        config: Config,
        handler: Check,
    ) -> Result<bool, russh::Error> {
        let place = (address.host.as_str(), address.port);
        let mut session: Handle<Check> =
            russh::client::connect(Arc::new(config), place, handler).await?;
        let login = session
            .authenticate_publickey(&self.user, self.key.clone())
            .await?;
        // A farewell that does not arrive is as good: the login has been seen.
        session
            .disconnect(Disconnect::ByApplication, "", "")
            .await
            .unwrap_or_default();
        Ok(matches!(login, AuthResult::Success))
    }

    /// Types that are pinned come first, so that a server with keys of several types shows one that can be compared.
    /// The others follow, so that a server with none of the pinned ones shows what it has. Nothing when keys are pinned
    /// and none is of a known type.
    fn config(&self, pinned: &[String]) -> Option<Config> {
        let is_pinned = |kind: &Algorithm| {
            let kind = kind.as_str();
            pinned.iter().any(|key| key.split(' ').next() == Some(kind))
        };
        let (mut first, others): (Vec<_>, Vec<_>) = KEY_TYPES.into_iter().partition(is_pinned);
        if first.is_empty() && !pinned.is_empty() {
            return None;
        }
        first.extend(others);
        Some(Config {
            inactivity_timeout: Some(self.timeout),
            preferred: Preferred {
                kex: Cow::Borrowed(KEX),
                key: Cow::Owned(first),
                compression: Cow::Borrowed(&[compression::NONE]),
                ..Preferred::DEFAULT
            },
            nodelay: true,
            ..Config::default()
        })
    }
}

/// The host key that was met.
#[derive(Debug)]
struct Met {
    key: String,
    expected: bool,
}

struct Check {
    pinned: Vec<String>,
    met: Arc<OnceLock<Met>>,
}

impl Handler for Check {
    type Error = russh::Error;

    async fn check_server_key(
        &mut self,
        shown: &PublicKeyOrCertificate,
    ) -> Result<bool, russh::Error> {
        let PublicKeyOrCertificate::PublicKey { key, .. } = shown else {
            // Never asked for.
            return Ok(false);
        };
        let key = key.to_openssh().ok().and_then(|text| plain_key(&text));
        let Some(key) = key else { return Ok(false) };
        let expected = self.pinned.contains(&key);
        // A rekeying asks again; the first answer stands.
        self.met.set(Met { key, expected }).unwrap_or_default();
        Ok(expected)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use orion_testkit::scripted::Reach;
    use orion_testkit::{BlackHole, Worker, Workers};
    use russh::keys::ssh_key::private::Ed25519Keypair;

    fn dialler(workers: &Workers) -> Dialler {
        let key = PrivateKey::from_openssh(std::fs::read(workers.pool_key()).unwrap()).unwrap();
        Dialler::new(key, "orion-node", orion_testkit::PATIENCE)
    }

    fn address(worker: &Worker) -> Address {
        Address {
            host: "127.0.0.1".to_owned(),
            port: worker.port(),
        }
    }

    #[tokio::test]
    async fn a_node_with_its_pinned_key_lets_us_in() {
        let workers = Workers::new(1);
        let pinned = [format!("{} root@worker", workers[0].host_key())];
        let met = dialler(&workers).dial(&address(&workers[0]), &pinned).await;
        assert_eq!(met, Dial::LoggedIn);
    }

    #[tokio::test]
    async fn another_key_than_the_pinned_one_is_told_and_not_logged_in_to() {
        let workers = Workers::new(2);
        let pinned = [workers[0].host_key().to_owned()];
        let met = dialler(&workers).dial(&address(&workers[1]), &pinned).await;
        assert_eq!(met, Dial::OtherKey(workers[1].host_key().to_owned()));
    }

    #[tokio::test]
    async fn a_node_without_a_pinned_key_shows_its_first_one() {
        let workers = Workers::new(1);
        let met = dialler(&workers).dial(&address(&workers[0]), &[]).await;
        assert_eq!(met, Dial::FirstKey(workers[0].host_key().to_owned()));
    }

    #[tokio::test]
    async fn a_login_that_is_refused_is_not_silence() {
        let workers = Workers::new(1);
        let stranger = PrivateKey::from(Ed25519Keypair::from_seed(&[7; 32]));
        let dialler = Dialler::new(stranger, "orion-node", orion_testkit::PATIENCE);
        let met = dialler
            .dial(&address(&workers[0]), &[workers[0].host_key().to_owned()])
            .await;
        assert!(matches!(met, Dial::Refused(_)), "{met:?}");
    }

    #[tokio::test]
    async fn a_closed_port_and_a_silent_one_are_no_answer() {
        let workers = Workers::new(1);
        workers[0].reach(Reach::Refuses);
        let pinned = [workers[0].host_key().to_owned()];
        let met = dialler(&workers).dial(&address(&workers[0]), &pinned).await;
        assert!(matches!(met, Dial::NoAnswer(_)), "{met:?}");

        let hole = BlackHole::listen().await;
        let silent = Address {
            host: hole.address().ip().to_string(),
            port: hole.address().port(),
        };
        let mut hasty = dialler(&workers);
        hasty.timeout = Duration::from_millis(100);
        let met = hasty.dial(&silent, &pinned).await;
        assert!(
            matches!(&met, Dial::NoAnswer(reason) if reason.contains("nothing within")),
            "{met:?}"
        );
    }

    #[tokio::test]
    async fn pinned_keys_of_types_that_cant_be_checked_are_no_reason_to_distrust() {
        let workers = Workers::new(1);
        let pinned = ["ssh-rsa AAAAB3NzaC1yc2E=".to_owned()];
        let met = dialler(&workers).dial(&address(&workers[0]), &pinned).await;
        assert!(matches!(met, Dial::NoAnswer(_)), "{met:?}");
    }
}
