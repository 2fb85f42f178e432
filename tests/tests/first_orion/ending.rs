//! What it left behind when a lease was over.

use crate::{release, rent, time_is_over, until, until_rental_is};
use orion_testkit::scripted::{Act, Op, Reach};
use orion_tests::{Cluster, Plan, rent_of};
use serde_json::json;

/// Without a spare the lease stayed active while its machine counted as free; the query of expiry asked for machines that
/// did not, so the lease never ended.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_rental_that_lost_its_worker_ends_on_time_unlike_in_the_first_orion() {
    let cluster = Cluster::start(Plan::workers(2)).await;
    let alice = cluster.user("alice").await;
    let [rental, _] = &rent(&alice).await;
    let dead = cluster.worker_of(rental);
    dead.reach(Reach::Refuses);
    until_rental_is(&cluster, rental, "degraded").await;
    time_is_over(&cluster, rental);
    until_rental_is(&cluster, rental, "ending").await;
    // Its machine is nobody else's before the account is seen gone.
    let nodes = cluster
        .admin("boss")
        .await
        .get("/api/nodes")
        .await
        .expect(200)
        .json();
    let node = nodes
        .as_array()
        .unwrap()
        .iter()
        .find(|node| node["hostname"] == dead.hostname())
        .unwrap();
    assert_eq!(node["allocated"], true, "{node}");
    dead.reach(Reach::Answers);
    until_rental_is(&cluster, rental, "ended").await;
    assert!(dead.accounts().is_empty());
    let view = alice
        .get(&format!("/api/rentals/{rental}"))
        .await
        .expect(200)
        .json();
    assert_eq!(view["end_reason"], "expired");
    assert_eq!(cluster.at_rest().await, 1);
}

/// Where the account could not be removed the lease stayed active and its user kept the access; all leases that were over
/// were ended in one transaction, so one such kept all others.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_rental_is_over_for_its_user_also_where_cleaning_fails_unlike_in_the_first_orion() {
    let cluster = Cluster::start(Plan::workers(2)).await;
    let alice = cluster.user("alice").await;
    let [stuck, other] = &rent(&alice).await;
    let bad = cluster.worker_of(stuck);
    bad.behave(Some(Op::Delete), Act::NotGone, None);
    time_is_over(&cluster, stuck);
    time_is_over(&cluster, other);
    until_rental_is(&cluster, other, "ended").await;
    until_rental_is(&cluster, stuck, "ending").await;
    let refused = alice
        .post(
            &format!("/api/extend/{stuck}"),
            &json!({"additional_hours": 1}),
        )
        .await;
    assert_eq!(refused.status, 409, "{refused}");
    // What its agent is told to lock, whatever keeps it from being removed.
    let owed = format!("SELECT state FROM accounts WHERE rental_id = {stuck}");
    assert_eq!(cluster.db.sql_one(&owed), "leaving");
    assert_eq!(bad.accounts().len(), 1);
    // It is tried again, and an administrator is told; the machine is nobody's meanwhile.
    let quarantined = format!(
        "SELECT COUNT(*) FROM nodes WHERE hostname = '{}' AND availability = 'quarantined' AND availability_reason LIKE 'not\\_gone%'",
        bad.hostname()
    );
    until(&cluster, "an administrator is told", &quarantined, "1").await;
    bad.behave_well();
    until_rental_is(&cluster, stuck, "ended").await;
    assert_eq!(cluster.at_rest().await, 0);
    cluster.ready_nodes(2).await;
}

/// The playbook that removed an account ignored its own errors: it succeeded wherever the machine could be reached, and the
/// machine was free.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_play_that_ends_well_is_no_proof_that_the_account_is_gone_unlike_in_the_first_orion() {
    let cluster = Cluster::start(Plan::workers(1)).await;
    let (alice, bob) = (cluster.user("alice").await, cluster.user("bob").await);
    let bad = &cluster.workers[0];
    // `ansible-playbook` exits with 0 each time, and nothing was removed.
    bad.behave(Some(Op::Delete), Act::NoResult, None);
    let [rental] = rent(&alice).await;
    release(&alice, &rental).await;
    let tried = "SELECT IFNULL(MAX(attempt), 0) >= 3 FROM runs WHERE kind = 'clean'";
    until(&cluster, "it is tried again and again", tried, "1").await;
    until_rental_is(&cluster, &rental, "ending").await;
    assert_eq!(bad.accounts().len(), 1);
    let answer = bob.post("/api/rent", &rent_of(1)).await.expect(503);
    assert_eq!(answer.code(), "no_free_node");
    bad.behave_well();
    assert_eq!(cluster.at_rest().await, 0);
    cluster.ready_nodes(1).await;
    let [_] = rent(&bob).await;
    assert_eq!(cluster.at_rest().await, 1);
}

/// Cleaning a machine deleted the accounts of everybody who had ever rented it, also of who rented it now.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nothing_is_cleaned_but_what_is_owed_unlike_in_the_first_orion() {
    let cluster = Cluster::start(Plan::workers(2)).await;
    let alice = cluster.user("alice").await;
    let deletes = || {
        let log = cluster.workers.log().into_iter();
        log.filter(|line| line.what == "act" && line.op == Op::Delete)
            .count()
    };
    // She has been on both before.
    for _ in 0..2 {
        let rentals: [_; 2] = rent(&alice).await;
        for rental in &rentals {
            release(&alice, rental).await;
        }
        cluster.ready_nodes(2).await;
    }
    assert_eq!(deletes(), 4);
    let [kept, given_back] = rent(&alice).await;
    let worker = cluster.worker_of(&kept);
    // It dies, and comes back as a machine that must be looked at.
    worker.reach(Reach::Refuses);
    until_rental_is(&cluster, &kept, "degraded").await;
    worker.reach(Reach::Answers);
    until_rental_is(&cluster, &kept, "active").await;
    assert_eq!(deletes(), 4);
    release(&alice, &given_back).await;
    assert_eq!(cluster.at_rest().await, 1);
    assert_eq!(deletes(), 5);
    assert_eq!(cluster.worker_of(&kept).hostname(), worker.hostname());
}
