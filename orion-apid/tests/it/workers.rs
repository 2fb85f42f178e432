use crate::support::{Check, Plane, assert_problem, fields_of, host_key, worker};
use orion_testkit::Client;
use serde_json::{Value, json};
use std::time::Instant;

fn beat(node: &Value) -> Value {
    json!({"node_id": node, "boot_id": "b", "agent": "0.1.0", "accounts": [{"uid": 1_000_002, "epoch": 1, "state": "present"}]})
}

#[tokio::test]
async fn a_worker_registers_once_and_updates_afterwards() {
    let plane = Plane::start().await;
    let first = plane
        .agents
        .post("/api/workers/register", &worker(1))
        .await
        .is(201)
        .json();
    assert_eq!(
        first,
        json!({"message": "Worker enregistré avec succès", "node_id": first["node_id"], "next_beat_s": 5})
    );
    let again = plane
        .agents
        .post("/api/workers/register", &worker(1))
        .await
        .is(200)
        .json();
    assert_eq!(
        again,
        json!({"message": "Worker déjà enregistré", "node_id": first["node_id"], "next_beat_s": 5})
    );
    let bare = json!({"hostname": "old-agent", "ip": "192.168.0.10", "ssh_port": 22});
    plane
        .agents
        .post("/api/workers/register", &bare)
        .await
        .is(201);
    let nodes = plane
        .user("alice")
        .await
        .get("/api/nodes")
        .await
        .is(200)
        .json();
    assert_eq!(
        (nodes.as_array().map(Vec::len), &nodes[1]["hostname"]),
        (Some(2), &json!("old-agent"))
    );
}

#[tokio::test]
async fn a_stranger_gets_neither_a_name_nor_a_key_of_another_node() {
    let plane = Plane::start().await;
    plane
        .agents
        .post("/api/workers/register", &worker(1))
        .await
        .is(201);
    let mut stranger = worker(2);
    stranger["hostname"] = json!("worker1");
    plane.database.sql("UPDATE nodes SET status = 'alive'");
    let answer = plane.agents.post("/api/workers/register", &stranger).await;
    assert_eq!(
        fields_of(&assert_problem(&answer, 409, "hostname_taken")),
        ["hostname"]
    );
    let mut twin = worker(3);
    twin["host_keys"] = json!([host_key(1)]);
    let answer = plane.agents.post("/api/workers/register", &twin).await;
    assert_eq!(
        fields_of(&assert_problem(&answer, 409, "host_key_taken")),
        ["host_keys"]
    );
}

#[tokio::test]
async fn bad_registrations_name_their_fields_and_unknown_ones_are_tolerated() {
    let plane = Plane::start().await;
    for (field, value) in [
        ("hostname", json!("a b")),
        ("ip", json!("0.0.0.0")),
        ("ssh_port", json!(0)),
    ] {
        let mut body = worker(1);
        body[field] = value;
        let answer = plane.agents.post("/api/workers/register", &body).await;
        assert_eq!(
            fields_of(&assert_problem(&answer, 422, "invalid_value")),
            [field]
        );
    }
    let mut newer = worker(1);
    newer["gpu"] = json!({"count": 8});
    plane
        .agents
        .post("/api/workers/register", &newer)
        .await
        .is(201);
}

#[tokio::test]
async fn a_beat_is_recorded_and_an_unknown_node_is_told_to_register() {
    let plane = Plane::start().await;
    let node = plane
        .agents
        .post("/api/workers/register", &worker(1))
        .await
        .json()["node_id"]
        .clone();
    let answer = plane
        .agents
        .post("/api/workers/beat", &beat(&node))
        .await
        .is(200);
    assert_eq!(
        answer.json(),
        json!({"next_beat_s": 5, "accounts": [], "end": []})
    );
    assert_eq!(plane.database.sql_one("SELECT COUNT(*) FROM beats"), "1");
    let answer = plane
        .agents
        .post("/api/workers/beat", &beat(&json!(999)))
        .await;
    assert_eq!(
        fields_of(&assert_problem(&answer, 404, "node_unknown")),
        ["node_id"]
    );
    let answer = plane
        .agents
        .post("/api/workers/beat", &json!({"node_id": 0, "boot_id": ""}))
        .await;
    let problem = assert_problem(&answer, 422, "invalid_value");
    assert_eq!(fields_of(&problem), ["node_id", "boot_id", "agent"]);
}

#[tokio::test]
async fn many_beats_share_few_commits_and_none_waits_long() {
    let plane = Plane::start().await;
    let mut nodes = Vec::new();
    for number in 1..=60 {
        nodes.push(
            plane
                .agents
                .post("/api/workers/register", &worker(number))
                .await
                .json()["node_id"]
                .clone(),
        );
    }
    let start = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for node in nodes {
        let agents = plane.agents.clone();
        tasks.spawn(async move { agents.post("/api/workers/beat", &beat(&node)).await.is(200) });
    }
    tasks.join_all().await;
    assert!(start.elapsed().as_secs() < 10, "{:?}", start.elapsed());
    assert_eq!(plane.database.sql_one("SELECT COUNT(*) FROM beats"), "60");
    let ops = Client::new(plane.daemon.address("ops").await);
    let metrics = ops.get("/metrics").await;
    let text = String::from_utf8_lossy(&metrics.body).into_owned();
    let commits = text
        .lines()
        .find_map(|line| line.strip_prefix("orion_apid_beat_commits_total "));
    let commits: u32 = commits.expect("the counter").parse().expect("a number");
    assert!(commits <= 10, "{commits} commits for 60 beats");
}
