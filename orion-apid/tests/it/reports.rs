//! What a worker's beat says of its accounts.

use crate::admin::{AS_ROOT, apid, text};
use crate::support::agent::{Agent, BEAT};
use crate::support::{Check, FakeSchedd, Plane, assert_problem, config};
use crate::trust::{TOKEN_MODE, token};
use orion_testkit::{PATIENCE, wait_until, wait_until_async};
use serde_json::{Value, json};

async fn says(agent: &mut Agent, node: &Value, accounts: Value) {
    let body = json!({"node_id": node, "boot_id": "b", "agent": "0.1.0", "accounts": accounts});
    agent.ask(BEAT, &body).await.is(200);
}

/// As if everything had happened a minute earlier.
fn a_minute_passes(plane: &Plane) {
    plane
        .database
        .sql("UPDATE accounts SET evidence_at = evidence_at - INTERVAL 1 MINUTE");
}

#[tokio::test]
async fn an_account_that_a_signed_beat_misses_is_made_again_and_one_that_is_not_understood_is_not()
{
    let plane = Plane::start_with(TOKEN_MODE).await;
    let admin = plane.admin("chief").await;
    let line = token(&admin, &json!({})).await;
    let mut agent = Agent::with_line(&plane.agents, 1, &line);
    let node = agent.register().await.is(201).json()["node_id"].clone();
    plane.all_nodes_ready();
    let _schedd = plane.schedd(FakeSchedd::all_well);
    let alice = plane.user("alice").await;
    let rent = json!({"duration_hours": 1});
    let rented = alice.post("/api/rent", &rent).await.is(200).json();
    a_minute_passes(&plane);
    let newer = json!([{"uid": 1_000_001, "epoch": 1, "state": "frozen"}]);
    says(&mut agent, &node, newer).await;
    says(&mut agent, &node, Value::Null).await;
    let there = json!([{"uid": 1_000_001, "epoch": 1, "state": "present", "shell": "bash"}]);
    says(&mut agent, &node, there).await;
    let repairs = "SELECT GROUP_CONCAT(kind) FROM events WHERE kind LIKE 'account%'";
    assert_eq!(plane.database.sql_one(repairs), "NULL");
    let locked = json!([{"uid": 1_000_001, "epoch": 1, "state": "present", "locked": true}]);
    says(&mut agent, &node, locked).await;
    wait_until("the account is made again", PATIENCE, || {
        match plane.database.sql_one(repairs).as_str() {
            "account_repair,account_repaired" => Ok(()),
            other => Err(other.to_owned()),
        }
    })
    .await;
    let rental = &rented[0]["rental_id"];
    let view = alice
        .get(&format!("/api/rentals/{rental}"))
        .await
        .is(200)
        .json();
    assert_eq!(view["state"], "active");
    assert_eq!(view["history"][1]["kind"], "account_repair", "{view}");
}

#[tokio::test]
async fn an_unsigned_beat_changes_nothing_for_its_node() {
    let plane = Plane::start().await;
    plane.ready_nodes(1).await;
    let body = json!({"node_id": 1, "boot_id": "b", "agent": "0.1.0", "accounts":
        [{"uid": 1_000_900, "epoch": 1, "state": "present"}]});
    for _ in 0..2 {
        plane.agents.post(BEAT, &body).await.is(200);
    }
    let node = "SELECT CONCAT(availability, ' ', highest_uid IS NULL) FROM nodes";
    assert_eq!(plane.database.sql_one(node), "ready 1");
}

#[tokio::test]
async fn accounts_that_were_never_given_out_stop_rents_until_the_counter_is_raised() {
    let plane = Plane::start_with(TOKEN_MODE).await;
    let admin = plane.admin("chief").await;
    let line = token(&admin, &json!({"uses": 3})).await;
    let mut agents = Vec::new();
    for number in 1..=3 {
        let mut agent = Agent::with_line(&plane.agents, number, &line);
        let node = agent.register().await.is(201).json()["node_id"].clone();
        agents.push((agent, node));
    }
    plane.all_nodes_ready();
    let _schedd = plane.schedd(FakeSchedd::all_well);
    let rent = json!({"duration_hours": 1});
    for (agent, node) in &mut agents[..2] {
        let lost = json!([{"uid": 1_000_900, "epoch": 4, "state": "gone"}]);
        says(agent, node, lost).await;
        wait_until_async("the node is quarantined", PATIENCE, || async {
            let seen = admin.get(&format!("/api/nodes/{node}")).await.json();
            let reason = seen["availability_reason"].as_str().unwrap_or_default();
            match seen["availability"].as_str() {
                Some("quarantined") if reason.contains("uid_above_counter") => Ok(()),
                _ => Err(seen.to_string()),
            }
        })
        .await;
    }
    assert_problem(
        &admin.post("/api/rent", &rent).await,
        503,
        "database_outdated",
    );
    let settings = config(&plane.database, &plane.scratch, "");
    let file = plane.scratch.write_secret("apid.toml", &settings);
    let raised = apid(&file, &[&["raise-counter"][..], &AS_ROOT].concat(), "");
    assert!(raised.status.success(), "{}", text(&raised));
    let rented = admin.post("/api/rent", &rent).await.is(200).json();
    assert!(rented[0]["rental_id"].as_u64().unwrap() > 900, "{rented}");
}

#[tokio::test]
async fn administrators_see_agents() {
    let plane = Plane::start().await;
    plane.ready_nodes(1).await;
    let alice = plane.user("alice").await;
    let admin = plane.admin("chief").await;
    let agent = async |client: &orion_testkit::Client| {
        client.get("/api/nodes/1").await.is(200).json()["agent"].clone()
    };
    assert_eq!(agent(&admin).await, Value::Null);
    let body = json!({"node_id": 1, "boot_id": "b", "agent": "0.9.9", "accounts": []});
    plane.agents.post(BEAT, &body).await.is(200);
    let seen = agent(&admin).await;
    assert_eq!(
        (&seen["version"], &seen["down_since"]),
        (&json!("0.9.9"), &Value::Null)
    );
    assert!(seen["last_beat_at"].is_string());
    assert_eq!(agent(&alice).await, Value::Null);
}
