//! Puts the parts together and serves until told to stop.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use orion_core::{AddressGuard, Seed};
use orion_daemon::{
    Key, Keyring, Limits, Misconfigured, OpsPages, Registry, Shell, is_own_address, secret_file,
};
use orion_signature::{MAX_SIGNATURES, SigningKey};
use orion_store::{DatabaseSettings, Store};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::app::{App, Gate};
use crate::auth::password::PasswordHasher;
use crate::auth::token::Tokens;
use crate::beats::Beats;
use crate::config::ApidSettings;
use crate::health;
use crate::http::route::{AGENT_ROUTES, CLIENT_ROUTES, Route};
use crate::http::server::Front;
use crate::metrics::Metrics;
use crate::rentals::ssh_password::Crypt;
use crate::schedd::Schedd;

/// What a rent may need beyond its deadline when the service stops: the database's own time-outs.
const DRAIN_MARGIN: Duration = Duration::from_secs(20);

/// How long agents are waited for: a beat takes a second.
const AGENTS_DRAIN: Duration = Duration::from_secs(5);

/// Serves until the process is told to stop, then drains.
///
/// # Errors
/// A secret that can't be used, an address that can't be bound, a task that must not end and did.
pub(crate) async fn serve(settings: ApidSettings) -> anyhow::Result<()> {
    let metrics = Metrics::default();
    let mut registry = Registry::default();
    metrics.register(&mut registry);
    let store = open(&settings.database)?;
    let schedd = Schedd::default();
    let (beats, writer) = Beats::new(store.clone(), schedd.clone(), metrics.clone());
    let app = app(settings, store, schedd, beats, metrics)?;
    let pages = OpsPages::new(registry);
    let shell = Shell::start(&app.settings, &health::COMPONENTS, pages).await?;
    let clients = Listener::bind("clients", app.settings.listen.clients).await?;
    let agents = Listener::bind("agents", app.settings.listen.agents).await?;
    // What requests in progress still need ends only after they have ended.
    let background = CancellationToken::new();
    let stop = background.clone();
    shell.vital("the writer of beats", async move {
        tokio::select! {
            () = writer => {}
            () = stop.cancelled() => {}
        }
        Ok(())
    });
    let watch = health::watch(Arc::clone(&app), shell.ready().clone(), background.clone());
    shell.vital("the watch over the database", async move {
        watch.await;
        Ok(())
    });
    let socket = app.settings.schedd.socket.clone();
    let line = app
        .schedd
        .clone()
        .keep_connected(socket, background.clone());
    shell.tracker().spawn(line);
    let drain = app.settings.rent.deadline() + DRAIN_MARGIN;
    let shutdown = shell.shutdown();
    let body = async move {
        let ended = tokio::try_join!(
            clients.serve(&app, CLIENT_ROUTES, drain, shutdown.clone()),
            agents.serve(&app, AGENT_ROUTES, AGENTS_DRAIN, shutdown.clone()),
        );
        background.cancel();
        if let Err(error) = app.store.clone().close().await {
            tracing::debug!(%error, "a connection could not say goodbye");
        }
        ended.map(|((), ())| ())
    };
    shell.run(drain + AGENTS_DRAIN, body).await
}

fn app(
    settings: ApidSettings,
    store: Store,
    schedd: Schedd,
    beats: Beats,
    metrics: Metrics,
) -> anyhow::Result<Arc<App>> {
    let jwt_keys = Keyring::load(&settings.auth.jwt_keys_file)?;
    let lifetime = Duration::from_secs(u64::from(settings.auth.token_lifetime_s));
    Ok(Arc::new(App {
        store,
        tokens: Tokens::new(jwt_keys, lifetime),
        hasher: PasswordHasher::new(
            settings.auth.hash_queue,
            metrics.hash_waiting.clone(),
            metrics.hash_refused.clone(),
        ),
        crypt: Crypt::new(),
        server_keys: Keyring::load(&settings.rent.server_keys_file)?,
        signing_keys: signing_keys(&Keyring::load(&settings.registration.signing_keys_file)?)?,
        addresses: AddressGuard::new(
            settings.addresses.clone(),
            settings.database.tcp_addresses(),
            is_own_address,
        ),
        schedd,
        beats,
        gate: Gate::default(),
        metrics,
        settings,
    }))
}

/// The keys that sign answers, the current one first.
///
/// # Errors
/// More keys than agents look at in an answer.
pub(crate) fn signing_keys(seeds: &Keyring) -> anyhow::Result<Vec<SigningKey>> {
    let key = |seed: &Key| Ok(SigningKey::from_seed(&Seed::from_bytes(*seed.expose()))?);
    let keys: Vec<SigningKey> = seeds
        .iter()
        .map(|(_, seed)| key(seed))
        .collect::<anyhow::Result<_>>()?;
    if keys.len() > MAX_SIGNATURES {
        return Err(Misconfigured(format!(
            "registration.signing_keys_file has {} keys: agents look at {MAX_SIGNATURES} at the most",
            keys.len()
        ))
        .into());
    }
    Ok(keys)
}

/// The database as the configuration says. Connects at the first use.
///
/// # Errors
/// A password file that can't be used.
pub(crate) fn open(settings: &DatabaseSettings) -> anyhow::Result<Store> {
    let file = &settings.password_file;
    let password = if file.as_os_str().is_empty() {
        None
    } else {
        Some(secret_file(file)?)
    };
    Ok(Store::open(settings, password)?)
}

struct Listener {
    name: &'static str,
    socket: TcpListener,
}

impl Listener {
    async fn bind(name: &'static str, address: SocketAddr) -> anyhow::Result<Self> {
        let socket = TcpListener::bind(address)
            .await
            .with_context(|| format!("listen.{name} can't listen on {address}"))?;
        let address = socket.local_addr()?;
        tracing::info!(listener = name, %address, "listening");
        Ok(Self { name, socket })
    }

    async fn serve(
        self,
        app: &Arc<App>,
        routes: &'static [Route],
        drain: Duration,
        shutdown: CancellationToken,
    ) -> anyhow::Result<()> {
        let front = Front::new(Arc::clone(app), routes).context(self.name)?;
        let handler = move |request, peer| Arc::clone(&front).answer(request, peer);
        let limits = Limits {
            drain,
            ..Limits::default()
        };
        orion_daemon::serve(self.socket, handler, limits, shutdown).await;
        Ok(())
    }
}
