//! SSH servers of simulated workers: they let the keys they were told in as `orion-node`, and nobody else.

use crate::scratch::random;
use crate::scripted::{Farm, Reach};
use russh::keys::ssh_key::LineEnding;
use russh::keys::ssh_key::private::{Ed25519Keypair, PrivateKey};
use russh::keys::ssh_key::public::PublicKey;
use russh::server::{Auth, Config, Handler, VerifiedPublicKey, run_stream};
use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;

/// The account the control plane logs in to.
const LOGIN: &str = "orion-node";

pub(crate) fn new_key() -> PrivateKey {
    PrivateKey::from(Ed25519Keypair::from_seed(&random::<32>()))
}

/// `ssh-ed25519 AAAA…`, without a comment.
pub(crate) fn public_line(key: &PrivateKey) -> String {
    key.public_key()
        .to_openssh()
        .expect("an OpenSSH public key")
}

/// The same of a private key as OpenSSH writes it.
pub(crate) fn public_line_of(private: &[u8]) -> String {
    let key = PrivateKey::from_openssh(private).expect("an OpenSSH private key");
    let public = PublicKey::from(key.public_key().key_data().clone());
    public.to_openssh().expect("an OpenSSH public key")
}

/// The private key as OpenSSH writes it.
pub(crate) fn private_text(key: &PrivateKey) -> String {
    key.to_openssh(LineEnding::LF)
        .expect("an OpenSSH private key")
        .to_string()
}

/// All responders of a farm, on a thread of their own, so that a test that blocks does not stall them.
#[derive(Debug)]
pub(crate) struct Responders {
    runtime: Option<Runtime>,
}

impl Responders {
    /// Binds one free port per worker, whose host keys come by number; returns the ports in that order.
    pub(crate) fn start(
        farm: &Farm,
        host_keys: &[PrivateKey],
        address: Ipv4Addr,
    ) -> (Self, Vec<u16>) {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build();
        let runtime = runtime.expect("a runtime");
        let configs = host_keys.iter().map(|key| Arc::new(config(key.clone())));
        let shared = Arc::new(Shared {
            farm: farm.clone(),
            configs: configs.enumerate().collect(),
        });
        let mut ports = Vec::new();
        for _ in host_keys {
            let listener = std::net::TcpListener::bind((address, 0)).expect("a free port");
            listener
                .set_nonblocking(true)
                .expect("a non-blocking listener");
            ports.push(listener.local_addr().expect("a bound address").port());
            runtime.spawn(serve(Arc::clone(&shared), listener));
        }
        (
            Self {
                runtime: Some(runtime),
            },
            ports,
        )
    }
}

impl Drop for Responders {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // A runtime must not be dropped inside another; this does not wait.
            runtime.shutdown_background();
        }
    }
}

struct Shared {
    farm: Farm,
    configs: HashMap<usize, Arc<Config>>,
}

fn config(host_key: PrivateKey) -> Config {
    Config {
        auth_rejection_time: Duration::ZERO,
        auth_rejection_time_initial: Some(Duration::ZERO),
        inactivity_timeout: Some(Duration::from_secs(60)),
        keys: vec![host_key],
        ..Config::default()
    }
}

async fn serve(shared: Arc<Shared>, listener: std::net::TcpListener) {
    let listener = TcpListener::from_std(listener).expect("a listener");
    let address = listener.local_addr().expect("a bound address");
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(answer(Arc::clone(&shared), address, stream));
    }
}

async fn answer(shared: Arc<Shared>, address: SocketAddr, stream: TcpStream) {
    // The directory goes away before the listeners do.
    let Some(worker) = shared.farm.worker_on(address.port()) else {
        return;
    };
    let state = shared.farm.read(worker);
    match state.reach {
        Reach::Refuses => return,
        Reach::Silent => {
            // Kept open; the client gives up.
            tokio::time::sleep(Duration::from_secs(3600)).await;
            return;
        }
        Reach::Answers => {}
    }
    let handler = Login {
        lets_in: state.lets_in,
    };
    if let Ok(session) = run_stream(Arc::clone(&shared.configs[&worker]), stream, handler).await
        && let Err(error) = session.await
    {
        // Clients hang up after the login; there is nobody to tell.
        drop(error);
    }
}

struct Login {
    lets_in: Vec<String>,
}

impl Handler for Login {
    type Error = russh::Error;

    async fn auth_publickey(
        &mut self,
        user: &str,
        key: VerifiedPublicKey<'_>,
    ) -> Result<Auth, Self::Error> {
        // Without the comment it may have.
        let shown = PublicKey::from(key.public_key.key_data().clone()).to_openssh();
        let good = user == LOGIN && shown.is_ok_and(|shown| self.lets_in.contains(&shown));
        Ok(if good { Auth::Accept } else { Auth::reject() })
    }
}
