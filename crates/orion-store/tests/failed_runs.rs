//! What a run that failed, or that found something, means for its node and its request.

mod support;

use orion_core::{Availability, RequestState, RunKind, RunOutcome, UndoReason};
use orion_store::*;
use serde_json::json;
use support::{Bed, instance, report};

#[tokio::test]
async fn a_node_that_fails_is_replaced_by_one_the_request_was_not_on() {
    for outcome in [
        RunOutcome::Failed,
        RunOutcome::Refused,
        RunOutcome::Unreachable,
        RunOutcome::StaleEpoch,
        RunOutcome::HostKeyMismatch,
    ] {
        let (bed, _) = Bed::with_nodes(2).await;
        let opened = bed.opened(bed.alice, 1).await;
        let run = bed.claim_one(RunKind::Provision).await;
        let recorded = bed.record(&run, outcome).await;
        assert_eq!(
            recorded,
            Recorded::Done {
                settled: None,
                queued: true
            },
            "{outcome}"
        );
        let debt = bed.one("SELECT node_id FROM accounts WHERE state = 'leaving'");
        assert_eq!(debt, run.node.to_string());
        assert_eq!(
            bed.claim_one(RunKind::Clean).await.node,
            run.node,
            "it may exist all the same"
        );
        bed.check().await;
        let spare = bed.claim_one(RunKind::Provision).await;
        assert_ne!(spare.node, run.node);
        bed.record(&spare, RunOutcome::Present).await;
        assert_eq!(bed.rental_state(opened.rentals[0]), "active");
        bed.check().await;
    }
}

#[tokio::test]
async fn without_another_node_the_whole_request_is_undone() {
    let (bed, _) = Bed::with_nodes(3).await;
    let opened = bed.opened(bed.alice, 3).await;
    let runs = bed.claim(RunKind::Provision).await;
    bed.record(&runs[0], RunOutcome::Present).await;
    let recorded = bed.record(&runs[1], RunOutcome::Failed).await;
    assert_eq!(
        recorded,
        Recorded::Done {
            settled: Some(opened.id),
            queued: true
        }
    );
    let seen = bed.store.request(opened.id).await.unwrap().unwrap();
    assert_eq!(
        (seen.state, seen.undo_reason),
        (RequestState::Undone, Some(UndoReason::NoNode))
    );
    assert_eq!(
        bed.one("SELECT COUNT(*) FROM accounts WHERE state = 'leaving'"),
        "3"
    );
    bed.record(&runs[2], RunOutcome::Present).await;
    assert_eq!(
        bed.one("SELECT COUNT(*) FROM accounts WHERE state = 'leaving'"),
        "3",
        "present too late is a debt"
    );
    bed.check().await;
}

#[tokio::test]
async fn a_taken_name_is_tried_on_one_further_node_and_no_node_suffers() {
    let (bed, _) = Bed::with_nodes(5).await;
    let opened = bed.opened(bed.alice, 1).await;
    for _ in 0..2 {
        let run = bed.claim_one(RunKind::Provision).await;
        bed.record(&run, RunOutcome::NameTaken).await;
    }
    assert!(
        bed.claim(RunKind::Provision).await.is_empty(),
        "not the whole pool"
    );
    let seen = bed.store.request(opened.id).await.unwrap().unwrap();
    assert_eq!(seen.undo_reason, Some(UndoReason::NameTaken));
    for run in bed.claim(RunKind::Clean).await {
        bed.record(&run, RunOutcome::Gone).await;
    }
    assert_eq!(
        bed.one(
            "SELECT COUNT(*) FROM nodes WHERE availability = 'ready' AND failed_provisions = 0"
        ),
        "5"
    );
    bed.check().await;
}

#[tokio::test]
async fn a_name_taken_on_the_only_node_is_still_said_to_be_taken() {
    let (bed, _) = Bed::with_nodes(1).await;
    let opened = bed.opened(bed.alice, 1).await;
    let run = bed.claim_one(RunKind::Provision).await;
    bed.record(&run, RunOutcome::NameTaken).await;
    let seen = bed.store.request(opened.id).await.unwrap().unwrap();
    assert_eq!(seen.undo_reason, Some(UndoReason::NameTaken));
}

#[tokio::test]
async fn a_node_that_fails_twice_in_a_row_is_quarantined_and_its_debt_still_paid() {
    let (bed, nodes) = Bed::with_nodes(1).await;
    for round in 1..=2 {
        bed.opened(bed.alice, 1).await;
        let run = bed.claim_one(RunKind::Provision).await;
        bed.record(&run, RunOutcome::Failed).await;
        bed.check().await;
        let clean = bed.claim_one(RunKind::Clean).await;
        bed.record(&clean, RunOutcome::Gone).await;
        bed.check().await;
        let expected = if round == 1 {
            "alive ready"
        } else {
            "alive quarantined"
        };
        assert_eq!(bed.node_state(nodes[0]), expected);
    }
    assert_eq!(
        bed.one("SELECT COUNT(*) FROM accounts WHERE state <> 'gone'"),
        "0"
    );
    assert_eq!(
        bed.rent(bed.alice, 1).await,
        RentDecision::NoFreeNode { free: 0 }
    );
}

#[tokio::test]
async fn one_success_forgets_earlier_failures() {
    let (bed, nodes) = Bed::with_nodes(1).await;
    for outcome in [RunOutcome::Failed, RunOutcome::Present, RunOutcome::Failed] {
        let opened = bed.opened(bed.alice, 1).await;
        let run = bed.claim_one(RunKind::Provision).await;
        bed.record(&run, outcome).await;
        bed.store
            .release(Scope::All, opened.rentals[0])
            .await
            .unwrap();
        let clean = bed.claim_one(RunKind::Clean).await;
        bed.record(&clean, RunOutcome::Gone).await;
    }
    assert_eq!(bed.node_state(nodes[0]), "alive ready");
}

#[tokio::test]
async fn a_debt_that_is_not_paid_stays_one_and_is_retried_at_a_higher_epoch() {
    for outcome in [
        RunOutcome::NotGone,
        RunOutcome::Failed,
        RunOutcome::Unreachable,
        RunOutcome::StaleEpoch,
    ] {
        let (bed, _) = Bed::with_nodes(1).await;
        let rental = bed.active(bed.alice, 1).await[0];
        bed.store.release(Scope::All, rental).await.unwrap();
        let run = bed.claim_one(RunKind::Clean).await;
        bed.record(&run, outcome).await;
        assert_eq!(
            bed.rental_state(rental),
            "ending",
            "success without proof is not success"
        );
        assert_eq!(bed.one("SELECT state FROM accounts"), "leaving");
        assert_eq!(
            bed.one("SELECT outcome FROM runs WHERE kind = 'clean'"),
            outcome.to_string()
        );
        bed.check().await;
        assert_eq!(
            bed.store.queue_cleaning(10).await.unwrap(),
            0,
            "not at once"
        );
        assert_eq!(bed.later(2).queue_cleaning(10).await.unwrap(), 1);
        assert_eq!(
            bed.later(2).queue_cleaning(10).await.unwrap(),
            0,
            "one is open"
        );
        let again = bed.claim_one(RunKind::Clean).await;
        assert!(again.epoch > run.epoch);
        bed.record(&again, RunOutcome::Gone).await;
        assert_eq!(bed.rental_state(rental), "ended");
        bed.check().await;
    }
}

#[tokio::test]
async fn cleaning_that_fails_again_and_again_quarantines_until_it_succeeds() {
    let (bed, nodes) = Bed::with_nodes(1).await;
    let rental = bed.active(bed.alice, 1).await[0];
    bed.store.release(Scope::All, rental).await.unwrap();
    let mut at = 0;
    for _ in 0..5 {
        let run = bed.claim_one(RunKind::Clean).await;
        bed.record(&run, RunOutcome::NotGone).await;
        at += 90;
        bed.later(at).queue_cleaning(10).await.unwrap();
        bed.check().await;
    }
    assert_eq!(bed.node_state(nodes[0]), "alive quarantined");
    let run = bed.claim_one(RunKind::Clean).await;
    bed.record(&run, RunOutcome::Gone).await;
    assert_eq!(bed.rental_state(rental), "ended");
    assert_eq!(
        bed.node_state(nodes[0]),
        "alive joining",
        "inspected before anybody gets it"
    );
    bed.check().await;
    let run = bed.claim_one(RunKind::Inspect).await;
    bed.record(&run, RunOutcome::Clean).await;
    assert_eq!(bed.node_state(nodes[0]), "alive ready");
}

#[tokio::test]
async fn a_dirty_node_is_quarantined_unless_a_rental_explains_what_was_found() {
    let (bed, nodes) = Bed::with_nodes(1).await;
    let rental = bed.active(bed.alice, 1).await[0];
    bed.store.release(Scope::All, rental).await.unwrap();
    let run = bed.claim_one(RunKind::Clean).await;
    bed.record(&run, RunOutcome::Gone).await;
    bed.store.reset().await.unwrap();
    let uid = u64::from(support::UID_BASE) + rental.0;
    let dirty = |accounts: serde_json::Value| RunReport {
        evidence: Some(json!({"accounts": accounts})),
        ..report(RunOutcome::Dirty)
    };
    let inspect = async |seconds: i64, report: &RunReport| {
        bed.later(seconds).queue_inspections(10).await.unwrap();
        let run = bed.claim_one(RunKind::Inspect).await;
        bed.store
            .record_run(&instance(1), &run, report)
            .await
            .unwrap()
    };
    let found = inspect(
        120,
        &dirty(json!([{"uid": uid, "name": "alice", "epoch": 7, "state": "present"}])),
    )
    .await;
    assert_eq!(
        found,
        Recorded::Done {
            settled: None,
            queued: true
        }
    );
    let run = bed.claim_one(RunKind::Clean).await;
    assert!(
        run.epoch > 7,
        "above what the worker has seen: {}",
        run.epoch
    );
    assert_eq!(bed.node_state(nodes[0]), "alive joining");
    assert_eq!(bed.rental_state(rental), "ended", "it stays ended");
    bed.record(&run, RunOutcome::Gone).await;
    bed.check().await;
    let run = bed.claim_one(RunKind::Inspect).await;
    bed.store
        .record_run(&instance(1), &run, &dirty(json!([{"uid": 1_999_999}])))
        .await
        .unwrap();
    assert_eq!(bed.node_state(nodes[0]), "alive quarantined");
    bed.check().await;
}

#[tokio::test]
async fn a_dirty_node_without_evidence_is_quarantined() {
    let (bed, _) = Bed::with_nodes(0).await;
    let node = bed.register_new().await;
    let run = bed.claim_one(RunKind::Inspect).await;
    let strange = RunReport {
        evidence: Some(json!(["x"])),
        ..report(RunOutcome::Dirty)
    };
    bed.store
        .record_run(&instance(1), &run, &strange)
        .await
        .unwrap();
    assert_eq!(bed.node_state(node), "alive quarantined");
}

#[tokio::test]
async fn an_inspection_that_fails_leaves_the_node_joining_and_comes_again() {
    let (bed, _) = Bed::with_nodes(0).await;
    let node = bed.register_new().await;
    for outcome in [
        RunOutcome::Unreachable,
        RunOutcome::Failed,
        RunOutcome::HostKeyMismatch,
        RunOutcome::NoResult,
    ] {
        let run = bed.claim_one(RunKind::Inspect).await;
        bed.record(&run, outcome).await;
        assert!(bed.node_state(node).ends_with(" joining"), "{outcome}");
        bed.store
            .record_probe(node, &ProbeResult::LoggedIn)
            .await
            .unwrap();
        bed.later(200).queue_inspections(10).await.unwrap();
    }
    let run = bed.claim_one(RunKind::Inspect).await;
    bed.record(&run, RunOutcome::Clean).await;
    assert_eq!(bed.node_state(node), "alive ready");
}

#[tokio::test]
async fn a_clean_look_does_not_make_a_held_node_ready() {
    let (bed, nodes) = Bed::with_nodes(1).await;
    let rental = bed.active(bed.alice, 1).await[0];
    bed.store.reset().await.unwrap();
    assert_eq!(
        bed.store.queue_inspections(10).await.unwrap(),
        0,
        "its debt comes first"
    );
    bed.db.sql(&format!(
        "INSERT INTO runs (kind, node_id, epoch, state, created_at) VALUES ('inspect', {}, 0, 'queued', UTC_TIMESTAMP())",
        nodes[0]
    ));
    let run = bed.claim_one(RunKind::Inspect).await;
    bed.record(&run, RunOutcome::Clean).await;
    assert_eq!(bed.node_state(nodes[0]), "alive joining");
    assert_eq!(bed.rental_state(rental), "ending");
    bed.check().await;
}

#[tokio::test]
async fn an_administrator_releases_from_quarantine_into_joining_only() {
    let (bed, nodes) = Bed::with_nodes(2).await;
    bed.db.sql(&format!(
        "UPDATE nodes SET availability = 'quarantined', availability_reason = 'x' WHERE id = {}",
        nodes[0]
    ));
    assert_eq!(
        bed.store.release_from_quarantine(nodes[0]).await.unwrap(),
        Unquarantine::Done
    );
    assert_eq!(bed.node_state(nodes[0]), "alive joining");
    let wrong = bed.store.release_from_quarantine(nodes[1]).await.unwrap();
    assert_eq!(wrong, Unquarantine::WrongState(Availability::Ready));
    assert_eq!(
        bed.store
            .release_from_quarantine(orion_core::NodeId(999))
            .await
            .unwrap(),
        Unquarantine::NotFound
    );
    bed.later(5).queue_inspections(10).await.unwrap();
    let run = bed.claim_one(RunKind::Inspect).await;
    bed.record(&run, RunOutcome::Clean).await;
    assert_eq!(bed.node_state(nodes[0]), "alive ready");
}
