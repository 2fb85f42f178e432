//! A worker dies or is drained, and its rental lives on elsewhere.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "helpers of tests"
)]

use orion_testkit::scripted::{Act, Op, Reach};
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
async fn without_a_spare_a_rental_is_degraded_until_one_turns_up_and_gets_lost_time_back() {
    let cluster = Cluster::start(Plan {
        compensate: true,
        ..Plan::workers(4)
    })
    .await;
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
    let active = seen_as(&alice, rental, "active").await;
    let end = |view: &Value| view["leased_until"].as_str().unwrap().to_owned();
    assert!(end(&active) > end(&degraded), "{active}");
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

/// The path of a worker's node.
fn node_of(cluster: &Cluster, worker: &Worker) -> String {
    let name = worker.hostname();
    let sql = format!("SELECT id FROM nodes WHERE hostname = '{name}'");
    format!("/api/nodes/{}", cluster.db.sql_one(&sql))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_drained_workers_rental_moves_while_the_worker_serves_it() {
    let cluster = Cluster::start(Plan::workers(3)).await;
    let (alice, admin) = (cluster.user("alice").await, cluster.admin("chief").await);
    let rent = alice.post("/api/rent", &rent_of(1)).await.expect(200);
    let rental = &rent.json()[0]["rental_id"];
    let before = seen_as(&alice, rental, "active").await;
    let drained = cluster.worker_of(rental);
    let hash = |worker: &Worker| {
        let accounts = worker.state().accounts.into_values();
        accounts.map(|account| account.password_hash).next()
    };
    let kept = hash(drained).unwrap();
    let node = node_of(&cluster, drained);
    admin
        .post_empty(&format!("{node}/drain?move=true"))
        .await
        .expect(200);
    moved(&cluster, rental, drained).await;
    assert_eq!(cluster.at_rest().await, 1);
    let after = seen_as(&alice, rental, "active").await;
    for same in ["rental_id", "leased_from", "leased_until", "client_user"] {
        assert_eq!(before[same], after[same], "{same}");
    }
    assert_ne!(before["ssh_port"], after["ssh_port"]);
    assert_eq!(hash(cluster.worker_of(rental)), Some(kept));
    assert!(drained.accounts().is_empty());
    let history = after["history"].as_array().unwrap();
    let kinds: Vec<&str> = history.iter().filter_map(|e| e["kind"].as_str()).collect();
    let access_all_the_time = ["rental_active", "rental_moving", "rental_moved"];
    assert_eq!(kinds, access_all_the_time);
    let why = history[2]["detail"].as_str().unwrap();
    assert!(why.contains("drained"), "{why}");
    let seen = admin.get(&node).await.json();
    assert_eq!(
        (&seen["availability"], &seen["draining"]),
        (&"ready".into(), &true.into())
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_rental_stays_where_draining_is_taken_back_in_the_middle_of_its_move() {
    let cluster = Cluster::start(Plan::workers(3)).await;
    let (alice, admin) = (cluster.user("alice").await, cluster.admin("chief").await);
    let rent = alice.post("/api/rent", &rent_of(1)).await.expect(200);
    let rental = &rent.json()[0]["rental_id"];
    let drained = cluster.worker_of(rental);
    let node = node_of(&cluster, drained);
    for worker in cluster.workers.all() {
        worker.behave(Some(Op::Create), Act::Delay(3_000), None);
    }
    let drain = format!("{node}/drain?move=true");
    admin.post_empty(&drain).await.expect(200);
    wait_until("it is on its way", PATIENCE, || {
        let making = "SELECT COUNT(*) FROM accounts WHERE state = 'making'";
        match cluster.db.sql_one(making).as_str() {
            "1" => Ok(()),
            other => Err(other.to_owned()),
        }
    })
    .await;
    let undrain = format!("{node}/undrain");
    admin.post_empty(&undrain).await.expect(200);
    assert_eq!(cluster.at_rest().await, 1);
    assert_eq!(cluster.worker_of(rental).hostname(), drained.hostname());
    assert_eq!(drained.accounts().len(), 1);
}
