//! Whom it trusted.

use orion_testkit::Client;
use orion_tests::{Cluster, PASSWORD, Plan, rent_of};
use serde_json::json;

/// Signing up as `root` or `daemon` and renting set that account's password; the name was spliced into shell lines.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_user_is_never_named_like_a_system_account_or_a_shell_line_of_the_first_orion() {
    let cluster = Cluster::start(Plan::workers(1)).await;
    let api = cluster.api().await;
    for name in [
        "root",
        "daemon",
        "x; rm -rf /",
        "$(reboot)",
        "../root",
        "-rf",
        "orion-node",
    ] {
        let body = json!({"username": name, "password": PASSWORD});
        let answer = api.post("/auth/signup", &body).await.expect(422);
        assert_eq!(answer.json()["errors"][0]["field"], "username", "{name}");
    }
    assert_eq!(cluster.db.sql_one("SELECT COUNT(*) FROM users"), "0");
    // A name that got into the database some other way makes no account either.
    let alice = cluster.user("alice").await;
    cluster
        .db
        .sql("UPDATE users SET name = 'daemon' WHERE name = 'alice'");
    let answer = alice.post("/api/rent", &rent_of(1)).await;
    assert_eq!(
        (answer.status.as_u16(), answer.code().as_str()),
        (409, "name_taken"),
        "{answer}"
    );
    assert_eq!(cluster.at_rest().await, 0);
}

/// Any host that registered was logged in to, with one password for all and host keys unchecked.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_rogue_registration_is_not_logged_in_to_as_by_the_first_orion() {
    let plan = Plan {
        mode: "token",
        ..Plan::workers(1)
    };
    let cluster = Cluster::start(plan).await;
    let agents = Client::new(cluster.apids[0].address("agents").await);
    let answer = agents
        .post("/api/workers/register", &cluster.workers[0].registration())
        .await;
    assert_eq!(
        (answer.status.as_u16(), answer.code().as_str()),
        (401, "signature_missing"),
        "{answer}"
    );
    assert_eq!(cluster.db.sql_one("SELECT COUNT(*) FROM nodes"), "0");
    assert!(
        cluster.workers.log().is_empty(),
        "{:?}",
        cluster.workers.log()
    );
}

/// Without a key in the environment each process invented its own, and one could not read what another wrote.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_processes_derive_the_same_password_unlike_the_first_orion() {
    let plan = Plan {
        apids: 2,
        ..Plan::workers(1)
    };
    let cluster = Cluster::start(plan).await;
    let alice = cluster
        .user("alice")
        .await
        .with_header("Idempotency-Key", "same");
    let first = alice
        .post("/api/rent", &rent_of(1))
        .await
        .expect(200)
        .json();
    let other = alice.at(cluster.apids[1].address("clients").await);
    let second = other
        .post("/api/rent", &rent_of(1))
        .await
        .expect(200)
        .json();
    assert!(
        first[0]["client_pass"].as_str().unwrap().len() >= 20,
        "{first}"
    );
    assert_eq!(first, second);
}
