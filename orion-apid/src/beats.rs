//! Records beats in batches: a thousand agents beat every five seconds, and a commit for each would cost an fsync each.

mod reports;

use std::collections::HashMap;
use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use orion_core::beats::SHORTEST_S;
use orion_core::{NodeId, ProblemCode, PublicKey};
use orion_store::{Beat, BeatOutcome, BeatsRecorded, HeldOnNode, Store, StoreError};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::beats::reports::Reports;
use crate::http::problem::{Failure, chain};
use crate::metrics::Metrics;
use crate::schedd::Schedd;

/// The shortest time between the starts of two commits. The first beat after a quiet time is recorded at once.
const SPACING: Duration = Duration::from_millis(600);

/// Nodes of one commit: twice what comes within [`SPACING`] at 400 beats a second, or a commit would be due whenever a
/// batch is full.
const MAX_BATCH: usize = 500;

/// The nodes are counted that often, for the interval of beats.
const COUNT_EVERY: Duration = Duration::from_secs(10);

/// Beats that may wait; agents beyond that are told to come later.
const MAX_WAITING: usize = 10_000;

/// What became of one beat.
#[derive(Debug, Clone)]
pub struct RecordedBeat {
    /// Its outcome.
    pub outcome: BeatOutcome,
    /// What is wanted of the account that the node holds.
    pub held: Option<HeldOnNode>,
    /// The pool's SSH public keys, the newest first.
    pub pool_keys: Arc<[String]>,
    /// When the node beats next (seconds).
    pub interval_s: u32,
}

type Outcome = Result<RecordedBeat, Lost>;

/// One beat of each node and signer: a stranger's must not displace a node's own.
type Pending = HashMap<(NodeId, Option<PublicKey>), (Beat, Vec<oneshot::Sender<Outcome>>)>;

/// The commit failed; the log knows why.
#[derive(Debug, Clone, Copy)]
struct Lost {
    database_down: bool,
}

/// The interval of beats that was worked out last, while it holds.
#[derive(Debug, Clone, Default)]
struct Interval(Arc<Mutex<Option<(u32, Instant)>>>);

impl Interval {
    fn known(&self) -> Option<u32> {
        let known = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (interval_s, since) = known?;
        (since.elapsed() < COUNT_EVERY).then_some(interval_s)
    }

    fn learn(&self, interval_s: u32) {
        let new = Some((interval_s, Instant::now()));
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = new;
    }
}

/// Hands beats to the writer.
#[derive(Debug, Clone)]
pub struct Beats {
    queue: mpsc::Sender<(Beat, oneshot::Sender<Outcome>)>,
}

impl Beats {
    /// The handle, and the writer that must be run; it ends when every handle is gone.
    pub fn new(
        store: Store,
        schedd: Schedd,
        metrics: Metrics,
    ) -> (Self, impl Future<Output = ()> + Send) {
        let (reports, follower) = reports::follow(store.clone(), schedd);
        let interval = Interval::default();
        let (beats, writer) = Self::with_writer(metrics, reports, move |beats: Vec<Beat>| {
            let (store, interval) = (store.clone(), interval.clone());
            async move {
                let known = interval.known();
                let recorded = store.beat_many(&beats, known).await?;
                if known.is_none() {
                    interval.learn(recorded.interval_s);
                }
                Ok(recorded)
            }
        });
        // Large, and held for as long as the daemon runs.
        let (writer, follower) = (Box::pin(writer), Box::pin(follower));
        (beats, async move {
            tokio::join!(writer, follower);
        })
    }

    fn with_writer<W, F>(
        metrics: Metrics,
        reports: Reports,
        write: W,
    ) -> (Self, impl Future<Output = ()> + Send)
    where
        W: Fn(Vec<Beat>) -> F + Send + Sync,
        F: Future<Output = Result<BeatsRecorded, StoreError>> + Send,
    {
        let (queue, waiting) = mpsc::channel(MAX_WAITING);
        (Self { queue }, write_all(waiting, metrics, reports, write))
    }

    /// Records a beat; returns after the commit.
    ///
    /// # Errors
    /// `database_down`, `internal`; `too_many_requests` where too many wait.
    pub async fn record(&self, beat: Beat) -> Result<RecordedBeat, Failure> {
        let (sender, outcome) = oneshot::channel();
        if self.queue.try_send((beat, sender)).is_err() {
            let detail = "too many beats wait to be recorded";
            return Err(Failure::new(ProblemCode::TooManyRequests, detail).retry_after(5));
        }
        let down = Lost {
            database_down: true,
        };
        match outcome.await.unwrap_or(Err(down)) {
            Ok(recorded) => Ok(recorded),
            Err(Lost {
                database_down: true,
            }) => Err(Failure::database_down("see the writer's line")),
            Err(Lost {
                database_down: false,
            }) => Err(Failure::internal("see the writer's line")),
        }
    }
}

async fn write_all<W, F>(
    mut waiting: mpsc::Receiver<(Beat, oneshot::Sender<Outcome>)>,
    metrics: Metrics,
    reports: Reports,
    write: W,
) where
    W: Fn(Vec<Beat>) -> F,
    F: Future<Output = Result<BeatsRecorded, StoreError>>,
{
    let mut next = Instant::now();
    while let Some(first) = waiting.recv().await {
        let mut batch = Pending::new();
        add(&mut batch, first);
        let mut due = pin!(tokio::time::sleep_until(next));
        // Whatever is in the queue comes along, even where the commit is due already.
        while batch.len() < MAX_BATCH {
            let more = tokio::select! {
                biased;
                more = waiting.recv() => more,
                () = &mut due => None,
            };
            let Some(more) = more else { break };
            add(&mut batch, more);
        }
        next = Instant::now() + SPACING;
        settle(batch, &metrics, &reports, &write).await;
    }
}

/// A node that beats twice within a batch is written once, with what it said last, and both beats are answered. A signed
/// one whose counter does not rise is a copy.
fn add(batch: &mut Pending, (beat, sender): (Beat, oneshot::Sender<Outcome>)) {
    let counter = |beat: &Beat| beat.signed.map(|by| by.counter);
    let signer = beat.signed.map(|by| by.key);
    let entry = batch
        .entry((beat.node, signer))
        .or_insert_with(|| (beat.clone(), Vec::new()));
    let first = entry.1.is_empty();
    if !first
        && let (Some(known), Some(new)) = (counter(&entry.0), counter(&beat))
        && new <= known
    {
        let copy = RecordedBeat {
            outcome: BeatOutcome::OldCounter(known),
            held: None,
            pool_keys: Arc::default(),
            interval_s: SHORTEST_S,
        };
        // An agent that hung up wants no answer.
        sender.send(Ok(copy)).unwrap_or_default();
        return;
    }
    entry.0 = beat;
    entry.1.push(sender);
}

async fn settle<W, F>(batch: Pending, metrics: &Metrics, reports: &Reports, write: W)
where
    W: Fn(Vec<Beat>) -> F,
    F: Future<Output = Result<BeatsRecorded, StoreError>>,
{
    let (beats, waiting): (Vec<Beat>, Vec<_>) = batch.into_values().unzip();
    metrics.beat_commits.inc();
    let nodes = beats.len();
    let of_nodes: Vec<NodeId> = beats.iter().map(|beat| beat.node).collect();
    let result = write(beats).await.map_err(|error| {
        tracing::warn!(error = chain(&error), nodes, "beats were not recorded");
        Lost {
            database_down: error.is_unavailable(),
        }
    });
    let outcomes: Vec<Outcome> = match result {
        Ok(recorded) => {
            metrics.beat_interval.set(recorded.interval_s.into());
            for report in recorded.differing {
                // Where there is no room the next beat says it again.
                reports.try_send(report).unwrap_or_default();
            }
            let pool_keys: Arc<[String]> = recorded.pool_keys.into();
            let with_keys = |(outcome, node): (BeatOutcome, NodeId)| {
                Ok(RecordedBeat {
                    outcome,
                    held: recorded.held.get(&node).copied(),
                    pool_keys: Arc::clone(&pool_keys),
                    interval_s: recorded.interval_s,
                })
            };
            let outcomes = recorded.outcomes.iter().copied();
            outcomes.zip(of_nodes).map(with_keys).collect()
        }
        Err(lost) => vec![Err(lost); nodes],
    };
    for (senders, outcome) in waiting.into_iter().zip(outcomes) {
        for sender in senders {
            if outcome.is_ok() {
                metrics.beats.inc();
            }
            // An agent that hung up wants no answer.
            sender.send(outcome.clone()).unwrap_or_default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use orion_core::NodeStatus;
    use orion_store::SignedBy;
    use std::sync::Mutex;

    const RECORDED: BeatOutcome = BeatOutcome::Recorded {
        status: NodeStatus::Alive,
    };

    fn beat(node: u64, boot: &str) -> Beat {
        Beat {
            node: NodeId(node),
            boot_id: boot.to_owned(),
            agent: "0.1.0".to_owned(),
            signed: None,
            signing_key: None,
            accounts: None,
        }
    }

    fn no_reports() -> Reports {
        mpsc::channel(1).0
    }

    fn signed(node: u64, key: u8, counter: u64) -> Beat {
        Beat {
            signed: Some(SignedBy {
                key: PublicKey::from_bytes([key; 32]),
                next_key: None,
                counter,
            }),
            ..beat(node, "a")
        }
    }

    type Written = Arc<Mutex<Vec<Vec<(u64, String)>>>>;

    /// A writer that knows the nodes below 1000 and keeps what it was given, sorted.
    fn recorder() -> (Beats, Written) {
        let written = Written::default();
        let kept = Arc::clone(&written);
        let (beats, writer) =
            Beats::with_writer(Metrics::default(), no_reports(), move |batch: Vec<Beat>| {
                let judge = |beat: &Beat| match beat.node.0 {
                    0..1000 => RECORDED,
                    _ => BeatOutcome::Unknown,
                };
                let recorded = BeatsRecorded {
                    outcomes: batch.iter().map(judge).collect(),
                    pool_keys: vec!["ssh-ed25519 AAAA".to_owned()],
                    ..BeatsRecorded::default()
                };
                let mut rows: Vec<_> = batch
                    .into_iter()
                    .map(|beat| (beat.node.0, beat.boot_id))
                    .collect();
                rows.sort();
                kept.lock().unwrap().push(rows);
                async move { Ok(recorded) }
            });
        tokio::spawn(writer);
        (beats, written)
    }

    async fn record(beats: &Beats, beat: Beat) -> BeatOutcome {
        beats.record(beat).await.unwrap().outcome
    }

    /// The outcomes in the order of the beats.
    async fn record_all(beats: &Beats, all: Vec<Beat>) -> Vec<BeatOutcome> {
        let all = all.into_iter().map(|beat| {
            let beats = beats.clone();
            tokio::spawn(async move { record(&beats, beat).await })
        });
        let mut outcomes = Vec::new();
        for one in all.collect::<Vec<_>>() {
            outcomes.push(one.await.unwrap());
        }
        outcomes
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_beat_is_recorded_at_once_and_those_that_follow_together() {
        let (beats, written) = recorder();
        let start = Instant::now();
        assert_eq!(record(&beats, beat(1, "a")).await, RECORDED);
        assert!(start.elapsed() < Duration::from_millis(10));
        let outcomes = record_all(&beats, (2..=50).map(|node| beat(node, "a")).collect()).await;
        assert!(outcomes.into_iter().all(|outcome| outcome == RECORDED));
        assert!(
            start.elapsed() <= Duration::from_secs(1),
            "{:?}",
            start.elapsed()
        );
        let written = written.lock().unwrap();
        assert_eq!(written.iter().map(Vec::len).collect::<Vec<_>>(), [1, 49]);
    }

    #[tokio::test(start_paused = true)]
    async fn beats_that_trickle_in_share_commits() {
        let (beats, written) = recorder();
        let mut tasks = tokio::task::JoinSet::new();
        for node in 1..=40_u32 {
            let beats = beats.clone();
            tasks.spawn(async move {
                tokio::time::sleep(Duration::from_millis(50) * node).await;
                let start = Instant::now();
                beats.record(beat(node.into(), "a")).await.unwrap();
                start.elapsed()
            });
        }
        let longest = tasks.join_all().await.into_iter().max().unwrap();
        assert!(longest <= Duration::from_secs(1), "{longest:?}");
        let commits = written.lock().unwrap().len();
        assert!(commits <= 6, "{commits} commits in two seconds");
    }

    #[tokio::test(start_paused = true)]
    async fn a_batch_has_at_most_500_nodes() {
        let (beats, written) = recorder();
        record_all(&beats, (1..=950).map(|node| beat(node, "a")).collect()).await;
        let written = written.lock().unwrap();
        assert!(written.iter().all(|batch| batch.len() <= MAX_BATCH));
        assert_eq!(written.iter().map(Vec::len).sum::<usize>(), 950);
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_that_beats_twice_in_a_batch_is_written_once_and_answered_twice() {
        let (beats, written) = recorder();
        record_all(&beats, vec![beat(9, "x")]).await;
        assert_eq!(
            record_all(&beats, vec![beat(1, "a"), beat(1, "b")]).await,
            [RECORDED, RECORDED]
        );
        assert_eq!(written.lock().unwrap()[1], [(1, "b".to_owned())]);
    }

    #[tokio::test(start_paused = true)]
    async fn unknown_nodes_are_told_so() {
        let (beats, _) = recorder();
        assert_eq!(record(&beats, beat(1000, "a")).await, BeatOutcome::Unknown);
    }

    #[tokio::test(start_paused = true)]
    async fn a_copy_in_the_same_batch_is_told_that_its_counter_was_used() {
        let (beats, _) = recorder();
        record(&beats, beat(9, "x")).await;
        let all = vec![signed(1, 1, 7), signed(1, 1, 7), signed(1, 1, 8)];
        let outcomes = record_all(&beats, all).await;
        assert_eq!(outcomes, [RECORDED, BeatOutcome::OldCounter(7), RECORDED]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_strangers_beat_for_a_node_does_not_displace_its_own() {
        let (beats, written) = recorder();
        record(&beats, beat(9, "x")).await;
        record_all(
            &beats,
            vec![signed(1, 1, 7), signed(1, 2, 99), beat(1, "bare")],
        )
        .await;
        assert_eq!(written.lock().unwrap()[1].len(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn when_the_commit_fails_every_agent_learns_it_and_the_next_batch_is_tried() {
        let (beats, writer) = Beats::with_writer(Metrics::default(), no_reports(), |_| async {
            Err(StoreError::TimedOut)
        });
        tokio::spawn(writer);
        for _ in 0..2 {
            let failure = beats.record(beat(1, "a")).await.unwrap_err();
            assert_eq!(failure.code, ProblemCode::DatabaseDown);
        }
    }
}
