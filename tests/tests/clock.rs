//! The clock of a running MariaDB steps, alone or with the daemons' own: nobody's time ends early or late.
//!
//! libfaketime sets the clocks of these processes. CLOCK_BOOTTIME stays true in them: DONT_FAKE_MONOTONIC=1 says so, and
//! the daemons ask the kernel for it, past libfaketime.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "helpers of tests"
)]

use orion_testkit::{Answer, Client, FakeClock, PATIENCE, wait_until, wait_until_async};
use orion_tests::{Cluster, PASSWORD, Plan};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const TWO_HOURS: i64 = 7200;
/// In hours: 10.8 s.
const SHORT: f64 = 0.003;

async fn cluster_with(clock: &FakeClock, one_machine: bool) -> Cluster {
    Cluster::start(Plan {
        clock: Some(clock.clone()),
        one_machine,
        ..Plan::workers(4)
    })
    .await
}

/// A token ends by apid's own clock, so that who comes after a step logs in again.
async fn again(cluster: &Cluster, name: &str) -> Client {
    let api = cluster.api().await;
    let credentials = json!({"username": name, "password": PASSWORD});
    let answer = api.post("/auth/login", &credentials).await.expect(200);
    api.with_token(answer.json()["token"].as_str().unwrap())
}

async fn rent(client: &Client, hours: f64) -> Answer {
    let order = json!({"duration_hours": hours, "count": 1});
    client.post("/api/rent", &order).await
}

async fn rented(client: &Client, hours: f64) -> Value {
    rent(client, hours).await.expect(200).json()[0].clone()
}

/// Waits until orion-schedd raises the alarm, or takes it back.
async fn alarm(cluster: &Cluster, raised: bool) {
    let ops = Client::new(cluster.schedd.address("ops").await);
    wait_until_async(&format!("an alarm: {raised}"), PATIENCE, || async {
        let answer = ops.get("/readyz").await;
        let said = answer.to_string().contains("POST /api/clock/accept");
        if said == raised && (raised || answer.status == 200) {
            Ok(())
        } else {
            Err(answer.to_string())
        }
    })
    .await;
}

async fn ended(cluster: &Cluster, rental: &Value, reason: &str) {
    let id = &rental["rental_id"];
    let sql =
        format!("SELECT CONCAT(state, ' ', IFNULL(end_reason, '')) FROM rentals WHERE id = {id}");
    let wanted = format!("ended {reason}");
    wait_until(
        &format!("rental {id} is {wanted}"),
        PATIENCE,
        || match cluster.db.sql_one(&sql) {
            seen if seen == wanted => Ok(()),
            seen => Err(seen),
        },
    )
    .await;
}

/// How many ticks of a job are over.
async fn ticks(cluster: &Cluster, job: &str) -> u64 {
    let ops = Client::new(cluster.schedd.address("ops").await);
    let page = ops.get("/metrics").await.to_string();
    let start = format!("orion_schedd_job_ticks_total{{job=\"{job}\",result=\"done\"}} ");
    let counted = page.split(&start).nth(1);
    counted.map_or(0, |rest| {
        rest.split_whitespace().next().unwrap().parse().unwrap()
    })
}

fn of_kinds(cluster: &Cluster, kinds: &str) -> String {
    let sql = format!("SELECT COUNT(*) FROM events WHERE kind RLIKE '^({kinds})$'");
    cluster.db.sql_one(&sql)
}

fn nobody_died_or_moved(cluster: &Cluster) {
    let kinds = "node_dead|rental_degraded|rental_moving|node_quarantined";
    assert_eq!(of_kinds(cluster, kinds), "0");
}

/// A rental that is over while the clock is wrong ends then, another one lives.
async fn a_step_and_back(cluster: &Cluster, clock: &FakeClock, ahead: i64, lives: &Value) {
    let short = rented(&again(cluster, "alice").await, SHORT).await;
    let start = Instant::now();
    clock.set_ahead(ahead);
    alarm(cluster, true).await;
    let alice = again(cluster, "alice").await;
    let refused = rent(&alice, 2.0).await;
    assert_eq!(refused.status, 503, "{refused}");
    assert_eq!(refused.json()["code"], "clock_stepped");
    assert!(refused.headers.contains_key("retry-after"));
    let extend = format!("/api/extend/{}", lives["rental_id"]);
    let refused = alice.post(&extend, &json!({"additional_hours": 1})).await;
    assert_eq!(refused.json()["code"], "clock_stepped", "{refused}");

    ended(cluster, &short, "expired").await;
    let took = start.elapsed();
    assert!(took >= Duration::from_secs(10), "ended after {took:?}");
    let (expired, moved) = (
        ticks(cluster, "expire").await,
        ticks(cluster, "migrate").await,
    );
    wait_until_async("the jobs go on", PATIENCE, || async {
        let now = (
            ticks(cluster, "expire").await,
            ticks(cluster, "migrate").await,
        );
        if now.0 > expired + 1 && now.1 > moved + 1 {
            Ok(())
        } else {
            Err(format!("{now:?}"))
        }
    })
    .await;
    assert_eq!(cluster.at_rest().await, 1, "the other one lives");

    clock.set_ahead(0);
    alarm(cluster, false).await;
    ended(cluster, &short, "expired").await;
    let other = rented(&again(cluster, "alice").await, 2.0).await;
    let release = format!("/api/release/{}", other["rental_id"]);
    let alice = again(cluster, "alice").await;
    alice.post_empty(&release).await.expect(200);
    assert_eq!(cluster.at_rest().await, 1);
    nobody_died_or_moved(cluster);
}

async fn two_hours_forward_and_back(one_machine: bool) {
    let clock = FakeClock::right();
    let cluster = cluster_with(&clock, one_machine).await;
    let lives = rented(&cluster.user("alice").await, 1.0).await;
    for ahead in [TWO_HOURS, -TWO_HOURS] {
        a_step_and_back(&cluster, &clock, ahead, &lives).await;
    }
    assert_eq!(of_kinds(&cluster, "clock_stepped"), "2");
    assert_eq!(of_kinds(&cluster, "clock_back"), "2");
}

/// Waits until schedd gave all nodes time to answer more than `before` times; how often it did.
async fn graces(cluster: &Cluster, before: usize) -> usize {
    wait_until("a grace", PATIENCE, || {
        let log = cluster.schedd.log_lines();
        let given = log.iter().filter(|line| line.contains("decided dead"));
        let given = given.count();
        if given > before {
            Ok(given)
        } else {
            Err(given)
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_machine_that_slept_gives_its_nodes_time_to_answer() {
    let clock = FakeClock::right();
    let cluster = cluster_with(&clock, true).await;
    let start = graces(&cluster, 0).await;
    // Less than what makes a clock doubtful: all that schedd sees is that time has passed without it.
    clock.set_ahead(5);
    graces(&cluster, start).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_databases_clock_two_hours_forward_and_back_ends_nobody_early_or_late() {
    two_hours_forward_and_back(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_whole_machines_clock_two_hours_forward_and_back_ends_nobody_early_or_late() {
    two_hours_forward_and_back(true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_clock_that_steps_during_ticks_ends_nobody() {
    let clock = FakeClock::right();
    let cluster = cluster_with(&clock, false).await;
    let alice = cluster.user("alice").await;
    for _ in 0..3 {
        rented(&alice, 1.0).await;
    }
    let start = (
        ticks(&cluster, "expire").await,
        ticks(&cluster, "migrate").await,
    );
    let mut steps = [TWO_HOURS, -TWO_HOURS, 0, -45, 45, TWO_HOURS, 0]
        .iter()
        .cycle();
    wait_until_async("the jobs have ticked among steps", PATIENCE, || {
        clock.set_ahead(*steps.next().unwrap());
        let cluster = &cluster;
        async move {
            let now = (
                ticks(cluster, "expire").await,
                ticks(cluster, "migrate").await,
            );
            if now.0 > start.0 + 10 && now.1 > start.1 + 10 {
                Ok(())
            } else {
                Err(format!("{now:?}"))
            }
        }
    })
    .await;
    clock.set_ahead(0);
    alarm(&cluster, false).await;
    assert_eq!(cluster.at_rest().await, 3);
    nobody_died_or_moved(&cluster);
    cluster.ready_nodes(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn daemons_and_a_database_that_restart_do_not_believe_a_clock_that_stepped() {
    let clock = FakeClock::right();
    let mut cluster = cluster_with(&clock, false).await;
    rented(&cluster.user("alice").await, 1.0).await;
    clock.set_ahead(TWO_HOURS);
    alarm(&cluster, true).await;
    cluster.schedd.kill();
    cluster.apids[0].kill();
    cluster.db.kill_server();
    cluster.db.start_server();
    cluster.apids[0].start_again();
    cluster.apids[0].ready().await;
    let refused = rent(&again(&cluster, "alice").await, 2.0).await;
    assert_eq!(refused.json()["code"], "clock_stepped", "{refused}");
    cluster.schedd.start_again();
    alarm(&cluster, true).await;
    wait_until_async("it leads and ticks", PATIENCE, || async {
        match ticks(&cluster, "expire").await {
            0 | 1 => Err("no ticks"),
            _ => Ok(()),
        }
    })
    .await;
    assert_eq!(cluster.at_rest().await, 1);
    clock.set_ahead(0);
    alarm(&cluster, false).await;
    assert_eq!(cluster.at_rest().await, 1);
    nobody_died_or_moved(&cluster);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_administrator_accepts_a_clock_and_who_is_over_by_it_ends() {
    let clock = FakeClock::right();
    let cluster = cluster_with(&clock, false).await;
    let admin = cluster.admin("chief").await;
    let (over, lives) = (rented(&admin, 1.0).await, rented(&admin, 5.0).await);
    let early = admin.post_empty("/api/clock/accept").await;
    assert_eq!(early.json()["code"], "wrong_state", "{early}");
    clock.set_ahead(TWO_HOURS);
    alarm(&cluster, true).await;
    admin.post_empty("/api/clock/accept").await.expect(200);
    alarm(&cluster, false).await;
    ended(&cluster, &over, "expired").await;
    rented(&admin, 1.0).await;
    assert_eq!(cluster.at_rest().await, 2);
    let release = format!("/api/release/{}", lives["rental_id"]);
    admin.post_empty(&release).await.expect(200);
    nobody_died_or_moved(&cluster);
    assert_eq!(of_kinds(&cluster, "clock_accepted"), "1");
    assert_eq!(of_kinds(&cluster, "clock_back"), "0");
    // And back, accepted too: the jobs, the lead and claims go on.
    clock.set_ahead(0);
    alarm(&cluster, true).await;
    admin.post_empty("/api/clock/accept").await.expect(200);
    alarm(&cluster, false).await;
    let short = rented(&admin, SHORT).await;
    ended(&cluster, &short, "expired").await;
    assert_eq!(cluster.at_rest().await, 1);
}
