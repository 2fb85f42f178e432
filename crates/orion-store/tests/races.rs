//! Many at once: the last node, the last account, the same key; and connections whose work was cancelled.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use orion_core::{RunKind, RunOutcome, UndoReason};
use orion_store::*;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;
use support::{Bed, instance, order, report, unique_id};

fn rounds(default: u32) -> u32 {
    std::env::var("ORION_RACE_ROUNDS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(default)
}

async fn rent_at_once(bed: &Bed, callers: u32, count: u32) -> Vec<RentDecision> {
    let all: Vec<_> = (0..callers)
        .map(|caller| {
            let store = bed.store.clone();
            let user = if caller % 2 == 0 { bed.alice } else { bed.bob };
            tokio::spawn(async move { store.rent(&order(user, count, &unique_id())).await })
        })
        .collect();
    let mut decisions = Vec::new();
    for one in all {
        decisions.push(one.await.unwrap().unwrap());
    }
    decisions
}

fn opened(decisions: &[RentDecision]) -> Vec<&OpenedRequest> {
    let opened = decisions.iter().filter_map(|decision| match decision {
        RentDecision::Opened(opened) => Some(opened),
        RentDecision::Known(_)
        | RentDecision::NoFreeNode { .. }
        | RentDecision::DatabaseOutdated
        | RentDecision::RentalLimit { .. }
        | RentDecision::ClockStepped => None,
    });
    opened.collect()
}

/// Undoes everything and cleans, so that every node is ready again.
async fn clear(bed: &Bed, decisions: &[RentDecision]) {
    for request in opened(decisions) {
        bed.store
            .undo_request(request.id, UndoReason::Reset)
            .await
            .unwrap();
    }
    for run in bed.claim(RunKind::Clean).await {
        bed.record(&run, RunOutcome::Gone).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_64_that_want_one_of_5_nodes_5_get_one() {
    let (bed, _) = Bed::with_nodes(5).await;
    for _ in 0..rounds(20) {
        let decisions = rent_at_once(&bed, 64, 1).await;
        assert_eq!(opened(&decisions).len(), 5, "{decisions:?}");
        let refused = decisions
            .iter()
            .filter(|decision| matches!(decision, RentDecision::NoFreeNode { .. }));
        assert_eq!(refused.count(), 59);
        bed.check().await;
        clear(&bed, &decisions).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_2_that_want_both_nodes_exactly_one_gets_them() {
    let (bed, _) = Bed::with_nodes(2).await;
    for round in 0..rounds(100) {
        let decisions = rent_at_once(&bed, 2, 2).await;
        assert_eq!(opened(&decisions).len(), 1, "round {round}: {decisions:?}");
        clear(&bed, &decisions).await;
    }
    bed.check().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn orders_of_many_sizes_never_share_a_node_nor_leave_one_idle() {
    let (bed, _) = Bed::with_nodes(6).await;
    for round in 0..rounds(20) {
        let all: Vec<_> = (0..12_u32)
            .map(|caller| {
                let (store, user) = (bed.store.clone(), bed.alice);
                tokio::spawn(
                    async move { store.rent(&order(user, 1 + caller % 3, &unique_id())).await },
                )
            })
            .collect();
        let mut decisions = Vec::new();
        for one in all {
            decisions.push(one.await.unwrap().unwrap());
        }
        bed.check().await;
        let taken: usize = opened(&decisions)
            .iter()
            .map(|request| request.rentals.len())
            .sum();
        assert_eq!(
            taken, 6,
            "four orders of one are among them, round {round}: {decisions:?}"
        );
        clear(&bed, &decisions).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn one_users_calls_at_once_do_not_pass_the_limit() {
    let (bed, _) = Bed::with_nodes(8).await;
    for _ in 0..rounds(20) {
        let all: Vec<_> = (0..16)
            .map(|_| {
                let (store, user) = (bed.store.clone(), bed.alice);
                tokio::spawn(async move {
                    store
                        .rent(&RentOrder {
                            max_active: 3,
                            ..order(user, 1, &unique_id())
                        })
                        .await
                })
            })
            .collect();
        let mut decisions = Vec::new();
        for one in all {
            decisions.push(one.await.unwrap().unwrap());
        }
        assert_eq!(opened(&decisions).len(), 3, "{decisions:?}");
        clear(&bed, &decisions).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn one_key_used_many_times_at_once_opens_one_request() {
    let (bed, _) = Bed::with_nodes(8).await;
    for round in 0..rounds(20) {
        let key = format!("key {round}");
        let all: Vec<_> = (0..16)
            .map(|_| {
                let (store, user, key) = (bed.store.clone(), bed.alice, key.clone());
                tokio::spawn(async move {
                    let idempotency = Some(IdempotencyKey {
                        key: key.as_bytes(),
                        body_digest: [1; 32],
                        digest_key_id: "k1",
                    });
                    store
                        .rent(&RentOrder {
                            idempotency,
                            ..order(user, 1, &unique_id())
                        })
                        .await
                })
            })
            .collect();
        let (mut decisions, mut ids) = (Vec::new(), HashSet::new());
        for one in all {
            let decision = one.await.unwrap().unwrap();
            match &decision {
                RentDecision::Opened(opened) => ids.insert(opened.id),
                RentDecision::Known(known) => ids.insert(known.id),
                RentDecision::NoFreeNode { .. }
                | RentDecision::DatabaseOutdated
                | RentDecision::RentalLimit { .. }
                | RentDecision::ClockStepped => panic!("{decision:?}"),
            };
            decisions.push(decision);
        }
        assert_eq!(
            (opened(&decisions).len(), ids.len()),
            (1, 1),
            "{decisions:?}"
        );
        clear(&bed, &decisions).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_last_accounts_recorded_at_once_activate_exactly_once() {
    let (bed, _) = Bed::with_nodes(4).await;
    for round in 0..rounds(50) {
        let request = bed.opened(bed.alice, 4).await;
        let all: Vec<_> = bed
            .claim(RunKind::Provision)
            .await
            .into_iter()
            .map(|run| {
                let store = bed.store.clone();
                tokio::spawn(async move {
                    store
                        .record_run(&instance(1), &run, &report(RunOutcome::Present))
                        .await
                })
            })
            .collect();
        let mut settled = 0;
        for one in all {
            let recorded = one.await.unwrap().unwrap();
            settled += u32::from(
                recorded
                    == Recorded::Done {
                        settled: Some(request.id),
                        queued: false,
                    },
            );
        }
        assert_eq!(settled, 1, "round {round}");
        assert_eq!(
            bed.one("SELECT COUNT(*) FROM rentals WHERE state = 'active'"),
            "4",
            "round {round}"
        );
        for rental in request.rentals {
            bed.store.release(Scope::All, rental).await.unwrap();
        }
        clear(&bed, &[]).await;
    }
    bed.check().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_deadline_against_the_last_account_decides_once() {
    let (bed, _) = Bed::with_nodes(2).await;
    for round in 0..rounds(50) {
        let request = bed.opened(bed.alice, 2).await;
        let mut runs = bed.claim(RunKind::Provision).await;
        bed.record(&runs.remove(0), RunOutcome::Present).await;
        let (store, run) = (bed.store.clone(), runs.remove(0));
        let record = tokio::spawn(async move {
            store
                .record_run(&instance(1), &run, &report(RunOutcome::Present))
                .await
        });
        let store = bed.store.clone();
        let undo =
            tokio::spawn(async move { store.undo_request(request.id, UndoReason::Deadline).await });
        let active = matches!(
            record.await.unwrap().unwrap(),
            Recorded::Done {
                settled: Some(_),
                ..
            }
        );
        let undone = undo.await.unwrap().unwrap();
        assert!(
            active != undone,
            "round {round}: active {active}, undone {undone}"
        );
        bed.check().await;
        for rental in request.rentals {
            bed.store.release(Scope::All, rental).await.unwrap();
        }
        clear(&bed, &[]).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn instances_that_claim_at_once_share_the_runs() {
    let (bed, _) = Bed::with_nodes(12).await;
    for _ in 0..rounds(10) {
        let request = bed.opened(bed.alice, 12).await;
        let all: Vec<_> = (1..=4)
            .map(|number| {
                let store = bed.store.clone();
                tokio::spawn(async move {
                    store
                        .claim_runs(&instance(number), RunKind::Provision, 5, support::HOLD)
                        .await
                })
            })
            .collect();
        let mut ids = Vec::new();
        for one in all {
            ids.extend(one.await.unwrap().unwrap().into_iter().map(|run| run.id));
        }
        let distinct: HashSet<_> = ids.iter().collect();
        assert_eq!(distinct.len(), ids.len(), "a run was claimed twice");
        clear(&bed, &[RentDecision::Opened(request)]).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_reset_in_the_middle_of_rents_breaks_nothing() {
    let (bed, _) = Bed::with_nodes(4).await;
    for round in 0..rounds(30) {
        let store = bed.store.clone();
        let reset = tokio::spawn(async move { store.reset().await });
        let decisions = rent_at_once(&bed, 8, 1).await;
        reset.await.unwrap().unwrap();
        let mut conn = bed.connection().await;
        let broken = support::invariants::broken(&mut conn).await;
        assert!(broken.is_empty(), "round {round}: {broken:#?}");
        clear(&bed, &decisions).await;
        bed.later(120).queue_inspections(100).await.unwrap();
        for run in bed.claim(RunKind::Inspect).await {
            bed.record(&run, RunOutcome::Clean).await;
        }
    }
}

/// A future that is dropped in the middle takes its connection with it: the next user must not get its answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn cancelled_work_does_not_poison_the_pool() {
    let bed = Arc::new(Bed::with_nodes(4).await.0);
    for round in 0..rounds(60) {
        let all: Vec<_> = (0..8_u64)
            .map(|caller| {
                let bed = Arc::clone(&bed);
                tokio::spawn(async move {
                    let limit = Duration::from_micros(
                        200 * (1 + (u64::from(round) * 7 + caller * 13) % 40),
                    );
                    let id = unique_id();
                    let order = order(bed.alice, 1, &id);
                    let rent = tokio::time::timeout(limit, bed.store.rent(&order)).await;
                    let user = tokio::time::timeout(limit, bed.store.user(bed.bob)).await;
                    if let Ok(user) = user {
                        assert_eq!(user.unwrap().unwrap().id, bed.bob);
                    }
                    rent.is_ok()
                })
            })
            .collect();
        for one in all {
            one.await.unwrap();
        }
        for id in [bed.alice, bed.bob] {
            assert_eq!(bed.store.user(id).await.unwrap().unwrap().id, id);
        }
        bed.check().await;
        bed.later(3_600).reconcile().await.unwrap();
        clear(&bed, &[]).await;
    }
    assert_eq!(
        bed.one("SELECT COUNT(*) FROM nodes WHERE availability = 'ready'"),
        "4"
    );
}
