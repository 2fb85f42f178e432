//! Lost time that is given back, where that is configured.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "helpers of tests"
)]

mod support;

use orion_core::{NodeId, RentalId, RunKind, RunOutcome};
use orion_store::Drain;
use support::Bed;
use support::moves::{answers, dies, migrate, node_of, record_all};

async fn compensating(nodes: u32) -> (Bed, RentalId, NodeId) {
    let (mut bed, _) = Bed::with_nodes(nodes).await;
    bed.store = bed.store.clone().with_compensation(true);
    let rental = bed.active(bed.alice, 1).await[0];
    let node = node_of(&bed, rental);
    (bed, rental, node)
}

fn of(bed: &Bed, rental: RentalId, what: &str) -> String {
    bed.one(&format!("SELECT {what} FROM rentals WHERE id = {rental}"))
}

/// The end is as much later as lies between `lost_since` and the event.
fn assert_given_back(bed: &Bed, rental: RentalId, before: &str, lost_since: &str, event: &str) {
    let expected = bed.one(&format!(
        "SELECT CAST('{before}' AS DATETIME(6)) + INTERVAL TIMESTAMPDIFF(MICROSECOND, '{lost_since}', at) MICROSECOND \
         FROM events WHERE rental_id = {rental} AND kind = '{event}' ORDER BY id DESC LIMIT 1"
    ));
    assert_eq!(of(bed, rental, "leased_until"), expected);
    assert_eq!(of(bed, rental, "lost_since IS NULL"), "1");
}

#[tokio::test]
async fn a_rental_that_moved_gets_back_what_was_lost_once() {
    let (bed, rental, node) = compensating(4).await;
    let before = of(&bed, rental, "leased_until");
    dies(&bed, node, 10).await;
    let failing = bed.one(&format!(
        "SELECT failing_since FROM nodes WHERE id = {node}"
    ));
    migrate(&bed, 23).await;
    assert_eq!(of(&bed, rental, "lost_since"), failing);
    assert_eq!(
        of(&bed, rental, "leased_until"),
        before,
        "not before it is back"
    );
    record_all(&bed, RunKind::Provision, RunOutcome::Present, 40).await;
    assert_given_back(&bed, rental, &before, &failing, "rental_moved");
    let detail = bed.one("SELECT detail FROM events WHERE kind = 'rental_compensated'");
    let until = of(&bed, rental, "leased_until").replace(' ', "T");
    assert!(detail.ends_with(&format!("until {until}")), "{detail}");
    // Once: the next loss counts from its own beginning.
    let after = of(&bed, rental, "leased_until");
    migrate(&bed, 41).await;
    assert_eq!(of(&bed, rental, "leased_until"), after);
    let second = node_of(&bed, rental);
    dies(&bed, second, 500).await;
    migrate(&bed, 513).await;
    let failing = of(&bed, rental, "lost_since");
    record_all(&bed, RunKind::Provision, RunOutcome::Present, 520).await;
    assert_given_back(&bed, rental, &after, &failing, "rental_moved");
    bed.check().await;
}

#[tokio::test]
async fn a_rental_whose_node_is_back_gets_back_what_was_lost() {
    let (bed, rental, node) = compensating(1).await;
    let before = of(&bed, rental, "leased_until");
    dies(&bed, node, 10).await;
    // Alone, it would be likelier us.
    bed.store.override_brakes().await.unwrap();
    migrate(&bed, 23).await;
    let failing = of(&bed, rental, "lost_since");
    answers(&bed.later(60), node).await;
    assert_eq!(migrate(&bed, 61).await.healed, 1);
    assert_given_back(&bed, rental, &before, &failing, "rental_back");
    assert_eq!(migrate(&bed, 62).await.healed, 0);
    bed.check().await;
}

#[tokio::test]
async fn nothing_is_given_back_unless_it_is_configured() {
    let (mut bed, rental, node) = compensating(4).await;
    bed.store = bed.store.clone().with_compensation(false);
    let before = of(&bed, rental, "leased_until");
    dies(&bed, node, 10).await;
    migrate(&bed, 23).await;
    record_all(&bed, RunKind::Provision, RunOutcome::Present, 40).await;
    assert_eq!(bed.rental_state(rental), "active");
    assert_eq!(of(&bed, rental, "leased_until"), before);
    assert_eq!(of(&bed, rental, "lost_since IS NULL"), "1");
    let told = "SELECT COUNT(*) FROM events WHERE kind = 'rental_compensated'";
    assert_eq!(bed.one(told), "0");
}

#[tokio::test]
async fn what_a_node_failed_before_the_lease_is_nobodys_loss() {
    let (bed, rental, node) = compensating(4).await;
    dies(&bed, node, 10).await;
    bed.db.sql(&format!(
        "UPDATE nodes SET failing_since = failing_since - INTERVAL 1 HOUR WHERE id = {node}"
    ));
    migrate(&bed, 23).await;
    let (lost, from) = (
        of(&bed, rental, "lost_since"),
        of(&bed, rental, "leased_from"),
    );
    assert_eq!(lost, from);
}

#[tokio::test]
async fn a_rental_past_its_end_gets_nothing() {
    let (bed, rental, node) = compensating(4).await;
    let before = of(&bed, rental, "leased_until");
    dies(&bed, node, 3_500).await;
    assert_eq!(migrate(&bed, 3_513).await.moving, 1);
    record_all(&bed, RunKind::Provision, RunOutcome::Present, 3_601).await;
    assert_eq!(of(&bed, rental, "leased_until"), before);
    bed.later(3_602).expire_rentals(9).await.unwrap();
    assert_eq!(bed.rental_state(rental), "ending");
    bed.check().await;
}

#[tokio::test]
async fn a_rental_that_was_moved_off_a_drained_node_lost_nothing() {
    let (bed, rental, node) = compensating(2).await;
    let before = of(&bed, rental, "leased_until");
    bed.store.set_draining(node, Drain::Moves).await.unwrap();
    migrate(&bed, 1).await;
    record_all(&bed, RunKind::Provision, RunOutcome::Present, 30).await;
    assert_ne!(node_of(&bed, rental), node);
    assert_eq!(of(&bed, rental, "leased_until"), before);
}
