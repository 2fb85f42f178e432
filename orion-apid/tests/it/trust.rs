//! Who joins, who is believed, and what a hostile worker gets.

use crate::support::agent::{Agent, BEAT, REGISTER, believe, key};
use crate::support::{Check, Plane, assert_problem, fields_of, host_key, worker};
use orion_core::JoinLine;
use orion_testkit::{Answer, Client};
use serde_json::{Value, json};

pub(crate) const TOKEN_MODE: &str =
    "registration.mode = \"token\"\nregistration.endpoint = \"http://orion.example\"\n";

pub(crate) async fn token(admin: &Client, body: &Value) -> String {
    let answer = admin.post("/api/join-tokens", body).await.is(201).json();
    answer["join_line"].as_str().unwrap().to_owned()
}

/// A control plane in mode `token`, its administrator, and a node that joined.
pub(crate) async fn joined() -> (Plane, Client, Agent, Value) {
    let plane = Plane::start_with(TOKEN_MODE).await;
    let admin = plane.admin("chief").await;
    let line = token(&admin, &json!({})).await;
    let mut agent = Agent::with_line(&plane.agents, 1, &line);
    let node = agent.register().await.is(201).json()["node_id"].clone();
    (plane, admin, agent, node)
}

/// Everything that a refused request must leave alone.
pub(crate) fn rows(plane: &Plane) -> Vec<Vec<String>> {
    let mut all = Vec::new();
    for sql in [
        "SELECT id, hostname, client_host, contact_host, pending_contact_host, agent_key, availability FROM nodes ORDER BY id",
        "SELECT host_key, node_id FROM host_keys ORDER BY host_key",
        "SELECT id, uses_left, revoked_at IS NULL FROM join_tokens ORDER BY id",
        "SELECT node_id, counter FROM beats ORDER BY node_id",
        "SELECT COUNT(*) FROM runs",
    ] {
        all.extend(plane.database.sql(sql));
    }
    all
}

#[tokio::test]
async fn a_worker_joins_with_a_join_line_and_beats_with_its_key() {
    let (plane, admin, mut agent, node) = joined().await;
    plane
        .database
        .sql("INSERT INTO pool_keys (public_key, created_at) VALUES ('ssh-ed25519 AAAA', NOW(6))");
    let answer = agent.beat(&node).await.is(200).json();
    assert_eq!(answer["signing_keys"], json!(agent.trusted));
    assert_eq!(answer["pool_keys"], json!(["ssh-ed25519 AAAA"]));
    assert_eq!(
        (&answer["status"], &answer["end"]),
        (&json!("unknown"), &json!([]))
    );
    let again = agent.register().await.is(200).json();
    assert_eq!(
        (&again["node_id"], &again["pool_keys"]),
        (&node, &json!(["ssh-ed25519 AAAA"]))
    );
    let tokens = admin.get("/api/join-tokens").await.is(200).json();
    assert_eq!(
        (&tokens[0]["uses"], &tokens[0]["uses_left"]),
        (&json!(1), &json!(0)),
        "once, however often it registers"
    );
}

#[tokio::test]
async fn without_a_token_nobody_joins_and_nothing_is_written() {
    let plane = Plane::start_with(TOKEN_MODE).await;
    let before = rows(&plane);
    let bare = json!({"hostname": "worker1", "ip": "192.168.0.10", "ssh_port": 22});
    for (path, body) in [
        (REGISTER, bare),
        (REGISTER, worker(1)),
        (BEAT, json!({"node_id": 1})),
        (BEAT, json!(7)),
    ] {
        assert_problem(
            &plane.agents.post(path, &body).await,
            401,
            "signature_missing",
        );
    }
    let mut stranger = Agent::new(&plane.agents, 1);
    assert_problem(&stranger.register().await, 401, "join_token_refused");
    stranger.token = Some(key(99));
    assert_problem(&stranger.register().await, 401, "join_token_refused");
    assert_eq!(rows(&plane), before);
}

#[tokio::test]
async fn a_token_is_bound_expires_is_revoked_and_is_used_up() {
    let plane = Plane::start_with(TOKEN_MODE).await;
    let admin = plane.admin("chief").await;
    for (bound, field) in [
        (json!({"networks": ["192.168.0.0/16"]}), "ip"),
        (json!({"hostnames": ["worker2"]}), "hostname"),
    ] {
        let mut agent = Agent::with_line(&plane.agents, 1, &token(&admin, &bound).await);
        let problem = assert_problem(&agent.register().await, 401, "join_token_refused");
        assert_eq!(fields_of(&problem), [field]);
    }
    let line = token(
        &admin,
        &json!({"uses": 1, "networks": ["10.0.0.0/24"], "hostnames": ["worker1"]}),
    )
    .await;
    Agent::with_line(&plane.agents, 1, &line)
        .register()
        .await
        .is(201);
    let refused = Agent::with_line(&plane.agents, 2, &line).register().await;
    assert_problem(&refused, 401, "join_token_refused");

    let answer = admin
        .post("/api/join-tokens", &json!({"lifetime_s": 60}))
        .await
        .is(201)
        .json();
    let line = answer["join_line"].as_str().unwrap();
    let path = format!("/api/join-tokens/{}", answer["join_token_id"]);
    for _ in 0..2 {
        admin.delete(&path).await.is(200);
    }
    let refused = Agent::with_line(&plane.agents, 2, line).register().await;
    let problem = assert_problem(&refused, 401, "join_token_refused");
    assert!(
        problem["detail"].as_str().unwrap().contains("revoked"),
        "{problem}"
    );

    let line = token(&admin, &json!({"lifetime_s": 60})).await;
    plane
        .database
        .sql("UPDATE join_tokens SET expires_at = created_at");
    let refused = Agent::with_line(&plane.agents, 2, &line).register().await;
    let problem = assert_problem(&refused, 401, "join_token_refused");
    assert!(
        problem["detail"].as_str().unwrap().contains("expired"),
        "{problem}"
    );
}

#[tokio::test]
async fn bad_orders_of_tokens_name_their_fields() {
    let plane = Plane::start().await;
    let admin = plane.admin("chief").await;
    for (body, status, field) in [
        (json!({"endpoint": "http://a", "uses": 0}), 422, "uses"),
        (json!({"endpoint": "http://a", "uses": "x"}), 400, "uses"),
        (
            json!({"endpoint": "http://a", "lifetime_s": 59}),
            422,
            "lifetime_s",
        ),
        (
            json!({"endpoint": "http://a", "networks": ["10.0.0.0/33"]}),
            422,
            "networks.0",
        ),
        (
            json!({"endpoint": "http://a", "hostnames": ["a", "a b"]}),
            422,
            "hostnames.1",
        ),
        (json!({"endpoint": "https://a"}), 422, "endpoint"),
        (
            json!({"endpoint": "http://a", "surprise": 1}),
            422,
            "surprise",
        ),
        (json!({}), 422, "endpoint"),
    ] {
        let answer = admin.post("/api/join-tokens", &body).await;
        assert_eq!(
            (answer.status.as_u16(), fields_of(&answer.json())),
            (status, vec![field]),
            "{body}"
        );
    }
    let line = token(&admin, &json!({"endpoint": "http://10.0.0.1:8081/"})).await;
    assert_eq!(
        line.parse::<JoinLine>().unwrap().endpoint,
        "http://10.0.0.1:8081"
    );
    assert_problem(&admin.delete("/api/join-tokens/99").await, 404, "not_found");
}

#[tokio::test]
async fn a_node_can_not_speak_for_another_nor_take_its_name_address_or_key() {
    let (plane, admin, mut first, node) = joined().await;
    let line = token(&admin, &json!({"uses": 9})).await;
    let mut second = Agent::with_line(&plane.agents, 2, &line);
    let other = second.register().await.is(201).json()["node_id"].clone();
    let before = rows(&plane);
    let problem = assert_problem(&second.beat(&node).await, 401, "node_key_mismatch");
    assert_eq!(fields_of(&problem), ["node_id"]);
    assert_eq!(rows(&plane), before);

    let mut body = second.registration();
    body["hostname"] = json!("worker1");
    assert_problem(&second.ask(REGISTER, &body).await, 409, "hostname_taken");
    let mut third = Agent::with_line(&plane.agents, 3, &line);
    let mut body = third.registration();
    body["host_keys"] = json!([host_key(1)]);
    assert_problem(&third.ask(REGISTER, &body).await, 409, "host_key_taken");

    // The same address is a claim that counts only once the node is met there.
    let mut body = second.registration();
    (body["ip"], body["ssh_port"]) = (worker(1)["ip"].clone(), worker(1)["ssh_port"].clone());
    second.ask(REGISTER, &body).await.is(200);
    let kept = format!(
        "SELECT CONCAT(contact_port, ' ', pending_contact_port) FROM nodes WHERE id = {other}"
    );
    assert_eq!(plane.database.sql_one(&kept), "20002 20001");
    first.beat(&node).await.is(200);
    second.beat(&other).await.is(200);
}

#[tokio::test]
async fn a_changed_host_key_is_quarantined_and_a_reinstalled_machine_waits_for_an_administrator() {
    let (plane, admin, mut agent, node) = joined().await;
    let mut body = agent.registration();
    body["host_keys"] = json!([host_key(77)]);
    let problem = assert_problem(&agent.ask(REGISTER, &body).await, 409, "host_key_changed");
    assert_eq!(fields_of(&problem), ["host_keys"]);
    let view = admin
        .get(&format!("/api/nodes/{node}"))
        .await
        .is(200)
        .json();
    assert_eq!(view["availability"], "quarantined");
    assert_eq!(
        plane.database.sql_one("SELECT host_key FROM host_keys"),
        host_key(1)
    );

    let line = token(&admin, &json!({})).await;
    let mut reinstalled = Agent {
        key: key(50),
        ..Agent::with_line(&plane.agents, 1, &line)
    };
    assert_problem(&reinstalled.register().await, 409, "hostname_taken");
    admin.delete(&format!("/api/nodes/{node}")).await.is(200);
    reinstalled.register().await.is(201);
    assert_problem(&agent.beat(&node).await, 404, "node_unknown");
}

#[tokio::test]
async fn every_answer_to_a_signed_request_is_signed_and_no_other() {
    let (plane, _, mut agent, node) = joined().await;
    let trusted = agent.trusted.clone();
    // `ask` verifies: refusals too.
    agent.beat(&json!(999)).await.is(404);
    agent.ask(BEAT, &json!({"node_id": 0})).await.is(422);
    let sealed = agent
        .seal(
            BEAT,
            &json!({"node_id": node, "boot_id": "b", "agent": "a"}),
        )
        .await;
    let mut forged = sealed.clone();
    forged.body = "{}".into();
    let answer = agent.send(&forged).await.is(401);
    believe(&answer, &forged, &trusted).await.unwrap();
    let unsigned = plane.agents.post(BEAT, &json!({"node_id": node})).await;
    assert!(!unsigned.headers.contains_key("signature"), "{unsigned}");
    let mut client = plane.clients.clone();
    for (name, value) in &sealed.headers {
        client = client.with_header(name.as_str(), value.to_str().unwrap());
    }
    let health = client.get("/api/health").await.is(200);
    assert!(
        !health.headers.contains_key("signature"),
        "a client's answer is no agent's"
    );
}

#[tokio::test]
async fn in_mode_open_the_three_bare_fields_are_enough() {
    let plane = Plane::start().await;
    let bare = json!({"hostname": "worker1", "ip": "192.168.0.10", "ssh_port": 22});
    let answer = plane.agents.post(REGISTER, &bare).await.is(201).json();
    let node = &answer["node_id"];
    assert_eq!(
        answer,
        json!({"message": "Worker enregistré avec succès", "node_id": node, "next_beat_s": 5})
    );
    let beat = json!({"node_id": node, "boot_id": "b", "agent": "0.1.0"});
    let answer = plane.agents.post(BEAT, &beat).await.is(200).json();
    assert_eq!(
        answer,
        json!({"next_beat_s": 5, "accounts": [], "end": []}),
        "no countdown"
    );
    let again = plane.agents.post(REGISTER, &bare).await.is(200).json();
    assert_eq!(again["message"], "Worker déjà enregistré");
    // Whoever signs has a node that is its key, here too.
    let mut signing = Agent::new(&plane.agents, 2);
    let node = signing.register().await.is(201).json()["node_id"].clone();
    let beat = json!({"node_id": node, "boot_id": "b", "agent": "0.1.0"});
    assert_problem(
        &plane.agents.post(BEAT, &beat).await,
        401,
        "signature_missing",
    );
    signing.beat(&node).await.is(200);
}

#[tokio::test]
async fn in_mode_approve_a_node_waits_for_an_administrator() {
    let plane = Plane::start_with("registration.mode = \"approve\"\n").await;
    let admin = plane.admin("chief").await;
    let bare = json!({"hostname": "worker9", "ip": "192.168.0.10", "ssh_port": 22});
    assert_problem(
        &plane.agents.post(REGISTER, &bare).await,
        401,
        "signature_missing",
    );
    let mut agent = Agent::new(&plane.agents, 1);
    let node = agent.register().await.is(201).json()["node_id"].clone();
    agent.beat(&node).await.is(200);
    let view = admin
        .get(&format!("/api/nodes/{node}"))
        .await
        .is(200)
        .json();
    assert_eq!(view["awaits_approval"], true);
    assert_eq!(
        plane.database.sql_one("SELECT COUNT(*) FROM runs"),
        "0",
        "nothing is dialled"
    );
    let approve = format!("/api/nodes/{node}/approve");
    admin.post_empty(&approve).await.is(200);
    assert_problem(&admin.post_empty(&approve).await, 409, "wrong_state");
    assert_problem(
        &admin.post_empty("/api/nodes/99/approve").await,
        404,
        "not_found",
    );
    assert_eq!(plane.database.sql_one("SELECT COUNT(*) FROM runs"), "1");
}

#[tokio::test]
async fn two_at_once_with_one_token_are_one_node() {
    let plane = Plane::start_with(TOKEN_MODE).await;
    let admin = plane.admin("chief").await;
    let line = token(&admin, &json!({})).await;
    let mut tasks = tokio::task::JoinSet::new();
    for number in 1..=12 {
        let mut agent = Agent::with_line(&plane.agents, number, &line);
        tasks.spawn(async move { agent.register().await });
    }
    let answers: Vec<Answer> = tasks.join_all().await;
    let created = answers.iter().filter(|answer| answer.status == 201).count();
    let refused = answers
        .iter()
        .filter(|answer| answer.code() == "join_token_refused")
        .count();
    assert_eq!((created, refused), (1, 11));
    assert_eq!(plane.database.sql_one("SELECT COUNT(*) FROM nodes"), "1");
}

#[tokio::test]
async fn a_nodes_key_is_replaced_by_a_request_that_both_keys_signed() {
    let (plane, _, mut agent, node) = joined().await;
    agent.next_key = Some(key(60));
    agent.register().await.is(200);
    agent.register().await.is(200);
    agent.key = agent.next_key.take().unwrap();
    agent.beat(&node).await.is(200);
    let mut old = Agent {
        key: key(1),
        ..agent.clone()
    };
    assert_problem(&old.beat(&node).await, 401, "node_key_mismatch");
    assert_eq!(plane.database.sql_one("SELECT COUNT(*) FROM nodes"), "1");
}
