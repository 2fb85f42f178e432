//! Debts that administrators see, and those that somebody must look after.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "helpers of tests"
)]

mod support;

use orion_core::{NodeId, RentalId, RunKind, RunOutcome};
use orion_store::*;
use serde_json::json;
use std::time::Duration;
use support::moves::{dies, node_of};
use support::{Bed, HOLD, instance, report};

/// A node that owes the account of a rental that was released.
async fn owing() -> (Bed, NodeId, RentalId) {
    let (bed, _) = Bed::with_nodes(2).await;
    let rental = bed.active(bed.alice, 1).await[0];
    let node = node_of(&bed, rental);
    bed.store.release(Scope::All, rental).await.unwrap();
    (bed, node, rental)
}

/// One more attempt, `second` later.
async fn attempt(bed: &Bed, second: i64, report: &RunReport) {
    let store = bed.later(second);
    store.queue_cleaning(9).await.unwrap();
    let runs = store
        .claim_runs(&instance(1), RunKind::Clean, 9, HOLD)
        .await
        .unwrap();
    assert_eq!(runs.len(), 1);
    store
        .record_run(&instance(1), &runs[0], report)
        .await
        .unwrap();
}

fn not_gone() -> RunReport {
    RunReport {
        detail: Some("2 things are left, first /srv/mount".to_owned()),
        evidence: Some(json!({"left": ["/srv/mount", "process 7 (sleep)"]})),
        ..report(RunOutcome::NotGone)
    }
}

#[tokio::test]
async fn an_administrator_sees_a_nodes_debt_and_nobody_else_does() {
    let (bed, node, rental) = owing().await;
    let debt = async |scope| bed.store.node(scope, node).await.unwrap().unwrap().debt;
    let seen = debt(Scope::All).await.unwrap();
    assert_eq!(
        (seen.rental_id, seen.attempts, seen.last_result),
        (rental, 0, None)
    );
    assert_eq!(
        u64::from(seen.uid.0),
        u64::from(support::UID_BASE) + rental.0
    );
    attempt(&bed, 0, &report(RunOutcome::Unreachable)).await;
    attempt(&bed, 100, &not_gone()).await;
    let later = debt(Scope::All).await.unwrap();
    assert_eq!(
        (later.since, later.attempts),
        (seen.since, 2),
        "as old as it is"
    );
    let last = later.last_result.unwrap();
    assert_eq!(last, "not_gone: 2 things are left, first /srv/mount");
    assert!(debt(Scope::Own(bed.alice)).await.is_none());
    let all = bed.store.nodes(Scope::All).await.unwrap();
    let owing: Vec<NodeId> = all
        .iter()
        .filter(|n| n.debt.is_some())
        .map(|n| n.node_id)
        .collect();
    assert_eq!(owing, [node]);
    attempt(&bed, 200, &report(RunOutcome::Gone)).await;
    assert!(debt(Scope::All).await.is_none());
}

#[tokio::test]
async fn five_cleanings_that_failed_although_the_node_answered_quarantine_it_and_say_what_to_do() {
    let (bed, node, rental) = owing().await;
    let outcomes = [
        RunOutcome::Failed,
        RunOutcome::Unreachable,
        RunOutcome::Refused,
        RunOutcome::StaleEpoch,
        RunOutcome::HostKeyMismatch,
        RunOutcome::NotGone,
    ];
    for (index, outcome) in outcomes.into_iter().enumerate() {
        attempt(&bed, 100 * i64::try_from(index).unwrap(), &report(outcome)).await;
        assert!(bed.node_state(node).ends_with("cleaning"), "{outcome}");
    }
    attempt(&bed, 700, &not_gone()).await;
    assert_eq!(bed.node_state(node), "alive quarantined");
    let view = bed.store.node(Scope::All, node).await.unwrap().unwrap();
    let reason = view.availability_reason.unwrap();
    for part in [
        "/srv/mount",
        "log in to the worker",
        "release it from quarantine",
    ] {
        assert!(reason.contains(part), "{reason}");
    }
    let event = bed.one("SELECT detail FROM events WHERE kind = 'node_quarantined'");
    assert!(event.contains("process 7 (sleep)"), "{event}");
    bed.check().await;
    attempt(&bed, 800, &report(RunOutcome::Gone)).await;
    assert_eq!(
        bed.node_state(node),
        "alive joining",
        "a verified clean lifts it"
    );
    assert_eq!(bed.rental_state(rental), "ended");
    bed.check().await;
}

#[tokio::test]
async fn what_a_worker_says_at_length_does_not_cut_off_what_to_do() {
    let (bed, node, _) = owing().await;
    let long = RunReport {
        detail: Some("ü".repeat(5_000)),
        evidence: Some(json!({"left": [7, {"x": 1}, "y".repeat(9_000)]})),
        ..report(RunOutcome::NotGone)
    };
    for round in 0..5 {
        attempt(&bed, 100 * round, &long).await;
    }
    let view = bed.store.node(Scope::All, node).await.unwrap().unwrap();
    let reason = view.availability_reason.unwrap();
    assert!(reason.contains("release it from quarantine"), "{reason}");
    bed.later(500).alarm_debts(9).await.unwrap();
    let alarm = bed.one("SELECT detail FROM events WHERE kind = 'debt_alarm'");
    assert!(alarm.ends_with("release it from quarantine"), "{alarm}");
}

#[tokio::test]
async fn a_debt_on_a_quarantined_node_is_told_once() {
    let (bed, node, _) = owing().await;
    for round in 0..4 {
        attempt(&bed, 100 * round, &not_gone()).await;
        let told = bed.later(100 * round).alarm_debts(9).await.unwrap();
        assert_eq!(told, [], "it may still be paid");
    }
    attempt(&bed, 400, &not_gone()).await;
    let told = bed.later(401).alarm_debts(9).await.unwrap();
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].node, node);
    for part in [
        "/srv/mount",
        "remove what is named",
        "release it from quarantine",
    ] {
        assert!(told[0].detail.contains(part), "{}", told[0].detail);
    }
    assert_eq!(bed.later(402).alarm_debts(9).await.unwrap(), []);
    let events = "SELECT COUNT(*) FROM events WHERE kind = 'debt_alarm' AND node_id IS NOT NULL AND rental_id IS NULL";
    assert_eq!(bed.one(events), "1", "not for its client");
}

#[tokio::test]
async fn an_old_debt_is_told_where_the_node_answers_and_not_where_it_is_dead() {
    let (bed, node, _) = owing().await;
    assert_eq!(bed.later(599).alarm_debts(9).await.unwrap(), []);
    dies(&bed, node, 600).await;
    assert_eq!(
        bed.later(700).alarm_debts(9).await.unwrap(),
        [],
        "cleanup waits for it"
    );
    bed.later(710)
        .record_probe(node, &ProbeResult::LoggedIn)
        .await
        .unwrap();
    let told = bed.later(711).alarm_debts(9).await.unwrap();
    assert_eq!(told.len(), 1);
    assert!(!told[0].detail.contains("quarantine"), "{}", told[0].detail);
}

#[tokio::test]
async fn debts_are_counted_and_the_oldest_has_an_age() {
    let (bed, _) = Bed::with_nodes(3).await;
    assert_eq!(bed.store.debts().await.unwrap(), Debts::default());
    let rentals = bed.active(bed.alice, 3).await;
    bed.store.release(Scope::All, rentals[0]).await.unwrap();
    bed.later(50).release(Scope::All, rentals[1]).await.unwrap();
    let debts = bed.later(90).debts().await.unwrap();
    assert_eq!(debts.count, 2);
    let age = Duration::from_secs(90);
    assert!(
        debts.oldest >= age && debts.oldest < age + Duration::from_secs(30),
        "{debts:?}"
    );
}

#[tokio::test]
async fn an_archive_that_is_no_archive_is_not_told_and_the_debt_is_paid() {
    for nonsense in [
        json!(7),
        json!({"path": 7}),
        json!(null),
        json!({"bytes": 1}),
    ] {
        let (bed, _, rental) = owing().await;
        let gone = RunReport {
            evidence: Some(json!({"kept_home": nonsense})),
            ..report(RunOutcome::Gone)
        };
        attempt(&bed, 0, &gone).await;
        assert_eq!(bed.rental_state(rental), "ended");
        assert_eq!(
            bed.one("SELECT COUNT(*) FROM events WHERE kind LIKE 'home%kept'"),
            "0"
        );
    }
}

#[tokio::test]
async fn files_that_could_not_be_kept_are_told_and_the_debt_is_paid() {
    let (bed, _, rental) = owing().await;
    let said = format!("broken off{}", "x".repeat(500));
    let kept = json!({"path": null, "truncated": true, "error": said});
    let gone = RunReport {
        evidence: Some(json!({"kept_home": kept})),
        ..report(RunOutcome::Gone)
    };
    attempt(&bed, 0, &gone).await;
    assert_eq!(bed.rental_state(rental), "ended");
    let told = bed.one("SELECT detail FROM events WHERE kind = 'home_not_kept'");
    assert!(
        told.starts_with("the files could not be kept: broken off") && told.len() < 200,
        "{told}"
    );
}
