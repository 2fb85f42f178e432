//! Daemons, clients and the database that go away in the middle: afterwards accounts on workers equal live rentals.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "helpers of tests"
)]

use http::Method;
use orion_testkit::scripted::{Act, Op};
use orion_testkit::{Answer, Client, PATIENCE, wait_until, wait_until_async};
use orion_tests::{Cluster, Plan, rent_of};
use serde_json::json;
use tokio::task::JoinHandle;

/// How long a create takes here: what happens in the middle happens meanwhile.
const CREATE_MS: u64 = 400;

async fn slow_cluster(plan: Plan) -> Cluster {
    let cluster = Cluster::start(plan).await;
    for worker in cluster.workers.all() {
        worker.behave(Some(Op::Create), Act::Delay(CREATE_MS), None);
    }
    cluster
}

fn rent(client: &Client, count: u32) -> JoinHandle<Result<Answer, String>> {
    let client = client.clone();
    tokio::spawn(async move {
        client
            .send(Method::POST, "/api/rent", Some(&rent_of(count)))
            .await
    })
}

/// How many plays of a kind have begun so far.
fn plays(cluster: &Cluster, op: Op) -> usize {
    let begun = cluster.workers.log().into_iter();
    begun
        .filter(|line| line.what == "play" && line.op == op)
        .count()
}

/// Waits for a moment in the middle.
async fn when(what: &str, has_come: impl Fn() -> bool) {
    wait_until(what, PATIENCE, || {
        if has_come() { Ok(()) } else { Err("not yet") }
    })
    .await;
}

/// Moments of a rent of three: each statement answers 1 from then on, where `?` is the last request before.
const MOMENTS: [(&str, &str); 5] = [
    ("it is sent", "SELECT 1"),
    (
        "it is recorded",
        "SELECT COUNT(*) FROM requests WHERE id > ?",
    ),
    (
        "its runs are queued",
        "SELECT COUNT(*) = 3 FROM runs u JOIN accounts a ON a.id = u.account_id JOIN rentals r ON r.id = a.rental_id \
         WHERE u.kind = 'provision' AND r.request_id > ?",
    ),
    (
        "its runs are claimed",
        "SELECT COUNT(*) = 3 FROM runs u JOIN accounts a ON a.id = u.account_id JOIN rentals r ON r.id = a.rental_id \
         WHERE u.kind = 'provision' AND u.state <> 'queued' AND r.request_id > ?",
    ),
    (
        "an account of it is present",
        "SELECT COUNT(*) > 0 FROM accounts a JOIN rentals r ON r.id = a.rental_id \
         WHERE a.state = 'present' AND r.request_id > ?",
    ),
];

/// A rent that is on its way: a play is making its accounts now.
async fn rent_in_the_middle(
    cluster: &Cluster,
    client: &Client,
) -> JoinHandle<Result<Answer, String>> {
    let before = plays(cluster, Op::Create);
    let call = rent(client, 3);
    when("a play makes accounts", || {
        plays(cluster, Op::Create) > before
    })
    .await;
    call
}

async fn release_everything(cluster: &Cluster, client: &Client) {
    for rental in client
        .get("/api/rentals")
        .await
        .expect(200)
        .json()
        .as_array()
        .unwrap()
    {
        client
            .post_empty(&format!("/api/release/{}", rental["rental_id"]))
            .await
            .expect(200);
    }
    assert_eq!(cluster.at_rest().await, 0);
    cluster.ready_nodes(cluster.workers.all().len()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_client_that_hangs_up_loses_nothing() {
    let cluster = slow_cluster(Plan::workers(3)).await;
    let alice = cluster.user("alice").await;
    let keyed = alice.with_header("Idempotency-Key", "k");
    let call = rent_in_the_middle(&cluster, &keyed).await;
    call.abort();
    assert!(call.await.unwrap_err().is_cancelled());
    wait_until("the rent completes", PATIENCE, || {
        match cluster.db.sql_one("SELECT state FROM requests").as_str() {
            "active" => Ok(()),
            state => Err(state.to_owned()),
        }
    })
    .await;
    assert_eq!(cluster.at_rest().await, 3);
    let again = keyed
        .post("/api/rent", &rent_of(3))
        .await
        .expect(200)
        .json();
    assert_eq!(again.as_array().unwrap().len(), 3);
    assert_eq!(cluster.at_rest().await, 3, "found by its key");
    release_everything(&cluster, &alice).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_apid_that_is_stopped_answers_first() {
    let mut cluster = slow_cluster(Plan::workers(3)).await;
    let alice = cluster.user("alice").await;
    let call = rent_in_the_middle(&cluster, &alice).await;
    cluster.apids[0].terminate();
    let status = cluster.apids[0].ended(PATIENCE).await;
    assert!(status.success(), "{status}");
    call.await.unwrap().unwrap().expect(200);
    assert_eq!(cluster.at_rest().await, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_apid_that_is_killed_leaves_whole_rents_or_none() {
    let plan = Plan {
        deadline_s: 6,
        ..Plan::workers(3)
    };
    let mut cluster = slow_cluster(plan).await;
    let token = cluster.user("alice").await;
    for (moment, has_come) in MOMENTS {
        let alice = token.at(cluster.apids[0].address("clients").await);
        let last = cluster
            .db
            .sql_one("SELECT IFNULL(MAX(id), 0) FROM requests");
        let has_come = has_come.replace('?', &last);
        let call = rent(&alice, 3);
        when(moment, || cluster.db.sql_one(&has_come) == "1").await;
        cluster.apids[0].kill();
        let answer = call.await.unwrap();
        // Once an account is present, the other two and the answer may be there as well.
        assert!(
            answer.is_err() || moment == "an account of it is present",
            "when {moment}: {answer:?}"
        );
        cluster.apids[0].start_again();
        cluster.apids[0].ready().await;
        let left = cluster.at_rest().await;
        assert!(left == 0 || left == 3, "when {moment}: {left} rentals");
        let alice = token.at(cluster.apids[0].address("clients").await);
        release_everything(&cluster, &alice).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_schedd_that_is_killed_in_the_middle_finishes_when_it_is_back() {
    let mut cluster = slow_cluster(Plan {
        deadline_s: 60,
        ..Plan::workers(3)
    })
    .await;
    let alice = cluster.user("alice").await;
    for made in [0, 1] {
        let call = rent_in_the_middle(&cluster, &alice).await;
        when("so many accounts are made", || {
            cluster.workers.accounts().len() >= made
        })
        .await;
        cluster.schedd.kill();
        cluster.schedd.start_again();
        let answer = call.await.unwrap().unwrap();
        let expected = match answer.status.as_u16() {
            200 => 3,
            _ => {
                assert_eq!(
                    answer.code(),
                    "provisioning_failed",
                    "{made} made: {answer}"
                );
                0
            }
        };
        assert_eq!(cluster.at_rest().await, expected, "{made} made");
        release_everything(&cluster, &alice).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_schedd_that_is_killed_while_it_cleans_finishes_when_it_is_back() {
    let mut cluster = Cluster::start(Plan::workers(3)).await;
    let alice = cluster.user("alice").await;
    for worker in cluster.workers.all() {
        worker.behave(Some(Op::Delete), Act::Delay(CREATE_MS), None);
    }
    for removed in [0, 1] {
        let machines = alice
            .post("/api/rent", &rent_of(3))
            .await
            .expect(200)
            .json();
        let before = plays(&cluster, Op::Delete);
        for machine in machines.as_array().unwrap() {
            alice
                .post_empty(&format!("/api/release/{}", machine["rental_id"]))
                .await
                .expect(200);
        }
        when("a play removes accounts, and so many are gone", || {
            plays(&cluster, Op::Delete) > before && cluster.workers.accounts().len() <= 3 - removed
        })
        .await;
        cluster.schedd.kill();
        cluster.schedd.start_again();
        assert_eq!(cluster.at_rest().await, 0);
        cluster.ready_nodes(3).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_schedd_that_is_stopped_in_the_middle_drains_or_gives_back() {
    let mut cluster = slow_cluster(Plan {
        deadline_s: 60,
        ..Plan::workers(3)
    })
    .await;
    let alice = cluster.user("alice").await;
    let call = rent_in_the_middle(&cluster, &alice).await;
    cluster.schedd.terminate();
    let status = cluster.schedd.ended(PATIENCE).await;
    assert!(status.success(), "{status}");
    cluster.schedd.start_again();
    call.await.unwrap().unwrap().expect(200);
    assert_eq!(cluster.at_rest().await, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_rent_waits_for_a_schedd_that_is_down() {
    let mut cluster = Cluster::start(Plan::workers(3)).await;
    let alice = cluster.user("alice").await;
    cluster.schedd.kill();
    let call = rent(&alice, 3);
    wait_until("the runs are queued", PATIENCE, || {
        match cluster
            .db
            .sql_one("SELECT COUNT(*) FROM runs WHERE kind = 'provision' AND state = 'queued'")
            .as_str()
        {
            "3" => Ok(()),
            other => Err(other.to_owned()),
        }
    })
    .await;
    cluster.schedd.start_again();
    call.await.unwrap().unwrap().expect(200);
    assert_eq!(cluster.at_rest().await, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_rent_without_any_schedd_is_undone_at_the_deadline() {
    let mut cluster = Cluster::start(Plan {
        deadline_s: 2,
        ..Plan::workers(3)
    })
    .await;
    let alice = cluster.user("alice").await;
    cluster.schedd.kill();
    let answer = alice.post("/api/rent", &rent_of(3)).await.expect(503);
    assert_eq!(answer.code(), "provisioning_failed", "{answer}");
    cluster.schedd.start_again();
    assert_eq!(cluster.at_rest().await, 0);
    cluster.ready_nodes(3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_retry_with_the_same_key_after_a_crash_gets_the_same_machines() {
    let mut cluster = slow_cluster(Plan {
        deadline_s: 60,
        ..Plan::workers(3)
    })
    .await;
    let alice = cluster
        .user("alice")
        .await
        .with_header("Idempotency-Key", "after-the-crash");
    let call = rent_in_the_middle(&cluster, &alice).await;
    cluster.apids[0].kill();
    call.await.unwrap().unwrap_err();
    cluster.apids[0].start_again();
    let alice = alice.at(cluster.apids[0].address("clients").await);
    cluster.apids[0].ready().await;
    let first = alice
        .post("/api/rent", &rent_of(3))
        .await
        .expect(200)
        .json();
    let second = alice
        .post("/api/rent", &rent_of(3))
        .await
        .expect(200)
        .json();
    assert_eq!(first, second, "with the same passwords");
    assert_eq!(cluster.at_rest().await, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_database_outage_in_the_middle_loses_nothing() {
    let plan = Plan {
        own_database: true,
        apids: 2,
        deadline_s: 60,
        ..Plan::workers(3)
    };
    let cluster = slow_cluster(plan).await;
    let alice = cluster.user("alice").await;
    let call = rent_in_the_middle(&cluster, &alice).await;
    cluster.db.kill_server();
    let health = alice.get("/api/health").await.expect(503).json();
    assert_eq!(health, json!({"status": "unhealthy"}));
    let refused = alice.post("/api/rent", &rent_of(1)).await.expect(503);
    assert_eq!(refused.code(), "database_down", "{refused}");
    assert!(refused.headers.contains_key("retry-after"), "{refused}");
    cluster.db.start_server();
    wait_until_async("it is healthy again", PATIENCE, || async {
        let answer = alice.get("/api/health").await;
        if answer.status == 200 {
            Ok(())
        } else {
            Err(answer.to_string())
        }
    })
    .await;
    let answer = call.await.unwrap().unwrap();
    let left = cluster.at_rest().await;
    match answer.status.as_u16() {
        200 => assert_eq!(left, 3),
        _ => assert!(left == 0 || left == 3, "{answer}: {left}"),
    }
    release_everything(&cluster, &alice).await;
    alice.post("/api/rent", &rent_of(3)).await.expect(200);
    assert_eq!(cluster.at_rest().await, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn daemons_that_start_before_their_database_get_ready_when_it_comes() {
    let plan = Plan {
        own_database: true,
        ..Plan::workers(1)
    };
    let mut cluster = Cluster::start(plan).await;
    let alice = cluster.user("alice").await;
    cluster.db.stop_server();
    cluster.apids[0].kill();
    cluster.schedd.kill();
    cluster.apids[0].start_again();
    cluster.schedd.start_again();
    let alice = alice.at(cluster.apids[0].address("clients").await);
    assert_eq!(
        alice.post("/api/rent", &rent_of(1)).await.status,
        503,
        "it listens at once"
    );
    cluster.db.start_server();
    cluster.apids[0].ready().await;
    cluster.schedd.ready().await;
    cluster.ready_nodes(1).await;
    alice.post("/api/rent", &rent_of(1)).await.expect(200);
    assert_eq!(cluster.at_rest().await, 1);
}
