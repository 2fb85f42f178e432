//! The database's clock steps, and nobody's time ends early or late for it.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests"
)]

mod support;

use orion_core::{NodeId, RentalId, RunKind, RunOutcome};
use orion_store::*;
use std::time::Duration;
use support::{Bed, HOUR, bare_beat, instance, order, unique_id};

const S: i64 = 1_000_000;
const TWO_HOURS: i64 = 2 * 3600 * S;

impl Bed {
    /// The database after `seconds`, its clock `step_us` wrong.
    fn stepped(&self, seconds: i64, step_us: i64) -> Store {
        self.later(seconds).with_clock_step(step_us)
    }
}

/// An active rental.
async fn rented(bed: &Bed, duration: Duration) -> RentalId {
    let id = unique_id();
    let order = RentOrder {
        duration,
        ..order(bed.alice, 1, &id)
    };
    let RentDecision::Opened(opened) = bed.store.rent(&order).await.unwrap() else {
        panic!("no node")
    };
    bed.provision(&opened).await;
    for run in bed.claim(RunKind::Provision).await {
        bed.record(&run, RunOutcome::Present).await;
    }
    opened.rentals[0]
}

async fn fails(store: &Store, node: NodeId) {
    let silence = ProbeResult::NoAnswer("timed out".to_owned());
    store.record_probe(node, &silence).await.unwrap();
}

/// What the leader sees of the clock, and keeps for others.
async fn kept(store: &Store) -> Option<ClockStep> {
    let lead = store.lead(&instance(1), HOUR).await.unwrap().unwrap();
    store.leading(lead).watch_clock().await.unwrap()
}

fn ahead_s(step: Option<ClockStep>) -> f64 {
    step.map_or(0.0, ClockStep::ahead_s).round()
}

#[tokio::test]
async fn a_clock_set_forward_ends_nobody_early_and_everybody_on_time() {
    let (bed, _) = Bed::with_nodes(2).await;
    let (short, long) = (rented(&bed, HOUR).await, rented(&bed, 3 * HOUR).await);
    let store = bed.stepped(1, TWO_HOURS);
    assert_eq!(store.expire_rentals(100).await.unwrap(), 0);
    let almost = bed.stepped(3595, TWO_HOURS);
    assert_eq!(almost.expire_rentals(100).await.unwrap(), 0);
    let over = bed.stepped(3605, TWO_HOURS);
    assert_eq!(over.expire_rentals(100).await.unwrap(), 1);
    assert_eq!(
        (bed.rental_state(short), bed.rental_state(long)),
        ("ending".to_owned(), "active".to_owned())
    );
    // Back: as if nothing had been.
    assert_eq!(bed.later(3606).expire_rentals(100).await.unwrap(), 0);
    assert_eq!(bed.later(10_805).expire_rentals(100).await.unwrap(), 1);
    bed.check().await;
}

#[tokio::test]
async fn a_clock_set_back_lengthens_no_rental_and_brings_none_back() {
    let (bed, _) = Bed::with_nodes(2).await;
    let (ended, other) = (rented(&bed, HOUR).await, rented(&bed, 3 * HOUR).await);
    assert_eq!(bed.later(3605).expire_rentals(100).await.unwrap(), 1);
    let back = bed.stepped(3606, -TWO_HOURS);
    assert_eq!(back.expire_rentals(100).await.unwrap(), 0);
    let migrated = back.migrate(100).await.unwrap();
    assert_eq!((migrated.healed, migrated.moving), (0, 0));
    assert_eq!(bed.rental_state(ended), "ending");
    let again = back.extend(Scope::All, ended, HOUR, 720 * HOUR).await;
    assert_eq!(again.unwrap(), Extension::ClockStepped);
    assert_eq!(
        bed.stepped(10_795, -TWO_HOURS)
            .expire_rentals(9)
            .await
            .unwrap(),
        0
    );
    assert_eq!(
        bed.stepped(10_805, -TWO_HOURS)
            .expire_rentals(9)
            .await
            .unwrap(),
        1
    );
    assert_eq!(bed.rental_state(other), "ending");
}

#[tokio::test]
async fn while_the_clock_is_in_doubt_nothing_is_rented_or_extended_and_releasing_works() {
    let (bed, _) = Bed::with_nodes(3).await;
    let key = || IdempotencyKey {
        key: b"k",
        body_digest: [7; 32],
        digest_key_id: "k1",
    };
    let (first, second) = (unique_id(), unique_id());
    let with_key = |id| RentOrder {
        idempotency: Some(key()),
        ..order(bed.alice, 1, id)
    };
    let opened = bed.store.rent(&with_key(&first)).await.unwrap();
    assert!(matches!(opened, RentDecision::Opened(_)), "{opened:?}");
    let rental = rented(&bed, HOUR).await;
    for step in [TWO_HOURS, -TWO_HOURS, 40 * S, -40 * S] {
        let store = bed.stepped(2, step);
        let id = unique_id();
        let refused = store.rent(&order(bed.alice, 1, &id)).await.unwrap();
        assert_eq!(refused, RentDecision::ClockStepped, "{step}");
        let known = store.rent(&with_key(&second)).await.unwrap();
        assert!(matches!(known, RentDecision::Known(_)), "{known:?}");
        let refused = store.extend(Scope::All, rental, HOUR, 9 * HOUR).await;
        assert_eq!(refused.unwrap(), Extension::ClockStepped, "{step}");
    }
    let released = bed.stepped(3, TWO_HOURS).release(Scope::All, rental).await;
    assert_eq!(released.unwrap(), Release::Done);
    let back = bed.later(4).rent(&order(bed.alice, 1, &unique_id())).await;
    assert!(matches!(back.unwrap(), RentDecision::Opened(_)));
}

#[tokio::test]
async fn no_node_dies_and_nothing_moves_by_a_clock_that_stepped() {
    let (bed, nodes) = Bed::with_nodes(4).await;
    rented(&bed, HOUR).await;
    for node in &nodes[..2] {
        // The clock steps between the first failure and the next ones.
        fails(&bed.later(1), *node).await;
        for second in [2, 3, 20] {
            fails(&bed.stepped(second, TWO_HOURS), *node).await;
        }
        assert!(bed.node_state(*node).starts_with("suspect"));
    }
    let migrated = bed.stepped(21, TWO_HOURS).migrate(100).await.unwrap();
    assert!(migrated.suspended.is_some());
    assert_eq!((migrated.degraded, migrated.moving), (0, 0));
    fails(&bed.later(22), nodes[0]).await;
    assert!(bed.node_state(nodes[0]).starts_with("dead"), "a real death");
}

#[tokio::test]
async fn workers_are_told_no_ends_by_a_clock_that_stepped_and_still_what_must_go() {
    let (bed, nodes) = Bed::with_nodes(1).await;
    let rental = rented(&bed, HOUR).await;
    let beat = bare_beat(nodes[0]);
    let wanted = async |store: Store| {
        let recorded = store
            .beat_many(std::slice::from_ref(&beat), None)
            .await
            .unwrap();
        recorded.held[&nodes[0]].wanted
    };
    let Wanted::For(left) = wanted(bed.later(600)).await else {
        panic!("no end")
    };
    assert!(left < HOUR - Duration::from_secs(595), "{left:?}");
    assert_eq!(
        wanted(bed.stepped(601, -TWO_HOURS)).await,
        Wanted::Undecided
    );
    assert_eq!(wanted(bed.stepped(602, TWO_HOURS)).await, Wanted::Undecided);
    bed.store.release(Scope::All, rental).await.unwrap();
    assert_eq!(wanted(bed.stepped(603, -TWO_HOURS)).await, Wanted::Gone);
}

#[tokio::test]
async fn a_clock_that_drifts_is_followed() {
    let (bed, _) = Bed::with_nodes(1).await;
    for minute in 1..=10 {
        let store = bed.stepped(minute * 60, minute * 20 * S);
        assert_eq!(kept(&store).await, None, "{minute}");
    }
    assert_eq!(
        bed.one("SELECT COUNT(*) FROM events WHERE kind LIKE 'clock%'"),
        "0"
    );
}

#[tokio::test]
async fn who_starts_while_the_clock_is_wrong_takes_up_what_is_known() {
    for step in [TWO_HOURS, -TWO_HOURS] {
        let (bed, _) = Bed::with_nodes(1).await;
        rented(&bed, HOUR).await;
        // On a machine that goes on: the leader kept the row before the step, and nobody saw the step.
        assert_eq!(kept(&bed.store).await, None);
        let here = bed.one("SELECT boot_id FROM clock");
        let restarted = bed.stepped(20, step).on_machine(&here);
        assert_eq!(
            ahead_s(restarted.watch_clock().await.unwrap()),
            (step / S) as f64
        );
        // On another machine, whose boot was another time: the leader has seen the step.
        kept(&bed.stepped(60, step)).await;
        let elsewhere = bed.stepped(120, step).on_machine("another");
        assert_eq!(ahead_s(kept(&elsewhere).await), (step / S) as f64);
        assert_eq!(elsewhere.expire_rentals(9).await.unwrap(), 0);
        // It is back while lead goes to a third.
        let third = bed.later(180).on_machine("a third");
        assert_eq!(kept(&third).await, None);
        assert_eq!(third.expire_rentals(9).await.unwrap(), 0);
        let kinds = bed
            .db
            .sql("SELECT kind FROM events WHERE kind LIKE 'clock%' ORDER BY id");
        assert_eq!(kinds, [["clock_stepped"], ["clock_back"]]);
    }
}

#[tokio::test]
async fn a_clock_before_what_was_seen_is_wrong_whoever_looks_until_it_has_caught_up() {
    let (bed, _) = Bed::with_nodes(1).await;
    rented(&bed, HOUR).await;
    kept(&bed.store).await;
    // Everything was off for ten minutes, and its clock with it.
    let rebooted = bed.stepped(600, -1200 * S).on_machine("after a reboot");
    assert_eq!(ahead_s(kept(&rebooted).await), -600.0);
    let set_right = rebooted.with_clock_step(1200 * S);
    assert_eq!(kept(&set_right).await, None);
    assert_eq!(set_right.expire_rentals(9).await.unwrap(), 0);
}

#[tokio::test]
async fn a_machine_that_was_paused_believes_the_one_that_leads() {
    let (bed, _) = Bed::with_nodes(1).await;
    let leader = bed.later(1).on_machine("leads");
    kept(&leader).await;
    // The clock of this machine's boot stood still for ten minutes; the leader's did not.
    let leader = leader.with_clock_offset(600 * S);
    assert_eq!(kept(&leader).await, None);
    let paused = bed.stepped(1, 600 * S);
    assert_eq!(paused.watch_clock().await.unwrap(), None);
}

#[tokio::test]
async fn an_accepted_clock_decides_for_every_daemon() {
    let (bed, nodes) = Bed::with_nodes(4).await;
    let (short, long) = (rented(&bed, HOUR).await, rented(&bed, 3 * HOUR).await);
    let elsewhere = bed.later(1).on_machine("another");
    assert_eq!(elsewhere.watch_clock().await.unwrap(), None);
    assert!(!bed.later(1).accept_clock().await.unwrap(), "it is right");
    fails(&bed.later(2), nodes[3]).await;
    let wrong = bed.stepped(5, TWO_HOURS);
    kept(&wrong).await;
    assert!(
        elsewhere
            .clone()
            .with_clock_step(TWO_HOURS)
            .watch_clock()
            .await
            .unwrap()
            .is_some()
    );
    assert!(wrong.accept_clock().await.unwrap());
    for store in [wrong.clone(), elsewhere.with_clock_step(TWO_HOURS)] {
        assert_eq!(store.watch_clock().await.unwrap(), None);
    }
    assert_eq!(wrong.expire_rentals(9).await.unwrap(), 1);
    assert_eq!(
        (bed.rental_state(short), bed.rental_state(long)),
        ("ending".to_owned(), "active".to_owned())
    );
    // What failed before counts no more, and nobody dies at once.
    assert_eq!(
        bed.one(&format!(
            "SELECT failed_checks FROM nodes WHERE id = {}",
            nodes[3]
        )),
        "0"
    );
    for second in [6, 12, 18] {
        fails(&bed.stepped(second, TWO_HOURS), nodes[3]).await;
    }
    assert!(
        bed.node_state(nodes[3]).starts_with("suspect"),
        "within the grace"
    );
    fails(&bed.stepped(70, TWO_HOURS), nodes[3]).await;
    assert!(bed.node_state(nodes[3]).starts_with("dead"));
    let kinds = bed
        .db
        .sql("SELECT kind FROM events WHERE kind LIKE 'clock%' ORDER BY id");
    assert_eq!(kinds, [["clock_stepped"], ["clock_accepted"]]);
}

#[tokio::test]
async fn nothing_waits_for_a_time_that_an_accepted_clock_has_taken_back() {
    let (bed, nodes) = Bed::with_nodes(3).await;
    let debt = rented(&bed, HOUR).await;
    bed.store.release(Scope::All, debt).await.unwrap();
    let run = bed.claim_one(RunKind::Clean).await;
    bed.record(&run, RunOutcome::Unreachable).await;
    let opened = bed.opened(bed.alice, 1).await;
    assert_eq!(bed.claim(RunKind::Provision).await.len(), 1);
    let (one, other) = (instance(1), instance(2));
    let hold = Duration::from_secs(15);
    assert!(bed.store.lead(&one, hold).await.unwrap().is_some());
    let wrong = bed.stepped(1, -TWO_HOURS);
    assert!(wrong.accept_clock().await.unwrap());

    let store = bed.stepped(3, -TWO_HOURS);
    assert_eq!(
        store.queue_cleaning(9).await.unwrap(),
        1,
        "the next attempt"
    );
    assert_eq!(store.reconcile().await.unwrap().undone, [opened.id]);
    assert_eq!(store.lead(&other, hold).await.unwrap(), None, "held");
    let store = bed.stepped(20, -TWO_HOURS);
    assert!(store.lead(&other, hold).await.unwrap().is_some());
    assert_eq!(store.reconcile().await.unwrap().requeued, 1, "given back");
    assert_eq!(
        bed.one("SELECT COUNT(*) FROM runs WHERE state = 'claimed'"),
        "0"
    );
    for second in [70, 76, 82] {
        fails(&bed.stepped(second, -TWO_HOURS), nodes[0]).await;
    }
    assert!(bed.node_state(nodes[0]).starts_with("dead"));
}

#[tokio::test]
async fn an_accepted_clock_gives_back_no_more_time_than_was_lost_and_makes_no_agent_silent() {
    for step in [TWO_HOURS, -TWO_HOURS] {
        let (bed, nodes) = Bed::with_nodes(4).await;
        let rental = rented(&bed, 5 * HOUR).await;
        let node = bed.one("SELECT node_id FROM accounts WHERE state = 'present'");
        let node = NodeId(node.parse().unwrap());
        let beat = bare_beat(*nodes.iter().find(|other| **other != node).unwrap());
        bed.later(9).beat_many(&[beat], None).await.unwrap();
        for second in [10, 16, 22] {
            fails(&bed.later(second), node).await;
        }
        // No spare, so that it stays where it is.
        bed.db.sql("UPDATE nodes SET draining = TRUE");
        let degraded = bed.later(23).migrate(9).await.unwrap().degraded;
        assert_eq!(
            (degraded, bed.rental_state(rental).as_str()),
            (1, "degraded")
        );
        let before = bed.one("SELECT leased_until FROM rentals");
        assert!(bed.stepped(30, step).accept_clock().await.unwrap());
        let silent = bed.stepped(31, step).judge_agents(Duration::ZERO).await;
        assert_eq!(silent.unwrap().down, [""; 0]);
        let store = bed.stepped(70, step).with_compensation(true);
        let alive = store.record_probe(node, &ProbeResult::LoggedIn).await;
        alive.unwrap();
        assert_eq!(store.migrate(9).await.unwrap().healed, 1);
        let lost = format!(
            "SELECT ROUND(TIMESTAMPDIFF(MICROSECOND, '{before}', leased_until) / 1e6) FROM rentals"
        );
        assert!(
            ["60", "61"].contains(&bed.one(&lost).as_str()),
            "{}",
            bed.one(&lost)
        );
    }
}
