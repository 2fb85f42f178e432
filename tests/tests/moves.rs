//! A worker dies, and its rental lives on elsewhere.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "helpers of tests"
)]

use orion_testkit::scripted::Reach;
use orion_testkit::{Client, PATIENCE, Worker, wait_until, wait_until_async};
use orion_tests::{Cluster, Plan, rent_of};
use serde_json::Value;

async fn seen_as(client: &Client, rental: &Value, state: &str) -> Value {
    let path = format!("/api/rentals/{rental}");
    wait_until_async(&format!("rental {rental} is {state}"), PATIENCE, || async {
        let view = client.get(&path).await.json();
        if view["state"] == state {
            Ok(view)
        } else {
            Err(view.to_string())
        }
    })
    .await
}

async fn moved(cluster: &Cluster, rental: &Value, from: &Worker) {
    wait_until(&format!("rental {rental} is elsewhere"), PATIENCE, || {
        let now = cluster.db.sql(&format!(
            "SELECT r.state, n.hostname FROM rentals r LEFT JOIN accounts a ON a.rental_id = r.id AND a.state = 'present' \
             LEFT JOIN nodes n ON n.id = a.node_id WHERE r.id = {rental}"
        ));
        if now[0][0] == "active" && now[0][1] != from.hostname() && now[0][1] != "NULL" { Ok(()) } else { Err(format!("{now:?}")) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_rental_survives_its_worker_with_its_id_its_end_and_its_password() {
    let cluster = Cluster::start(Plan::workers(4)).await;
    let alice = cluster.user("alice").await;
    let rent = alice
        .post("/api/rent", &rent_of(1))
        .await
        .expect(200)
        .json();
    let rental = &rent[0]["rental_id"];
    let before = seen_as(&alice, rental, "active").await;
    let dead = cluster.worker_of(rental);
    dead.reach(Reach::Refuses);
    moved(&cluster, rental, dead).await;
    let after = seen_as(&alice, rental, "active").await;
    for same in ["rental_id", "leased_from", "leased_until", "client_user"] {
        assert_eq!(before[same], after[same], "{same}");
    }
    assert_ne!(
        (&before["ssh_port"], &before["host_keys"]),
        (&after["ssh_port"], &after["host_keys"])
    );
    // The old account is a debt until the worker is back; then it is gone before anybody else gets the worker.
    assert_eq!(dead.accounts().len(), 1);
    dead.reach(Reach::Answers);
    assert_eq!(cluster.at_rest().await, 1);
    assert!(dead.accounts().is_empty());
    alice
        .post_empty(&format!("/api/release/{rental}"))
        .await
        .expect(200);
    assert_eq!(cluster.at_rest().await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn without_a_spare_a_rental_is_degraded_until_one_turns_up() {
    let cluster = Cluster::start(Plan::workers(4)).await;
    let alice = cluster.user("alice").await;
    let rent = alice
        .post("/api/rent", &rent_of(4))
        .await
        .expect(200)
        .json();
    let rental = &rent[0]["rental_id"];
    let dead = cluster.worker_of(rental);
    dead.reach(Reach::Refuses);
    let degraded = seen_as(&alice, rental, "degraded").await;
    assert_eq!(degraded["leased_until"], rent[0]["leased_until"]);
    alice
        .post_empty(&format!("/api/release/{}", rent[3]["rental_id"]))
        .await
        .expect(200);
    moved(&cluster, rental, dead).await;
    dead.reach(Reach::Answers);
    assert_eq!(cluster.at_rest().await, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn when_every_worker_is_cut_off_nothing_moves_and_it_heals_by_itself() {
    let cluster = Cluster::start(Plan::workers(4)).await;
    let alice = cluster.user("alice").await;
    let rent = alice
        .post("/api/rent", &rent_of(2))
        .await
        .expect(200)
        .json();
    for worker in cluster.workers.all() {
        worker.reach(Reach::Silent);
    }
    wait_until("nothing moves", PATIENCE, || {
        match cluster
            .db
            .sql_one("SELECT COUNT(*) FROM migration WHERE suspended_since IS NOT NULL")
            .as_str()
        {
            "1" => Ok(()),
            other => Err(other.to_owned()),
        }
    })
    .await;
    let ops = Client::new(cluster.schedd.address("ops").await);
    assert_eq!(ops.get("/readyz").await.status, 503, "an alarm");
    for worker in cluster.workers.all() {
        worker.reach(Reach::Answers);
    }
    wait_until_async("the alarm is over", PATIENCE, || async {
        let answer = ops.get("/readyz").await;
        if answer.status == 200 {
            Ok(())
        } else {
            Err(answer.to_string())
        }
    })
    .await;
    assert_eq!(cluster.at_rest().await, 2);
    assert_eq!(
        cluster.db.sql_one(
            "SELECT COUNT(*) FROM events WHERE kind IN ('rental_degraded', 'rental_moving')"
        ),
        "0"
    );
    for rental in rent.as_array().unwrap() {
        seen_as(&alice, &rental["rental_id"], "active").await;
    }
}
