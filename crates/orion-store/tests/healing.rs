//! What went wrong once must not go wrong for ever, nor for others: late results, dead nodes, lying workers, bad rows.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "helpers of tests"
)]

mod support;

use orion_core::{NodeId, RequestState, RunKind, RunOutcome, UndoReason};
use orion_store::*;
use serde_json::json;
use support::{Bed, DEADLINE, UID_BASE, address, claim, host_key, instance, report};

fn after_the_deadline() -> i64 {
    i64::try_from(DEADLINE.as_secs()).unwrap() + 1
}

#[tokio::test]
async fn the_last_account_recorded_after_the_deadline_undoes_the_request() {
    let (bed, _) = Bed::with_nodes(2).await;
    let opened = bed.opened(bed.alice, 2).await;
    let runs = bed.claim(RunKind::Provision).await;
    bed.record(&runs[0], RunOutcome::Present).await;
    let late = bed.later(after_the_deadline());
    let recorded = late
        .record_run(&instance(1), &runs[1], &report(RunOutcome::Present))
        .await;
    assert!(
        matches!(recorded.unwrap(), Recorded::Done { settled: Some(id), .. } if id == opened.id)
    );
    let seen = bed.store.request(opened.id).await.unwrap().unwrap();
    assert_eq!(
        (seen.state, seen.undo_reason),
        (RequestState::Undone, Some(UndoReason::Deadline)),
        "the worker's upper bound counts from the deadline"
    );
    bed.check().await;
}

#[tokio::test]
async fn a_node_that_died_while_it_was_cleaned_is_inspected_when_it_comes_back() {
    let (bed, nodes) = Bed::with_nodes(1).await;
    let rental = bed.active(bed.alice, 1).await[0];
    bed.store.release(Scope::All, rental).await.unwrap();
    for second in [0, 10, 20] {
        let silence = ProbeResult::NoAnswer("timed out".to_owned());
        bed.later(second)
            .record_probe(nodes[0], &silence)
            .await
            .unwrap();
    }
    assert_eq!(bed.node_state(nodes[0]), "dead joining");
    bed.check().await;
    let run = bed.claim_one(RunKind::Clean).await;
    bed.record_at(30, &run, &report(RunOutcome::Gone)).await;
    assert_eq!(
        bed.node_state(nodes[0]),
        "alive joining",
        "not ready without a look"
    );
    assert_eq!(bed.rental_state(rental), "ended");
    let run = bed.claim_one(RunKind::Inspect).await;
    bed.record_at(31, &run, &report(RunOutcome::Clean)).await;
    assert_eq!(bed.node_state(nodes[0]), "alive ready");
    bed.check().await;
}

/// A released rental whose node is dead.
async fn dead_debtor(bed: &Bed, node: NodeId) -> orion_core::RentalId {
    let rental = bed.active(bed.alice, 1).await[0];
    bed.store.release(Scope::All, rental).await.unwrap();
    for second in [0, 10, 20] {
        let silence = ProbeResult::NoAnswer("timed out".to_owned());
        bed.later(second)
            .record_probe(node, &silence)
            .await
            .unwrap();
    }
    rental
}

#[tokio::test]
async fn a_node_that_never_comes_back_is_forgotten_with_its_debt() {
    let (bed, nodes) = Bed::with_nodes(1).await;
    let rental = dead_debtor(&bed, nodes[0]).await;
    assert_eq!(bed.rental_state(rental), "ending");
    assert_eq!(bed.store.forget_node(nodes[0]).await.unwrap(), Forget::Done);
    assert_eq!(
        bed.rental_state(rental),
        "ended",
        "a recorded debt on a node out of service"
    );
    assert_eq!(
        bed.one("SELECT state FROM accounts"),
        "leaving",
        "it stays recorded"
    );
    assert_eq!(bed.later(3_600).queue_cleaning(10).await.unwrap(), 0);
    assert!(bed.claim(RunKind::Clean).await.is_empty());
    bed.check().await;
}

#[tokio::test]
async fn a_forgotten_worker_that_comes_back_dirty_is_cleaned_under_its_new_node() {
    let (bed, nodes) = Bed::with_nodes(1).await;
    let rental = dead_debtor(&bed, nodes[0]).await;
    bed.store.forget_node(nodes[0]).await.unwrap();
    let Registered::Created(node) = bed.register(1, 22_001).await else {
        panic!("its name, address and key are free")
    };
    let run = bed.claim_one(RunKind::Inspect).await;
    let uid = u64::from(UID_BASE) + rental.0;
    let dirty = RunReport {
        evidence: Some(json!({"accounts": [{"uid": uid, "epoch": 3}]})),
        ..report(RunOutcome::Dirty)
    };
    bed.store
        .record_run(&instance(1), &run, &dirty)
        .await
        .unwrap();
    bed.check().await;
    let run = bed.claim_one(RunKind::Clean).await;
    assert_eq!(run.node, node);
    bed.record(&run, RunOutcome::Gone).await;
    let run = bed.claim_one(RunKind::Inspect).await;
    bed.record(&run, RunOutcome::Clean).await;
    assert_eq!(bed.node_state(node), "alive ready");
    bed.check().await;
}

#[tokio::test]
async fn a_live_node_that_is_owed_something_is_not_forgotten() {
    let (bed, nodes) = Bed::with_nodes(2).await;
    let rental = bed.active(bed.alice, 2).await[0];
    bed.db.sql("UPDATE nodes SET status = 'dead'");
    for node in nodes {
        let forgotten = bed.store.forget_node(node).await.unwrap();
        assert_eq!(
            forgotten,
            Forget::Held,
            "its account is wanted, dead or not"
        );
    }
    assert_eq!(bed.rental_state(rental), "active");
}

/// Inspects a joining node and finds this account; returns whether a debt was written.
async fn find(bed: &Bed, at: i64, account: serde_json::Value) -> bool {
    bed.later(at).queue_inspections(10).await.unwrap();
    let run = bed.claim_one(RunKind::Inspect).await;
    let dirty = RunReport {
        evidence: Some(json!({"accounts": [account]})),
        ..report(RunOutcome::Dirty)
    };
    let recorded = bed
        .store
        .record_run(&instance(1), &run, &dirty)
        .await
        .unwrap();
    bed.check().await;
    matches!(recorded, Recorded::Done { queued: true, .. })
}

#[tokio::test]
async fn an_account_that_comes_back_again_and_again_quarantines_its_node() {
    let (bed, nodes) = Bed::with_nodes(1).await;
    let rental = bed.active(bed.alice, 1).await[0];
    bed.store.reset().await.unwrap();
    let run = bed.claim_one(RunKind::Clean).await;
    bed.record(&run, RunOutcome::Gone).await;
    let uid = u64::from(UID_BASE) + rental.0;
    let mut rounds = 0;
    let mut at = 0;
    while find(&bed, at, json!({"uid": uid, "epoch": 1})).await {
        let run = bed.claim_one(RunKind::Clean).await;
        bed.record(&run, RunOutcome::Gone).await;
        rounds += 1;
        at += 120;
        assert!(rounds < 10, "for ever");
    }
    assert_eq!(bed.node_state(nodes[0]), "alive quarantined");
}

#[tokio::test]
async fn nonsense_from_a_worker_quarantines_it_and_breaks_nothing() {
    for nonsense in [
        json!({"uid": UID_BASE + 1, "epoch": u64::MAX}),
        json!({"uid": UID_BASE + 1, "epoch": u64::MAX - 1}),
        json!({"uid": UID_BASE + 1, "epoch": 1_u64 << 63}),
        json!({"uid": UID_BASE + 1, "epoch": -1}),
        json!({"uid": u64::MAX}),
        json!({"uid": "x"}),
        json!({"uid": 0}),
        json!(null),
    ] {
        let (bed, nodes) = Bed::with_nodes(1).await;
        bed.active(bed.alice, 1).await;
        bed.store.reset().await.unwrap();
        let run = bed.claim_one(RunKind::Clean).await;
        bed.record(&run, RunOutcome::Gone).await;
        assert!(!find(&bed, 0, nonsense.clone()).await, "{nonsense}");
        assert_eq!(bed.node_state(nodes[0]), "alive quarantined", "{nonsense}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn new_workers_that_claim_one_address_at_once_are_all_registered() {
    let bed = std::sync::Arc::new(Bed::new().await);
    for round in 0..10_u32 {
        let port = 30_000 + u16::try_from(round).unwrap();
        let all: Vec<_> = (0..8)
            .map(|worker| {
                let bed = bed.clone();
                tokio::spawn(async move { bed.register(100 * round + worker, port).await })
            })
            .collect();
        for one in all {
            let registered = one.await.unwrap();
            assert!(
                matches!(registered, Registered::Created(_)),
                "{registered:?}"
            );
        }
        let at = format!("SELECT COUNT(*) FROM nodes WHERE contact_port = {port}");
        assert_eq!(bed.one(&at), "1");
    }
}

#[tokio::test]
async fn a_forgotten_node_is_not_pinned() {
    let (bed, nodes) = Bed::with_nodes(1).await;
    bed.store.forget_node(nodes[0]).await.unwrap();
    assert!(
        !bed.store
            .pin_host_key(nodes[0], &[host_key(1)])
            .await
            .unwrap()
    );
    assert!(matches!(
        bed.register(1, 22_001).await,
        Registered::Created(_)
    ));
}

#[tokio::test]
async fn a_taken_name_is_counted_although_the_first_node_is_clean_again() {
    let (bed, _) = Bed::with_nodes(4).await;
    let opened = bed.opened(bed.alice, 1).await;
    for _ in 0..2 {
        let run = bed.claim_one(RunKind::Provision).await;
        bed.record(&run, RunOutcome::NameTaken).await;
        let run = bed.claim_one(RunKind::Clean).await;
        bed.record(&run, RunOutcome::Gone).await;
    }
    let seen = bed.store.request(opened.id).await.unwrap().unwrap();
    assert_eq!(seen.undo_reason, Some(UndoReason::NameTaken));
}

#[tokio::test]
async fn runs_that_never_bring_a_result_do_not_keep_others_waiting() {
    let (bed, _) = Bed::with_nodes(3).await;
    for rental in bed.active(bed.alice, 3).await {
        bed.store.release(Scope::All, rental).await.unwrap();
    }
    // A play of one host: the oldest run first, and its worker hangs.
    let (mut hung, mut cleaned) = (None, 0);
    for _ in 0..12 {
        let runs = bed
            .store
            .claim_runs(&instance(1), RunKind::Clean, 1, support::HOLD)
            .await
            .unwrap();
        let Some(run) = runs.first() else { break };
        let outcome = match *hung.get_or_insert(run.node) == run.node {
            true => RunOutcome::NoResult,
            false => RunOutcome::Gone,
        };
        cleaned += u32::from(outcome == RunOutcome::Gone);
        bed.record(run, outcome).await;
    }
    assert_eq!(cleaned, 2);
    assert_eq!(
        bed.one("SELECT COUNT(*) FROM nodes WHERE availability = 'ready'"),
        "2"
    );
    bed.check().await;
    assert_eq!(
        bed.later(120).queue_cleaning(10).await.unwrap(),
        1,
        "it is tried again"
    );
}

#[tokio::test]
async fn one_unusable_row_does_not_stop_the_runs_of_others() {
    let (bed, _) = Bed::with_nodes(2).await;
    bed.opened(bed.alice, 1).await;
    bed.opened(bed.bob, 1).await;
    bed.db
        .sql("UPDATE users SET name = 'Not A Name' WHERE name = 'alice'");
    // Whatever is said about the bad one, in the end only the good one is left to do.
    let mut names = Vec::new();
    for _ in 0..3 {
        if let Ok(runs) = bed
            .store
            .claim_runs(&instance(1), RunKind::Provision, 10, support::HOLD)
            .await
        {
            names.extend(
                runs.into_iter()
                    .filter_map(|run| run.account)
                    .map(|account| account.name),
            );
        }
    }
    assert_eq!(
        names.iter().map(|name| name.as_str()).collect::<Vec<_>>(),
        ["bob"]
    );
}

#[tokio::test]
async fn a_claim_needs_the_pinned_key_at_both_its_addresses() {
    let (bed, nodes) = Bed::with_nodes(1).await;
    let name = orion_core::HostName::parse("worker1").unwrap();
    // The contact address is its own; the client address is somebody else's.
    let evil = Registration {
        hostname: &name,
        client: address(6_666),
        contact: address(22_001),
        host_keys: &[],
        agent: None,
        boot_id: None,
        signed: None,
        signing_key: None,
    };
    bed.store.register(&evil, Admission::Open).await.unwrap();
    let told = bed.store.node(Scope::All, nodes[0]).await.unwrap().unwrap();
    assert_eq!(told.ssh_port, 22_001, "clients are told the proven address");
    let half = bed
        .store
        .confirm_address(nodes[0], &claim(22_001))
        .await
        .unwrap();
    assert!(!half, "what was dialled is not what is claimed");
    let told = bed.store.node(Scope::All, nodes[0]).await.unwrap().unwrap();
    assert_eq!(told.ssh_port, 22_001);
}
