//! Rentals that move off nodes that died, and the brakes.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests"
)]

mod support;

use orion_core::{NodeId, RunKind, RunOutcome};
use orion_store::*;
use std::time::Duration;
use support::Bed;
use support::moves::{answers, dies, migrate, node_of, record_all};

#[tokio::test]
async fn a_rental_moves_off_a_dead_node_and_keeps_its_id_end_and_password() {
    let (bed, _) = Bed::with_nodes(4).await;
    let rental = bed.active(bed.alice, 1).await[0];
    let old = node_of(&bed, rental);
    let kept = format!(
        "SELECT CONCAT(id, ' ', leased_until, ' ', password_hash, ' ', password_version) FROM rentals WHERE id = {rental}"
    );
    let before = bed.one(&kept);
    assert_eq!(migrate(&bed, 1).await, Migrated::default());
    dies(&bed, old, 10).await;
    let done = migrate(&bed, 23).await;
    assert_eq!((done.degraded, done.moving, done.suspended), (1, 1, None));
    assert_eq!(bed.rental_state(rental), "degraded");
    let new = node_of(&bed, rental);
    assert_ne!(new, old);
    assert_eq!(bed.node_state(old), "dead joining", "held by its debt");
    bed.check().await;

    let run = bed
        .later(24)
        .claim_runs(&support::instance(1), RunKind::Provision, 9, support::HOLD)
        .await
        .unwrap()
        .remove(0);
    let account = run.account.clone().unwrap();
    assert_eq!(account.password_hash.as_deref(), Some(support::HASH));
    assert!(
        account.ends_in.unwrap() < Duration::from_secs(3600 - 20),
        "the same end"
    );
    bed.later(25)
        .record_run(
            &support::instance(1),
            &run,
            &support::report(RunOutcome::Present),
        )
        .await
        .unwrap();
    assert_eq!(
        (bed.rental_state(rental), node_of(&bed, rental)),
        ("active".to_owned(), new)
    );
    assert_eq!(bed.one(&kept), before);
    let view = bed.store.rental(Scope::All, rental).await.unwrap().unwrap();
    let kinds: Vec<&str> = view
        .history
        .iter()
        .map(|event| event.kind.as_str())
        .collect();
    assert_eq!(
        kinds,
        [
            "rental_active",
            "rental_degraded",
            "rental_moving",
            "rental_moved"
        ]
    );
    bed.check().await;
}

#[tokio::test]
async fn a_node_that_comes_back_pays_its_debt_before_anybody_gets_it() {
    let (bed, _) = Bed::with_nodes(3).await;
    let rental = bed.active(bed.alice, 1).await[0];
    let old = node_of(&bed, rental);
    dies(&bed, old, 10).await;
    migrate(&bed, 23).await;
    record_all(&bed, RunKind::Provision, RunOutcome::Present, 24).await;
    answers(&bed.later(30), old).await;
    assert_eq!(bed.node_state(old), "alive joining");
    assert_eq!(migrate(&bed, 31).await, Migrated::default(), "moved once");
    record_all(&bed, RunKind::Clean, RunOutcome::Gone, 32).await;
    assert_eq!(bed.node_state(old), "alive joining", "inspected first");
    record_all(&bed, RunKind::Inspect, RunOutcome::Clean, 32).await;
    assert_eq!(bed.node_state(old), "alive ready");
    assert_eq!(bed.rental_state(rental), "active");
    let held = bed
        .later(33)
        .rent(&support::order(bed.bob, 2, &support::unique_id()))
        .await
        .unwrap();
    assert_eq!(
        held,
        RentDecision::NoFreeNode { free: 1 },
        "who died waits before it is offered again"
    );
    let later = bed
        .later(120)
        .rent(&support::order(bed.bob, 2, &support::unique_id()))
        .await
        .unwrap();
    assert!(matches!(later, RentDecision::Opened(_)), "{later:?}");
    bed.check().await;
}

#[tokio::test]
async fn without_a_spare_a_rental_waits_is_served_in_order_and_ends_on_time() {
    let (bed, nodes) = Bed::with_nodes(5).await;
    let rentals = bed.active(bed.alice, 5).await;
    for (index, rental) in rentals.iter().take(2).enumerate() {
        dies(
            &bed,
            node_of(&bed, *rental),
            10 + 100 * i64::try_from(index).unwrap(),
        )
        .await;
        let done = migrate(&bed, 23 + 100 * i64::try_from(index).unwrap()).await;
        assert_eq!((done.degraded, done.moving), (1, 0));
    }
    assert_eq!(bed.rental_state(rentals[0]), "degraded");
    bed.check().await;
    // One node turns up: the first degraded gets it.
    bed.store.release(Scope::All, rentals[4]).await.unwrap();
    record_all(&bed, RunKind::Clean, RunOutcome::Gone, 130).await;
    assert_eq!(migrate(&bed, 131).await.moving, 1);
    record_all(&bed, RunKind::Provision, RunOutcome::Present, 132).await;
    assert_eq!(
        (bed.rental_state(rentals[0]), bed.rental_state(rentals[1])),
        ("active".into(), "degraded".into())
    );
    // The other ends like any other.
    bed.later(3700).expire_rentals(100).await.unwrap();
    assert_eq!(bed.rental_state(rentals[1]), "ending");
    assert_eq!(
        migrate(&bed, 3701).await.moving,
        0,
        "a rental past its end is not moved"
    );
    assert_eq!(nodes.len(), 5);
    bed.check().await;
}

#[tokio::test]
async fn a_node_that_is_alive_again_before_a_spare_was_taken_keeps_its_rental() {
    let (bed, _) = Bed::with_nodes(4).await;
    let rentals = bed.active(bed.alice, 4).await;
    let node = node_of(&bed, rentals[0]);
    dies(&bed, node, 10).await;
    assert_eq!(migrate(&bed, 23).await.degraded, 1);
    answers(&bed.later(30), node).await;
    let done = migrate(&bed, 31).await;
    assert_eq!((done.healed, done.moving), (1, 0));
    assert_eq!(
        (bed.rental_state(rentals[0]), node_of(&bed, rentals[0])),
        ("active".into(), node)
    );
    assert_eq!(bed.node_state(node), "alive leased");
    bed.check().await;
}

#[tokio::test]
async fn a_move_to_a_node_that_loses_its_address_is_given_up_for_another_node() {
    let (bed, _) = Bed::with_nodes(4).await;
    let rental = bed.active(bed.alice, 1).await[0];
    dies(&bed, node_of(&bed, rental), 10).await;
    migrate(&bed, 23).await;
    let first = node_of(&bed, rental);
    bed.db.sql(&format!(
        "UPDATE nodes SET contact_host = NULL, contact_port = NULL WHERE id = {first}"
    ));
    assert_eq!(migrate(&bed, 80).await.moving, 0, "it may come back");
    assert_eq!(migrate(&bed, 85).await.moving, 1);
    assert_ne!(node_of(&bed, rental), first);
    bed.check().await;
    record_all(&bed, RunKind::Provision, RunOutcome::Present, 86).await;
    assert_eq!(bed.rental_state(rental), "active");
}

#[tokio::test]
async fn when_provisioning_fails_another_node_is_tried() {
    let (bed, _) = Bed::with_nodes(4).await;
    let rental = bed.active(bed.alice, 1).await[0];
    dies(&bed, node_of(&bed, rental), 10).await;
    migrate(&bed, 23).await;
    let first = node_of(&bed, rental);
    record_all(&bed, RunKind::Provision, RunOutcome::Failed, 24).await;
    assert_eq!(bed.rental_state(rental), "degraded");
    assert_eq!(migrate(&bed, 25).await.moving, 1);
    assert_ne!(node_of(&bed, rental), first);
    record_all(&bed, RunKind::Provision, RunOutcome::Present, 26).await;
    assert_eq!(bed.rental_state(rental), "active");
    bed.check().await;
}

#[tokio::test]
async fn a_release_in_the_middle_of_a_move_leaves_only_debts() {
    let (bed, _) = Bed::with_nodes(3).await;
    let rental = bed.active(bed.alice, 1).await[0];
    dies(&bed, node_of(&bed, rental), 10).await;
    migrate(&bed, 23).await;
    bed.later(24).release(Scope::All, rental).await.unwrap();
    record_all(&bed, RunKind::Provision, RunOutcome::Present, 25).await;
    assert_eq!(bed.rental_state(rental), "ending");
    assert_eq!(
        bed.one("SELECT COUNT(*) FROM accounts WHERE state = 'leaving'"),
        "2"
    );
    bed.check().await;
}

#[tokio::test]
async fn when_half_of_the_nodes_fail_together_nothing_moves_until_they_answer_or_an_administrator_says_so()
 {
    let (bed, nodes) = Bed::with_nodes(8).await;
    let rentals = bed.active(bed.alice, 4).await;
    let lost: Vec<NodeId> = rentals
        .iter()
        .map(|rental| node_of(&bed, *rental))
        .collect();
    for node in &lost {
        dies(&bed, *node, 10).await;
    }
    let done = migrate(&bed, 23).await;
    assert!(
        done.suspended.as_deref().unwrap().contains("4 of 8"),
        "{done:?}"
    );
    assert_eq!((done.degraded, done.moving), (0, 0));
    assert!(
        migrate(&bed, 500).await.suspended.is_some(),
        "time alone changes nothing"
    );
    // An administrator knows that it is real.
    bed.later(501).override_brakes().await.unwrap();
    let done = migrate(&bed, 502).await;
    assert_eq!((done.degraded, done.moving, done.suspended), (4, 4, None));
    bed.check().await;
    // Two come back: less than half is bad, and the brakes are off by themselves.
    for node in &lost[..2] {
        answers(&bed.later(510), *node).await;
    }
    migrate(&bed, 511).await;
    assert_eq!(
        bed.one("SELECT suspended_since IS NULL FROM migration"),
        "1"
    );
    assert_eq!(nodes.len(), 8);
}

#[tokio::test]
async fn a_few_that_really_die_are_moved_one_after_the_other_after_a_burst() {
    let (bed, _) = Bed::with_nodes(20).await;
    let rentals = bed.active(bed.alice, 8).await;
    for rental in &rentals {
        dies(&bed, node_of(&bed, *rental), 10).await;
    }
    let moved = [
        migrate(&bed, 23).await.moving,
        migrate(&bed, 24).await.moving,
        migrate(&bed, 34).await.moving,
    ];
    assert_eq!(moved, [5, 0, 2], "five at once, then one in five seconds");
    bed.check().await;
}

#[tokio::test]
async fn nobody_is_decided_dead_within_the_grace_after_a_start() {
    let (bed, nodes) = Bed::with_nodes(3).await;
    bed.store
        .begin_grace(Duration::from_secs(60))
        .await
        .unwrap();
    // A shorter one does not shorten it.
    bed.store.begin_grace(Duration::ZERO).await.unwrap();
    let silence = ProbeResult::NoAnswer("timed out".to_owned());
    for second in [0, 10, 20, 30, 50] {
        bed.later(second)
            .record_probe(nodes[0], &silence)
            .await
            .unwrap();
    }
    assert_eq!(bed.node_state(nodes[0]), "suspect ready");
    bed.later(61)
        .record_probe(nodes[0], &silence)
        .await
        .unwrap();
    assert!(bed.node_state(nodes[0]).starts_with("dead"));
}

#[tokio::test]
async fn a_node_nobody_can_log_in_to_moves_its_rental_after_three_minutes_of_beats() {
    let (bed, _) = Bed::with_nodes(2).await;
    let rental = bed.active(bed.alice, 1).await[0];
    let node = node_of(&bed, rental);
    let silence = ProbeResult::NoAnswer("timed out".to_owned());
    for second in [0, 60, 120, 170, 181] {
        let store = bed.later(second);
        let beat = Beat {
            node,
            boot_id: "b".into(),
            agent: "0.1.0".into(),
            signed: None,
            signing_key: None,
            accounts: None,
        };
        store.beat_many(&[beat], None).await.unwrap();
        store.record_probe(node, &silence).await.unwrap();
        assert_eq!(
            bed.node_state(node) == "dead leased",
            second >= 180,
            "{second} s"
        );
    }
}

#[tokio::test]
async fn three_deaths_within_a_day_quarantine_a_node() {
    let (bed, nodes) = Bed::with_nodes(4).await;
    for (death, start) in [(1, 0), (2, 1000), (3, 5000)] {
        dies(&bed, nodes[0], start).await;
        let quarantined = bed.node_state(nodes[0]).ends_with("quarantined");
        assert_eq!(quarantined, death == 3, "after {death} deaths");
        answers(&bed.later(start + 100), nodes[0]).await;
    }
}

#[tokio::test]
async fn three_deaths_in_two_days_do_not() {
    let (bed, nodes) = Bed::with_nodes(4).await;
    for hour in [0, 20, 40] {
        dies(&bed, nodes[0], hour * 3600).await;
        answers(&bed.later(hour * 3600 + 100), nodes[0]).await;
    }
    assert_eq!(bed.node_state(nodes[0]), "alive joining");
    assert_eq!(bed.one("SELECT MAX(deaths) FROM nodes"), "3");
}

#[tokio::test]
async fn brakes_come_off_when_what_failed_together_is_back_whoever_was_dead_before() {
    let (bed, nodes) = Bed::with_nodes(4).await;
    for node in &nodes[..2] {
        dies(&bed, *node, 10).await;
    }
    assert_eq!(migrate(&bed, 30).await.suspended, None);
    let silence = ProbeResult::NoAnswer("timed out".to_owned());
    for node in &nodes[2..] {
        let store = bed.later(1000);
        store.record_probe(*node, &silence).await.unwrap();
    }
    assert!(migrate(&bed, 1001).await.suspended.is_some());
    answers(&bed.later(1002), nodes[2]).await;
    assert!(migrate(&bed, 1003).await.suspended.is_some());
    answers(&bed.later(1004), nodes[3]).await;
    assert_eq!(migrate(&bed, 1005).await.suspended, None);
}

#[tokio::test]
async fn who_died_is_inspected_also_when_its_rental_ends_before_it_moves() {
    let (bed, nodes) = Bed::with_nodes(1).await;
    let rental = bed.active(bed.alice, 1).await[0];
    dies(&bed, nodes[0], 10).await;
    migrate(&bed, 23).await;
    assert_eq!(bed.rental_state(rental), "degraded");
    bed.later(24).release(Scope::All, rental).await.unwrap();
    assert_eq!(bed.node_state(nodes[0]), "dead joining");
    bed.check().await;
}

#[tokio::test]
async fn who_died_is_inspected_also_when_it_was_back_for_a_moment_before_its_rental_moved() {
    let (bed, nodes) = Bed::with_nodes(1).await;
    bed.active(bed.alice, 1).await;
    dies(&bed, nodes[0], 10).await;
    assert_eq!(migrate(&bed, 23).await.degraded, 1);
    answers(&bed.later(24), nodes[0]).await;
    let silence = ProbeResult::NoAnswer("timed out".to_owned());
    let store = bed.later(25);
    store.record_probe(nodes[0], &silence).await.unwrap();
    bed.add_nodes(1).await;
    assert_eq!(migrate(&bed, 26).await.moving, 1);
    assert_eq!(bed.node_state(nodes[0]), "suspect joining");
    bed.check().await;
}

#[tokio::test]
async fn our_own_outage_is_no_nodes_death_and_who_comes_back_later_gets_time() {
    let (bed, nodes) = Bed::with_nodes(7).await;
    bed.active(bed.alice, 4).await;
    let silence = ProbeResult::NoAnswer("timed out".to_owned());
    let cut = &nodes[..5];
    for round in 0..30 {
        for node in cut {
            bed.later(round * 10)
                .record_probe(*node, &silence)
                .await
                .unwrap();
        }
        let done = migrate(&bed, round * 10 + 1).await;
        assert_eq!((done.degraded, done.moving), (0, 0));
    }
    assert_eq!(
        bed.one("SELECT COUNT(*) FROM nodes WHERE deaths > 0 OR status = 'dead'"),
        "0"
    );
    // They come back one after the other; the brakes are off, and the last ones have time.
    for (index, node) in cut.iter().enumerate() {
        let second = 300 + i64::try_from(index).unwrap() * 12;
        answers(&bed.later(second), *node).await;
        for other in &cut[index + 1..] {
            bed.later(second)
                .record_probe(*other, &silence)
                .await
                .unwrap();
        }
        let done = migrate(&bed, second + 1).await;
        assert_eq!((done.degraded, done.moving), (0, 0), "{index}");
    }
    assert_eq!(migrate(&bed, 400).await.suspended, None);
    bed.check().await;
}

#[tokio::test]
async fn a_rental_that_can_not_be_placed_does_not_hold_up_the_others() {
    let (bed, _) = Bed::with_nodes(7).await;
    let alice = bed.active(bed.alice, 1).await[0];
    let bob = bed.active(bed.bob, 1).await[0];
    dies(&bed, node_of(&bed, alice), 10).await;
    migrate(&bed, 23).await;
    record_all(&bed, RunKind::Provision, RunOutcome::NameTaken, 24).await;
    migrate(&bed, 25).await;
    record_all(&bed, RunKind::Provision, RunOutcome::NameTaken, 26).await;
    assert_eq!(
        migrate(&bed, 27).await.moving,
        0,
        "one further node, not the whole pool"
    );
    dies(&bed, node_of(&bed, bob), 400).await;
    assert_eq!(migrate(&bed, 413).await.moving, 1);
    record_all(&bed, RunKind::Provision, RunOutcome::Present, 414).await;
    assert_eq!(
        (bed.rental_state(alice), bed.rental_state(bob)),
        ("degraded".into(), "active".into())
    );
    bed.check().await;
}

#[tokio::test]
async fn who_refuses_a_login_was_not_silent() {
    let (bed, nodes) = Bed::with_nodes(3).await;
    for second in [0, 60, 120, 179] {
        let refused = ProbeResult::Refused("penalised".to_owned());
        bed.later(second)
            .record_probe(nodes[0], &refused)
            .await
            .unwrap();
    }
    let silence = ProbeResult::NoAnswer("timed out".to_owned());
    bed.later(185)
        .record_probe(nodes[0], &silence)
        .await
        .unwrap();
    assert_eq!(bed.node_state(nodes[0]), "suspect ready");
}

#[tokio::test]
async fn a_bucket_that_was_filled_by_a_clock_ahead_is_full() {
    let (bed, _) = Bed::with_nodes(4).await;
    let rental = bed.active(bed.alice, 1).await[0];
    migrate(&bed, 0).await;
    bed.db
        .sql("UPDATE migration SET tokens = 0, refilled_at = refilled_at + INTERVAL 2 HOUR");
    dies(&bed, node_of(&bed, rental), 10).await;
    assert_eq!(migrate(&bed, 23).await.moving, 1);
}
