//! Registering, until the control plane has answered it well.

use std::time::Duration;

use orion_core::api::RegisterReply;
use orion_core::ids::NodeId;

use super::Agent;
use crate::client::Call;
use crate::failure::{Failure, read};
use crate::identity::Identity;
use crate::pace::Backoff;
use crate::warden;

/// A registration that holds.
#[derive(Debug)]
pub(super) struct Registered {
    pub(super) identity: Identity,
    pub(super) node_id: NodeId,
    pub(super) next_beat: Duration,
}

impl Agent {
    pub(super) async fn register(&mut self) -> Registered {
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
}
