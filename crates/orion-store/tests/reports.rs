//! What workers say of their accounts: healed where it can be, an alarm where not.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "helpers of tests"
)]

mod support;

use orion_core::api::ReportedAccount;
use orion_core::{AccountState, NodeId, PublicKey, RentalId, RunKind, RunOutcome, Uid};
use orion_store::*;
use serde_json::{Value, json};
use support::{Bed, UID_BASE, instance, report};

const KEY: [u8; 32] = [7; 32];

fn uid(rental: RentalId) -> Uid {
    Uid::of_rental(UID_BASE, rental).unwrap()
}

fn account(uid: Uid, epoch: u64, state: AccountState, locked: bool) -> ReportedAccount {
    ReportedAccount {
        uid,
        epoch,
        state,
        locked,
    }
}

/// One rental on one node, whose agent signs.
async fn leased() -> (Bed, NodeId, RentalId) {
    let (bed, nodes) = Bed::with_nodes(1).await;
    let rental = bed.active(bed.alice, 1).await[0];
    give_keys(&bed);
    (bed, nodes[0], rental)
}

/// Each node's agent signs with a key of its own from now on.
fn give_keys(bed: &Bed) {
    for node in bed.db.sql("SELECT id FROM nodes") {
        let node: u8 = node[0].parse().unwrap();
        let key = key(node);
        bed.db.sql(&format!(
            "UPDATE nodes SET agent_key = '{key}' WHERE id = {node}"
        ));
    }
}

fn key(node: u8) -> PublicKey {
    let mut bytes = KEY;
    bytes[0] = node;
    PublicKey::from_bytes(bytes)
}

/// A signed beat `seconds` from now, and what follows from it; whether a run was queued.
async fn says(bed: &Bed, seconds: i64, node: NodeId, accounts: &[ReportedAccount]) -> bool {
    let counter = u64::try_from(seconds).unwrap() + 1;
    let beat = Beat {
        node,
        boot_id: "boot".to_owned(),
        agent: "0.1.0".to_owned(),
        signed: Some(SignedBy {
            key: key(u8::try_from(node.0).unwrap()),
            next_key: None,
            counter,
        }),
        signing_key: None,
        accounts: Some(accounts.to_vec()),
    };
    let store = bed.later(seconds);
    let recorded = store.beat_many(&[beat], None).await.unwrap();
    assert!(
        matches!(recorded.outcomes[0], BeatOutcome::Recorded { .. }),
        "{:?}",
        recorded.outcomes
    );
    let mut queued = false;
    for report in &recorded.differing {
        queued |= store.follow_report(report).await.unwrap();
    }
    queued
}

fn events(bed: &Bed, kind: &str) -> String {
    bed.one(&format!(
        "SELECT COUNT(*) FROM events WHERE kind = '{kind}'"
    ))
}

/// An inspection at this time that saw this.
async fn inspected(bed: &Bed, seconds: i64, outcome: RunOutcome, evidence: Value) -> Recorded {
    let store = bed.later(seconds);
    store
        .queue_deep_inspections(support::HOUR / 6, support::HOUR, 1_000)
        .await
        .unwrap();
    store.queue_inspections(10).await.unwrap();
    let run = bed.claim_one(RunKind::Inspect).await;
    let report = RunReport {
        evidence: Some(evidence),
        ..report(outcome)
    };
    record_at(bed, seconds, &run, &report).await
}

async fn record_at(bed: &Bed, seconds: i64, run: &ClaimedRun, report: &RunReport) -> Recorded {
    let store = bed.later(seconds);
    store.record_run(&instance(1), run, report).await.unwrap()
}

fn saw(accounts: &[Value]) -> Value {
    json!({"accounts": accounts, "counts": {"accounts": accounts.len()}})
}

#[tokio::test]
async fn an_account_that_is_gone_or_locked_on_its_worker_is_made_again_at_a_higher_epoch() {
    for lost in [
        Some((AccountState::Gone, false)),
        Some((AccountState::Present, true)),
        None,
    ] {
        let (bed, node, rental) = leased().await;
        let accounts: Vec<_> = lost
            .map(|(state, locked)| account(uid(rental), 1, state, locked))
            .into_iter()
            .collect();
        assert!(says(&bed, 40, node, &accounts).await, "{lost:?}");
        assert_eq!(bed.rental_state(rental), "active");
        assert_eq!(
            bed.one("SELECT CONCAT(state, ' ', epoch) FROM accounts"),
            "present 2"
        );
        bed.check().await;
        assert!(!says(&bed, 45, node, &accounts).await, "one is open");
        let run = bed.claim_one(RunKind::Provision).await;
        assert_eq!((run.node, run.epoch), (node, 2));
        assert!(run.account.as_ref().unwrap().password_hash.is_some());
        record_at(&bed, 50, &run, &report(RunOutcome::Present)).await;
        assert_eq!(events(&bed, "account_repaired"), "1");
        assert_eq!(bed.node_state(node), "alive leased");
        bed.check().await;
        assert!(
            !says(&bed, 70, node, &accounts).await,
            "it was looked at just now"
        );
        assert!(says(&bed, 90, node, &accounts).await, "lost again");
    }
}

#[tokio::test]
async fn nothing_is_made_again_that_is_there_was_just_made_or_is_about_to_end() {
    let (bed, node, rental) = leased().await;
    let there = [account(uid(rental), 1, AccountState::Present, false)];
    let locked = [account(uid(rental), 1, AccountState::Present, true)];
    assert!(
        !says(&bed, 20, node, &locked).await,
        "said before it was made"
    );
    assert!(!says(&bed, 40, node, &there).await);
    let newer = [account(uid(rental), 9, AccountState::Gone, false)];
    assert!(
        !says(&bed, 41, node, &newer).await,
        "we know less than the worker"
    );
    assert!(
        !says(&bed, 3_595, node, &locked).await,
        "five seconds are left"
    );
    bed.store.release(Scope::All, rental).await.unwrap();
    assert!(!says(&bed, 3_596, node, &locked).await);
    assert_eq!(events(&bed, "account_repair"), "0");
    bed.check().await;
}

#[tokio::test]
async fn what_is_not_signed_leads_to_nothing() {
    let (bed, nodes) = Bed::with_nodes(1).await;
    bed.active(bed.alice, 1).await;
    let beat = Beat {
        node: nodes[0],
        boot_id: "boot".to_owned(),
        agent: "0.1.0".to_owned(),
        signed: None,
        signing_key: None,
        accounts: Some(vec![account(
            Uid(1_900_000),
            1,
            AccountState::Present,
            false,
        )]),
    };
    let recorded = bed.later(60).beat_many(&[beat], None).await.unwrap();
    assert!(matches!(recorded.outcomes[0], BeatOutcome::Recorded { .. }));
    assert!(recorded.differing.is_empty());
}

#[tokio::test]
async fn a_repair_that_fails_is_tried_again_and_the_second_failure_quarantines() {
    let (bed, node, rental) = leased().await;
    for (seconds, state) in [(40, "alive leased"), (90, "alive quarantined")] {
        assert!(says(&bed, seconds, node, &[]).await);
        let run = bed.claim_one(RunKind::Provision).await;
        record_at(&bed, seconds + 3, &run, &report(RunOutcome::Failed)).await;
        assert_eq!(bed.node_state(node), state);
        bed.check().await;
    }
    assert_eq!(bed.rental_state(rental), "active");
}

#[tokio::test]
async fn a_repair_without_a_result_is_tried_again_and_one_that_nobody_needs_is_not() {
    let (bed, node, rental) = leased().await;
    assert!(says(&bed, 40, node, &[]).await);
    let run = bed.claim_one(RunKind::Provision).await;
    bed.record(&run, RunOutcome::NoResult).await;
    bed.check().await;
    let again = bed.claim_one(RunKind::Provision).await;
    assert_eq!(again.epoch, 3);
    bed.store.release(Scope::All, rental).await.unwrap();
    bed.record(&again, RunOutcome::NoResult).await;
    assert!(bed.claim(RunKind::Provision).await.is_empty());
    bed.check().await;
}

#[tokio::test]
async fn a_ready_node_with_an_account_that_nobody_explains_is_inspected_and_cleaned() {
    let (bed, node, rental) = leased().await;
    bed.store.release(Scope::All, rental).await.unwrap();
    let clean = bed.claim_one(RunKind::Clean).await;
    bed.record(&clean, RunOutcome::Gone).await;
    let still = [account(uid(rental), 2, AccountState::Present, false)];
    says(&bed, 20, node, &still).await;
    assert_eq!(
        bed.node_state(node),
        "alive ready",
        "said before it was gone"
    );
    says(&bed, 60, node, &still).await;
    assert_eq!(bed.node_state(node), "alive joining");
    assert_eq!(events(&bed, "foreign_account"), "1");
    let seen = json!({"uid": uid(rental), "epoch": 2, "state": "present", "locked": false});
    inspected(&bed, 65, RunOutcome::Dirty, saw(&[seen])).await;
    let clean = bed.claim_one(RunKind::Clean).await;
    assert_eq!(clean.account.unwrap().uid, uid(rental));
    bed.check().await;
}

#[tokio::test]
async fn a_leased_node_with_another_account_is_quarantined_until_its_own_is_gone_and_then_inspected()
 {
    let (bed, node, first) = leased().await;
    bed.store.release(Scope::All, first).await.unwrap();
    let clean = bed.claim_one(RunKind::Clean).await;
    bed.record(&clean, RunOutcome::Gone).await;
    let second = bed.active(bed.bob, 1).await[0];
    let both = [
        account(uid(second), 1, AccountState::Present, false),
        account(uid(first), 2, AccountState::Present, false),
    ];
    says(&bed, 60, node, &both).await;
    assert_eq!(bed.node_state(node), "alive quarantined");
    assert_eq!(bed.rental_state(second), "active");
    let released = bed.store.release_from_quarantine(node).await.unwrap();
    assert_eq!(released, Unquarantine::Held);
    bed.check().await;
    bed.store.release(Scope::All, second).await.unwrap();
    let clean = bed.claim_one(RunKind::Clean).await;
    bed.record(&clean, RunOutcome::Gone).await;
    assert_eq!(
        bed.node_state(node),
        "alive joining",
        "never ready without a look"
    );
    bed.check().await;
}

#[tokio::test]
async fn a_uid_above_the_counter_quarantines_its_node_and_two_stop_provisioning_until_the_counter_is_raised()
 {
    let (bed, nodes) = Bed::with_nodes(4).await;
    let rental = bed.active(bed.alice, 1).await[0];
    let waiting = bed.opened(bed.alice, 1).await;
    give_keys(&bed);
    let held: Vec<NodeId> = bed
        .db
        .sql("SELECT node_id FROM accounts")
        .iter()
        .map(|row| NodeId(row[0].parse().unwrap()))
        .collect();
    let free: Vec<NodeId> = nodes
        .into_iter()
        .filter(|node| !held.contains(node))
        .collect();
    // Gone there, and yet this database never gave it out.
    let lost = |offset| {
        [account(
            Uid(UID_BASE + offset),
            3,
            AccountState::Gone,
            false,
        )]
    };
    says(&bed, 40, free[0], &lost(4_000)).await;
    assert_eq!(bed.node_state(free[0]), "alive quarantined");
    assert_eq!(bed.store.outdated().await.unwrap(), None, "one may lie");
    let free_still = RentDecision::NoFreeNode { free: 1 };
    assert_eq!(bed.rent(bed.bob, 2).await, free_still);
    says(&bed, 41, free[1], &lost(5_000)).await;
    says(&bed, 46, free[1], &lost(5_000)).await;
    let outdated = bed.store.outdated().await.unwrap().unwrap();
    assert_eq!(
        (outdated.nodes, outdated.highest_uid),
        (2, Uid(UID_BASE + 5_000))
    );
    assert_eq!(events(&bed, "database_outdated"), "1");
    assert_eq!(events(&bed, "uid_above_counter"), "2");
    assert_eq!(bed.rent(bed.bob, 1).await, RentDecision::DatabaseOutdated);
    assert!(bed.claim(RunKind::Provision).await.is_empty());
    assert!(
        !says(&bed, 47, held[0], &[]).await,
        "nor is anything made again"
    );
    bed.check().await;
    let admin = Store::open(
        &support::settings(&bed.db, orion_testkit::Database::ADMIN),
        None,
    )
    .unwrap();
    let next = admin.raise_counter().await.unwrap().unwrap();
    assert!(next.0 > 5_000);
    assert_eq!(
        admin.raise_counter().await.unwrap(),
        Some(next),
        "a second time: the same"
    );
    admin.close().await.unwrap();
    assert_eq!(bed.store.outdated().await.unwrap(), None);
    for run in bed.claim(RunKind::Provision).await {
        bed.record(&run, RunOutcome::Present).await;
    }
    assert_eq!(bed.rental_state(waiting.rentals[0]), "active");
    bed.store.release(Scope::All, rental).await.unwrap();
    let clean = bed.claim_one(RunKind::Clean).await;
    bed.record(&clean, RunOutcome::Gone).await;
    let opened = bed.opened(bed.bob, 1).await;
    assert_eq!(opened.rentals, [next]);
    assert_eq!(
        bed.node_state(free[1]),
        "alive quarantined",
        "until somebody has looked"
    );
    let released = bed.store.release_from_quarantine(free[1]).await.unwrap();
    assert_eq!(released, Unquarantine::Done);
    says(&bed, 90, free[1], &lost(5_000)).await;
    assert_eq!(bed.node_state(free[1]), "alive joining");
    bed.check().await;
}

#[tokio::test]
async fn an_inspection_of_a_leased_node_finds_its_own_account_and_makes_one_that_is_missing_again()
{
    let (bed, node, rental) = leased().await;
    let own = |locked: bool| json!({"uid": uid(rental), "epoch": 1, "state": "present", "locked": locked});
    inspected(&bed, 700, RunOutcome::Dirty, saw(&[own(false)])).await;
    assert_eq!(bed.node_state(node), "alive leased");
    assert_eq!(events(&bed, "account_repair"), "0");
    let again = Recorded::Done {
        settled: None,
        queued: true,
    };
    for (seconds, outcome, seen) in [
        (1_400, RunOutcome::Dirty, saw(&[own(true)])),
        (2_100, RunOutcome::Clean, saw(&[])),
    ] {
        assert_eq!(inspected(&bed, seconds, outcome, seen).await, again);
        let run = bed.claim_one(RunKind::Provision).await;
        bed.record(&run, RunOutcome::Present).await;
    }
    bed.check().await;
    let bare = RunReport {
        evidence: None,
        ..report(RunOutcome::Clean)
    };
    bed.later(2_800)
        .queue_deep_inspections(support::HOUR / 6, support::HOUR, 1)
        .await
        .unwrap();
    let run = bed.claim_one(RunKind::Inspect).await;
    let recorded = record_at(&bed, 2_800, &run, &bare).await;
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
    record_at(&bed, 701, &run, &report(RunOutcome::Present)).await;
    let nothing = RunReport {
        evidence: Some(saw(&[])),
        ..report(RunOutcome::Clean)
    };
    record_at(&bed, 760, &inspection, &nothing).await;
    assert_eq!(events(&bed, "account_repair"), "0");
    bed.check().await;
}

#[tokio::test]
async fn a_ready_node_that_is_seen_dirty_joins_again() {
    let (bed, node, rental) = leased().await;
    bed.store.release(Scope::All, rental).await.unwrap();
    let clean = bed.claim_one(RunKind::Clean).await;
    bed.record(&clean, RunOutcome::Gone).await;
    let seen = json!({"uid": uid(rental), "epoch": 2, "state": "present", "locked": false});
    inspected(&bed, 700, RunOutcome::Dirty, saw(&[seen])).await;
    assert_eq!(bed.node_state(node), "alive joining");
    assert_eq!(bed.claim_one(RunKind::Clean).await.node, node);
    let (bed, nodes) = Bed::with_nodes(1).await;
    let files = json!({"accounts": [], "files": ["/tmp/x"], "counts": {"accounts": 0}});
    inspected(&bed, 700, RunOutcome::Dirty, files).await;
    assert_eq!(
        bed.node_state(nodes[0]),
        "alive quarantined",
        "nobody explains a file"
    );
    bed.check().await;
}

#[tokio::test]
async fn a_process_of_another_client_is_foreign_too() {
    let (bed, node, rental) = leased().await;
    let own = json!({"uid": uid(rental), "epoch": 1, "state": "present", "locked": false});
    let mut evidence = saw(&[own]);
    evidence["processes"] = json!([{"pid": 7, "uid": uid(rental)}, {"pid": 8, "uid": UID_BASE}]);
    inspected(&bed, 700, RunOutcome::Dirty, evidence).await;
    assert_eq!(bed.node_state(node), "alive quarantined");
    bed.check().await;
}
