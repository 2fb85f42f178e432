//! Beating, until the registration no longer holds.

use std::net::IpAddr;
use std::time::Duration;

use orion_core::api::{BeatReply, BeatRequest};

use super::Agent;
use super::register::Registered;
use crate::client::Call;
use crate::failure::{Failure, read};
use crate::identity::{self, Identity};
use crate::pace::{Backoff, random_share};
use crate::warden;

/// What came of a beat.
enum Beat {
    Answered(Duration),
    RegisterAgain(&'static str),
}

impl Agent {
    /// Beats until the registration no longer holds; says why.
    pub(super) async fn beat(&mut self, registered: &Registered) -> &'static str {
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
            accounts: self.warden.reported(),
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
}
