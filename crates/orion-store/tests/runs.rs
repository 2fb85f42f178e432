//! Claiming runs, keeping claims, recording what they saw.

mod support;

use orion_core::{RunId, RunKind, RunOutcome, RunState, UndoReason};
use orion_store::*;
use serde_json::json;
use std::time::Duration;
use support::{Bed, HOLD, instance, report};

#[tokio::test]
async fn a_run_is_claimed_once_oldest_first_and_up_to_the_limit() {
    let (bed, _) = Bed::with_nodes(3).await;
    bed.opened(bed.alice, 3).await;
    let first = bed
        .store
        .claim_runs(&instance(1), RunKind::Provision, 2, HOLD)
        .await
        .unwrap();
    let rest = bed
        .store
        .claim_runs(&instance(2), RunKind::Provision, 2, HOLD)
        .await
        .unwrap();
    let ids: Vec<_> = first.iter().chain(&rest).map(|run| run.id).collect();
    assert_eq!((first.len(), rest.len()), (2, 1));
    assert!(ids.is_sorted(), "{ids:?}");
    assert!(bed.claim(RunKind::Provision).await.is_empty());
    assert!(
        bed.claim(RunKind::Clean).await.is_empty(),
        "a kind of its own"
    );
    assert_eq!(
        (first[0].attempt, first[0].epoch, first[0].uid_base),
        (1, 1, support::UID_BASE)
    );
    assert_eq!(first[0].contact.host, "10.0.0.1");
    assert!(!first[0].host_keys.is_empty());
}

#[tokio::test]
async fn runs_wait_until_their_node_has_an_address_and_a_key() {
    let (bed, nodes) = Bed::with_nodes(2).await;
    bed.opened(bed.alice, 2).await;
    bed.db.sql(&format!(
        "UPDATE nodes SET contact_host = NULL, contact_port = NULL WHERE id = {}",
        nodes[0]
    ));
    bed.db.sql(&format!(
        "DELETE FROM host_keys WHERE node_id = {}",
        nodes[1]
    ));
    assert!(bed.claim(RunKind::Provision).await.is_empty());
    assert!(
        bed.store
            .pin_host_key(nodes[1], &["ssh-ed25519 AAAAnew".to_owned()])
            .await
            .unwrap()
    );
    assert_eq!(
        bed.claim_one(RunKind::Provision).await.host_keys,
        ["ssh-ed25519 AAAAnew"]
    );
}

#[tokio::test]
async fn a_claim_is_kept_by_renewing_and_only_by_its_claimant() {
    let (bed, _) = Bed::with_nodes(1).await;
    bed.opened(bed.alice, 1).await;
    let run = bed.claim_one(RunKind::Provision).await;
    let at_25 = bed.later(25);
    assert_eq!(
        at_25
            .renew_claims(&instance(1), &[run.id, RunId(999)], HOLD)
            .await
            .unwrap(),
        [run.id]
    );
    assert!(
        at_25
            .renew_claims(&instance(2), &[run.id], HOLD)
            .await
            .unwrap()
            .is_empty()
    );
    assert!(
        at_25
            .renew_claims(&instance(1), &[], HOLD)
            .await
            .unwrap()
            .is_empty()
    );
    assert_eq!(bed.later(50).reconcile().await.unwrap().requeued, 0);
    assert_eq!(bed.later(56).reconcile().await.unwrap().requeued, 1);
    assert!(
        bed.later(57)
            .renew_claims(&instance(1), &[run.id], HOLD)
            .await
            .unwrap()
            .is_empty()
    );
}

#[tokio::test]
async fn an_expired_claim_comes_back_at_a_higher_epoch_and_its_late_result_is_lost() {
    let (bed, _) = Bed::with_nodes(1).await;
    let opened = bed.opened(bed.alice, 1).await;
    let late = bed.claim_one(RunKind::Provision).await;
    bed.later(31).reconcile().await.unwrap();
    assert_eq!(
        bed.record(&late, RunOutcome::Present).await,
        Recorded::Lost,
        "queued again"
    );
    let again = bed
        .store
        .claim_runs(&instance(2), RunKind::Provision, 9, HOLD)
        .await
        .unwrap()
        .remove(0);
    assert_eq!((again.id, again.attempt), (late.id, 2));
    assert!(again.epoch > late.epoch);
    assert_eq!(
        bed.record(&late, RunOutcome::Present).await,
        Recorded::Lost,
        "somebody else's"
    );
    let done = bed
        .store
        .record_run(&instance(2), &again, &report(RunOutcome::Present))
        .await
        .unwrap();
    assert_eq!(
        done,
        Recorded::Done {
            settled: Some(opened.id),
            queued: false
        }
    );
    assert_eq!(
        bed.store
            .record_run(&instance(2), &again, &report(RunOutcome::Present))
            .await
            .unwrap(),
        Recorded::Lost,
        "twice"
    );
    bed.check().await;
}

#[tokio::test]
async fn the_same_instance_can_not_record_an_older_attempt() {
    let (bed, _) = Bed::with_nodes(1).await;
    bed.opened(bed.alice, 1).await;
    let late = bed.claim_one(RunKind::Provision).await;
    bed.later(31).reconcile().await.unwrap();
    let again = bed.claim_one(RunKind::Provision).await;
    for outcome in [RunOutcome::Failed, RunOutcome::NoResult] {
        let recorded = bed.record(&late, outcome).await;
        assert_eq!(recorded, Recorded::Lost, "{outcome}");
    }
    assert!(matches!(
        bed.record(&again, RunOutcome::Present).await,
        Recorded::Done {
            settled: Some(_),
            ..
        }
    ));
}

#[tokio::test]
async fn a_run_without_a_result_is_queued_again_and_not_counted_as_a_failure() {
    let (bed, _) = Bed::with_nodes(2).await;
    let opened = bed.opened(bed.alice, 1).await;
    for attempt in 1..=2 {
        let run = bed.claim_one(RunKind::Provision).await;
        assert_eq!((run.attempt, run.epoch), (attempt, u64::from(attempt)));
        let recorded = bed.record(&run, RunOutcome::NoResult).await;
        assert_eq!(
            recorded,
            Recorded::Done {
                settled: None,
                queued: true
            }
        );
    }
    assert_eq!(bed.one("SELECT SUM(failed_provisions) FROM nodes"), "0");
    assert_eq!(
        bed.one("SELECT COUNT(*) FROM accounts"),
        "1",
        "on the same node"
    );
    let run = bed.claim_one(RunKind::Provision).await;
    bed.record(&run, RunOutcome::Present).await;
    assert_eq!(bed.rental_state(opened.rentals[0]), "active");
    bed.check().await;
}

#[tokio::test]
async fn a_run_that_brings_no_result_three_times_fails_like_any_other() {
    let (bed, nodes) = Bed::with_nodes(2).await;
    let opened = bed.opened(bed.alice, 1).await;
    let mut first = None;
    for _ in 0..3 {
        let run = bed.claim_one(RunKind::Provision).await;
        assert_eq!(*first.get_or_insert(run.node), run.node);
        bed.record(&run, RunOutcome::NoResult).await;
        bed.check().await;
    }
    let spare = bed.claim_one(RunKind::Provision).await;
    assert_ne!(Some(spare.node), first, "of {nodes:?}");
    bed.record(&spare, RunOutcome::Present).await;
    assert_eq!(bed.rental_state(opened.rentals[0]), "active");
    assert_eq!(bed.one("SELECT SUM(failed_provisions) FROM nodes"), "0");
}

#[tokio::test]
async fn without_a_result_what_nobody_needs_any_more_is_superseded() {
    let (bed, _) = Bed::with_nodes(1).await;
    let opened = bed.opened(bed.alice, 1).await;
    let run = bed.claim_one(RunKind::Provision).await;
    bed.store
        .undo_request(opened.id, UndoReason::Deadline)
        .await
        .unwrap();
    bed.record(&run, RunOutcome::NoResult).await;
    assert!(bed.claim(RunKind::Provision).await.is_empty());
    assert_eq!(
        bed.one(&format!(
            "SELECT CONCAT(state, ' ', outcome) FROM runs WHERE id = {}",
            run.id
        )),
        "failed superseded"
    );
    bed.check().await;
}

#[tokio::test]
async fn administrators_see_runs_newest_first_and_the_output_of_one() {
    let (bed, nodes) = Bed::with_nodes(1).await;
    let rental = bed.opened(bed.alice, 1).await.rentals[0];
    let run = bed.claim_one(RunKind::Provision).await;
    let long = "é".repeat(5_000);
    let report = RunReport {
        outcome: RunOutcome::Failed,
        detail: Some(long),
        evidence: Some(json!({"left": ["x"]})),
        output: Some("TASK [...]".to_owned()),
    };
    bed.store
        .record_run(&instance(1), &run, &report)
        .await
        .unwrap();
    let runs = bed.store.runs(10).await.unwrap();
    assert!(runs.iter().all(|run| run.output.is_none()));
    assert_eq!(bed.store.runs(1).await.unwrap().len(), 1);
    let ids: Vec<_> = runs.iter().map(|run| run.run_id.0).collect();
    assert!(ids.iter().rev().is_sorted(), "{ids:?}");
    let one = bed.store.run(run.id).await.unwrap().unwrap();
    assert_eq!(
        (one.kind, one.node_id, one.rental_id),
        (RunKind::Provision, nodes[0], Some(rental))
    );
    assert_eq!(
        (one.state, one.outcome),
        (RunState::Failed, Some(RunOutcome::Failed))
    );
    assert_eq!(one.detail.unwrap().chars().count(), 2_000);
    assert_eq!(
        (one.evidence, one.output.as_deref()),
        (Some(json!({"left": ["x"]})), Some("TASK [...]"))
    );
    assert!(bed.store.run(RunId(999)).await.unwrap().is_none());
}

#[tokio::test]
async fn text_that_is_not_ascii_and_long_output_are_kept() {
    let (bed, _) = Bed::with_nodes(1).await;
    bed.opened(bed.alice, 1).await;
    let run = bed.claim_one(RunKind::Provision).await;
    let output = "🦀\n".repeat(20_000);
    let report = RunReport {
        output: Some(output.clone()),
        detail: Some("ça 🦀".to_owned()),
        ..report(RunOutcome::Failed)
    };
    bed.store
        .record_run(&instance(1), &run, &report)
        .await
        .unwrap();
    let one = bed.store.run(run.id).await.unwrap().unwrap();
    assert_eq!(
        (one.output, one.detail.as_deref()),
        (Some(output), Some("ça 🦀"))
    );
}

#[tokio::test]
async fn a_claim_lasts_as_long_as_asked() {
    let (bed, _) = Bed::with_nodes(1).await;
    bed.opened(bed.alice, 1).await;
    bed.store
        .claim_runs(&instance(1), RunKind::Provision, 9, Duration::from_secs(5))
        .await
        .unwrap();
    assert_eq!(bed.later(4).reconcile().await.unwrap().requeued, 0);
    assert_eq!(bed.later(6).reconcile().await.unwrap().requeued, 1);
}
