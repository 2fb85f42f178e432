//! The agent's one loop: register until it is done, then beat until it must register again.

use std::net::IpAddr;
use std::time::Duration;

use orion_core::ProblemCode;
use orion_core::api::{BeatReply, BeatRequest, RegisterReply};
use orion_core::ids::NodeId;
use orion_daemon::{Readiness, Registry};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use serde::de::DeserializeOwned;

use crate::client::{Answer, Call, Client, Endpoint, ExchangeError};
use crate::config::AgentSettings;
use crate::identity::{self, Identity, IdentityError};
use crate::pace::{Backoff, Pace, random_share};
use crate::records;

/// What the agent counts.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    registrations: Counter,
    beats: Counter,
    failures: Counter,
    node: Gauge,
}

impl Metrics {
    /// Metrics that `registry` shows.
    pub fn registered(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let Self {
            registrations,
            beats,
            failures,
            node,
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

/// Why a registration or a beat was of no use.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Exchange(#[from] ExchangeError),
    #[error("{0}")]
    Problem(Refusal),
    #[error("the answer ({0}) can't be read: {1}")]
    Unreadable(u16, serde_json::Error),
}

/// An answer that is not 2xx.
#[derive(Debug, thiserror::Error)]
#[error("the control plane answered {status} {code}: {detail}")]
struct Refusal {
    status: u16,
    code: String,
    detail: String,
    retry_after: Option<Duration>,
}

impl Failure {
    /// True when trying again soon will not help: somebody must change something first.
    fn is_lasting(&self) -> bool {
        match self {
            Self::Problem(refusal) => {
                (400..500).contains(&refusal.status) && ![408, 429].contains(&refusal.status)
            }
            Self::Identity(_) | Self::Exchange(_) | Self::Unreadable(..) => false,
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Problem(refusal) => refusal.retry_after,
            Self::Identity(_) | Self::Exchange(_) | Self::Unreadable(..) => None,
        }
    }

    fn is_node_unknown(&self) -> bool {
        match self {
            Self::Problem(refusal) => {
                refusal.status == 404 && refusal.code == ProblemCode::NodeUnknown.as_str()
            }
            Self::Identity(_) | Self::Exchange(_) | Self::Unreadable(..) => false,
        }
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
    pace: Pace,
    metrics: Metrics,
    ready: Readiness,
    boot_id: String,
    /// The last failure that was logged; the same one again is not news.
    said: Option<String>,
}

impl Agent {
    /// An agent that tells `ready` what `systemctl status` shall show.
    pub fn new(
        settings: AgentSettings,
        endpoint: Endpoint,
        pace: Pace,
        metrics: Metrics,
        ready: Readiness,
    ) -> Self {
        Self {
            settings,
            client: Client::new(endpoint, pace),
            pace,
            metrics,
            ready,
            boot_id: identity::boot_id(),
            said: None,
        }
    }

    /// Registers and beats for ever; drop the future to stop.
    pub async fn run(mut self) {
        self.ready.note("not registered yet");
        loop {
            let registered = self.register().await;
            let why = self.beat(&registered).await;
            tracing::info!(node = %registered.node_id, "registering again: {why}");
            self.metrics.node.set(0);
        }
    }

    async fn register(&mut self) -> Registered {
        let mut backoff = Backoff::new(self.pace.first, self.pace.longest);
        loop {
            let failure = match self.try_register().await {
                Ok(registered) => {
                    self.welcome(&registered);
                    return registered;
                }
                Err(failure) => failure,
            };
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
            tokio::time::sleep(pause.max(asked)).await;
        }
    }

    async fn try_register(&self) -> Result<Registered, Failure> {
        let link = self.client.connect().await?;
        let identity = Identity::read(&self.settings, link.local)?;
        let request = identity.request(&self.boot_id);
        let answer = self.client.post(link, Call::Register, &request).await?;
        let reply: RegisterReply = read(&answer)?;
        Ok(Registered {
            identity,
            node_id: reply.node_id,
            next_beat: self.interval(reply.next_beat_s),
        })
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
            tokio::time::sleep(pause).await;
            let failure = match self.try_beat(registered).await {
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
            if failure.is_node_unknown() {
                return "the control plane does not know this node";
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

    async fn try_beat(&self, registered: &Registered) -> Result<Beat, Failure> {
        let link = self.client.connect().await?;
        if let Some(why) = self.change(registered, link.local) {
            return Ok(Beat::RegisterAgain(why));
        }
        let request = BeatRequest {
            node_id: registered.node_id,
            boot_id: self.boot_id.clone(),
            agent: identity::VERSION.to_owned(),
            accounts: records::read(&self.settings.state_dir),
        };
        let answer = self.client.post(link, Call::Beat, &request).await?;
        // What the answer says about accounts is not looked at: nobody has signed it.
        let reply: BeatReply = read(&answer)?;
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

/// Reads a 2xx answer's JSON, or the problem in any other.
fn read<T: DeserializeOwned>(answer: &Answer) -> Result<T, Failure> {
    let status = answer.status.as_u16();
    if answer.status.is_success() {
        return serde_json::from_slice(&answer.body)
            .map_err(|error| Failure::Unreadable(status, error));
    }
    // Leniently: a newer control plane may have codes that this agent does not know, a proxy answers in HTML.
    let problem: serde_json::Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    let text = |key: &str, otherwise: &str| {
        let value = problem.get(key).and_then(serde_json::Value::as_str);
        value.unwrap_or(otherwise).to_owned()
    };
    let mut detail = text("detail", "no detail was given");
    for error in problem
        .get("errors")
        .and_then(serde_json::Value::as_array)
        .into_iter()
        .flatten()
    {
        detail.push_str(&format!("; {error}"));
    }
    Err(Failure::Problem(Refusal {
        status,
        code: text("code", "without a code"),
        detail,
        retry_after: answer.retry_after,
    }))
}
