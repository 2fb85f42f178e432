//! What the cron jobs ask: each heals by itself, does nothing twice, and takes a little at a time.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use orion_core::{RequestState, RunKind, RunOutcome, UndoReason};
use orion_store::*;
use support::{Bed, DEADLINE, HOUR};

fn seconds(duration: std::time::Duration) -> i64 {
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
