use crate::support::{Check, FakeSchedd, Plane, assert_problem, fields_of};
use orion_testkit::{Client, PATIENCE, wait_until_async};
use serde_json::{Value, json};

async fn rent(client: &Client) -> u64 {
    let machine = client
        .post("/api/rent", &json!({"duration_hours": 2}))
        .await
        .is(200)
        .json();
    machine[0]["rental_id"].as_u64().expect("an id")
}

async fn in_state(client: &Client, id: u64, state: &str) -> Value {
    wait_until_async("the rental is as expected", PATIENCE, || async {
        let rental = client
            .get(&format!("/api/rentals/{id}"))
            .await
            .is(200)
            .json();
        if rental["state"] == state {
            Ok(rental)
        } else {
            Err(rental.to_string())
        }
    })
    .await
}

#[tokio::test]
async fn a_rental_is_seen_by_its_user_and_by_administrators_and_is_404_for_others() {
    let plane = Plane::start().await;
    plane.ready_nodes(2).await;
    let _schedd = plane.schedd(FakeSchedd::all_well);
    let (alice, bob, admin) = (
        plane.user("alice").await,
        plane.user("bob").await,
        plane.admin("chief").await,
    );
    let id = rent(&alice).await;
    let path = format!("/api/rentals/{id}");
    let seen = alice.get(&path).await.is(200).json();
    assert_eq!(
        (&seen["state"], &seen["client_user"], &seen["host_ip"]),
        (&json!("active"), &json!("alice"), &json!("10.0.0.1"))
    );
    assert_eq!(seen["host_keys"].as_array().map(Vec::len), Some(1));
    assert!(
        !seen["history"].as_array().expect("a list").is_empty(),
        "{seen}"
    );
    assert!(!seen.to_string().contains("client_pass"));
    assert_eq!(admin.get(&path).await.is(200).json()["rental_id"], id);
    for (method, path) in [
        (http::Method::GET, path.clone()),
        (http::Method::POST, format!("/api/release/{id}")),
    ] {
        let answer = bob.send(method, &path, None).await.expect("an answer");
        assert_problem(&answer, 404, "not_found");
    }
    let body = json!({"additional_hours": 1});
    assert_problem(
        &bob.post(&format!("/api/extend/{id}"), &body).await,
        404,
        "not_found",
    );
    assert_eq!(bob.get("/api/rentals").await.is(200).json(), json!([]));
    assert_eq!(
        alice
            .get("/api/rentals")
            .await
            .json()
            .as_array()
            .map(Vec::len),
        Some(1)
    );
    admin
        .post_empty(&format!("/api/release/{id}"))
        .await
        .is(200);
    in_state(&alice, id, "ended").await;
}

#[tokio::test]
async fn nodes_show_a_lease_to_its_user_and_to_administrators_only() {
    let plane = Plane::start().await;
    plane.ready_nodes(1).await;
    let _schedd = plane.schedd(FakeSchedd::all_well);
    let (alice, bob, admin) = (
        plane.user("alice").await,
        plane.user("bob").await,
        plane.admin("chief").await,
    );
    let id = rent(&alice).await;
    for client in [&alice, &admin] {
        let nodes = client.get("/api/nodes").await.is(200).json();
        let node = &nodes[0];
        assert_eq!(
            (&node["hostname"], &node["status"], &node["allocated"]),
            (&json!("worker1"), &json!("alive"), &json!(true))
        );
        assert_eq!(
            (&node["lease"]["rental_id"], &node["lease"]["active"]),
            (&json!(id), &json!(true))
        );
        assert!(
            node["lease"]["leased_until"].is_string() && node["availability"] == "leased",
            "{node}"
        );
    }
    let node = bob.get("/api/nodes").await.is(200).json()[0].clone();
    assert_eq!(
        (&node["allocated"], &node["lease"]),
        (&json!(true), &Value::Null)
    );
    let one = bob
        .get(&format!("/api/nodes/{}", node["node_id"]))
        .await
        .is(200)
        .json();
    assert_eq!(one, node);
}

#[tokio::test]
async fn an_extension_moves_the_end_and_stops_at_the_longest_rental() {
    let plane = Plane::start_with("rent.max_hours = 4\n").await;
    plane.ready_nodes(1).await;
    let _schedd = plane.schedd(FakeSchedd::all_well);
    let alice = plane.user("alice").await;
    let id = rent(&alice).await;
    let before = in_state(&alice, id, "active").await["leased_until"].clone();
    let path = format!("/api/extend/{id}");
    let answer = alice
        .post(&path, &json!({"additional_hours": 1.5}))
        .await
        .is(200)
        .json();
    assert_eq!(answer.as_object().map(serde_json::Map::len), Some(2));
    assert_eq!(answer["lease_id"], id);
    assert!(
        answer["new_end_at"].as_str() > before.as_str(),
        "{answer} {before}"
    );
    let problem = assert_problem(
        &alice.post(&path, &json!({"additional_hours": 1})).await,
        422,
        "invalid_value",
    );
    assert_eq!(fields_of(&problem), ["additional_hours"]);
    assert!(
        problem["detail"].as_str().expect("a text").contains("0.5"),
        "{problem}"
    );
    alice
        .post(&path, &json!({"additional_hours": 0.5}))
        .await
        .is(200);
}

#[tokio::test]
async fn a_release_may_be_repeated_and_ends_what_can_be_extended() {
    let plane = Plane::start().await;
    plane.ready_nodes(1).await;
    let _schedd = plane.schedd(FakeSchedd::all_well);
    let alice = plane.user("alice").await;
    let id = rent(&alice).await;
    for _ in 0..2 {
        let answer = alice
            .post_empty(&format!("/api/release/{id}"))
            .await
            .is(200);
        assert_eq!(answer.json(), json!({"message": "Lease released"}));
    }
    let answer = alice
        .post(
            &format!("/api/extend/{id}"),
            &json!({"additional_hours": 1}),
        )
        .await;
    assert_problem(&answer, 409, "wrong_state");
    let ended = in_state(&alice, id, "ended").await;
    assert_eq!(
        (&ended["end_reason"], ended["ended_at"].is_string()),
        (&json!("released"), true)
    );
    alice
        .post(&format!("/api/release/{id}"), &json!({}))
        .await
        .is(200);
}

#[tokio::test]
async fn a_node_is_forgotten_only_when_nothing_holds_it_and_freed_from_quarantine_by_administrators()
 {
    let plane = Plane::start().await;
    plane.ready_nodes(1).await;
    let schedd = plane.schedd(FakeSchedd::all_well);
    let (alice, admin) = (plane.user("alice").await, plane.admin("chief").await);
    let id = rent(&alice).await;
    let node = admin.get("/api/nodes").await.json()[0]["node_id"]
        .as_u64()
        .expect("an id");
    let path = format!("/api/nodes/{node}");
    assert_problem(&admin.delete(&path).await, 409, "wrong_state");
    let free = format!("{path}/release-from-quarantine");
    assert_problem(&admin.post_empty(&free).await, 409, "wrong_state");
    alice
        .post_empty(&format!("/api/release/{id}"))
        .await
        .is(200);
    in_state(&alice, id, "ended").await;
    drop(schedd);
    plane
        .database
        .sql("UPDATE nodes SET availability = 'quarantined', availability_reason = 'test'");
    let answer = admin.post_empty(&free).await.is(200);
    assert_eq!(
        answer.json(),
        json!({"message": "Node released from quarantine"})
    );
    assert_eq!(admin.get(&path).await.json()["availability"], "joining");
    admin.delete(&path).await.is(200);
    assert_problem(&admin.get(&path).await, 404, "not_found");
    assert_problem(&admin.delete(&path).await, 404, "not_found");
    assert_eq!(admin.get("/api/nodes").await.json(), json!([]));
}

#[tokio::test]
async fn administrators_see_the_runs() {
    let plane = Plane::start().await;
    plane.ready_nodes(1).await;
    let _schedd = plane.schedd(FakeSchedd::all_well);
    let (alice, admin) = (plane.user("alice").await, plane.admin("chief").await);
    let id = rent(&alice).await;
    let runs = admin.get("/api/runs?limit=10").await.is(200).json();
    let run = runs
        .as_array()
        .expect("a list")
        .iter()
        .find(|run| run["rental_id"] == id)
        .expect("its run")
        .clone();
    assert_eq!(
        (&run["kind"], &run["outcome"]),
        (&json!("provision"), &json!("present"))
    );
    let one = admin
        .get(&format!("/api/runs/{}", run["run_id"]))
        .await
        .is(200)
        .json();
    assert_eq!(one["run_id"], run["run_id"]);
}

#[tokio::test]
async fn reset_ends_everything_and_keeps_the_users() {
    let plane = Plane::start_with("dev.allow_reset = true\n").await;
    plane.ready_nodes(2).await;
    let _schedd = plane.schedd(FakeSchedd::all_well);
    let (alice, admin) = (plane.user("alice").await, plane.admin("chief").await);
    let id = rent(&alice).await;
    admin.post_empty("/api/reset").await.is(200);
    let ended = in_state(&alice, id, "ended").await;
    assert_eq!(ended["end_reason"], "reset");
    plane.login("alice").await;
}
