//! Taking nodes, provisioning, undoing, idempotency keys.

mod support;

use orion_core::{RentalState, RequestId, RequestState, RunKind, RunOutcome, UndoReason};
use orion_store::*;
use std::time::Duration;
use support::{Bed, HASH, HOUR, order, unique_id};

#[tokio::test]
async fn a_rent_takes_different_ready_nodes_and_provisions_nothing_yet() {
    let (bed, _) = Bed::with_nodes(3).await;
    let decision = bed.rent(bed.alice, 2).await;
    let RentDecision::Opened(opened) = decision else {
        panic!("{decision:?}")
    };
    assert_eq!(opened.rentals.len(), 2);
    assert_eq!(
        bed.one("SELECT COUNT(DISTINCT node_id) FROM accounts WHERE state = 'making'"),
        "2"
    );
    assert_eq!(
        bed.one("SELECT COUNT(*) FROM nodes WHERE availability = 'leased'"),
        "2"
    );
    assert!(bed.claim(RunKind::Provision).await.is_empty());
    assert_eq!(
        bed.one("SELECT MIN(uid - rental_id) FROM accounts"),
        support::UID_BASE.to_string()
    );
    assert!(bed.provision(&opened).await);
    let runs = bed.claim(RunKind::Provision).await;
    assert_eq!(runs.len(), 2);
    let account = runs[0].account.clone().unwrap();
    assert_eq!(
        (account.name.as_str(), account.password_hash.as_deref()),
        ("alice", Some(HASH))
    );
    let ends_in = account.ends_in.unwrap();
    assert!(
        ends_in > HOUR && ends_in <= HOUR + support::DEADLINE,
        "an upper bound: {ends_in:?}"
    );
    bed.check().await;
}

#[tokio::test]
async fn fewer_free_nodes_than_ordered_take_none() {
    let (bed, _) = Bed::with_nodes(2).await;
    assert_eq!(
        bed.rent(bed.alice, 3).await,
        RentDecision::NoFreeNode { free: 2 }
    );
    assert_eq!(
        bed.one("SELECT COUNT(*) FROM nodes WHERE availability = 'ready'"),
        "2"
    );
    assert_eq!(bed.one("SELECT COUNT(*) FROM requests"), "0");
}

#[tokio::test]
async fn only_nodes_that_are_alive_ready_and_not_draining_are_leased() {
    let (bed, nodes) = Bed::with_nodes(5).await;
    bed.db.sql(&format!(
        "UPDATE nodes SET status = 'suspect' WHERE id = {}",
        nodes[0]
    ));
    bed.db.sql(&format!(
        "UPDATE nodes SET draining = TRUE WHERE id = {}",
        nodes[1]
    ));
    bed.db.sql(&format!(
        "UPDATE nodes SET availability = 'joining' WHERE id = {}",
        nodes[2]
    ));
    bed.store.forget_node(nodes[3]).await.unwrap();
    assert_eq!(
        bed.rent(bed.alice, 2).await,
        RentDecision::NoFreeNode { free: 1 }
    );
    assert!(matches!(
        bed.rent(bed.alice, 1).await,
        RentDecision::Opened(_)
    ));
    assert_eq!(
        bed.one("SELECT node_id FROM accounts"),
        nodes[4].to_string()
    );
}

#[tokio::test]
async fn the_limit_counts_everything_that_is_not_proven_clean() {
    let (bed, _) = Bed::with_nodes(3).await;
    let rentals = bed.active(bed.alice, 2).await;
    let limited = |id: String| async move { id };
    let id = limited(unique_id()).await;
    let tight = RentOrder {
        max_active: 2,
        ..order(bed.alice, 1, &id)
    };
    assert_eq!(
        bed.store.rent(&tight).await.unwrap(),
        RentDecision::RentalLimit { active: 2 }
    );
    bed.store
        .release(Scope::Own(bed.alice), rentals[0])
        .await
        .unwrap();
    assert_eq!(
        bed.store.rent(&tight).await.unwrap(),
        RentDecision::RentalLimit { active: 2 }
    );
    let run = bed.claim_one(RunKind::Clean).await;
    bed.record(&run, RunOutcome::Gone).await;
    assert!(matches!(
        bed.store.rent(&tight).await.unwrap(),
        RentDecision::Opened(_)
    ));
    let id = unique_id();
    let other = RentOrder {
        max_active: 1,
        ..order(bed.bob, 1, &id)
    };
    assert!(
        matches!(
            bed.store.rent(&other).await.unwrap(),
            RentDecision::Opened(_)
        ),
        "each user's own"
    );
}

#[tokio::test]
async fn the_same_call_again_finds_what_the_first_one_opened() {
    let (bed, _) = Bed::with_nodes(2).await;
    let id = unique_id();
    let first = bed.store.rent(&order(bed.alice, 1, &id)).await.unwrap();
    assert_eq!(
        bed.store.rent(&order(bed.alice, 1, &id)).await.unwrap(),
        first
    );
    assert_eq!(bed.one("SELECT COUNT(*) FROM accounts"), "1");
}

#[tokio::test]
async fn a_request_is_seen_from_open_to_active() {
    let (bed, _) = Bed::with_nodes(2).await;
    let opened = bed.opened(bed.alice, 2).await;
    let seen = bed.store.request(opened.id).await.unwrap().unwrap();
    assert_eq!((seen.state, seen.undo_reason), (RequestState::Open, None));
    assert!(seen.deadline_in > Duration::from_secs(30) && seen.deadline_in <= support::DEADLINE);
    assert_eq!(
        seen.rentals.iter().map(|r| r.id).collect::<Vec<_>>(),
        opened.rentals
    );
    let runs = bed.claim(RunKind::Provision).await;
    let first = bed.record(&runs[0], RunOutcome::Present).await;
    assert_eq!(
        first,
        Recorded::Done {
            settled: None,
            queued: false
        }
    );
    assert_eq!(
        bed.rental_state(opened.rentals[0]),
        "provisioning",
        "all or nothing"
    );
    let last = bed.record(&runs[1], RunOutcome::Present).await;
    assert_eq!(
        last,
        Recorded::Done {
            settled: Some(opened.id),
            queued: false
        }
    );
    let seen = bed.store.request(opened.id).await.unwrap().unwrap();
    assert_eq!(seen.state, RequestState::Active);
    for rental in &seen.rentals {
        assert_eq!(rental.state, RentalState::Active);
        assert_eq!(
            (rental.password_version, rental.password_key_id.as_deref()),
            (1, Some("k1"))
        );
        assert!(rental.address.is_some());
    }
    let ends: Vec<_> = seen
        .rentals
        .iter()
        .map(|r| r.leased_until.unwrap())
        .collect();
    assert_eq!(ends[0], ends[1], "one transaction sets both");
    let hour =
        bed.one("SELECT MAX(TIMESTAMPDIFF(MICROSECOND, leased_from, leased_until)) FROM rentals");
    assert_eq!(hour, HOUR.as_micros().to_string());
    assert!(bed.store.request(RequestId(999)).await.unwrap().is_none());
}

#[tokio::test]
async fn an_undone_request_leaves_only_debts() {
    let (bed, _) = Bed::with_nodes(2).await;
    let opened = bed.opened(bed.alice, 2).await;
    let runs = bed.claim(RunKind::Provision).await;
    bed.record(&runs[0], RunOutcome::Present).await;
    assert!(
        bed.store
            .undo_request(opened.id, UndoReason::Deadline)
            .await
            .unwrap()
    );
    assert!(
        !bed.store
            .undo_request(opened.id, UndoReason::NoNode)
            .await
            .unwrap(),
        "decided once"
    );
    let seen = bed.store.request(opened.id).await.unwrap().unwrap();
    assert_eq!(
        (seen.state, seen.undo_reason),
        (RequestState::Undone, Some(UndoReason::Deadline))
    );
    assert!(
        seen.rentals
            .iter()
            .all(|rental| rental.state == RentalState::Ending)
    );
    assert_eq!(
        bed.one("SELECT COUNT(*) FROM accounts WHERE state = 'leaving'"),
        "2"
    );
    assert_eq!(bed.one("SELECT DISTINCT end_reason FROM rentals"), "failed");
    bed.record(&runs[1], RunOutcome::Present).await;
    assert_eq!(
        bed.one("SELECT COUNT(*) FROM rentals WHERE state = 'active'"),
        "0",
        "too late"
    );
    bed.check().await;
    for run in bed.claim(RunKind::Clean).await {
        bed.record(&run, RunOutcome::Gone).await;
    }
    assert_eq!(
        bed.one("SELECT COUNT(*) FROM rentals WHERE state = 'ended'"),
        "2"
    );
    assert_eq!(
        bed.one("SELECT COUNT(*) FROM nodes WHERE availability = 'ready'"),
        "2"
    );
    assert!(
        !bed.store
            .undo_request(RequestId(999), UndoReason::Deadline)
            .await
            .unwrap()
    );
    bed.check().await;
}

#[tokio::test]
async fn an_active_request_is_not_undone() {
    let (bed, _) = Bed::with_nodes(1).await;
    bed.active(bed.alice, 1).await;
    assert!(
        !bed.store
            .undo_request(RequestId(1), UndoReason::Deadline)
            .await
            .unwrap()
    );
    assert_eq!(bed.one("SELECT state FROM rentals"), "active");
}

#[tokio::test]
async fn a_request_that_is_decided_provisions_nothing_any_more() {
    let (bed, _) = Bed::with_nodes(1).await;
    let RentDecision::Opened(opened) = bed.rent(bed.alice, 1).await else {
        panic!()
    };
    bed.store
        .undo_request(opened.id, UndoReason::Deadline)
        .await
        .unwrap();
    assert!(!bed.provision(&opened).await);
    assert!(bed.claim(RunKind::Provision).await.is_empty());
    assert_eq!(bed.one("SELECT password_hash IS NULL FROM rentals"), "1");
}

#[tokio::test]
async fn provisioning_twice_keeps_the_first_hash_and_one_run() {
    let (bed, _) = Bed::with_nodes(1).await;
    let opened = bed.opened(bed.alice, 1).await;
    let again = [(opened.rentals[0], "$6$other$hash".to_owned())];
    assert!(bed.store.provision(opened.id, &again).await.unwrap());
    assert_eq!(bed.one("SELECT password_hash FROM rentals"), HASH);
    assert_eq!(bed.claim(RunKind::Provision).await.len(), 1);
}

#[tokio::test]
async fn hashes_of_rentals_of_another_request_change_nothing() {
    let (bed, _) = Bed::with_nodes(2).await;
    let RentDecision::Opened(first) = bed.rent(bed.alice, 1).await else {
        panic!()
    };
    let RentDecision::Opened(second) = bed.rent(bed.bob, 1).await else {
        panic!()
    };
    bed.store
        .provision(first.id, &[(second.rentals[0], HASH.to_owned())])
        .await
        .unwrap();
    assert_eq!(
        bed.one("SELECT COUNT(*) FROM rentals WHERE password_hash IS NOT NULL"),
        "0"
    );
    assert_eq!(
        bed.one("SELECT COUNT(*) FROM runs WHERE kind = 'provision'"),
        "0"
    );
}

fn keyed<'a>(order: RentOrder<'a>, key: &'a [u8], digest: u8) -> RentOrder<'a> {
    let idempotency = Some(IdempotencyKey {
        key,
        body_digest: [digest; 32],
        digest_key_id: "k1",
    });
    RentOrder {
        idempotency,
        ..order
    }
}

#[tokio::test]
async fn an_idempotency_key_finds_its_request_byte_by_byte_and_user_by_user() {
    let (bed, _) = Bed::with_nodes(5).await;
    let ids: Vec<String> = (0..5).map(|_| unique_id()).collect();
    let rent = |user, key: &'static [u8], n: usize| {
        bed.store.rent(Box::leak(Box::new(keyed(
            order(user, 1, Box::leak(ids[n].clone().into_boxed_str())),
            key,
            7,
        ))))
    };
    let RentDecision::Opened(first) = rent(bed.alice, b"key", 0).await.unwrap() else {
        panic!()
    };
    let known = KnownRequest {
        id: first.id,
        body_digest: [7; 32],
        digest_key_id: "k1".to_owned(),
    };
    assert_eq!(
        rent(bed.alice, b"key", 1).await.unwrap(),
        RentDecision::Known(known)
    );
    assert!(matches!(
        rent(bed.alice, b"KEY", 2).await.unwrap(),
        RentDecision::Opened(_)
    ));
    assert!(matches!(
        rent(bed.alice, b"key ", 3).await.unwrap(),
        RentDecision::Opened(_)
    ));
    assert!(matches!(
        rent(bed.bob, b"key", 4).await.unwrap(),
        RentDecision::Opened(_)
    ));
}

#[tokio::test]
async fn a_key_is_free_again_after_a_day_or_when_its_request_is_undone() {
    let (bed, _) = Bed::with_nodes(3).await;
    let ids: Vec<String> = (0..4).map(|_| unique_id()).collect();
    let with_key = |n: usize| keyed(order(bed.alice, 1, &ids[n]), b"key", 7);
    let RentDecision::Opened(first) = bed.store.rent(&with_key(0)).await.unwrap() else {
        panic!()
    };
    bed.store
        .undo_request(first.id, UndoReason::NoNode)
        .await
        .unwrap();
    let RentDecision::Opened(second) = bed.store.rent(&with_key(1)).await.unwrap() else {
        panic!()
    };
    let almost = bed.later(24 * 3600 - 60).rent(&with_key(2)).await.unwrap();
    assert!(matches!(almost, RentDecision::Known(known) if known.id == second.id));
    let later = bed.later(24 * 3600 + 60).rent(&with_key(3)).await.unwrap();
    assert!(matches!(later, RentDecision::Opened(_)), "{later:?}");
}

#[tokio::test]
async fn the_detail_of_an_undone_request_says_what_the_worker_said() {
    let (bed, _) = Bed::with_nodes(1).await;
    let opened = bed.opened(bed.alice, 1).await;
    let run = bed.claim_one(RunKind::Provision).await;
    bed.record(&run, RunOutcome::Failed).await;
    let seen = bed.store.request(opened.id).await.unwrap().unwrap();
    assert_eq!(
        (seen.state, seen.undo_reason),
        (RequestState::Undone, Some(UndoReason::NoNode))
    );
    assert_eq!(seen.detail.as_deref(), Some("failed: seen"));
}
