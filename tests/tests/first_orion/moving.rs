//! What it did when a worker died.

use crate::{release, rent, time_is_over, until, until_rental_is};
use orion_testkit::scripted::{Act, Op, Reach};
use orion_tests::{Cluster, Plan};
use serde_json::{Value, json};

/// A schedule of one tick, in a time to come.
const NEVER: &str = "0 0 0 1 1 *";

async fn seen_dead(cluster: &Cluster, hostname: &str) {
    let status = format!("SELECT status FROM nodes WHERE hostname = '{hostname}'");
    until(cluster, &format!("{hostname} is dead"), &status, "dead").await;
}

async fn drain(cluster: &Cluster, hostname: &str, verb: &str) {
    let admin = cluster.admin("boss").await;
    let node = cluster.db.sql_one(&format!(
        "SELECT id FROM nodes WHERE hostname = '{hostname}'"
    ));
    admin
        .post_empty(&format!("/api/nodes/{node}/{verb}"))
        .await
        .expect(200);
    cluster.db.sql("DELETE FROM users WHERE name = 'boss'");
}

/// One machine, and the worker it is not on.
async fn one_of_two(cluster: &Cluster, client: &orion_testkit::Client) -> (Value, usize) {
    let [rental] = rent(client).await;
    let rented = cluster.worker_of(&rental).hostname();
    let spare = usize::from(cluster.workers[0].hostname() == rented);
    (rental, spare)
}

/// One failed probe was a death, and the lease moved at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn one_failed_probe_is_no_death_unlike_in_the_first_orion() {
    let cluster = Cluster::start(Plan::workers(3)).await;
    let alice = cluster.user("alice").await;
    let [rental] = rent(&alice).await;
    let worker = cluster.worker_of(&rental);
    let seen = |status: &str| {
        (
            format!("it is {status}"),
            format!(
                "SELECT status = '{status}' FROM nodes WHERE hostname = '{}'",
                worker.hostname()
            ),
        )
    };
    for _ in 0..3 {
        worker.reach(Reach::Refuses);
        let (what, is_suspect) = seen("suspect");
        until(&cluster, &what, &is_suspect, "1").await;
        worker.reach(Reach::Answers);
        let (what, is_alive) = seen("alive");
        until(&cluster, &what, &is_alive, "1").await;
    }
    let moved = "SELECT COUNT(*) FROM events WHERE kind IN ('node_dead', 'rental_degraded', 'rental_moving')";
    assert_eq!(cluster.db.sql_one(moved), "0");
    assert_eq!(cluster.worker_of(&rental).hostname(), worker.hostname());
    assert_eq!(cluster.at_rest().await, 1);
}

/// A moved lease got a new id, so that its owner's release and extend were answered 400.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_moved_rental_is_extended_and_released_by_its_old_id_unlike_in_the_first_orion() {
    let cluster = Cluster::start(Plan::workers(3)).await;
    let alice = cluster.user("alice").await;
    let [rental] = rent(&alice).await;
    let dead = cluster.worker_of(&rental);
    dead.reach(Reach::Refuses);
    let moved =
        format!("SELECT COUNT(*) FROM events WHERE kind = 'rental_moved' AND rental_id = {rental}");
    until(&cluster, "it is moved", &moved, "1").await;
    assert_ne!(cluster.worker_of(&rental).hostname(), dead.hostname());
    let hour = json!({"additional_hours": 1});
    let answer = alice.post(&format!("/api/extend/{rental}"), &hour).await;
    assert_eq!(answer.expect(200).json()["lease_id"], rental);
    assert_eq!(cluster.db.sql_one("SELECT COUNT(*) FROM rentals"), "1");
    release(&alice, &rental).await;
    dead.reach(Reach::Answers);
    assert_eq!(cluster.at_rest().await, 0);
}

/// The machine that a lease was moved to might still have had to be cleaned of somebody else.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_rental_moves_to_no_worker_with_a_debt_unlike_in_the_first_orion() {
    let cluster = Cluster::start(Plan::workers(2)).await;
    let (alice, bob) = (cluster.user("alice").await, cluster.user("bob").await);
    let (rental, other) = one_of_two(&cluster, &alice).await;
    let dirty = &cluster.workers[other];
    let [bobs] = rent(&bob).await;
    dirty.behave(Some(Op::Delete), Act::NotGone, None);
    release(&bob, &bobs).await;
    let dead = cluster.worker_of(&rental);
    dead.reach(Reach::Refuses);
    until_rental_is(&cluster, &rental, "degraded").await;
    // The next cleaning fails after the rental was there to be moved.
    let failed = "SELECT COUNT(*) > 0 FROM runs u JOIN rentals r ON r.state = 'degraded' \
        WHERE u.kind = 'clean' AND u.state = 'failed' AND u.finished_at > r.degraded_since + INTERVAL 2 SECOND";
    until(&cluster, "the other worker is tried again", failed, "1").await;
    until_rental_is(&cluster, &rental, "degraded").await;
    assert_eq!(dirty.accounts().len(), 1, "bob's");
    dirty.behave_well();
    until_rental_is(&cluster, &rental, "active").await;
    assert_eq!(cluster.worker_of(&rental).hostname(), dirty.hostname());
    dead.reach(Reach::Answers);
    assert_eq!(cluster.at_rest().await, 1);
}

/// Leases that were over already were moved as well.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_rental_that_is_over_is_not_moved_unlike_in_the_first_orion() {
    // Nobody ends it, so that it is there to be moved.
    let plan = Plan {
        expire: NEVER,
        ..Plan::workers(3)
    };
    let cluster = Cluster::start(plan).await;
    let alice = cluster.user("alice").await;
    let [over, lasting] = rent(&alice).await;
    let dead = [cluster.worker_of(&over), cluster.worker_of(&lasting)];
    let is_rented = |name: &str| dead.iter().any(|worker| worker.hostname() == name);
    let mut workers = cluster.workers.all().iter();
    let spare = workers
        .find(|worker| !is_rented(worker.hostname()))
        .unwrap();
    drain(&cluster, spare.hostname(), "drain").await;
    for (worker, rental) in dead.into_iter().zip([&over, &lasting]) {
        worker.reach(Reach::Refuses);
        until_rental_is(&cluster, rental, "degraded").await;
    }
    time_is_over(&cluster, &over);
    // First degraded first served: the spare would be its.
    drain(&cluster, spare.hostname(), "undrain").await;
    until_rental_is(&cluster, &lasting, "active").await;
    assert_eq!(cluster.worker_of(&lasting).hostname(), spare.hostname());
    let accounts = format!("SELECT COUNT(*) FROM accounts WHERE rental_id = {over}");
    assert_eq!(cluster.db.sql_one(&accounts), "1");
}

/// Where the account could not be made on the spare, the lease was active and nobody could log in.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_rental_is_active_only_where_its_account_was_made_unlike_in_the_first_orion() {
    let cluster = Cluster::start(Plan::workers(3)).await;
    let alice = cluster.user("alice").await;
    let [rental, other] = &rent(&alice).await;
    let rented = [cluster.worker_of(rental), cluster.worker_of(other)];
    let is_rented = |name: &str| rented.iter().any(|worker| worker.hostname() == name);
    let mut workers = cluster.workers.all().iter();
    let bad = workers
        .find(|worker| !is_rented(worker.hostname()))
        .unwrap();
    bad.behave(Some(Op::Create), Act::Fail, None);
    rented[0].reach(Reach::Refuses);
    seen_dead(&cluster, rented[0].hostname()).await;
    let failed = "SELECT COUNT(*) FROM runs WHERE kind = 'provision' AND state = 'failed'";
    until(&cluster, "the spare has failed", failed, "1").await;
    let view = alice.get(&format!("/api/rentals/{rental}")).await.json();
    assert_eq!(
        (&view["state"], &view["host_ip"]),
        (&json!("degraded"), &Value::Null)
    );
    // Another worker is free: there it is made, and only then the rental is active.
    release(&alice, other).await;
    until_rental_is(&cluster, rental, "active").await;
    assert_eq!(cluster.worker_of(rental).hostname(), rented[1].hostname());
    rented[0].reach(Reach::Answers);
    assert_eq!(cluster.at_rest().await, 1);
}
