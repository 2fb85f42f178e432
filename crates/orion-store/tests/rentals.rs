//! Release, extend, look, reset.

mod support;

use orion_core::{EndReason, RentalId, RentalState, RequestState, RunKind, RunOutcome, UndoReason};
use orion_store::*;
use std::time::Duration;
use support::{Bed, HOUR};

const MAX: Duration = Duration::from_secs(720 * 3600);

#[tokio::test]
async fn a_release_ends_the_rental_and_owes_the_account() {
    let (bed, nodes) = Bed::with_nodes(1).await;
    let rental = bed.active(bed.alice, 1).await[0];
    assert_eq!(
        bed.store
            .release(Scope::Own(bed.alice), rental)
            .await
            .unwrap(),
        Release::Done
    );
    assert_eq!(bed.rental_state(rental), "ending");
    assert_eq!(bed.node_state(nodes[0]), "alive cleaning");
    assert_eq!(
        bed.store
            .release(Scope::Own(bed.alice), rental)
            .await
            .unwrap(),
        Release::Done,
        "again: the same"
    );
    let run = bed.claim_one(RunKind::Clean).await;
    let account = run.account.clone().unwrap();
    assert_eq!(account.password_hash, None, "not needed for cleaning");
    bed.check().await;
    bed.record(&run, RunOutcome::Gone).await;
    assert_eq!(bed.rental_state(rental), "ended");
    assert_eq!(bed.node_state(nodes[0]), "alive ready");
    assert_eq!(
        bed.store
            .release(Scope::Own(bed.alice), rental)
            .await
            .unwrap(),
        Release::Done
    );
    bed.check().await;
}

#[tokio::test]
async fn a_release_while_provisioning_undoes_the_whole_request() {
    let (bed, _) = Bed::with_nodes(2).await;
    let opened = bed.opened(bed.alice, 2).await;
    bed.store
        .release(Scope::Own(bed.alice), opened.rentals[1])
        .await
        .unwrap();
    let seen = bed.store.request(opened.id).await.unwrap().unwrap();
    assert_eq!(
        (seen.state, seen.undo_reason),
        (RequestState::Undone, Some(UndoReason::Released))
    );
    assert_eq!(bed.rental_state(opened.rentals[0]), "ending");
    assert_eq!(
        bed.one("SELECT DISTINCT end_reason FROM rentals"),
        "released"
    );
    assert!(
        bed.claim(RunKind::Provision).await.is_empty(),
        "queued runs are superseded"
    );
    bed.check().await;
}

#[tokio::test]
async fn others_do_not_release_and_administrators_do() {
    let (bed, _) = Bed::with_nodes(1).await;
    let rental = bed.active(bed.alice, 1).await[0];
    assert_eq!(
        bed.store
            .release(Scope::Own(bed.bob), rental)
            .await
            .unwrap(),
        Release::NotFound
    );
    assert_eq!(
        bed.store.release(Scope::All, RentalId(999)).await.unwrap(),
        Release::NotFound
    );
    assert_eq!(bed.rental_state(rental), "active");
    assert_eq!(
        bed.store.release(Scope::All, rental).await.unwrap(),
        Release::Done
    );
    assert_eq!(bed.rental_state(rental), "ending");
}

#[tokio::test]
async fn an_extension_counts_from_the_end_and_stays_within_the_maximum() {
    let (bed, _) = Bed::with_nodes(1).await;
    let rental = bed.active(bed.alice, 1).await[0];
    let own = Scope::Own(bed.alice);
    let until = |view: Option<orion_core::api::RentalView>| view.unwrap().leased_until.unwrap();
    let before = until(bed.store.rental(own, rental).await.unwrap());
    let extended = bed.store.extend(own, rental, HOUR, MAX).await.unwrap();
    let Extension::Extended(after) = extended else {
        panic!("{extended:?}")
    };
    assert_eq!(after.0 - before.0, time::Duration::HOUR);
    assert_eq!(until(bed.store.rental(own, rental).await.unwrap()), after);
    let all_of_it = MAX - 2 * HOUR;
    let too_long = bed
        .store
        .extend(own, rental, all_of_it + Duration::from_micros(1), MAX)
        .await
        .unwrap();
    assert_eq!(too_long, Extension::TooLong { left: all_of_it });
    assert!(matches!(
        bed.store.extend(own, rental, all_of_it, MAX).await.unwrap(),
        Extension::Extended(_)
    ));
    let huge = bed
        .store
        .extend(own, rental, Duration::MAX, MAX)
        .await
        .unwrap();
    assert_eq!(
        huge,
        Extension::TooLong {
            left: Duration::ZERO
        }
    );
}

#[tokio::test]
async fn what_is_not_active_is_not_extended() {
    let (bed, _) = Bed::with_nodes(2).await;
    let own = Scope::Own(bed.alice);
    let opened = bed.opened(bed.alice, 1).await;
    let extend = |store: Store, id| async move { store.extend(own, id, HOUR, MAX).await.unwrap() };
    let provisioning = extend(bed.store.clone(), opened.rentals[0]).await;
    assert_eq!(
        provisioning,
        Extension::WrongState(RentalState::Provisioning)
    );
    let run = bed.claim_one(RunKind::Provision).await;
    bed.record(&run, RunOutcome::Present).await;
    let over = extend(bed.later(3_601), opened.rentals[0]).await;
    assert!(
        matches!(over, Extension::WrongState(_)),
        "from its end on, also before `expire` looked: {over:?}"
    );
    bed.store.release(own, opened.rentals[0]).await.unwrap();
    assert_eq!(
        extend(bed.store.clone(), opened.rentals[0]).await,
        Extension::WrongState(RentalState::Ending)
    );
    assert_eq!(
        extend(bed.store.clone(), RentalId(999)).await,
        Extension::NotFound
    );
    let others = bed
        .store
        .extend(Scope::Own(bed.bob), opened.rentals[0], HOUR, MAX)
        .await
        .unwrap();
    assert_eq!(others, Extension::NotFound);
}

#[tokio::test]
async fn a_degraded_rental_is_extended() {
    let (bed, _) = Bed::with_nodes(1).await;
    let rental = bed.active(bed.alice, 1).await[0];
    bed.db.sql("UPDATE rentals SET state = 'degraded'");
    let extended = bed
        .store
        .extend(Scope::All, rental, HOUR, MAX)
        .await
        .unwrap();
    assert!(matches!(extended, Extension::Extended(_)), "{extended:?}");
}

#[tokio::test]
async fn a_user_sees_their_own_rentals_newest_first_with_address_keys_and_history() {
    let (bed, _) = Bed::with_nodes(3).await;
    let first = bed.active(bed.alice, 1).await[0];
    let second = bed.active(bed.alice, 1).await[0];
    let foreign = bed.active(bed.bob, 1).await[0];
    let own = Scope::Own(bed.alice);
    let list = bed.store.rentals(own).await.unwrap();
    assert_eq!(
        list.iter().map(|r| r.rental_id).collect::<Vec<_>>(),
        [second, first]
    );
    assert!(
        list.iter()
            .all(|r| r.history.is_empty() && r.client_user == "alice")
    );
    assert_eq!(bed.store.rentals(Scope::All).await.unwrap().len(), 3);
    assert!(bed.store.rental(own, foreign).await.unwrap().is_none());
    let view = bed.store.rental(own, first).await.unwrap().unwrap();
    assert_eq!(
        (view.state, view.host_ip.as_deref()),
        (RentalState::Active, Some("10.0.0.1"))
    );
    assert!(view.host_keys[0].starts_with("ssh-ed25519 "));
    bed.store.release(own, first).await.unwrap();
    let view = bed.store.rental(own, first).await.unwrap().unwrap();
    assert_eq!(
        (view.end_reason, view.host_ip),
        (Some(EndReason::Released), None)
    );
    let kinds: Vec<_> = view
        .history
        .iter()
        .map(|event| event.kind.as_str())
        .collect();
    assert_eq!(kinds, ["rental_active", "rental_ending"]);
}

#[tokio::test]
async fn reset_ends_what_lives_and_has_every_node_inspected() {
    let (bed, nodes) = Bed::with_nodes(5).await;
    let active = bed.active(bed.alice, 1).await[0];
    let over = bed.active(bed.bob, 1).await[0];
    bed.store.release(Scope::All, over).await.unwrap();
    let opened = bed.opened(bed.alice, 1).await;
    bed.db.sql(
        "UPDATE nodes SET availability = 'quarantined', availability_reason = 'dirty' \
         WHERE availability = 'ready' ORDER BY id LIMIT 1",
    );
    bed.store.reset().await.unwrap();
    assert_eq!(
        bed.one("SELECT GROUP_CONCAT(DISTINCT availability) FROM nodes"),
        "joining"
    );
    assert_eq!(bed.rental_state(active), "ending");
    let request = bed.store.request(opened.id).await.unwrap().unwrap();
    assert_eq!(
        (request.state, request.undo_reason),
        (RequestState::Undone, Some(UndoReason::Reset))
    );
    let reasons = bed.one("SELECT GROUP_CONCAT(end_reason ORDER BY id) FROM rentals");
    assert_eq!(
        reasons, "reset,released,reset",
        "what was ending keeps its reason"
    );
    assert_eq!(bed.one("SELECT COUNT(*) FROM users"), "2");
    assert_eq!(bed.one("SELECT COUNT(*) FROM host_keys"), "5");
    bed.check().await;
    for run in bed.claim(RunKind::Clean).await {
        bed.record(&run, RunOutcome::Gone).await;
    }
    bed.later(120).queue_inspections(100).await.unwrap();
    for run in bed.claim(RunKind::Inspect).await {
        bed.record(&run, RunOutcome::Clean).await;
    }
    for node in nodes {
        assert_eq!(bed.node_state(node), "alive ready");
    }
    bed.store.reset().await.unwrap();
    bed.check().await;
}
