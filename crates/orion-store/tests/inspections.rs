//! What an inspection of a node that is not joining leads to.

mod support;

use orion_core::{RunKind, RunOutcome};
use orion_store::*;
use serde_json::json;
use support::{Bed, UID_BASE, report, saw, uid};

#[tokio::test]
async fn an_inspection_of_a_leased_node_finds_its_own_account_and_makes_one_that_is_missing_again()
{
    let (bed, nodes) = Bed::with_nodes(1).await;
    let node = nodes[0];
    let rental = bed.active(bed.alice, 1).await[0];
    let own = |locked: bool| json!({"uid": uid(rental), "epoch": 1, "state": "present", "locked": locked});
    bed.inspected_at(700, RunOutcome::Dirty, Some(saw(&[own(false)])))
        .await;
    assert_eq!(bed.node_state(node), "alive leased");
    assert_eq!(bed.events("account_repair"), "0");
    let again = Recorded::Done {
        settled: None,
        queued: true,
    };
    for (seconds, outcome, seen) in [
        (1_400, RunOutcome::Dirty, saw(&[own(true)])),
        (2_100, RunOutcome::Clean, saw(&[])),
    ] {
        assert_eq!(bed.inspected_at(seconds, outcome, Some(seen)).await, again);
        let run = bed.claim_one(RunKind::Provision).await;
        bed.record(&run, RunOutcome::Present).await;
    }
    bed.check().await;
    let recorded = bed.inspected_at(2_800, RunOutcome::Clean, None).await;
    assert_ne!(recorded, again, "what is not said is not missing");
}

#[tokio::test]
async fn an_inspection_that_began_before_the_account_was_made_does_not_miss_it() {
    let (bed, _) = Bed::with_nodes(1).await;
    let store = bed.later(700);
    let queue = store.queue_deep_inspections(support::HOUR / 6, support::HOUR, 1);
    assert_eq!(queue.await.unwrap(), 1);
    let inspection = bed.claim_one(RunKind::Inspect).await;
    let store = bed.later(701);
    let RentDecision::Opened(opened) = store
        .rent(&support::order(bed.alice, 1, &support::unique_id()))
        .await
        .unwrap()
    else {
        panic!("a free node")
    };
    assert!(bed.provision(&opened).await);
    let run = bed.claim_one(RunKind::Provision).await;
    bed.record_at(701, &run, &report(RunOutcome::Present)).await;
    let nothing = RunReport {
        evidence: Some(saw(&[])),
        ..report(RunOutcome::Clean)
    };
    bed.record_at(760, &inspection, &nothing).await;
    assert_eq!(bed.events("account_repair"), "0");
    bed.check().await;
}

#[tokio::test]
async fn a_ready_node_that_is_seen_dirty_joins_again() {
    let (bed, nodes) = Bed::with_nodes(1).await;
    let node = nodes[0];
    let rental = bed.active(bed.alice, 1).await[0];
    bed.store.release(Scope::All, rental).await.unwrap();
    let clean = bed.claim_one(RunKind::Clean).await;
    bed.record(&clean, RunOutcome::Gone).await;
    let seen = json!({"uid": uid(rental), "epoch": 2, "state": "present", "locked": false});
    bed.inspected_at(700, RunOutcome::Dirty, Some(saw(&[seen])))
        .await;
    assert_eq!(bed.node_state(node), "alive joining");
    assert_eq!(bed.claim_one(RunKind::Clean).await.node, node);
    let (bed, nodes) = Bed::with_nodes(1).await;
    let files = json!({"accounts": [], "files": ["/tmp/x"], "counts": {"accounts": 0}});
    bed.inspected_at(700, RunOutcome::Dirty, Some(files)).await;
    assert_eq!(
        bed.node_state(nodes[0]),
        "alive quarantined",
        "nobody explains a file"
    );
    bed.check().await;
}

#[tokio::test]
async fn a_process_of_another_client_is_foreign_too() {
    let (bed, nodes) = Bed::with_nodes(1).await;
    let node = nodes[0];
    let rental = bed.active(bed.alice, 1).await[0];
    let own = json!({"uid": uid(rental), "epoch": 1, "state": "present", "locked": false});
    let mut evidence = saw(&[own]);
    evidence["processes"] = json!([{"pid": 7, "uid": uid(rental)}, {"pid": 8, "uid": UID_BASE}]);
    bed.inspected_at(700, RunOutcome::Dirty, Some(evidence))
        .await;
    assert_eq!(bed.node_state(node), "alive quarantined");
    bed.check().await;
}

#[tokio::test]
async fn an_inspection_that_began_before_its_node_joined_makes_nothing_ready() {
    let (bed, nodes) = Bed::with_nodes(1).await;
    let node = nodes[0];
    let store = bed.later(700);
    let queue = store.queue_deep_inspections(support::HOUR / 6, support::HOUR, 1);
    assert_eq!(queue.await.unwrap(), 1);
    let inspection = bed.claim_one(RunKind::Inspect).await;
    // Meanwhile it is cut off for good, and comes back.
    for second in [701, 707, 713] {
        let silence = ProbeResult::NoAnswer("timed out".to_owned());
        let store = bed.later(second);
        store.record_probe(node, &silence).await.unwrap();
    }
    assert_eq!(bed.node_state(node), "dead joining");
    let looked_before = RunReport {
        evidence: Some(saw(&[])),
        ..report(RunOutcome::Clean)
    };
    bed.record_at(714, &inspection, &looked_before).await;
    assert_eq!(bed.node_state(node), "alive joining");
    let again = bed.claim_one(RunKind::Inspect).await;
    bed.record_at(720, &again, &looked_before).await;
    assert_eq!(bed.node_state(node), "alive ready");
    bed.check().await;
}
