use crate::support::{Check, FakeSchedd, Plane, assert_problem, fields_of};
use orion_core::{RunKind, RunOutcome};
use orion_store::ClaimedRun;
use serde_json::json;

/// Accounts come, and none goes.
fn nothing_goes(run: &ClaimedRun) -> Option<RunOutcome> {
    match run.kind {
        RunKind::Provision => Some(RunOutcome::Present),
        RunKind::Clean => Some(RunOutcome::NotGone),
        RunKind::Inspect => None,
    }
}

#[tokio::test]
async fn a_drain_says_first_what_it_would_move_and_names_a_parameter_that_is_not_its_own() {
    let plane = Plane::start().await;
    plane.ready_nodes(2).await;
    let _schedd = plane.schedd(FakeSchedd::all_well);
    let (alice, admin) = (plane.user("alice").await, plane.admin("chief").await);
    let rent = alice.post("/api/rent", &json!({"duration_hours": 2})).await;
    let rental = rent.is(200).json()[0]["rental_id"].clone();
    let node_of = "SELECT node_id FROM accounts WHERE state = 'present'";
    let node: u64 = plane.database.sql_one(node_of).parse().unwrap();
    let other = 3 - node;
    let drain = format!("/api/nodes/{node}/drain");
    for (query, field) in [
        ("move=yes", "move"),
        ("move", "move"),
        ("dry_run=1", "dry_run"),
        ("move=true&move=true", "move"),
        ("dryrun=true", "dryrun"),
    ] {
        let answer = admin.post_empty(&format!("{drain}?{query}")).await;
        let problem = assert_problem(&answer, 422, "invalid_value");
        assert_eq!(fields_of(&problem), [field]);
    }
    let undrain = format!("/api/nodes/{node}/undrain?move=true");
    let problem = assert_problem(&admin.post_empty(&undrain).await, 422, "invalid_value");
    assert_eq!(fields_of(&problem), ["move"]);

    let name = |node: u64| json!({"node_id": node, "hostname": format!("worker{node}")});
    for query in ["dry_run=true", "dry_run=true&move=true"] {
        let plan = admin.post_empty(&format!("{drain}?{query}")).await.is(200);
        assert_eq!(
            plan.json(),
            json!({"moves": [{"rental_id": rental, "from": name(node), "to": name(other)}]})
        );
    }
    let path = format!("/api/nodes/{node}");
    let seen = admin.get(&path).await.json();
    assert_eq!(
        (&seen["draining"], &seen["drain_move"]),
        (&json!(false), &json!(false))
    );
    let nowhere = admin.post_empty("/api/nodes/999/drain?dry_run=true").await;
    assert_problem(&nowhere, 404, "not_found");

    let answer = admin
        .post_empty(&format!("{drain}?move=true"))
        .await
        .is(200);
    assert_eq!(answer.json(), json!({"message": "Node draining"}));
    let seen = admin.get(&path).await.json();
    assert_eq!(
        (&seen["draining"], &seen["drain_move"]),
        (&json!(true), &json!(true))
    );
    let full = format!("/api/nodes/{other}/drain");
    admin.post_empty(&full).await.is(200);
    let plan = admin.post_empty(&format!("{drain}?dry_run=true")).await;
    assert_eq!(
        plan.json()["moves"][0]["to"],
        json!(null),
        "nothing is free"
    );
    let answer = admin
        .post_empty(&format!("/api/nodes/{node}/undrain"))
        .await;
    assert_eq!(
        answer.is(200).json(),
        json!({"message": "Node not draining"})
    );
    let seen = admin.get(&path).await.json();
    assert_eq!(
        (&seen["draining"], &seen["drain_move"]),
        (&json!(false), &json!(false))
    );
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
