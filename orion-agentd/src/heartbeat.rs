//! The agent's one loop: register until it is done, then beat until it must register again.

mod beat;
mod register;

use std::sync::Arc;
use std::time::Duration;

use orion_core::PublicKey;
use orion_core::api::Trust;
use orion_daemon::{Misconfigured, Readiness};
use orion_signature::{Signer, SigningKey};
use serde::Serialize;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::client::{Answer, Call, Client, Link, Signing};
use crate::clock::Clock;
use crate::config::AgentSettings;
use crate::failure::Failure;
use crate::login::Login;
use crate::machine::Machine;
use crate::metrics::Metrics;
use crate::pace::Pace;
use crate::state::{NextKey, State};
use crate::warden::Warden;
use crate::{homes, identity};

/// The agent, ready to run.
#[derive(Debug)]
pub struct Agent {
    settings: AgentSettings,
    client: Client,
    /// What lets this worker in; sent until it did, and again when the control plane wants it.
    token: Option<SigningKey>,
    state: State,
    login: Login,
    warden: Warden,
    clock: Arc<dyn Clock>,
    /// When a beat is to be sent at once.
    asks: watch::Receiver<()>,
    pace: Pace,
    metrics: Metrics,
    ready: Readiness,
    boot_id: String,
    /// The last failure that was logged; the same one again is not news.
    said: Option<String>,
    /// The same for what this machine itself refuses.
    said_here: Option<String>,
    /// The same for a next key that is of no use.
    said_of_next_key: Option<String>,
}

impl Agent {
    /// An agent that tells `ready` what `systemctl status` shall show. Makes its key if it has none.
    ///
    /// # Errors
    /// When the join line or the endpoint is no good, or the state can't be read or made.
    pub fn new(
        settings: AgentSettings,
        machine: Machine,
        pace: Pace,
        metrics: Metrics,
        ready: Readiness,
    ) -> anyhow::Result<Self> {
        let line = settings.join_line().map_err(Misconfigured)?;
        let endpoint = settings.endpoint(line.as_ref()).map_err(Misconfigured)?;
        let state = State::open(&settings.state_dir, line.as_ref())?;
        if state.trusted().is_empty() {
            tracing::warn!(
                "without a join line whatever answers is taken for the control plane, and no account ends by itself"
            );
        }
        let token = line.map(|line| SigningKey::from_seed(&line.token));
        let warden = Warden::new(&settings.state_dir, &machine, metrics.warden.clone());
        Ok(Self {
            client: Client::new(endpoint, pace),
            clock: Arc::clone(&machine.clock),
            token: token.transpose()?,
            state,
            login: Login::new(&settings, machine, pace),
            asks: warden.asks(),
            warden,
            settings,
            pace,
            metrics,
            ready,
            boot_id: identity::boot_id(),
            said: None,
            said_here: None,
            said_of_next_key: None,
        })
    }

    /// Registers and beats for ever; drop the future to stop. Ends by itself only where something broke: then start anew.
    pub async fn run(mut self) {
        self.ready.note("not registered yet");
        // Beside everything else, so that nothing of it delays the end of an account. Ends with this future.
        let mut beside = JoinSet::new();
        beside.spawn(homes::run(
            self.settings.state_dir.clone(),
            Arc::clone(&self.clock),
        ));
        // Where no answer is verified nobody could tell of an extension: accounts would end too early.
        if !self.state.trusted().is_empty() {
            beside.spawn(self.warden.clone().run());
        }
        let beats = async {
            loop {
                let registered = self.register().await;
                let why = self.beat(&registered).await;
                tracing::info!(node = %registered.node_id, "registering again: {why}");
                self.metrics.node.set(0);
            }
        };
        tokio::select! {
            () = beats => {}
            Some(ended) = beside.join_next() => {
                tracing::error!(?ended, "whoever ends accounts and kept homes on time has ended");
            }
        }
    }

    /// The key that shall replace the agent's. One that can't be used was never used: the agent goes on without it.
    fn next_key(&mut self) -> Option<NextKey> {
        let error = match self.state.next_key() {
            Ok(next) => {
                self.said_of_next_key = None;
                return next;
            }
            Err(error) => error.to_string(),
        };
        if self.said_of_next_key.as_ref() != Some(&error) {
            tracing::error!("the agent's key is not rotated: {error}");
            self.said_of_next_key = Some(error);
        }
        None
    }

    /// The token that registrations need; none once one was answered well.
    fn unused_token(&self) -> Option<&SigningKey> {
        let token = self.token.as_ref();
        token.filter(|token| !self.state.has_joined_with(&token.public()))
    }

    fn believed_key(&self) -> Option<PublicKey> {
        self.state.trusted().first().copied()
    }

    /// One signed exchange with a counter of its own.
    async fn ask(
        &mut self,
        link: Link,
        call: Call,
        body: &impl Serialize,
        next: Option<&NextKey>,
    ) -> Result<Answer, Failure> {
        let counter = self.state.take_counter()?;
        let mut keys = vec![(Signer::Agent, self.state.key())];
        if let Call::Register = call {
            keys.extend(self.unused_token().map(|token| (Signer::Token, token)));
            keys.extend(next.map(|next| (Signer::NextKey, &next.key)));
        }
        let signing = Signing {
            counter,
            keys,
            trusted: self.state.trusted(),
        };
        Ok(self.client.post(link, call, body, &signing).await?)
    }

    /// Follows what a verified answer says of the control plane's keys.
    async fn believe(&mut self, trust: &Trust) {
        let learnt = self.state.learn(&trust.signing_keys);
        let followed = self.login.follow(trust).await;
        let error = match (learnt, followed) {
            (Err(error), _) => error.to_string(),
            (Ok(_), Err(error)) => error.to_string(),
            (Ok(learnt), Ok(())) => {
                if learnt {
                    tracing::info!("the control plane signs with other keys from now on");
                }
                self.said_here = None;
                return;
            }
        };
        if self.said_here.as_ref() != Some(&error) {
            tracing::error!("{error}");
            self.said_here = Some(error);
        }
    }

    fn interval(&self, seconds: u32) -> Duration {
        let (shortest, longest) = self.pace.beat_bounds;
        Duration::from_secs(u64::from(seconds)).clamp(shortest, longest)
    }

    /// Logs a failure once, and again when it becomes another one.
    fn complain(&mut self, what: &str, failure: &Failure) {
        self.metrics.failures.inc();
        if let Some(used) = failure.used_counter() {
            self.state.raise_counter(used);
        }
        let text: String = failure.to_string().chars().take(500).collect();
        if self.said.as_ref() == Some(&text) {
            tracing::debug!("{what}: {text}");
            return;
        }
        if failure.is_lasting() {
            tracing::error!("{what}: {text}");
        } else {
            tracing::warn!("{what}: {text}; trying on");
        }
        self.ready.note(format!("{what}: {text}"));
        self.said = Some(text);
    }
}
