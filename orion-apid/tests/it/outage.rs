use crate::support::{Check, Plan, Plane, assert_problem, config, prepare};
use http::Method;
use orion_testkit::{
    Client, DaemonBuilder, Database, Durability, PATIENCE, Scratch, wait_until_async,
};
use serde_json::json;

async fn readyz(ops: &Client) -> (u16, String) {
    let answer = ops
        .send(Method::GET, "/readyz", None)
        .await
        .expect("an answer");
    (answer.status.as_u16(), answer.json()["reasons"].to_string())
}

async fn wait_for_readyz(ops: &Client, status: u16) -> String {
    wait_until_async("/readyz is as expected", PATIENCE, || async {
        let (found, reasons) = readyz(ops).await;
        if found == status {
            Ok(reasons)
        } else {
            Err(format!("{found} {reasons}"))
        }
    })
    .await
}

#[tokio::test]
async fn while_the_database_is_down_every_call_says_so_and_afterwards_all_is_well_again() {
    let plane = Plane::planned(Plan {
        own_server: true,
        ..Plan::default()
    })
    .await;
    let alice = plane.user("alice").await;
    let ops = Client::new(plane.daemon.address("ops").await);
    plane.ready_nodes(1).await;
    plane.database.stop_server();
    let health = plane.clients.get("/api/health").await.is(503);
    assert_eq!(health.json(), json!({"status": "unhealthy"}));
    assert!(health.headers.contains_key("retry-after"));
    let login = json!({"username": "alice", "password": "correct horse"});
    for answer in [
        alice.get("/api/nodes").await,
        alice.post("/api/rent", &json!({"duration_hours": 1})).await,
        plane.clients.post("/auth/login", &login).await,
        plane
            .agents
            .post("/api/workers/register", &crate::support::worker(1))
            .await,
        plane
            .agents
            .post(
                "/api/workers/beat",
                &json!({"node_id": 1, "boot_id": "b", "agent": "a"}),
            )
            .await,
    ] {
        let problem = assert_problem(&answer, 503, "database_down");
        assert!(
            !problem["detail"].as_str().expect("a text").contains("sock"),
            "{problem}"
        );
    }
    assert!(wait_for_readyz(&ops, 503).await.contains("database"));
    plane.database.start_server();
    wait_for_readyz(&ops, 200).await;
    plane.clients.get("/api/health").await.is(200);
    alice.get("/api/nodes").await.is(200);
}

#[tokio::test]
async fn it_listens_at_once_and_is_ready_when_database_and_schema_are_there() {
    let database = Database::own_server(Durability::Relaxed).await;
    database.stop_server();
    let scratch = Scratch::new("apid");
    let daemon = DaemonBuilder::new("orion-apid", config(&database, &scratch, "")).start();
    let clients = Client::new(daemon.address("clients").await);
    let agents = Client::new(daemon.address("agents").await);
    let ops = Client::new(daemon.address("ops").await);
    assert_eq!(
        clients.get("/api/health").await.is(503).json(),
        json!({"status": "unhealthy"})
    );
    assert_problem(&clients.get("/api/nodes").await, 503, "not_ready");
    assert_problem(
        &clients.post("/auth/login", &json!({})).await,
        503,
        "not_ready",
    );
    assert_problem(
        &agents.post("/api/workers/beat", &json!({})).await,
        503,
        "not_ready",
    );
    assert_problem(&clients.get("/nowhere").await, 404, "not_found");
    database.start_server();
    wait_until_async("it lacks the schema alone", PATIENCE, || async {
        let (_, reasons) = readyz(&ops).await;
        let schema_alone = reasons.contains("schema apply") && !reasons.contains("database\"");
        if schema_alone { Ok(()) } else { Err(reasons) }
    })
    .await;
    assert_problem(&clients.get("/api/nodes").await, 503, "not_ready");
    assert_eq!(clients.get("/api/health").await.status, 503);
    prepare(&database).await;
    daemon.ready().await;
    clients.get("/api/health").await.is(200);
    assert_problem(&clients.get("/api/nodes").await, 401, "token_missing");
}

#[tokio::test]
async fn a_database_that_stumbles_in_the_middle_of_a_rent_does_not_spoil_it() {
    let plane = Plane::planned(Plan {
        own_server: true,
        ..Plan::default()
    })
    .await;
    plane.ready_nodes(1).await;
    let alice = plane.user("alice").await;
    let rent =
        tokio::spawn(async move { alice.post("/api/rent", &json!({"duration_hours": 1})).await });
    orion_testkit::wait_until("the account is being made", PATIENCE, || {
        let queued = plane
            .database
            .sql_one("SELECT COUNT(*) FROM runs WHERE kind = 'provision'");
        if queued == "1" { Ok(()) } else { Err(queued) }
    })
    .await;
    plane.database.stop_server();
    plane.database.start_server();
    let _schedd = plane.schedd(crate::support::FakeSchedd::all_well);
    rent.await.expect("no panic").is(200);
}
