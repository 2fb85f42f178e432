use crate::support::{Check, FakeSchedd, Plane, assert_problem};
use orion_core::{RunKind, RunOutcome};
use orion_testkit::{Client, PATIENCE, wait_until};
use serde_json::json;

fn keyed(client: &Client, key: &str) -> Client {
    client.with_header("idempotency-key", key)
}

fn rentals(plane: &Plane) -> String {
    plane.database.sql_one("SELECT COUNT(*) FROM rentals")
}

#[tokio::test]
async fn the_same_key_and_body_get_the_same_answer_and_rent_once() {
    let plane = Plane::start().await;
    plane.ready_nodes(4).await;
    let alice = plane.user("alice").await;
    let _schedd = plane.schedd(FakeSchedd::all_well);
    for body in [
        json!({"duration_hours": 1, "count": 2}),
        json!({"duration_hours": 1, "ssh_password": "chosen one"}),
    ] {
        let client = keyed(&alice, &format!("key-{}", body.to_string().len()));
        let first = client.post("/api/rent", &body).await.is(200).json();
        let again = client.post("/api/rent", &body).await.is(200).json();
        assert_eq!(first, again);
    }
    assert_eq!(rentals(&plane), "3");
}

#[tokio::test]
async fn calls_with_one_key_at_once_rent_once() {
    let plane = Plane::start().await;
    plane.ready_nodes(8).await;
    let alice = plane.user("alice").await;
    let client = keyed(&alice, "one");
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let client = client.clone();
        tasks.spawn(async move {
            client
                .post("/api/rent", &json!({"duration_hours": 1}))
                .await
                .is(200)
                .json()
        });
    }
    let _schedd = plane.schedd(FakeSchedd::all_well);
    let answers = tasks.join_all().await;
    assert!(
        answers.iter().all(|answer| *answer == answers[0]),
        "{answers:?}"
    );
    assert_eq!(rentals(&plane), "1");
}

#[tokio::test]
async fn another_body_is_409_and_another_user_has_keys_of_their_own() {
    let plane = Plane::start().await;
    plane.ready_nodes(2).await;
    let alice = keyed(&plane.user("alice").await, "k");
    let bob = keyed(&plane.user("bob").await, "k");
    let _schedd = plane.schedd(FakeSchedd::all_well);
    alice
        .post("/api/rent", &json!({"duration_hours": 1}))
        .await
        .is(200);
    let answer = alice.post("/api/rent", &json!({"duration_hours": 2})).await;
    assert_problem(&answer, 409, "idempotency_key_reused");
    bob.post("/api/rent", &json!({"duration_hours": 2}))
        .await
        .is(200);
    assert_eq!(rentals(&plane), "2");
}

#[tokio::test]
async fn a_key_whose_rentals_have_ended_is_409() {
    let plane = Plane::start().await;
    plane.ready_nodes(1).await;
    let alice = plane.user("alice").await;
    let client = keyed(&alice, "k");
    let _schedd = plane.schedd(FakeSchedd::all_well);
    let body = json!({"duration_hours": 1});
    let machine = client.post("/api/rent", &body).await.is(200).json();
    let id = machine[0]["rental_id"].as_u64().expect("an id");
    alice
        .post_empty(&format!("/api/release/{id}"))
        .await
        .is(200);
    assert_problem(&client.post("/api/rent", &body).await, 409, "request_ended");
}

#[tokio::test]
async fn a_key_of_a_rent_that_failed_may_be_used_again() {
    let plane = Plane::start_with("rent.deadline_s = 2\n").await;
    plane.ready_nodes(1).await;
    let client = keyed(&plane.user("alice").await, "k");
    let body = json!({"duration_hours": 1});
    let nothing = plane.schedd(|run| match run.kind {
        RunKind::Provision => None,
        RunKind::Clean => Some(RunOutcome::Gone),
        RunKind::Inspect => Some(RunOutcome::Clean),
    });
    assert_problem(
        &client.post("/api/rent", &body).await,
        503,
        "provisioning_failed",
    );
    wait_until("the node is free again", PATIENCE, || {
        let state = plane.database.sql_one("SELECT availability FROM nodes");
        if state == "ready" { Ok(()) } else { Err(state) }
    })
    .await;
    drop(nothing);
    let _schedd = plane.schedd(FakeSchedd::all_well);
    client.post("/api/rent", &body).await.is(200);
}

#[tokio::test]
async fn a_bad_key_is_named() {
    let plane = Plane::start().await;
    let alice = plane.user("alice").await;
    for bad in ["", "a b", &"k".repeat(256)] {
        let answer = keyed(&alice, bad)
            .post("/api/rent", &json!({"duration_hours": 1}))
            .await;
        let problem = assert_problem(&answer, 400, "bad_header");
        assert_eq!(problem["errors"][0]["field"], "Idempotency-Key");
    }
}
