//! Nodes that are drained, and rentals that move off them while they still serve.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests"
)]

mod support;

use mysql_async::prelude::Queryable;
use orion_core::api::DrainPlan;
use orion_core::{NodeId, RentalId, RunKind, RunOutcome};
use orion_store::*;
use orion_testkit::{PATIENCE, wait_until};
use serde_json::json;
use support::moves::{dies, migrate, node_of, record_all};
use support::{Bed, HASH, instance, report};

/// A rental that moves off its node: where it is, and where it goes.
async fn half_moved(nodes: u32) -> (Bed, RentalId, NodeId, NodeId) {
    let (bed, _) = Bed::with_nodes(nodes).await;
    let rental = bed.active(bed.alice, 1).await[0];
    let old = node_of(&bed, rental);
    bed.store.set_draining(old, Drain::Moves).await.unwrap();
    let done = migrate(&bed, 0).await;
    assert_eq!((done.degraded, done.moving, done.stopped), (0, 1, 0));
    let new = on(&bed, rental, "making").unwrap();
    assert_ne!(new, old);
    bed.check().await;
    (bed, rental, old, new)
}

/// The node of the rental's account in a state.
fn on(bed: &Bed, rental: RentalId, state: &str) -> Option<NodeId> {
    let nodes = bed.db.sql(&format!(
        "SELECT node_id FROM accounts WHERE rental_id = {rental} AND state = '{state}'"
    ));
    assert!(nodes.len() < 2, "{nodes:?}");
    nodes.first().map(|row| NodeId(row[0].parse().unwrap()))
}

/// The accounts that are debts, with whether the home is kept.
fn debts(bed: &Bed) -> Vec<(NodeId, bool)> {
    let rows = bed
        .db
        .sql("SELECT node_id, keep_home FROM accounts WHERE state = 'leaving' ORDER BY node_id");
    rows.iter()
        .map(|row| (NodeId(row[0].parse().unwrap()), row[1] == "1"))
        .collect()
}

async fn history(bed: &Bed, rental: RentalId) -> Vec<String> {
    let view = bed.store.rental(Scope::All, rental).await.unwrap().unwrap();
    view.history.into_iter().map(|event| event.kind).collect()
}

async fn port_of(bed: &Bed, rental: RentalId) -> Option<u16> {
    let view = bed.store.rental(Scope::All, rental).await.unwrap();
    view.unwrap().ssh_port
}

#[tokio::test]
async fn a_rental_is_served_by_the_drained_node_until_its_new_account_is_present() {
    let (bed, rental, old, new) = half_moved(4).await;
    let kept = format!(
        "SELECT CONCAT(id, ' ', leased_from, ' ', leased_until, ' ', password_hash) FROM rentals WHERE id = {rental}"
    );
    let (before, port) = (bed.one(&kept), port_of(&bed, rental).await);
    assert_eq!(bed.rental_state(rental), "active");
    assert_eq!(on(&bed, rental, "present"), Some(old));
    assert_eq!(bed.node_state(old), "alive leased");

    let run = bed.claim_one(RunKind::Provision).await;
    let account = run.account.clone().unwrap();
    assert!(account.is_moved && !account.keep_home);
    assert_eq!(account.password_hash.as_deref(), Some(HASH));
    bed.record(&run, RunOutcome::Present).await;
    bed.check().await;
    assert_eq!(
        (on(&bed, rental, "present"), bed.one(&kept)),
        (Some(new), before)
    );
    assert_ne!(port_of(&bed, rental).await, port);
    assert_eq!(debts(&bed), [(old, true)]);
    assert_eq!(bed.node_state(old), "alive cleaning");

    let run = bed.claim_one(RunKind::Clean).await;
    let account = run.account.clone().unwrap();
    assert!(account.keep_home && !account.is_moved);
    let gone = RunReport {
        evidence: Some(
            json!({"kept_home": {"path": "/var/kept/7", "bytes": 12, "truncated": true}}),
        ),
        ..report(RunOutcome::Gone)
    };
    bed.store
        .record_run(&instance(1), &run, &gone)
        .await
        .unwrap();
    assert_eq!(bed.node_state(old), "alive ready");
    assert_eq!(
        history(&bed, rental).await,
        [
            "rental_active",
            "rental_moving",
            "rental_moved",
            "home_kept"
        ]
    );
    assert_eq!(
        bed.one("SELECT detail FROM events WHERE kind = 'home_kept'"),
        "the files are in /var/kept/7 (12 bytes, not whole)"
    );
    let why = bed.one("SELECT detail FROM events WHERE kind = 'rental_moved'");
    assert!(why.starts_with("its machine is drained"), "{why}");
    assert_eq!(migrate(&bed, 5).await, Migrated::default(), "moved once");
    bed.check().await;
}

#[tokio::test]
async fn a_node_that_only_drains_keeps_its_rental() {
    let (bed, _) = Bed::with_nodes(2).await;
    let rental = bed.active(bed.alice, 1).await[0];
    let node = node_of(&bed, rental);
    bed.store.set_draining(node, Drain::Moves).await.unwrap();
    bed.store.set_draining(node, Drain::RunsOut).await.unwrap();
    assert_eq!(
        migrate(&bed, 1).await,
        Migrated::default(),
        "the last word counts"
    );
    let view = bed.store.node(Scope::All, node).await.unwrap().unwrap();
    assert!(view.draining && !view.drain_move);
    assert!(
        !bed.store
            .set_draining(NodeId(999), Drain::Moves)
            .await
            .unwrap()
    );
}

#[tokio::test]
async fn a_rental_stays_when_its_node_is_not_drained_any_more_in_the_middle() {
    for result_first in [false, true] {
        let (bed, rental, old, new) = half_moved(3).await;
        bed.store.set_draining(old, Drain::No).await.unwrap();
        if result_first {
            record_all(&bed, RunKind::Provision, RunOutcome::Present, 2).await;
        } else {
            let run = bed.claim_one(RunKind::Provision).await;
            assert_eq!(migrate(&bed, 2).await.stopped, 1);
            bed.record(&run, RunOutcome::Present).await;
        }
        assert_eq!(on(&bed, rental, "present"), Some(old));
        assert_eq!(debts(&bed), [(new, false)], "nobody was there");
        assert_eq!(bed.rental_state(rental), "active");
        bed.check().await;
        record_all(&bed, RunKind::Clean, RunOutcome::Gone, 3).await;
        assert_eq!(bed.node_state(new), "alive ready");
        assert_eq!(migrate(&bed, 4).await, Migrated::default());
        assert_eq!(
            history(&bed, rental).await,
            ["rental_active", "rental_moving", "rental_stays"]
        );
    }
}

#[tokio::test]
async fn when_the_drained_node_dies_in_the_middle_the_account_in_the_making_is_used() {
    let (bed, rental, old, new) = half_moved(4).await;
    dies(&bed, old, 2).await;
    let done = migrate(&bed, 15).await;
    assert_eq!((done.degraded, done.moving), (1, 0), "one is under way");
    bed.check().await;
    record_all(&bed, RunKind::Provision, RunOutcome::Present, 16).await;
    assert_eq!(bed.rental_state(rental), "active");
    assert_eq!(on(&bed, rental, "present"), Some(new));
    assert_eq!(debts(&bed), [(old, true)]);
    assert_eq!(bed.node_state(old), "dead joining", "held by its debt");
    bed.check().await;
}

#[tokio::test]
async fn when_the_drained_node_dies_and_the_move_fails_another_node_is_tried() {
    let (bed, rental, old, new) = half_moved(4).await;
    dies(&bed, old, 2).await;
    migrate(&bed, 15).await;
    record_all(&bed, RunKind::Provision, RunOutcome::Failed, 16).await;
    assert_eq!(bed.rental_state(rental), "degraded");
    assert_eq!(migrate(&bed, 17).await.moving, 1);
    assert_ne!(on(&bed, rental, "making"), Some(new));
    record_all(&bed, RunKind::Provision, RunOutcome::Present, 18).await;
    assert_eq!(bed.rental_state(rental), "active");
    let mut expected = [(old, true), (new, false)];
    expected.sort_unstable();
    assert_eq!(debts(&bed), expected);
    bed.check().await;
}

#[tokio::test]
async fn a_drained_node_that_died_and_is_back_serves_until_the_move_is_done() {
    let (bed, rental, old, new) = half_moved(4).await;
    dies(&bed, old, 2).await;
    migrate(&bed, 15).await;
    let back = bed.later(16);
    back.record_probe(old, &ProbeResult::LoggedIn)
        .await
        .unwrap();
    assert_eq!(migrate(&bed, 17).await.healed, 1);
    assert_eq!(on(&bed, rental, "making"), Some(new), "still on its way");
    bed.check().await;
    record_all(&bed, RunKind::Provision, RunOutcome::Present, 18).await;
    assert_eq!(on(&bed, rental, "present"), Some(new));
    bed.check().await;
}

#[tokio::test]
async fn a_move_that_fails_leaves_the_rental_where_it_is_and_is_tried_elsewhere() {
    let (bed, rental, old, first) = half_moved(3).await;
    record_all(&bed, RunKind::Provision, RunOutcome::Failed, 2).await;
    assert_eq!(bed.rental_state(rental), "active");
    assert_eq!(on(&bed, rental, "present"), Some(old));
    assert_eq!(debts(&bed), [(first, false)]);
    bed.check().await;
    assert_eq!(migrate(&bed, 3).await.moving, 1);
    assert_ne!(on(&bed, rental, "making"), Some(first));
    record_all(&bed, RunKind::Provision, RunOutcome::Failed, 4).await;
    record_all(&bed, RunKind::Clean, RunOutcome::Gone, 5).await;
    assert_eq!(migrate(&bed, 6).await.moving, 0, "both failed lately");
    assert_eq!(migrate(&bed, 700).await.moving, 1);
    bed.check().await;
}

#[tokio::test]
async fn a_failure_that_a_clock_far_ahead_recorded_keeps_no_spare_away() {
    let (bed, _, _, spare) = half_moved(2).await;
    record_all(&bed, RunKind::Provision, RunOutcome::Failed, 3600).await;
    record_all(&bed, RunKind::Clean, RunOutcome::Gone, 3601).await;
    assert_eq!(bed.node_state(spare), "alive ready");
    assert_eq!(migrate(&bed, 10).await.moving, 1);
}

#[tokio::test]
async fn whatever_ends_a_rental_in_the_middle_of_a_move_ends_both_accounts() {
    for end in ["release", "expire", "reset"] {
        let (bed, rental, old, new) = half_moved(3).await;
        let run = bed.claim_one(RunKind::Provision).await;
        match end {
            "release" => drop(bed.store.release(Scope::All, rental).await.unwrap()),
            "expire" => assert_eq!(bed.later(3700).expire_rentals(9).await.unwrap(), 1),
            _ => bed.store.reset().await.unwrap(),
        }
        bed.record(&run, RunOutcome::Present).await;
        let mut expected = [(old, false), (new, false)];
        expected.sort_unstable();
        assert_eq!(debts(&bed), expected, "{end}: nothing is kept");
        assert_eq!(bed.rental_state(rental), "ending");
        bed.check().await;
        record_all(&bed, RunKind::Clean, RunOutcome::Gone, 3).await;
        assert_eq!(bed.rental_state(rental), "ended");
        assert_eq!(migrate(&bed, 4).await, Migrated::default());
        bed.check().await;
    }
}

#[tokio::test]
async fn a_rental_past_its_end_is_not_moved_off_a_drained_node() {
    let (bed, _) = Bed::with_nodes(2).await;
    let rental = bed.active(bed.alice, 1).await[0];
    let node = node_of(&bed, rental);
    bed.store.set_draining(node, Drain::Moves).await.unwrap();
    assert_eq!(migrate(&bed, 3601).await.moving, 0);
    let plan = bed.later(3601).plan_drain(node).await.unwrap();
    assert_eq!(plan, Some(DrainPlan { moves: Vec::new() }));
}

#[tokio::test]
async fn a_move_that_arrives_after_the_end_leaves_one_present_account() {
    let (bed, rental, old, new) = half_moved(2).await;
    let store = bed.later(3601);
    let run = bed.claim_one(RunKind::Provision).await;
    let present = report(RunOutcome::Present);
    store
        .record_run(&instance(1), &run, &present)
        .await
        .unwrap();
    assert_eq!(on(&bed, rental, "present"), Some(new));
    assert_eq!(debts(&bed), [(old, true)]);
    bed.check().await;
    assert_eq!(store.expire_rentals(9).await.unwrap(), 1);
    bed.check().await;
}

#[tokio::test]
async fn drained_rentals_move_at_the_pace_of_all_moves_and_after_those_without_access() {
    let (bed, _) = Bed::with_nodes(20).await;
    let rentals = bed.active(bed.alice, 8).await;
    for rental in &rentals[1..] {
        let node = node_of(&bed, *rental);
        bed.store.set_draining(node, Drain::Moves).await.unwrap();
    }
    dies(&bed, node_of(&bed, rentals[0]), 10).await;
    let moved = [
        migrate(&bed, 23).await.moving,
        migrate(&bed, 24).await.moving,
        migrate(&bed, 34).await.moving,
    ];
    assert_eq!(moved, [5, 0, 2], "five at once, then one in five seconds");
    assert!(on(&bed, rentals[0], "making").is_some(), "it comes first");
    bed.check().await;
}

#[tokio::test]
async fn while_much_fails_nothing_moves_off_a_drained_node() {
    let (bed, nodes) = Bed::with_nodes(6).await;
    let rental = bed.active(bed.alice, 1).await[0];
    let node = node_of(&bed, rental);
    let others: Vec<NodeId> = nodes.into_iter().filter(|other| *other != node).collect();
    for other in &others[..3] {
        dies(&bed, *other, 0).await;
    }
    bed.store.set_draining(node, Drain::Moves).await.unwrap();
    let done = migrate(&bed, 13).await;
    assert!(done.suspended.is_some() && done.moving == 0, "{done:?}");
}

#[tokio::test]
async fn a_plan_says_what_would_move_where_and_changes_nothing() {
    let (bed, _) = Bed::with_nodes(2).await;
    let rentals = bed.active(bed.alice, 1).await;
    let node = node_of(&bed, rentals[0]);
    let name = |node: NodeId| {
        let hostname = bed.one(&format!("SELECT hostname FROM nodes WHERE id = {node}"));
        json!({"node_id": node, "hostname": hostname})
    };
    let plan = async || {
        let plan = bed.store.plan_drain(node).await.unwrap().unwrap();
        serde_json::to_value(plan).unwrap()
    };
    let other = NodeId(
        bed.one(&format!("SELECT id FROM nodes WHERE id <> {node}"))
            .parse()
            .unwrap(),
    );
    let expected = |to| json!({"moves": [{"rental_id": rentals[0], "from": name(node), "to": to}]});
    assert_eq!(plan().await, expected(name(other)));
    assert_eq!(bed.node_state(other), "alive ready");
    assert_eq!(bed.one("SELECT COUNT(*) FROM nodes WHERE draining"), "0");
    assert_eq!(migrate(&bed, 1).await, Migrated::default());
    bed.store.set_draining(node, Drain::Moves).await.unwrap();
    migrate(&bed, 1).await;
    assert_eq!(
        plan().await,
        expected(name(other)),
        "where it is on its way to"
    );
    record_all(&bed, RunKind::Provision, RunOutcome::Failed, 2).await;
    assert_eq!(plan().await, expected(json!(null)), "no node is free");
    assert_eq!(
        bed.store.plan_drain(other).await.unwrap(),
        Some(DrainPlan { moves: Vec::new() })
    );
    assert_eq!(bed.store.plan_drain(NodeId(999)).await.unwrap(), None);
}

#[tokio::test]
async fn two_schedds_that_move_a_rental_at_once_take_one_node_for_it() {
    let (bed, nodes) = Bed::with_nodes(1).await;
    bed.active(bed.alice, 1).await;
    bed.add_nodes(3).await;
    let drain = bed.store.set_draining(nodes[0], Drain::Moves).await;
    assert!(drain.unwrap());
    // Both have found it before either can look closer.
    let mut conn = bed.connection().await;
    conn.query_drop("START TRANSACTION").await.unwrap();
    let lock = "SELECT id FROM requests FOR UPDATE";
    conn.query_drop(lock).await.unwrap();
    let tick = || {
        let store = bed.later(1);
        tokio::spawn(async move { store.migrate(9).await.unwrap().moving })
    };
    let ticks = [tick(), tick()];
    let waiting = format!(
        "SELECT COUNT(*) FROM information_schema.PROCESSLIST WHERE DB = '{}' AND INFO LIKE 'SELECT state FROM requests%'",
        bed.db.name()
    );
    wait_until("both wait", PATIENCE, || match bed.one(&waiting).as_str() {
        "2" => Ok(()),
        other => Err(other.to_owned()),
    })
    .await;
    conn.query_drop("ROLLBACK").await.unwrap();
    let mut moving = 0;
    for tick in ticks {
        moving += tick.await.unwrap();
    }
    assert_eq!(moving, 1);
    bed.check().await;
    conn.disconnect().await.unwrap();
}

#[tokio::test]
async fn a_rental_that_ends_degraded_keeps_nothing() {
    let (bed, _) = Bed::with_nodes(2).await;
    let rentals = bed.active(bed.alice, 2).await;
    let node = node_of(&bed, rentals[0]);
    dies(&bed, node, 10).await;
    assert_eq!(migrate(&bed, 23).await.degraded, 1);
    bed.store.release(Scope::All, rentals[0]).await.unwrap();
    assert_eq!(debts(&bed), [(node, false)]);
    let run = bed.claim_one(RunKind::Clean).await;
    assert!(!run.account.unwrap().keep_home);
}
