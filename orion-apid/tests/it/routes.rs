use crate::support::{Check, Plane, assert_problem};
use http::Method;
use orion_apid::http::route::{AGENT_ROUTES, CLIENT_ROUTES, Right, Route};
use orion_testkit::{Answer, Client};
use serde_json::json;

fn path_of(route: &Route) -> String {
    let path = route
        .pattern
        .replace("{rental_id}", "999")
        .replace("{node_id}", "999");
    path.replace("{run_id}", "999")
        .replace("{join_token_id}", "999")
}

async fn send(client: &Client, method: &Method, path: &str) -> Answer {
    let body = (method == Method::POST).then(|| json!({}));
    client
        .send(method.clone(), path, body.as_ref())
        .await
        .expect("an answer")
}

#[tokio::test]
async fn every_client_route_demands_its_right() {
    let plane = Plane::start_with("dev.allow_reset = true\n").await;
    let user = plane.user("alice").await;
    let admin = plane.admin("chief").await;
    for route in CLIENT_ROUTES {
        let path = path_of(route);
        let nobody = send(&plane.clients, &route.method, &path).await;
        let as_user = send(&user, &route.method, &path).await;
        let as_admin = send(&admin, &route.method, &path).await;
        match route.right() {
            Right::Public => assert_ne!(nobody.status, 401, "{route:?}: {nobody}"),
            Right::User => {
                assert_problem(&nobody, 401, "token_missing");
                assert!(
                    !matches!(as_user.status.as_u16(), 401 | 403),
                    "{route:?}: {as_user}"
                );
            }
            Right::Admin => {
                assert_problem(&nobody, 401, "token_missing");
                assert_problem(&as_user, 403, "forbidden");
                assert!(
                    !matches!(as_admin.status.as_u16(), 401 | 403),
                    "{route:?}: {as_admin}"
                );
            }
            Right::Agent => panic!("{route:?} is on the clients' listener"),
        }
        let other = send(&admin, &Method::PATCH, &path).await;
        assert_problem(&other, 405, "method_not_allowed");
        let allow = other.headers["allow"].to_str().unwrap();
        assert!(
            allow
                .split(", ")
                .any(|method| method == route.method.as_str()),
            "{route:?}: {allow}"
        );
        assert_problem(
            &send(&plane.agents, &route.method, &path).await,
            404,
            "not_found",
        );
    }
}

#[tokio::test]
async fn the_agents_listener_has_the_agents_routes_and_nothing_else() {
    let plane = Plane::start().await;
    let admin = plane.admin("chief").await;
    for route in AGENT_ROUTES {
        assert_eq!(route.right(), Right::Agent);
        let answer = send(&plane.agents, &route.method, route.pattern).await;
        assert_problem(&answer, 422, "invalid_value");
        assert_problem(
            &send(&plane.agents, &Method::GET, route.pattern).await,
            405,
            "method_not_allowed",
        );
        assert_problem(
            &send(&admin, &route.method, route.pattern).await,
            404,
            "not_found",
        );
    }
    for path in [
        "/",
        "/api",
        "/api/rentals/",
        "/metrics",
        "/api/nodes/1/drain/x",
    ] {
        assert_problem(&send(&admin, &Method::GET, path).await, 404, "not_found");
    }
}

#[tokio::test]
async fn health_is_public_and_answers_head_too() {
    let plane = Plane::start().await;
    let answer = plane.clients.get("/api/health").await.is(200);
    assert_eq!(answer.json(), json!({"status": "healthy"}));
    let head = send(&plane.clients, &Method::HEAD, "/api/health")
        .await
        .is(200);
    assert!(head.body.is_empty());
}

#[tokio::test]
async fn reset_is_narrower_than_its_right() {
    let plane = Plane::start().await;
    let admin = plane.admin("chief").await;
    assert_problem(&admin.post_empty("/api/reset").await, 403, "reset_disabled");
    let open = Plane::start_with("dev.allow_reset = true\n").await;
    let admin = open.admin("chief").await;
    let answer = admin.post_empty("/api/reset").await.is(200);
    assert_eq!(answer.json(), json!({"message": "DB reset OK"}));
}

#[tokio::test]
async fn each_request_leaves_one_line_with_its_id_and_counts() {
    let plane = Plane::start().await;
    let answer = plane.clients.get("/api/nodes?x=%0a").await;
    let id = answer.headers["x-request-id"].to_str().unwrap().to_owned();
    let lines = orion_testkit::wait_until("the line is there", orion_testkit::PATIENCE, || {
        let lines: Vec<_> = plane
            .daemon
            .log_lines()
            .into_iter()
            .filter(|line| line.contains(&id))
            .collect();
        if lines.is_empty() {
            Err("no line")
        } else {
            Ok(lines)
        }
    })
    .await;
    assert_eq!(lines.len(), 1, "{lines:?}");
    let line: serde_json::Value = serde_json::from_str(&lines[0]).unwrap();
    let fields = &line["fields"];
    assert_eq!(
        (&fields["operation"], &fields["status"]),
        (&json!("list_nodes"), &json!(401))
    );
    let ops = Client::new(plane.daemon.address("ops").await);
    let metrics = ops.get("/metrics").await.is(200);
    let text = String::from_utf8_lossy(&metrics.body).into_owned();
    let counted = r#"orion_apid_requests_total{operation="list_nodes",status="401"} 1"#;
    assert!(text.contains(counted), "{text}");
}
