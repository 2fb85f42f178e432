//! What the cron jobs ask: each heals by itself, does nothing twice, and takes a little at a time.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use orion_core::{RequestState, RunKind, RunOutcome, UndoReason};
use orion_store::*;
use std::time::Duration;
use support::{Bed, DEADLINE, HOUR};

fn seconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap()
}

#[tokio::test]
async fn a_request_past_its_deadline_is_undone_once() {
    let (bed, _) = Bed::with_nodes(1).await;
    let opened = bed.opened(bed.alice, 1).await;
    let deadline = seconds(DEADLINE);
    assert_eq!(
        bed.later(deadline - 5).reconcile().await.unwrap(),
        Reconciled::default()
    );
    let done = bed.later(deadline + 1).reconcile().await.unwrap();
    assert_eq!(done.undone, [opened.id]);
    assert_eq!(
        bed.later(deadline + 1).reconcile().await.unwrap(),
        Reconciled::default()
    );
    let seen = bed.store.request(opened.id).await.unwrap().unwrap();
    assert_eq!(
        (seen.state, seen.undo_reason),
        (RequestState::Undone, Some(UndoReason::Deadline))
    );
    bed.check().await;
}

#[tokio::test]
async fn a_request_whose_apid_died_before_hashing_is_undone_too() {
    let (bed, _) = Bed::with_nodes(1).await;
    bed.rent(bed.alice, 1).await;
    assert_eq!(
        bed.later(seconds(DEADLINE) + 1)
            .reconcile()
            .await
            .unwrap()
            .undone
            .len(),
        1
    );
    let run = bed.claim_one(RunKind::Clean).await;
    bed.record(&run, RunOutcome::Gone).await;
    assert_eq!(bed.one("SELECT availability FROM nodes"), "ready");
    bed.check().await;
}

#[tokio::test]
async fn rentals_end_when_their_time_is_over_and_not_before() {
    let (bed, _) = Bed::with_nodes(3).await;
    let rentals = bed.active(bed.alice, 3).await;
    bed.store
        .extend(Scope::All, rentals[0], HOUR, 10 * HOUR)
        .await
        .unwrap();
    assert_eq!(bed.later(3_590).expire_rentals(10).await.unwrap(), 0);
    assert_eq!(
        bed.later(3_601).expire_rentals(1).await.unwrap(),
        1,
        "a little at a time"
    );
    assert_eq!(bed.later(3_601).expire_rentals(10).await.unwrap(), 1);
    assert_eq!(bed.later(3_601).expire_rentals(10).await.unwrap(), 0);
    assert_eq!(bed.rental_state(rentals[0]), "active");
    assert_eq!(
        bed.one("SELECT DISTINCT end_reason FROM rentals WHERE state = 'ending'"),
        "expired"
    );
    assert_eq!(bed.later(7_201).expire_rentals(10).await.unwrap(), 1);
    bed.check().await;
}

#[tokio::test]
async fn debts_are_retried_later_and_later_up_to_a_minute() {
    let (bed, _) = Bed::with_nodes(1).await;
    let rental = bed.active(bed.alice, 1).await[0];
    bed.store.release(Scope::All, rental).await.unwrap();
    let mut now = 0;
    for wait in [1, 2, 4, 8, 16, 32, 60, 60, 60] {
        let run = bed.claim_one(RunKind::Clean).await;
        let report = support::report(RunOutcome::Unreachable);
        bed.later(now)
            .record_run(&support::instance(1), &run, &report)
            .await
            .unwrap();
        assert_eq!(
            bed.later(now + wait - 1).queue_cleaning(10).await.unwrap(),
            0,
            "before {wait} s"
        );
        now += wait + 1;
        assert_eq!(
            bed.later(now).queue_cleaning(10).await.unwrap(),
            1,
            "after {wait} s"
        );
    }
    bed.check().await;
}

#[tokio::test]
async fn cleaning_takes_the_oldest_debts_first_and_a_few_at_a_time() {
    let (bed, _) = Bed::with_nodes(3).await;
    let rentals = bed.active(bed.alice, 3).await;
    for (age, rental) in rentals.iter().enumerate() {
        bed.later(i64::try_from(age).unwrap())
            .release(Scope::All, *rental)
            .await
            .unwrap();
    }
    for run in bed.claim(RunKind::Clean).await {
        bed.record(&run, RunOutcome::Failed).await;
    }
    assert_eq!(bed.later(60).queue_cleaning(2).await.unwrap(), 2);
    let first: Vec<_> = bed
        .claim(RunKind::Clean)
        .await
        .iter()
        .map(|run| run.account.clone().unwrap().uid)
        .collect();
    let expected: Vec<_> = rentals[..2]
        .iter()
        .map(|id| orion_core::Uid(support::UID_BASE + u32::try_from(id.0).unwrap()))
        .collect();
    assert_eq!(first, expected);
    assert_eq!(bed.later(60).queue_cleaning(10).await.unwrap(), 1);
}

#[tokio::test]
async fn joining_nodes_are_inspected_again_with_growing_pauses() {
    let bed = Bed::new().await;
    let node = bed.register_new().await;
    let mut now = 0;
    for failures in 1..=8_u32 {
        let run = bed.claim_one(RunKind::Inspect).await;
        let report = support::report(RunOutcome::Failed);
        bed.later(now)
            .record_run(&support::instance(1), &run, &report)
            .await
            .unwrap();
        let wait = i64::from(2_u32.pow(failures.min(6)).min(60));
        assert_eq!(
            bed.later(now + wait - 1)
                .queue_inspections(10)
                .await
                .unwrap(),
            0,
            "{failures} failures"
        );
        now += wait + 1;
        assert_eq!(
            bed.later(now).queue_inspections(10).await.unwrap(),
            1,
            "{failures} failures"
        );
        assert_eq!(
            bed.later(now).queue_inspections(10).await.unwrap(),
            0,
            "one is open"
        );
    }
    assert!(bed.node_state(node).ends_with("joining"));
}

#[tokio::test]
async fn nothing_is_queued_for_nodes_that_are_ready_forgotten_or_nowhere() {
    let (bed, nodes) = Bed::with_nodes(3).await;
    bed.db.sql(&format!(
        "UPDATE nodes SET availability = 'joining' WHERE id <> {}",
        nodes[0]
    ));
    bed.store.forget_node(nodes[1]).await.unwrap();
    bed.db.sql(&format!(
        "UPDATE nodes SET contact_host = NULL, contact_port = NULL WHERE id = {}",
        nodes[2]
    ));
    assert_eq!(bed.later(600).queue_inspections(10).await.unwrap(), 0);
}

/// How many inspections a tick five seconds long queues then, of a pool that is gone through in ten minutes.
async fn deep(bed: &Bed, seconds: i64, nodes: u64) -> u64 {
    let (every, tick) = (Duration::from_secs(600), Duration::from_secs(5));
    let store = bed.later(seconds);
    store
        .queue_deep_inspections(every, tick, nodes)
        .await
        .unwrap()
}

async fn inspect_all(bed: &Bed, seconds: i64) -> usize {
    let runs = bed.claim(RunKind::Inspect).await;
    for run in &runs {
        let store = bed.later(seconds);
        let clean = support::report(RunOutcome::Clean);
        store
            .record_run(&support::instance(1), run, &clean)
            .await
            .unwrap();
    }
    runs.len()
}

#[tokio::test]
async fn every_node_is_inspected_in_its_turn_and_the_turns_are_spread() {
    let (bed, nodes) = Bed::with_nodes(4).await;
    bed.active(bed.alice, 1).await;
    assert_eq!(
        deep(&bed, 590, 4).await,
        0,
        "each was looked at when it joined"
    );
    assert_eq!(
        deep(&bed, 610, 4).await,
        1,
        "one of four in five seconds of 600"
    );
    assert_eq!(deep(&bed, 610, 240).await, 2);
    assert_eq!(deep(&bed, 610, 100_000).await, 1, "and none twice");
    let waiting = bed.claim(RunKind::Inspect).await;
    assert_eq!(waiting.len(), nodes.len());
    for run in &waiting {
        // However it ended, the next turn comes.
        bed.later(611)
            .record_run(
                &support::instance(1),
                run,
                &support::report(RunOutcome::Failed),
            )
            .await
            .unwrap();
    }
    assert_eq!(deep(&bed, 1_200, 100_000).await, 0);
    assert_eq!(deep(&bed, 1_220, 100_000).await, 4);
    bed.check().await;
}

#[tokio::test]
async fn a_node_whose_status_changed_is_inspected_at_once_but_not_each_time() {
    let (bed, nodes) = Bed::with_nodes(2).await;
    let probe = async |seconds, result: ProbeResult| {
        bed.later(seconds)
            .record_probe(nodes[0], &result)
            .await
            .unwrap();
    };
    let silence = || ProbeResult::NoAnswer("timed out".to_owned());
    probe(100, silence()).await;
    assert_eq!(deep(&bed, 101, 2).await, 1, "suspect");
    assert_eq!(inspect_all(&bed, 103).await, 1);
    assert_eq!(bed.node_state(nodes[0]), "alive ready");
    probe(110, silence()).await;
    probe(115, ProbeResult::LoggedIn).await;
    assert_eq!(deep(&bed, 116, 2).await, 0, "a minute has to pass");
    assert_eq!(deep(&bed, 165, 2).await, 1, "back");
    inspect_all(&bed, 166).await;
    assert_eq!(deep(&bed, 300, 2).await, 0);
    bed.check().await;
}
