//! A rental's account vanishes from its worker, and is there again.
#![allow(clippy::indexing_slicing, reason = "helpers of tests")]

use orion_testkit::{PATIENCE, wait_until};
use orion_tests::{Cluster, Plan, rent_of};

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_account_that_vanishes_from_its_worker_is_made_again_with_the_same_password() {
    let cluster = Cluster::start(Plan::workers(1)).await;
    let alice = cluster.user("alice").await;
    let rent = alice.post("/api/rent", &rent_of(1)).await.expect(200);
    let rental = rent.json()[0]["rental_id"].clone();
    let worker = &cluster.workers[0];
    let before = worker.state().accounts;
    worker.lose_accounts();
    // As if ten minutes had gone by.
    cluster.db.sql(
        "UPDATE accounts SET evidence_at = evidence_at - INTERVAL 11 MINUTE; \
         UPDATE nodes SET last_inspected_at = last_inspected_at - INTERVAL 11 MINUTE",
    );
    wait_until("the account is there again", PATIENCE, || {
        if worker.accounts().len() == 1 {
            Ok(())
        } else {
            Err(format!("{:#?}", worker.state()))
        }
    })
    .await;
    assert_eq!(cluster.at_rest().await, 1);
    let after = worker.state().accounts;
    for ((uid, old), (again, new)) in before.iter().zip(&after) {
        assert_eq!((uid, &old.password_hash), (again, &new.password_hash));
        assert!(old.epoch < new.epoch);
    }
    let view = alice
        .get(&format!("/api/rentals/{rental}"))
        .await
        .expect(200);
    assert_eq!(view.json()["state"], "active");
    let kinds: Vec<_> = cluster
        .db
        .sql("SELECT kind FROM events WHERE kind LIKE 'account%' ORDER BY id");
    assert_eq!(kinds, [["account_repair"], ["account_repaired"]]);
    alice
        .post_empty(&format!("/api/release/{rental}"))
        .await
        .expect(200);
    assert_eq!(cluster.at_rest().await, 0);
}
