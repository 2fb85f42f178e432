//! Workers that fail: the client gets other machines or a clean refusal, and nothing is left anywhere.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "helpers of tests"
)]

use orion_testkit::scripted::{Act, Op, Reach};
use orion_testkit::{PATIENCE, wait_until};
use orion_tests::{Cluster, Plan, rent_of};
use serde_json::{Value, json};

/// Failures that are said, and make a node be replaced.
const SAID: [Act; 4] = [Act::Fail, Act::Refuse, Act::Unreachable, Act::Hang];

/// Plays that end without a word: the run is queued again, on the same node.
const UNSAID: [Act; 4] = [
    Act::NoResult,
    Act::ActThenNoResult,
    Act::CrashPlay,
    Act::HangForever,
];

async fn release_all(cluster: &Cluster, client: &orion_testkit::Client) {
    let rentals = client.get("/api/rentals").await.expect(200).json();
    for rental in rentals.as_array().unwrap() {
        let path = format!("/api/release/{}", rental["rental_id"]);
        client.post_empty(&path).await.expect(200);
    }
    assert_eq!(cluster.at_rest().await, 0);
}

fn ports(machines: &Value) -> Vec<u64> {
    let machines = machines.as_array().unwrap();
    machines
        .iter()
        .map(|machine| machine["ssh_port"].as_u64().unwrap())
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_worker_that_fails_is_replaced_by_another_one() {
    let cluster = Cluster::start(Plan::workers(4)).await;
    let alice = cluster.user("alice").await;
    for failure in SAID {
        let bad = &cluster.workers[0];
        bad.behave(Some(Op::Create), failure, None);
        let answer = alice.post("/api/rent", &rent_of(3)).await;
        let machines = answer.expect(200).json();
        let ports = ports(&machines);
        assert_eq!(ports.len(), 3, "{failure:?}: {machines}");
        assert!(
            !ports.contains(&u64::from(bad.port())),
            "{failure:?}: {machines}"
        );
        bad.behave_well();
        assert_eq!(cluster.at_rest().await, 3, "{failure:?}");
        release_all(&cluster, &alice).await;
        heal(&cluster).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_worker_that_a_play_says_nothing_about_is_asked_again() {
    let cluster = Cluster::start(Plan::workers(3)).await;
    let alice = cluster.user("alice").await;
    for failure in UNSAID {
        cluster.workers[0].behave(Some(Op::Create), failure, Some(1));
        let machines = alice
            .post("/api/rent", &rent_of(3))
            .await
            .expect(200)
            .json();
        assert_eq!(ports(&machines).len(), 3, "{failure:?}");
        assert_eq!(cluster.at_rest().await, 3, "{failure:?}");
        release_all(&cluster, &alice).await;
        heal(&cluster).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn without_a_spare_the_whole_rent_is_undone() {
    let plan = Plan {
        deadline_s: 12,
        host_timeout_s: 3,
        ..Plan::workers(3)
    };
    let cluster = Cluster::start(plan).await;
    let alice = cluster.user("alice").await;
    for failure in SAID.into_iter().chain(UNSAID) {
        cluster.workers[1].behave(Some(Op::Create), failure, None);
        let answer = alice.post("/api/rent", &rent_of(3)).await;
        assert_eq!(
            answer.code(),
            "provisioning_failed",
            "{failure:?}: {answer}"
        );
        assert!(answer.headers.contains_key("retry-after"), "{answer}");
        cluster.workers[1].behave_well();
        assert_eq!(cluster.at_rest().await, 0, "{failure:?}");
        assert!(cluster.workers.accounts().is_empty(), "{failure:?}");
        heal(&cluster).await;
    }
}

/// Nodes that failed are out of service until an administrator looks; here he looks at once.
async fn heal(cluster: &Cluster) {
    cluster.db.sql("UPDATE nodes SET failed_provisions = 0");
    let quarantined = cluster
        .db
        .sql("SELECT id FROM nodes WHERE availability = 'quarantined'");
    if !quarantined.is_empty() {
        let admin = cluster.admin("boss").await;
        for node in quarantined {
            let path = format!("/api/nodes/{}/release-from-quarantine", node[0]);
            admin.post_empty(&path).await.expect(200);
        }
        cluster.db.sql("DELETE FROM users WHERE name = 'boss'");
    }
    cluster.ready_nodes(cluster.workers.all().len()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_worker_that_can_not_be_cleaned_is_handed_out_to_nobody() {
    let cluster = Cluster::start(Plan::workers(2)).await;
    let alice = cluster.user("alice").await;
    let bad = &cluster.workers[0];
    for failure in [Act::NotGone, Act::Fail, Act::Unreachable] {
        bad.behave(Some(Op::Delete), failure, None);
        alice.post("/api/rent", &rent_of(2)).await.expect(200);
        for rental in alice.get("/api/rentals").await.json().as_array().unwrap() {
            alice
                .post_empty(&format!("/api/release/{}", rental["rental_id"]))
                .await
                .expect(200);
        }
        cluster.ready_nodes(1).await;
        for _ in 0..5 {
            let machines = alice
                .post("/api/rent", &rent_of(1))
                .await
                .expect(200)
                .json();
            assert_ne!(ports(&machines), [u64::from(bad.port())], "{failure:?}");
            assert_eq!(
                alice
                    .post("/api/rent", &rent_of(1))
                    .await
                    .expect(503)
                    .code(),
                "no_free_node"
            );
            let path = format!("/api/release/{}", machines[0]["rental_id"]);
            alice.post_empty(&path).await.expect(200);
            cluster.ready_nodes(1).await;
        }
        assert_eq!(bad.accounts().len(), 1, "{failure:?}");
        bad.behave_well();
        assert_eq!(cluster.at_rest().await, 0, "{failure:?}");
        heal(&cluster).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_name_that_is_taken_on_the_workers_is_409_and_no_node_suffers() {
    let cluster = Cluster::start(Plan::workers(4)).await;
    for worker in cluster.workers.all() {
        worker.add_foreign_account("postgres");
    }
    let postgres = cluster.user("postgres").await;
    for count in [1, 3] {
        let answer = postgres
            .post("/api/rent", &rent_of(count))
            .await
            .expect(409);
        assert_eq!(answer.code(), "name_taken", "{answer}");
        assert_eq!(cluster.at_rest().await, 0);
        cluster.ready_nodes(4).await;
    }
    assert_eq!(
        cluster
            .db
            .sql_one("SELECT SUM(failed_provisions) FROM nodes"),
        "0"
    );
    let alice = cluster.user("alice").await;
    alice.post("/api/rent", &rent_of(4)).await.expect(200);
    assert_eq!(cluster.at_rest().await, 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_name_that_is_taken_on_one_worker_only_costs_another_try() {
    let cluster = Cluster::start(Plan::workers(2)).await;
    cluster.workers[0].add_foreign_account("postgres");
    let postgres = cluster.user("postgres").await;
    for _ in 0..4 {
        let machines = postgres
            .post("/api/rent", &rent_of(1))
            .await
            .expect(200)
            .json();
        assert_eq!(ports(&machines), [u64::from(cluster.workers[1].port())]);
        release_all(&cluster, &postgres).await;
        cluster.ready_nodes(2).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_rental_ends_by_itself_when_its_time_is_over() {
    let cluster = Cluster::start(Plan::workers(1)).await;
    let alice = cluster.user("alice").await;
    let ten_seconds = json!({"duration_hours": 10.0 / 3600.0});
    let machines = alice
        .post("/api/rent", &ten_seconds)
        .await
        .expect(200)
        .json();
    assert_eq!(cluster.workers.accounts().len(), 1);
    wait_until("the account is gone", PATIENCE, || {
        match cluster.workers.accounts() {
            accounts if accounts.is_empty() => Ok(()),
            accounts => Err(format!("{accounts:?}")),
        }
    })
    .await;
    let lived = cluster
        .db
        .sql_one("SELECT TIMESTAMPDIFF(MICROSECOND, leased_until, ended_at) / 1e6 FROM rentals");
    let lived: f64 = lived.parse().unwrap();
    assert!(
        (0.0..10.0).contains(&lived),
        "ended {lived} s after its end"
    );
    let path = format!("/api/rentals/{}", machines[0]["rental_id"]);
    cluster.at_rest().await;
    let rental = alice.get(&path).await.expect(200).json();
    assert_eq!(
        (&rental["state"], &rental["end_reason"]),
        (&json!("ended"), &json!("expired"))
    );
    cluster.ready_nodes(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_worker_with_an_account_that_nobody_knows_is_not_handed_out() {
    let cluster = Cluster::start(Plan::workers(1)).await;
    let admin = cluster.admin("boss").await;
    let alice = cluster.user("alice").await;
    alice.post("/api/rent", &rent_of(1)).await.expect(200);
    // As if the database had been lost: the worker still has an account, of a rental that is over.
    cluster.workers[0].behave(Some(Op::Delete), Act::Fail, None);
    admin.post_empty("/api/reset").await.expect(200);
    wait_until("the debt is tried", PATIENCE, || {
        let failed = "SELECT COUNT(*) FROM runs WHERE kind = 'clean' AND state = 'failed'";
        match cluster.db.sql_one(failed).as_str() {
            "0" => Err("not yet"),
            _ => Ok(()),
        }
    })
    .await;
    assert_eq!(
        alice
            .post("/api/rent", &rent_of(1))
            .await
            .expect(503)
            .code(),
        "no_free_node"
    );
    cluster.workers[0].behave_well();
    assert_eq!(cluster.at_rest().await, 0);
    cluster.ready_nodes(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_worker_that_is_gone_is_not_handed_out_and_comes_back_by_itself() {
    let cluster = Cluster::start(Plan::workers(2)).await;
    let alice = cluster.user("alice").await;
    cluster.workers[0].reach(Reach::Refuses);
    cluster.ready_nodes(1).await;
    for _ in 0..3 {
        let machines = alice
            .post("/api/rent", &rent_of(1))
            .await
            .expect(200)
            .json();
        assert_eq!(ports(&machines), [u64::from(cluster.workers[1].port())]);
        release_all(&cluster, &alice).await;
        cluster.ready_nodes(1).await;
    }
    cluster.workers[0].reach(Reach::Answers);
    cluster.ready_nodes(2).await;
}
