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
use serde_json::json;
use support::{Bed, UID_BASE, report, saw, uid};

const KEY: [u8; 32] = [7; 32];

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
        let claimed = run.account.as_ref().unwrap();
        assert!(claimed.password_hash.is_some());
        assert!(!claimed.is_moved, "its files are where they were");
        bed.record_at(50, &run, &report(RunOutcome::Present)).await;
        assert_eq!(bed.events("account_repaired"), "1");
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
    assert_eq!(bed.events("account_repair"), "0");
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
        bed.record_at(seconds + 3, &run, &report(RunOutcome::Failed))
            .await;
        assert_eq!(bed.node_state(node), state);
        bed.check().await;
    }
    assert_eq!(bed.rental_state(rental), "active");
}

#[tokio::test]
async fn a_name_that_was_taken_away_on_its_machine_does_not_keep_a_rental_from_moving() {
    let (bed, node, rental) = leased().await;
    for seconds in [40, 80] {
        assert!(says(&bed, seconds, node, &[]).await);
        let run = bed.claim_one(RunKind::Provision).await;
        bed.record_at(seconds + 1, &run, &report(RunOutcome::NameTaken))
            .await;
    }
    bed.add_nodes(2).await;
    bed.later(100)
        .set_draining(node, Drain::Moves)
        .await
        .unwrap();
    let done = bed.later(101).migrate(10).await.unwrap();
    assert_eq!(done.moving, 1, "{done:?} {}", bed.rental_state(rental));
    bed.check().await;
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
    assert_eq!(bed.events("foreign_account"), "1");
    let seen = json!({"uid": uid(rental), "epoch": 2, "state": "present", "locked": false});
    bed.inspected_at(65, RunOutcome::Dirty, Some(saw(&[seen])))
        .await;
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

/// A worker's record of an account that this database never gave out, and that is gone there.
fn lost(offset: u32) -> [ReportedAccount; 1] {
    [account(
        Uid(UID_BASE + offset),
        3,
        AccountState::Gone,
        false,
    )]
}

/// Four nodes: one with an active rental, one with a rental that is being made, and two whose agents know of accounts
/// that were never given out.
async fn outdated() -> (Bed, RentalId, OpenedRequest, Vec<NodeId>) {
    let (bed, nodes) = Bed::with_nodes(4).await;
    let rental = bed.active(bed.alice, 1).await[0];
    let waiting = bed.opened(bed.alice, 1).await;
    give_keys(&bed);
    let held = bed.one("SELECT GROUP_CONCAT(node_id) FROM accounts");
    let is_free = |node: &NodeId| held.split(',').all(|held| held != node.to_string());
    let free: Vec<NodeId> = nodes.into_iter().filter(is_free).collect();
    says(&bed, 40, free[0], &lost(4_000)).await;
    assert_eq!(bed.node_state(free[0]), "alive quarantined");
    assert_eq!(bed.store.outdated().await.unwrap(), None, "one may lie");
    let free_still = RentDecision::NoFreeNode { free: 1 };
    assert_eq!(bed.rent(bed.bob, 2).await, free_still);
    says(&bed, 41, free[1], &lost(5_000)).await;
    says(&bed, 46, free[1], &lost(5_000)).await;
    (bed, rental, waiting, free)
}

#[tokio::test]
async fn a_uid_above_the_counter_quarantines_its_node_and_two_such_nodes_stop_provisioning() {
    let (bed, rental, _, _) = outdated().await;
    let outdated = bed.store.outdated().await.unwrap().unwrap();
    assert_eq!(
        (outdated.nodes, outdated.highest_uid),
        (2, Uid(UID_BASE + 5_000))
    );
    assert_eq!(bed.events("database_outdated"), "1");
    assert_eq!(bed.events("uid_above_counter"), "2");
    assert_eq!(bed.rent(bed.bob, 1).await, RentDecision::DatabaseOutdated);
    assert!(bed.claim(RunKind::Provision).await.is_empty());
    let holder = bed.one(&format!(
        "SELECT node_id FROM accounts WHERE rental_id = {rental}"
    ));
    let holder = NodeId(holder.parse().unwrap());
    assert!(
        !says(&bed, 47, holder, &[]).await,
        "nor is anything made again"
    );
    bed.check().await;
}

#[tokio::test]
async fn once_the_counter_is_raised_rentals_go_on_above_it_and_the_nodes_wait_for_a_look() {
    let (bed, rental, waiting, free) = outdated().await;
    let admin = support::settings(&bed.db, orion_testkit::Database::ADMIN);
    let admin = Store::open(&admin, None).unwrap();
    bed.db.sql(&format!(
        "UPDATE nodes SET highest_uid = {UID_BASE} + 900000000 WHERE id = {}",
        free[0]
    ));
    let raised = admin.raise_counter().await.unwrap();
    assert!(matches!(raised, Raise::Incredible { .. }), "{raised:?}");
    bed.store.forget_node(free[0]).await.unwrap();
    let raised = admin.raise_counter().await.unwrap();
    let Raise::To(next) = raised else {
        panic!("{raised:?}")
    };
    assert!(next.0 > 5_000);
    let again = admin.raise_counter().await.unwrap();
    assert_eq!(again, Raise::To(next), "a second time: the same");
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
    assert_eq!(bed.node_state(free[1]), "alive quarantined");
    let released = bed.store.release_from_quarantine(free[1]).await.unwrap();
    assert_eq!(released, Unquarantine::Done);
    says(&bed, 90, free[1], &lost(5_000)).await;
    assert_eq!(bed.node_state(free[1]), "alive joining");
    bed.check().await;
}

#[tokio::test]
async fn an_inspection_tells_of_uids_above_the_counter_too() {
    let (bed, nodes) = Bed::with_nodes(1).await;
    let mut evidence = saw(&[]);
    evidence["max_uid"] = json!(UID_BASE + 900);
    bed.inspected_at(700, RunOutcome::Clean, Some(evidence))
        .await;
    assert_eq!(bed.node_state(nodes[0]), "alive quarantined");
    assert_eq!(bed.events("uid_above_counter"), "1");
    bed.check().await;
}
