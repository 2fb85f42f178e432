use crate::support::{Check, FakeSchedd, Plane, assert_problem, fields_of};
use orion_core::{RunKind, RunOutcome};
use orion_store::ClaimedRun;
use orion_testkit::Client;
use serde_json::{Value, json};

/// Accounts come, and none goes.
fn nothing_goes(run: &ClaimedRun) -> Option<RunOutcome> {
    match run.kind {
        RunKind::Provision => Some(RunOutcome::Present),
        RunKind::Clean => Some(RunOutcome::NotGone),
        RunKind::Inspect => None,
    }
}

/// Alice rents a machine of two: the rental, its node, and the other node.
async fn rented_of_two(plane: &Plane) -> (Value, u64, u64) {
    plane.ready_nodes(2).await;
    let alice = plane.user("alice").await;
    let rent = alice
        .post("/api/rent", &json!({"duration_hours": 2}))
        .await
        .is(200);
    let node_of = "SELECT node_id FROM accounts WHERE state = 'present'";
    let node: u64 = plane.database.sql_one(node_of).parse().unwrap();
    (rent.json()[0]["rental_id"].clone(), node, 3 - node)
}

/// Whether a node drains, and whether its rental is moved.
async fn draining(admin: &Client, node: u64) -> (bool, bool) {
    let seen = admin.get(&format!("/api/nodes/{node}")).await.json();
    (seen["draining"] == true, seen["drain_move"] == true)
}

#[tokio::test]
async fn a_dry_run_says_what_a_drain_would_move_and_changes_nothing() {
    let plane = Plane::start().await;
    let _schedd = plane.schedd(FakeSchedd::all_well);
    let (rental, node, other) = rented_of_two(&plane).await;
    let admin = plane.admin("chief").await;
    let name = |node: u64| json!({"node_id": node, "hostname": format!("worker{node}")});
    let drain = format!("/api/nodes/{node}/drain");
    for query in ["dry_run=true", "dry_run=true&move=true"] {
        let plan = admin.post_empty(&format!("{drain}?{query}")).await.is(200);
        let to = name(other);
        assert_eq!(
            plan.json(),
            json!({"moves": [{"rental_id": rental, "from": name(node), "to": to}]})
        );
    }
    assert_eq!(draining(&admin, node).await, (false, false));
    let nowhere = admin.post_empty("/api/nodes/999/drain?dry_run=true").await;
    assert_problem(&nowhere, 404, "not_found");
    let full = format!("/api/nodes/{other}/drain");
    admin.post_empty(&full).await.is(200);
    let plan = admin.post_empty(&format!("{drain}?dry_run=true")).await;
    assert_eq!(plan.json()["moves"][0]["to"], json!(null), "none is free");
}

#[tokio::test]
async fn a_drain_marks_the_node_until_it_is_taken_back_and_names_a_parameter_that_is_not_its_own() {
    let plane = Plane::start().await;
    plane.ready_nodes(1).await;
    let admin = plane.admin("chief").await;
    for (call, field) in [
        ("drain?move=yes", "move"),
        ("drain?move", "move"),
        ("drain?dry_run=1", "dry_run"),
        ("drain?move=true&move=true", "move"),
        ("drain?dryrun=true", "dryrun"),
        ("undrain?move=true", "move"),
    ] {
        let answer = admin.post_empty(&format!("/api/nodes/1/{call}")).await;
        let problem = assert_problem(&answer, 422, "invalid_value");
        assert_eq!(fields_of(&problem), [field]);
    }
    for (call, message, expected) in [
        ("drain?move=true", "Node draining", (true, true)),
        ("drain", "Node draining", (true, false)),
        (
            "drain?move=true&dry_run=false",
            "Node draining",
            (true, true),
        ),
        ("undrain", "Node not draining", (false, false)),
    ] {
        let answer = admin.post_empty(&format!("/api/nodes/1/{call}")).await;
        assert_eq!(answer.is(200).json(), json!({"message": message}));
        assert_eq!(draining(&admin, 1).await, expected, "{call}");
    }
}

#[tokio::test]
async fn a_debt_shows_its_age_and_what_the_last_cleaning_said_to_administrators() {
    let plane = Plane::start().await;
    plane.ready_nodes(1).await;
    let _schedd = plane.schedd(nothing_goes);
    let (alice, admin) = (plane.user("alice").await, plane.admin("chief").await);
    let rent = alice.post("/api/rent", &json!({"duration_hours": 2})).await;
    let rental = rent.is(200).json()[0]["rental_id"].clone();
    assert_eq!(admin.get("/api/nodes/1").await.json()["debt"], json!(null));
    alice
        .post_empty(&format!("/api/release/{rental}"))
        .await
        .is(200);
    let debt = orion_testkit::wait_until_async("it was tried", orion_testkit::PATIENCE, || async {
        let debt = admin.get("/api/nodes/1").await.json()["debt"].clone();
        if debt["attempts"] == 1 {
            Ok(debt)
        } else {
            Err(debt)
        }
    })
    .await;
    assert_eq!(
        (&debt["rental_id"], &debt["last_result"]),
        (&rental, &json!("not_gone"))
    );
    assert_eq!(debt["uid"], 1_000_000 + rental.as_u64().unwrap());
    assert!(debt["since"].is_string(), "{debt}");
    assert_eq!(admin.get("/api/nodes").await.json()[0]["debt"], debt);
    assert_eq!(alice.get("/api/nodes/1").await.json()["debt"], json!(null));
    assert_eq!(alice.get("/api/nodes").await.json()[0]["debt"], json!(null));
}
