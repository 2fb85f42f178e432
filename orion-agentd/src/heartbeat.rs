//! The agent's one loop: register until it is done, then beat until it must register again.

use std::net::IpAddr;
use std::time::Duration;

use orion_core::PublicKey;
use orion_core::api::{BeatReply, BeatRequest, RegisterReply, Trust};
use orion_core::ids::NodeId;
use orion_daemon::{Misconfigured, Readiness, Registry};
use orion_signature::{Signer, SigningKey};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use serde::Serialize;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::client::{Answer, Call, Client, Link, Signing};
use crate::config::AgentSettings;
use crate::failure::{Failure, read};
use crate::identity::{self, Identity};
use crate::login::Login;
use crate::machine::Machine;
use crate::pace::{Backoff, Pace, random_share};
use crate::records;
use crate::state::{NextKey, State};
use crate::warden::{self, Warden};

/// What the agent counts.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    registrations: Counter,
    beats: Counter,
    failures: Counter,
    node: Gauge,
    warden: warden::Metrics,
}

impl Metrics {
    /// Metrics that `registry` shows.
    pub fn registered(registry: &mut Registry) -> Self {
        let metrics = Self {
            warden: warden::Metrics::registered(registry),
            ..Self::default()
        };
        let Self {
            registrations,
            beats,
            failures,
            node,
            warden: _,
        } = metrics.clone();
        registry.register(
            "orion_agent_registrations",
            "Registrations that were answered well",
            registrations,
        );
        registry.register("orion_agent_beats", "Beats that were answered well", beats);
        registry.register(
            "orion_agent_failures",
            "Registrations and beats that failed",
            failures,
        );
        registry.register(
            "orion_agent_node_id",
            "The id of this node; 0 while it is not registered",
            node,
        );
        metrics
    }

    /// Registrations and beats that failed so far.
    pub fn failures(&self) -> u64 {
        self.failures.get()
    }
}

/// A registration that holds.
#[derive(Debug)]
struct Registered {
    identity: Identity,
    node_id: NodeId,
    next_beat: Duration,
}

/// What came of a beat.
enum Beat {
    Answered(Duration),
    RegisterAgain(&'static str),
}

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
                tracing::error!(?ended, "whoever ends accounts on time has ended");
            }
        }
    }

    async fn register(&mut self) -> Registered {
        let mut backoff = Backoff::new(self.pace.first, self.pace.longest);
        let mut asks = self.warden.asks();
        loop {
            let failure = match self.try_register().await {
                Ok(registered) => {
                    self.welcome(&registered);
                    return registered;
                }
                Err(failure) => failure,
            };
            if failure.wants_token() && self.joins_anew() {
                continue;
            }
            self.complain("not registered", &failure);
            let pause = if failure.is_lasting() {
                backoff.slow()
            } else {
                backoff.next()
            };
            let asked = failure
                .retry_after()
                .unwrap_or_default()
                .min(self.pace.longest);
            warden::rest(pause.max(asked), &mut asks).await;
        }
    }

    async fn try_register(&mut self) -> Result<Registered, Failure> {
        let link = self.client.connect().await?;
        let identity = Identity::read(&self.settings, link.local)?;
        let request = identity.request(&self.boot_id, self.believed_key());
        let next = self.next_key();
        let answer = self.ask(link, Call::Register, &request, next.as_ref());
        let answer = answer.await?;
        let reply: RegisterReply = read(&answer)?;
        if answer.verified {
            if let Some(next) = next {
                self.state.promote(next)?;
                tracing::info!(key = %self.state.key().public(), "the agent's key was rotated");
            }
            self.believe(&reply.trust).await;
            if let Some(token) = &self.token
                && let Err(error) = self.state.joined_with(token.public())
            {
                tracing::warn!("the join token is sent again after a restart: {error}");
            }
        }
        Ok(Registered {
            identity,
            node_id: reply.node_id,
            next_beat: self.interval(reply.next_beat_s),
        })
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

    /// The control plane knows this worker no more, and wants the token that was not sent. False if it was.
    fn joins_anew(&mut self) -> bool {
        if self.token.is_none() || self.unused_token().is_some() {
            return false;
        }
        tracing::info!(
            "the control plane does not know this worker any more: trying the join token again"
        );
        if let Err(error) = self.state.joined_no_more() {
            tracing::warn!("{error}");
        }
        true
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

    fn welcome(&mut self, registered: &Registered) {
        let Registered {
            identity, node_id, ..
        } = registered;
        let (ip, port) = (&identity.ip, identity.ssh_port);
        tracing::info!(node = %node_id, hostname = %identity.hostname, %ip, port, "registered");
        self.said = None;
        self.metrics.registrations.inc();
        self.metrics
            .node
            .set(i64::try_from(node_id.0).unwrap_or(i64::MAX));
        self.ready.note(format!("registered as node {node_id}"));
    }

    /// Beats until the registration no longer holds; says why.
    async fn beat(&mut self, registered: &Registered) -> &'static str {
        let mut interval = registered.next_beat;
        let mut backoff = self.beat_backoff(interval);
        // A little earlier than asked, at random: agents that registered together shall not beat together for ever.
        let mut pause = interval.mul_f64(1.0 - random_share() / 10.0);
        loop {
            warden::rest(pause, &mut self.asks).await;
            let failure = match self.beat_unless_asked(registered).await {
                Ok(Beat::RegisterAgain(why)) => return why,
                Ok(Beat::Answered(next)) => {
                    self.metrics.beats.inc();
                    if self.said.take().is_some() {
                        tracing::info!(node = %registered.node_id, "beats are answered again");
                        self.ready
                            .note(format!("registered as node {}", registered.node_id));
                    }
                    interval = next;
                    backoff = self.beat_backoff(interval);
                    pause = interval.mul_f64(1.0 - random_share() / 10.0);
                    continue;
                }
                Err(failure) => failure,
            };
            if let Some(why) = failure.wants_registration() {
                return why;
            }
            self.complain(
                &format!("node {}: beat failed", registered.node_id),
                &failure,
            );
            let asked = failure
                .retry_after()
                .unwrap_or_default()
                .min(self.pace.longest);
            pause = if failure.is_lasting() {
                interval
            } else {
                backoff.next().max(asked)
            };
        }
    }

    /// After a failed beat the next follows sooner, and then on average as often as beats do: a control plane that
    /// comes back must see its nodes within seconds, and one that is overloaded must not get more than usual.
    fn beat_backoff(&self, interval: Duration) -> Backoff {
        Backoff::new(self.pace.first, (interval * 2).min(self.pace.longest))
    }

    /// A beat that is under way when the control plane is to be asked may hang, and is given up for one that asks.
    async fn beat_unless_asked(&mut self, registered: &Registered) -> Result<Beat, Failure> {
        // The one that begins now asks, too.
        self.asks.mark_unchanged();
        let mut asks = self.asks.clone();
        tokio::select! {
            biased;
            done = self.try_beat(registered) => return done,
            () = warden::asked(&mut asks) => {}
        }
        self.asks = asks;
        self.try_beat(registered).await
    }

    async fn try_beat(&mut self, registered: &Registered) -> Result<Beat, Failure> {
        if self.next_key().is_some() {
            return Ok(Beat::RegisterAgain("the agent's key is being rotated"));
        }
        let link = self.client.connect().await?;
        if let Some(why) = self.change(registered, link.local) {
            return Ok(Beat::RegisterAgain(why));
        }
        let request = BeatRequest {
            node_id: registered.node_id,
            boot_id: self.boot_id.clone(),
            agent: identity::VERSION.to_owned(),
            signing_key: self.believed_key(),
            accounts: records::read(&self.settings.state_dir),
        };
        let sent = self.warden.sending();
        let answer = self.ask(link, Call::Beat, &request, None).await?;
        let reply: BeatReply = read(&answer)?;
        if answer.verified {
            self.warden.hear(&sent, &reply);
            self.believe(&reply.trust).await;
        }
        Ok(Beat::Answered(self.interval(reply.next_beat_s)))
    }

    fn change(&self, registered: &Registered, local: IpAddr) -> Option<&'static str> {
        match Identity::read(&self.settings, local) {
            Ok(now) => registered.identity.difference(&now),
            // Host keys that are being replaced: the machine lives, and that is what a beat says.
            Err(error) => {
                tracing::debug!(%error, "this worker's identity can't be read just now");
                None
            }
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
