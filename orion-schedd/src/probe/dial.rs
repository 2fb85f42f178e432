//! One SSH login, bounded in time.

use std::borrow::Cow;
use std::io::ErrorKind;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use orion_core::AddressGuard;
use orion_store::Address;
use russh::client::{AuthResult, Config, Handle, Handler};
use russh::keys::ssh_key::{Algorithm, EcdsaCurve};
use russh::keys::{PrivateKeyWithHashAlg, PublicKeyOrCertificate};
use russh::{Disconnect, Preferred, compression, kex};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::ansible::plain_key;
use crate::pool_keys::{PoolKey, PoolKeys};

/// What a dial met.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Dial {
    /// A pinned key, and a login; with which of the pool's keys, `type base64`.
    LoggedIn(String),
    /// A pinned key, and no login; why.
    Refused(String),
    /// Another key than the pinned ones, `type base64`. Nothing was said about ourselves.
    OtherKey(String),
    /// The key of a node that has none pinned yet.
    FirstKey(String),
    /// An sshd that turns connections away before it shows its key; what it says.
    TurnedAway(&'static str),
    /// Nobody, or nobody in time; why.
    NoAnswer(String),
    /// Not dialled: no worker may be there; why.
    Forbidden(String),
}

impl Dial {
    /// For counting.
    pub(crate) fn word(&self) -> &'static str {
        match self {
            Self::LoggedIn(_) => "logged_in",
            Self::Refused(_) => "refused",
            Self::OtherKey(_) => "other_key",
            Self::FirstKey(_) => "first_key",
            Self::TurnedAway(_) => "turned_away",
            Self::NoAnswer(_) => "no_answer",
            Self::Forbidden(_) => "forbidden",
        }
    }
}

/// Logs in to nodes, at addresses where a worker may be and nowhere else.
pub(crate) struct Dialler {
    guard: AddressGuard,
    /// The newest first, each with its public half.
    keys: Vec<(PrivateKeyWithHashAlg, String)>,
    user: String,
    timeout: Duration,
}

/// For a connection, in which a round trip is all there is to wait for: time for TCP's second and third attempt, after one and
/// three seconds, and less than from one look at a node to the next, so that three nobodies in a row are seen in three looks.
const CONNECT: Duration = Duration::from_secs(4);

/// Bytes: more than the longest packet of a login.
const READ_AHEAD: usize = 4096;

/// What OpenSSH says in place of its version before it hangs up. Older versions say the first when too many logins are under way
/// (`MaxStartups`); those that know penalties say the second then, and to whom they penalise.
const TURNED_AWAY: [&str; 2] = ["Exceeded MaxStartups", "Not allowed at this time"];

/// How a connection ended that nothing went wrong with.
enum Login {
    /// The public half of the key that was let in.
    With(String),
    NotAccepted,
    TurnedAway(&'static str),
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
    pub(crate) fn new(guard: AddressGuard, keys: &PoolKeys, user: &str, timeout: Duration) -> Self {
        let with_public = |key: &PoolKey| {
            let private = Arc::new(key.private.clone());
            let private = PrivateKeyWithHashAlg::new(private, None);
            (private, key.public.clone())
        };
        Self {
            guard,
            keys: keys.all().map(with_public).collect(),
            user: user.to_owned(),
            timeout,
        }
    }

    /// Dials an address where one of the `pinned` keys (`type base64`) is expected.
    pub(crate) async fn dial(&self, address: &Address, pinned: &[String]) -> Dial {
        let host = match self.guard.check(&address.host) {
            Ok(host) => host.to_string(),
            Err(reason) => return Dial::Forbidden(format!("its address {reason}")),
        };
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
        let login = timeout(
            self.timeout,
            self.login((host.as_str(), address.port), config, handler),
        )
        .await;
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
            (Ok(Ok(Login::With(key))), _) => Dial::LoggedIn(key),
            (Ok(Ok(Login::NotAccepted)), _) => {
                Dial::Refused("the pool's key is not accepted".to_owned())
            }
            (Ok(Ok(Login::TurnedAway(said))), _) => Dial::TurnedAway(said),
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
        place: (&str, u16),
        config: Config,
        handler: Check,
    ) -> Result<Login, russh::Error> {
        let connecting = timeout(CONNECT, TcpStream::connect(place)).await;
        let stream = connecting.map_err(|_| std::io::Error::from(ErrorKind::TimedOut))??;
        stream.set_nodelay(true)?;
        // russh reads a packet's length, and then the packet: each would be a call to the kernel.
        let mut stream = BufReader::with_capacity(READ_AHEAD, stream);
        let greeting = stream.fill_buf().await?;
        if let Some(said) = TURNED_AWAY
            .into_iter()
            .find(|said| greeting.starts_with(said.as_bytes()))
        {
            return Ok(Login::TurnedAway(said));
        }
        let mut session: Handle<Check> =
            russh::client::connect_stream(Arc::new(config), stream, handler).await?;
        let mut end = Login::NotAccepted;
        for (key, public) in &self.keys {
            let login = session
                .authenticate_publickey(&self.user, key.clone())
                .await?;
            if matches!(login, AuthResult::Success) {
                end = Login::With(public.clone());
                break;
            }
        }
        // A farewell that does not arrive is as good: the login has been seen.
        session
            .disconnect(Disconnect::ByApplication, "", "")
            .await
            .unwrap_or_default();
        Ok(end)
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
    use crate::config::ScheddSettings;
    use crate::rotation::rotate;
    use orion_core::{AddressRules, HostName};
    use orion_testkit::scripted::Reach;
    use orion_testkit::{BlackHole, Worker, Workers};
    use std::net::TcpListener;
    use std::path::Path;
    use tokio::io::AsyncWriteExt;

    /// Dials with the keys at that place; `localhost` is allowed by its name.
    fn dialler_with(pool_key: &Path) -> Dialler {
        let rules = AddressRules {
            networks: vec!["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()],
            names: vec![HostName::parse("localhost").unwrap()],
        };
        let settings = ScheddSettings {
            addresses: rules,
            ..ScheddSettings::default()
        };
        let keys = PoolKeys::read(pool_key).unwrap();
        Dialler::new(
            settings.address_guard(),
            &keys,
            "orion-node",
            orion_testkit::PATIENCE,
        )
    }

    fn dialler(workers: &Workers) -> Dialler {
        dialler_with(workers.pool_key())
    }

    fn rotated(pool_key: &Path) {
        let mut settings = ScheddSettings::default();
        settings.ssh.pool_key_file = pool_key.to_owned();
        rotate(&settings).unwrap();
    }

    fn public(pool_key: &Path) -> String {
        let keys = PoolKeys::read(pool_key).unwrap();
        keys.all().next().unwrap().public.clone()
    }

    fn address(worker: &Worker) -> Address {
        at(worker.port())
    }

    fn at(port: u16) -> Address {
        Address {
            host: "localhost".to_owned(),
            port,
        }
    }

    #[tokio::test]
    async fn a_node_with_its_pinned_key_lets_us_in() {
        let workers = Workers::new(1);
        let pinned = [format!("{} root@worker", workers[0].host_key())];
        let met = dialler(&workers).dial(&address(&workers[0]), &pinned).await;
        assert_eq!(met, Dial::LoggedIn(public(workers.pool_key())));
    }

    #[tokio::test]
    async fn while_keys_are_rotated_the_new_one_is_tried_first_and_the_old_one_in_the_same_connection()
     {
        let workers = Workers::new(1);
        let pinned = [workers[0].host_key().to_owned()];
        let old = public(workers.pool_key());
        rotated(workers.pool_key());
        let new = public(workers.pool_key());
        let dialler = dialler(&workers);
        for (let_in, used) in [(&[&old][..], &old), (&[&old, &new], &new), (&[&new], &new)] {
            workers[0].lets_in(let_in);
            let met = dialler.dial(&address(&workers[0]), &pinned).await;
            assert_eq!(met, Dial::LoggedIn(used.clone()));
        }
        workers[0].lets_in(&[]);
        let met = dialler.dial(&address(&workers[0]), &pinned).await;
        assert!(matches!(met, Dial::Refused(_)), "{met:?}");
    }

    #[tokio::test]
    async fn no_connection_is_made_to_an_address_that_no_worker_can_have() {
        let workers = Workers::new(1);
        let dialler = dialler(&workers);
        // On every address of this machine.
        let listener = TcpListener::bind("[::]:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        for host in [
            "127.0.0.1",
            "127.9.9.9",
            "::1",
            "::ffff:127.0.0.1",
            "0.0.0.0",
            "::",
            "169.254.169.254",
            "224.0.0.1",
            "LOCALHOST.",
            "ip6-localhost",
            "127.1",
            "2130706433",
            "0x7f.1",
            "",
        ] {
            let place = Address {
                host: host.to_owned(),
                port,
            };
            let met = dialler.dial(&place, &[]).await;
            assert!(matches!(met, Dial::Forbidden(_)), "{host}: {met:?}");
        }
        let seen = listener.accept().map(|(_, from)| from);
        assert!(seen.is_err(), "{seen:?}");
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
        let met = dialler_with(Workers::new(0).pool_key())
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
        let silent = at(hole.address().port());
        let mut hasty = dialler(&workers);
        hasty.timeout = Duration::from_millis(100);
        let met = hasty.dial(&silent, &pinned).await;
        assert!(
            matches!(&met, Dial::NoAnswer(reason) if reason.contains("nothing within")),
            "{met:?}"
        );
    }

    #[tokio::test]
    async fn an_sshd_that_turns_connections_away_is_not_silent() {
        let workers = Workers::new(1);
        let pinned = [workers[0].host_key().to_owned()];
        for said in TURNED_AWAY {
            let listener = tokio::net::TcpListener::bind("localhost:0").await.unwrap();
            let place = at(listener.local_addr().unwrap().port());
            let sshd = tokio::spawn(async move {
                let (mut connection, _) = listener.accept().await.unwrap();
                let line = format!("{said}\r\n");
                connection.write_all(line.as_bytes()).await.unwrap();
            });
            let met = dialler(&workers).dial(&place, &pinned).await;
            assert_eq!(met, Dial::TurnedAway(said));
            sshd.await.unwrap();
        }
    }

    #[tokio::test]
    async fn pinned_keys_of_types_that_cant_be_checked_are_no_reason_to_distrust() {
        let workers = Workers::new(1);
        let pinned = ["ssh-rsa AAAAB3NzaC1yc2E=".to_owned()];
        let met = dialler(&workers).dial(&address(&workers[0]), &pinned).await;
        assert!(matches!(met, Dial::NoAnswer(_)), "{met:?}");
    }
}
