//! Looks at every node: a login for all, a dial of the addresses that are claimed, an inspection for the joining ones, for
//! those whose status changed, and for all others in turn.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use orion_core::NodeStatus;
use orion_store::{ProbeTarget, StoreError};
use tokio::time::Instant;

use super::{BATCH, Counts, JobContext};

/// How long a tick waits for its probes; slower ones go on beside later ticks.
const WAIT: Duration = Duration::from_secs(4);

/// The first tick counts like this much time.
const FIRST_TICK: Duration = Duration::from_secs(5);
/// Longer ago than this, the last tick was another time.
const LONGEST_TICK: Duration = Duration::from_secs(60);

/// Without any agent's beat for so long, the agents are not to blame one by one.
const NOBODY_BEATS: Duration = Duration::from_secs(15);
/// After that every agent gets so long to beat again before it is called silent.
const TO_COME_BACK: Duration = Duration::from_secs(60);
/// An agent that is silent for so long is called so all the same: it may be the only one.
const SILENT_ALL_THE_SAME: Duration = Duration::from_secs(180);

/// What `/readyz` names while workers hold accounts that the database never gave out.
pub(super) const OUTDATED: &str = "database_age";

/// What one tick tells the next; cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ticks(Arc<Mutex<Memory>>);

#[derive(Debug, Default)]
struct Memory {
    last: Option<Instant>,
    beats_since: Option<Instant>,
}

impl Ticks {
    /// How long ago the last tick was, and from when on an agent's silence is its own.
    fn next(&self, now: Instant, newest_beat_age: Option<Duration>) -> (Duration, Duration) {
        let mut memory = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let since_last = memory.last.map(|last| now.duration_since(last));
        memory.last = Some(now);
        let heard = newest_beat_age.is_some_and(|age| age < NOBODY_BEATS)
            && since_last.is_some_and(|gap| gap < LONGEST_TICK);
        memory.beats_since = memory
            .beats_since
            .filter(|_| heard)
            .or(heard.then_some(now));
        let own = memory
            .beats_since
            .is_some_and(|since| now.duration_since(since) >= TO_COME_BACK);
        let least = if own {
            Duration::ZERO
        } else {
            SILENT_ALL_THE_SAME
        };
        (since_last.unwrap_or(FIRST_TICK).min(LONGEST_TICK), least)
    }
}

/// One tick.
///
/// # Errors
/// When the database is away.
pub(super) async fn run(context: &JobContext) -> Result<Counts, StoreError> {
    context.grace.before_a_look(&context.store).await?;
    let joining = queue_inspections(context).await?;
    let targets = context.store.probe_targets().await?;
    context.grace.looked();
    let nodes = u64::try_from(targets.len()).unwrap_or(u64::MAX);
    let newest_beat_age = context.store.newest_beat_age().await?;
    let (tick, least) = context.ticks.next(Instant::now(), newest_beat_age);
    let deep = context
        .store
        .queue_deep_inspections(context.deep_every, tick, nodes)
        .await?;
    if deep > 0 {
        context.executor.wake();
    }
    let mut counts = context.prober.probe(targets, WAIT).await;
    counts.insert("agents_down", judge_agents(context, least).await?);
    look_for_an_old_database(context).await?;
    counts.insert("nodes", nodes);
    counts.insert("inspections", joining + deep);
    Ok(counts)
}

/// Beats lost, but SSH works: an alarm, and nothing moves.
async fn judge_agents(context: &JobContext, least: Duration) -> Result<u64, StoreError> {
    let judged = context.store.judge_agents(least).await?;
    if !judged.down.is_empty() {
        let nodes = judged.down.join(", ");
        tracing::warn!(
            nodes,
            "agents are silent although SSH works: nothing moves, but nobody there ends accounts while the control plane is away; look at `systemctl status orion-agentd` on these machines, and at orion-apid's agents' listener if they are many"
        );
    }
    if !judged.back.is_empty() {
        let nodes = judged.back.join(", ");
        tracing::info!(nodes, "agents beat again");
    }
    context.metrics.agents_down(judged.all_down);
    Ok(judged.all_down)
}

/// Accounts that were never given out, on several nodes: provisioning stops until an administrator acts.
async fn look_for_an_old_database(context: &JobContext) -> Result<(), StoreError> {
    let outdated = context.store.outdated().await?;
    context.metrics.database_outdated(outdated.is_some());
    match outdated {
        None => context.ready.set_ready(OUTDATED),
        Some(found) => {
            let (nodes, highest, next) = (found.nodes, found.highest_uid, found.next_uid);
            let reason = format!(
                "{nodes} nodes hold accounts up to UID {highest}, and the next UID is {next}: the database is an old one, nothing is provisioned; see `orion-apid raise-counter`"
            );
            context.ready.set_not_ready(OUTDATED, reason);
        }
    }
    Ok(())
}

/// What can't wait for the next tick when somebody said `look`: nodes never dialled, and claimed addresses.
///
/// # Errors
/// When the database is away.
pub(super) async fn newcomers(context: &JobContext) -> Result<(), StoreError> {
    queue_inspections(context).await?;
    let is_new =
        |target: &ProbeTarget| target.status == NodeStatus::Unknown || target.pending.is_some();
    let targets = context.store.probe_targets().await?;
    let targets: Vec<_> = targets.into_iter().filter(is_new).collect();
    if !targets.is_empty() {
        context.prober.probe(targets, WAIT).await;
    }
    Ok(())
}

async fn queue_inspections(context: &JobContext) -> Result<u64, StoreError> {
    let queued = context.store.queue_inspections(BATCH).await?;
    if queued > 0 {
        context.executor.wake();
    }
    Ok(queued)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEATS: Option<Duration> = Some(Duration::from_secs(3));

    #[test]
    fn an_agent_s_silence_is_its_own_only_while_others_have_beaten_for_a_while() {
        let (ticks, start) = (Ticks::default(), Instant::now());
        let least = |seconds, newest| {
            let (_, least) = ticks.next(start + Duration::from_secs(seconds), newest);
            least == Duration::ZERO
        };
        assert!(!least(0, BEATS) && !least(5, BEATS) && !least(60, BEATS));
        assert!(least(65, BEATS) && least(70, BEATS));
        assert!(!least(75, Some(NOBODY_BEATS)), "nobody beats: it is us");
        assert!(!least(80, BEATS) && !least(135, BEATS) && least(140, BEATS));
        assert!(!least(145, None));
        assert!(!least(400, BEATS), "nobody looked meanwhile");
    }

    #[test]
    fn a_tick_counts_the_time_since_the_last_one() {
        let (ticks, start) = (Ticks::default(), Instant::now());
        let tick = |seconds| ticks.next(start + Duration::from_secs(seconds), BEATS).0;
        assert_eq!(tick(0), FIRST_TICK);
        assert_eq!(tick(7), Duration::from_secs(7));
        assert_eq!(tick(7_000), LONGEST_TICK);
    }
}
