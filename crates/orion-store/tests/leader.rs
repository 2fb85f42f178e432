//! Who leads the cron jobs, and who no longer does.

mod support;

use mysql_async::prelude::Queryable;
use orion_store::{Lead, ProbeResult, StoreError};
use std::time::Duration;
use support::{Bed, instance};

const HOLD: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_many_that_want_to_lead_one_does() {
    let bed = Bed::new().await;
    for _ in 0..20 {
        bed.db.sql("DELETE FROM leader");
        let all: Vec<_> = (1..=8)
            .map(|number| {
                let store = bed.store.clone();
                tokio::spawn(async move { store.lead(&instance(number), HOLD).await })
            })
            .collect();
        let mut leaders = 0;
        for one in all {
            leaders += u32::from(one.await.unwrap().unwrap().is_some());
        }
        assert_eq!(leaders, 1);
    }
}

#[tokio::test]
async fn the_lead_is_renewed_and_passes_on_when_it_runs_out() {
    let bed = Bed::new().await;
    let at = async |seconds, number| {
        let lead = bed.later(seconds).lead(&instance(number), HOLD).await;
        lead.unwrap().map(Lead::epoch)
    };
    assert_eq!(at(0, 1).await, Some(1));
    assert_eq!(at(0, 1).await, Some(1));
    assert_eq!(at(0, 2).await, None);
    assert_eq!(at(5, 1).await, Some(1));
    assert_eq!(at(12, 2).await, None, "it was renewed at 5 s");
    assert_eq!(at(16, 2).await, Some(2));
    assert_eq!(at(17, 1).await, None);
}

#[tokio::test]
async fn a_lead_that_its_holder_gives_back_is_free_at_once() {
    let bed = Bed::new().await;
    let lead = async |number| {
        let lead = bed.store.lead(&instance(number), HOLD).await.unwrap();
        lead.map(Lead::epoch)
    };
    assert_eq!(lead(1).await, Some(1));
    bed.store.resign(&instance(2)).await.unwrap();
    assert_eq!(lead(2).await, None, "it was not its own");
    bed.store.resign(&instance(1)).await.unwrap();
    assert_eq!(lead(2).await, Some(2));
}

#[tokio::test]
async fn who_asks_for_a_lead_that_is_taken_waits_for_no_transaction_of_the_leader() {
    let bed = Bed::new().await;
    let led = bed.store.lead(&instance(1), HOLD).await.unwrap();
    assert!(led.is_some());
    let mut conn = bed.connection().await;
    conn.query_drop("BEGIN").await.unwrap();
    let held = "SELECT epoch FROM leader LOCK IN SHARE MODE";
    conn.query_drop(held).await.unwrap();
    assert_eq!(bed.store.lead(&instance(2), HOLD).await.unwrap(), None);
    conn.query_drop("ROLLBACK").await.unwrap();
}

#[tokio::test]
async fn whose_lead_has_passed_on_changes_nothing_any_more() {
    let (bed, nodes) = Bed::with_nodes(1).await;
    let rental = bed.active(bed.alice, 1).await[0];
    let lead = bed.store.lead(&instance(1), HOLD).await.unwrap().unwrap();
    let newer = bed.later(11).lead(&instance(2), HOLD).await.unwrap();
    let after_the_end = bed.later(3601);
    let old = after_the_end.leading(lead);
    assert!(old.now().await.is_ok(), "to look is everybody's right");
    let refused = old.expire_rentals(9).await;
    assert!(
        matches!(refused, Err(StoreError::NotLeading)),
        "{refused:?}"
    );
    assert_eq!(bed.rental_state(rental), "active");
    let met = ProbeResult::NoAnswer("timed out".to_owned());
    let refused = old.record_probe(nodes[0], &met).await;
    assert!(
        matches!(refused, Err(StoreError::NotLeading)),
        "{refused:?}"
    );
    assert_eq!(bed.node_state(nodes[0]), "alive leased");
    let leading = after_the_end.leading(newer.unwrap());
    assert_eq!(leading.expire_rentals(9).await.unwrap(), 1);
}
