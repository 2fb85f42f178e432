//! A rent, from sign-up to release, and what stands in its way.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "helpers of tests"
)]

use orion_tests::{Cluster, Plan, rent_of};

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_rented_machine_has_its_account_until_it_is_released() {
    let cluster = Cluster::start(Plan::workers(2)).await;
    let alice = cluster.user("alice").await;
    let rented = alice
        .post("/api/rent", &rent_of(2))
        .await
        .expect(200)
        .json();
    assert_eq!(rented.as_array().unwrap().len(), 2);
    assert_eq!(cluster.at_rest().await, 2);
    for machine in rented.as_array().unwrap() {
        assert_eq!(machine["client_user"], "alice");
        let release = format!("/api/release/{}", machine["rental_id"]);
        alice.post_empty(&release).await.expect(200);
    }
    assert_eq!(cluster.at_rest().await, 0);
    cluster.ready_nodes(2).await;
}
