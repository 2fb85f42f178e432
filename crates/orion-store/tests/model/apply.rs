//! What each step does to the store.

use crate::case::{Case, Held, MAX_TOTAL, Shared, chosen, text};
use crate::rest;
use crate::step::{Client, Event, Executor, Job, Node, Pick, Play, Probe, Step};
use crate::support::{DEADLINE, HASH, HOLD, bare_beat, host_key, instance, report, unique_id};
use orion_core::{Availability, RunKind, RunOutcome};
use orion_store::*;
use std::time::Duration;

impl Case<'_> {
    pub(crate) async fn apply(&self, step: &Step) -> Result<(), String> {
        match step {
            Step::Single(event) => self.happen(event).await,
            Step::Both(one, other) => {
                let (one, other) = tokio::join!(self.happen(one), self.happen(other));
                one.and(other)
            }
        }
    }

    async fn happen(&self, event: &Event) -> Result<(), String> {
        match event {
            Event::Client(client) => self.client(client).await,
            Event::Executor(executor) => self.executor(executor).await,
            Event::Job(job) => self.job(*job).await,
            Event::Node(pick, node) => self.node(*pick, *node).await,
            Event::Register { worker, moved } => {
                self.register(u32::from(*worker) % self.workers(), *moved)
                    .await
            }
            Event::Wait(seconds) => {
                self.wait(*seconds);
                Ok(())
            }
            Event::Calm(seconds, play) => Box::pin(rest::round(self, *seconds, *play)).await,
        }
    }

    async fn client(&self, client: &Client) -> Result<(), String> {
        match client {
            Client::Rent {
                bob,
                count,
                seconds,
                key,
                hashed,
            } => {
                let opened = self.rent(*bob, *count, *seconds, *key).await?;
                match opened.filter(|_| *hashed) {
                    Some(opened) => self.provision(&opened).await,
                    None => Ok(()),
                }
            }
            Client::Provision(pick) => match self.request(*pick) {
                Some(request) => self.provision(&request).await,
                None => Ok(()),
            },
            Client::Release { pick, stranger } => self.release(*pick, *stranger).await,
            Client::Extend { pick, seconds } => {
                let Some(rental) = self.rental(*pick) else {
                    return Ok(());
                };
                let more = Duration::from_secs(*seconds);
                let extended = self
                    .store()
                    .extend(Scope::All, rental, more, MAX_TOTAL)
                    .await;
                extended.map(drop).map_err(text)
            }
            Client::Undo(pick, reason) => {
                let Some(request) = self.request(*pick) else {
                    return Ok(());
                };
                let undone = self.store().undo_request(request.id, *reason).await;
                undone.map(drop).map_err(text)
            }
        }
    }

    async fn executor(&self, executor: &Executor) -> Result<(), String> {
        match executor {
            Executor::Claim {
                instance: number,
                kind,
                limit,
            } => self.claim(&instance(*number), *kind, *limit).await,
            Executor::Play(pick, play) => self.play(*pick, *play).await,
            Executor::Late(pick, said) => self.late(*pick, *said).await,
            Executor::Steal(pick) => self.steal(*pick).await,
            Executor::Renew(number) => {
                let runs: Vec<_> = self.shared().held.iter().map(|held| held.run.id).collect();
                let renewed = self
                    .store()
                    .renew_claims(&instance(*number), &runs, HOLD)
                    .await;
                renewed.map(drop).map_err(text)
            }
        }
    }

    async fn job(&self, job: Job) -> Result<(), String> {
        let store = self.store();
        match job {
            Job::Expire => store.expire_rentals(100).await.map(drop),
            Job::Reconcile => store.reconcile().await.map(drop),
            Job::QueueCleaning => match store.queue_cleaning(100).await {
                Ok(_) => store.alarm_debts(100).await.map(drop),
                Err(error) => Err(error),
            },
            Job::QueueInspections => store.queue_inspections(100).await.map(drop),
            Job::Migrate => store.migrate(100).await.map(drop),
            Job::OverrideBrakes => store.override_brakes().await,
            Job::Reset => store.reset().await,
        }
        .map_err(text)
    }

    async fn node(&self, pick: Pick, event: Node) -> Result<(), String> {
        let store = self.store();
        let mut targets = store.probe_targets().await.map_err(text)?;
        if matches!(event, Node::Dies | Node::Drain(Drain::Moves)) {
            targets.retain(|target| target.availability == Availability::Leased);
        }
        let Some(ProbeTarget { node, pending, .. }) = chosen(&targets, pick).cloned() else {
            return Ok(());
        };
        match (event, pending) {
            (Node::Confirm, Some(pending)) => store.confirm_address(node, &pending).await.map(drop),
            (Node::Refuse, Some(pending)) => {
                store.refuse_address(node, &pending, "another key").await
            }
            (Node::Confirm | Node::Refuse, None) => Ok(()),
            (Node::Dies, _) => {
                for _ in 0..3 {
                    self.wait(8);
                    let silence = result_of(Probe::NoAnswer);
                    self.store()
                        .record_probe(node, &silence)
                        .await
                        .map_err(text)?;
                }
                self.store().migrate(100).await.map(drop)
            }
            (Node::Probe(probe), _) => store.record_probe(node, &result_of(probe)).await,
            (Node::Beat, _) => {
                let beat = bare_beat(node);
                store.beat_many(&[beat], None).await.map(drop)
            }
            (Node::Unquarantine, _) => store.release_from_quarantine(node).await.map(drop),
            (Node::Forget, _) => store.forget_node(node).await.map(drop),
            (Node::Drain(drain), _) => {
                store.set_draining(node, drain).await.map_err(text)?;
                store.migrate(100).await.map(drop)
            }
        }
        .map_err(text)
    }

    async fn rent(
        &self,
        bob: bool,
        count: u32,
        seconds: u64,
        key: Option<u8>,
    ) -> Result<Option<OpenedRequest>, String> {
        let (id, key) = (unique_id(), key.map(|key| vec![key]));
        let order = RentOrder {
            user: if bob {
                self.bed().bob
            } else {
                self.bed().alice
            },
            count,
            duration: Duration::from_secs(seconds),
            deadline: DEADLINE,
            max_active: 8,
            apid_request_id: &id,
            password_key_id: Some("k1"),
            idempotency: key.as_deref().map(|key| IdempotencyKey {
                key,
                body_digest: [0; 32],
                digest_key_id: "k1",
            }),
        };
        let decision = self.store().rent(&order).await.map_err(text)?;
        let RentDecision::Opened(opened) = decision else {
            return Ok(None);
        };
        let mut shared = self.shared();
        shared.tally.opened += 1;
        shared.requests.push(opened.clone());
        Ok(Some(opened))
    }

    pub(crate) async fn provision(&self, request: &OpenedRequest) -> Result<(), String> {
        let hashes: Vec<_> = request
            .rentals
            .iter()
            .map(|id| (*id, HASH.to_owned()))
            .collect();
        self.store()
            .provision(request.id, &hashes)
            .await
            .map(drop)
            .map_err(text)
    }

    pub(crate) async fn claim(
        &self,
        instance: &InstanceId,
        kind: RunKind,
        limit: u32,
    ) -> Result<(), String> {
        let runs = self
            .store()
            .claim_runs(instance, kind, limit, HOLD)
            .await
            .map_err(text)?;
        let held = runs.into_iter().map(|run| Held {
            instance: instance.clone(),
            run,
        });
        self.shared().held.extend(held);
        Ok(())
    }

    pub(crate) async fn play(&self, pick: Pick, play: Play) -> Result<(), String> {
        let (held, seen) = {
            let mut shared = self.shared();
            if shared.held.is_empty() {
                return Ok(());
            }
            let at = usize::from(pick) % shared.held.len();
            let held = shared.held.remove(at);
            shared
                .past
                .push((held.clone(), !matches!(play, Play::Crashes)));
            let acts = !matches!(play, Play::Fails(_) | Play::Crashes);
            let seen = acts.then(|| shared.act(&held.run));
            (held, seen)
        };
        let said = match (play, seen) {
            (Play::Well | Play::Twice, Some(seen)) => seen,
            (Play::Unheard(outcome) | Play::Fails(outcome), _) => report(outcome),
            (Play::Crashes | Play::Well | Play::Twice, _) => return Ok(()),
        };
        self.record(&held, &said).await?;
        if matches!(play, Play::Twice) && self.record(&held, &said).await? {
            return Err(format!("{:?} was recorded twice", held.run));
        }
        Ok(())
    }

    async fn late(&self, pick: Pick, said: Option<RunOutcome>) -> Result<(), String> {
        let (held, recorded, report) = {
            let mut shared = self.shared();
            let Some((held, recorded)) = chosen(&shared.past, pick).cloned() else {
                return Ok(());
            };
            let seen = shared.act(&held.run);
            let at = usize::from(pick) % shared.past.len();
            shared.past[at].1 = true;
            (held, recorded, said.map_or(seen, report))
        };
        if self.record(&held, &report).await? && recorded {
            return Err(format!(
                "{:?} was recorded before, and now as {}",
                held.run, report.outcome
            ));
        }
        Ok(())
    }

    async fn steal(&self, pick: Pick) -> Result<(), String> {
        let Some(held) = chosen(&self.shared().held, pick).cloned() else {
            return Ok(());
        };
        let thief = Held {
            instance: instance(9),
            ..held
        };
        for outcome in [RunOutcome::NoResult, RunOutcome::Failed] {
            if self.record(&thief, &report(outcome)).await? {
                return Err(format!("{:?} was recorded by another instance", thief.run));
            }
        }
        Ok(())
    }

    /// Whether the store took it.
    async fn record(&self, held: &Held, report: &RunReport) -> Result<bool, String> {
        let recorded = self
            .store()
            .record_run(&held.instance, &held.run, report)
            .await
            .map_err(text)?;
        let mut shared = self.shared();
        match recorded {
            Recorded::Lost => shared.tally.lost += 1,
            Recorded::Done { settled, .. } => {
                shared.tally.recorded += 1;
                let all_present = report.outcome == RunOutcome::Present && settled.is_some();
                shared.tally.activated += u64::from(all_present);
            }
        }
        Ok(recorded != Recorded::Lost)
    }

    async fn release(&self, pick: Pick, stranger: bool) -> Result<(), String> {
        let Some(rental) = self.rental(pick) else {
            return Ok(());
        };
        let store = self.store();
        let Some(view) = store.rental(Scope::All, rental).await.map_err(text)? else {
            return Err(format!("rental {rental} is gone from the table"));
        };
        let other = if view.user_id == self.bed().alice {
            self.bed().bob
        } else {
            self.bed().alice
        };
        let (scope, expected) = match stranger {
            true => (Scope::Own(other), Release::NotFound),
            false => (Scope::Own(view.user_id), Release::Done),
        };
        let released = store.release(scope, rental).await.map_err(text)?;
        if released == expected {
            Ok(())
        } else {
            Err(format!("{rental}: {released:?}"))
        }
    }

    pub(crate) async fn register(&self, worker: u32, moved: bool) -> Result<(), String> {
        let port = if moved {
            23_000 + worker
        } else {
            22_000 + worker
        };
        match self
            .bed()
            .register_with(&self.store(), worker, u16::try_from(port).map_err(text)?)
            .await
        {
            Ok(Registered::Created(_) | Registered::Updated(_)) => Ok(()),
            Ok(other) => Err(format!("worker {worker}: {other:?}")),
            Err(error) => Err(text(error)),
        }
    }
}

impl Shared {
    fn act(&mut self, run: &ClaimedRun) -> RunReport {
        self.tally.acted += 1;
        self.world.act(run)
    }
}

fn result_of(probe: Probe) -> ProbeResult {
    match probe {
        Probe::LoggedIn => ProbeResult::LoggedIn,
        Probe::NoAnswer => ProbeResult::NoAnswer("timed out".to_owned()),
        Probe::WrongKey => ProbeResult::WrongHostKey(host_key(9_999)),
        Probe::Refused => ProbeResult::Refused("no".to_owned()),
    }
}
