use crate::support::{Check, Plane, assert_problem, fields_of};
use http::Method;
use orion_testkit::{Answer, Client};
use serde_json::json;

async fn post_raw(client: &Client, path: &str, body: &str) -> Answer {
    let bytes = body.as_bytes().to_vec().into();
    let answer = client
        .send_bytes(Method::POST, path, Some(bytes), Some("application/json"))
        .await;
    answer.expect("an answer")
}

/// Path, body, status, code, the fields named.
type Case = (
    &'static str,
    &'static str,
    u16,
    &'static str,
    &'static [&'static str],
);

const RENTS: &[Case] = &[
    ("/api/rent", "", 400, "malformed_json", &[]),
    ("/api/rent", "   ", 400, "malformed_json", &[]),
    ("/api/rent", "duration_hours=2", 400, "malformed_json", &[]),
    (
        "/api/rent",
        "{\"duration_hours\":",
        400,
        "malformed_json",
        &[],
    ),
    (
        "/api/rent",
        "{\"duration_hours\":NaN}",
        400,
        "malformed_json",
        &[],
    ),
    ("/api/rent", "[]", 400, "wrong_type", &[]),
    ("/api/rent", "{}", 422, "invalid_value", &["duration_hours"]),
    (
        "/api/rent",
        "{\"duration_hours\":\"2\"}",
        400,
        "wrong_type",
        &["duration_hours"],
    ),
    (
        "/api/rent",
        "{\"duration_hours\":null}",
        400,
        "wrong_type",
        &["duration_hours"],
    ),
    (
        "/api/rent",
        "{\"duration_hours\":true}",
        400,
        "wrong_type",
        &["duration_hours"],
    ),
    (
        "/api/rent",
        "{\"duration_hours\":0}",
        422,
        "invalid_value",
        &["duration_hours"],
    ),
    (
        "/api/rent",
        "{\"duration_hours\":-1}",
        422,
        "invalid_value",
        &["duration_hours"],
    ),
    (
        "/api/rent",
        "{\"duration_hours\":0.0027}",
        422,
        "invalid_value",
        &["duration_hours"],
    ),
    (
        "/api/rent",
        "{\"duration_hours\":721}",
        422,
        "invalid_value",
        &["duration_hours"],
    ),
    (
        "/api/rent",
        "{\"duration_hours\":1e308}",
        422,
        "invalid_value",
        &["duration_hours"],
    ),
    (
        "/api/rent",
        "{\"duration_hours\":1,\"count\":0}",
        422,
        "invalid_value",
        &["count"],
    ),
    (
        "/api/rent",
        "{\"duration_hours\":1,\"count\":-1}",
        422,
        "invalid_value",
        &["count"],
    ),
    (
        "/api/rent",
        "{\"duration_hours\":1,\"count\":1.5}",
        400,
        "wrong_type",
        &["count"],
    ),
    (
        "/api/rent",
        "{\"duration_hours\":1,\"count\":\"x\"}",
        400,
        "wrong_type",
        &["count"],
    ),
    (
        "/api/rent",
        "{\"duration_hours\":1,\"count\":1e9}",
        422,
        "invalid_value",
        &["count"],
    ),
    (
        "/api/rent",
        "{\"duration_hours\":1,\"cuont\":1}",
        422,
        "invalid_value",
        &["cuont"],
    ),
    (
        "/api/rent",
        "{\"duration_hours\":1,\"ssh_password\":\"seven77\"}",
        422,
        "invalid_value",
        &["ssh_password"],
    ),
    (
        "/api/rent",
        "{\"duration_hours\":1,\"ssh_password\":\"a\\nbcdefgh\"}",
        422,
        "invalid_value",
        &["ssh_password"],
    ),
    (
        "/api/rent",
        "{\"duration_hours\":1,\"ssh_password\":\"a\\u0000bcdefg\"}",
        422,
        "invalid_value",
        &["ssh_password"],
    ),
    (
        "/api/rent",
        "{\"duration_hours\":0,\"count\":0}",
        422,
        "invalid_value",
        &["duration_hours", "count"],
    ),
    (
        "/api/extend/1",
        "{\"additional_hours\":0}",
        422,
        "invalid_value",
        &["additional_hours"],
    ),
    (
        "/api/extend/1",
        "{\"additional_hours\":\"1\"}",
        400,
        "wrong_type",
        &["additional_hours"],
    ),
    (
        "/api/extend/1",
        "{\"additional_hours\":1}",
        404,
        "not_found",
        &[],
    ),
    (
        "/api/release/1",
        "{\"force\":true}",
        422,
        "invalid_value",
        &["force"],
    ),
    ("/api/release/1", "[1]", 400, "wrong_type", &[]),
    ("/api/release/1", "x", 400, "malformed_json", &[]),
    ("/api/release/1", "{}", 404, "not_found", &[]),
];

#[tokio::test]
async fn every_bad_rent_extension_and_release_has_its_answer_with_the_field_named() {
    let plane = Plane::start().await;
    let alice = plane.user("alice").await;
    for (path, body, status, code, fields) in RENTS {
        let answer = post_raw(&alice, path, body).await;
        let problem = assert_problem(&answer, *status, code);
        assert_eq!(fields_of(&problem), *fields, "{path} {body}: {problem}");
    }
    let long = json!({"duration_hours": 1, "ssh_password": "x".repeat(2000)});
    let problem = assert_problem(&alice.post("/api/rent", &long).await, 422, "invalid_value");
    assert_eq!(fields_of(&problem), ["ssh_password"]);
    let count = json!({"duration_hours": 1, "count": 0});
    let problem = assert_problem(&alice.post("/api/rent", &count).await, 422, "invalid_value");
    assert_eq!(problem["errors"][0]["detail"], "must be 1 to 16");
}

#[tokio::test]
async fn every_bad_name_and_password_is_refused_at_sign_up() {
    let plane = Plane::start_with("auth.reserved_names = [\"deploy\"]\n").await;
    let forty = "a".repeat(40);
    let names = [
        "root",
        "sshd",
        "admin",
        "systemd-network",
        "deploy",
        "a;b",
        "../x",
        "-rf",
        forty.as_str(),
        "Alice",
        "élan",
        "{{ 1 }}",
        "",
        "a b",
        "1a",
    ];
    for name in names {
        let body = json!({"username": name, "password": "correct horse"});
        let answer = plane.clients.post("/auth/signup", &body).await;
        let problem = assert_problem(&answer, 422, "invalid_value");
        assert_eq!(fields_of(&problem), ["username"], "{name}");
    }
    for password in ["line\nbreak", "nul\0byte1", "seven77", &"x".repeat(2000)] {
        let body = json!({"username": "alice", "password": password});
        let answer = plane.clients.post("/auth/signup", &body).await;
        let problem = assert_problem(&answer, 422, "invalid_value");
        assert_eq!(fields_of(&problem), ["password"], "{password:?}");
    }
    let both = json!({"username": 7, "password": "x"});
    let answer = plane.clients.post("/auth/signup", &both).await;
    let problem = assert_problem(&answer, 400, "wrong_type");
    assert_eq!(fields_of(&problem), ["username", "password"]);
    for password in ["it's \"$HOME\"", "{{ lookup('x') }}", "пароль-Ω-é"] {
        let name = format!("u{}", password.len());
        let body = json!({"username": name, "password": password});
        plane.clients.post("/auth/signup", &body).await.is(201);
        plane.clients.post("/auth/login", &body).await.is(200);
    }
}

#[tokio::test]
async fn a_name_is_taken_once_and_a_login_tells_nothing_about_which_part_was_wrong() {
    let plane = Plane::start().await;
    plane.user("alice").await;
    let again = json!({"username": "alice", "password": "another one"});
    let answer = plane.clients.post("/auth/signup", &again).await;
    let problem = assert_problem(&answer, 409, "username_taken");
    assert_eq!(fields_of(&problem), ["username"]);
    let mut details = Vec::new();
    for name in ["alice", "nobody-here", "a;b", "root"] {
        let body = json!({"username": name, "password": "wrong horse"});
        let answer = plane.clients.post("/auth/login", &body).await;
        details.push(assert_problem(&answer, 401, "login_failed")["detail"].clone());
    }
    details.dedup();
    assert_eq!(details.len(), 1);
    let unknown = json!({"username": "alice", "password": "correct horse", "remember": true});
    let problem = assert_problem(
        &plane.clients.post("/auth/login", &unknown).await,
        422,
        "invalid_value",
    );
    assert_eq!(fields_of(&problem), ["remember"]);
}

#[tokio::test]
async fn malformed_ids_are_named_and_unknown_ones_are_not_found() {
    let plane = Plane::start().await;
    let admin = plane.admin("chief").await;
    let routes = [
        (Method::GET, "/api/rentals/ID", "rental_id"),
        (Method::POST, "/api/release/ID", "rental_id"),
        (Method::POST, "/api/extend/ID", "rental_id"),
        (Method::GET, "/api/nodes/ID", "node_id"),
        (Method::DELETE, "/api/nodes/ID", "node_id"),
        (
            Method::POST,
            "/api/nodes/ID/release-from-quarantine",
            "node_id",
        ),
        (Method::GET, "/api/runs/ID", "run_id"),
    ];
    for (method, path, name) in routes {
        let body = path
            .contains("extend")
            .then(|| json!({"additional_hours": 1}));
        for bad in [
            "abc",
            "-1",
            "0",
            "1.5",
            "01",
            "%27",
            "1180591620717411303424",
        ] {
            let path = path.replace("ID", bad);
            let answer = admin
                .send(method.clone(), &path, body.as_ref())
                .await
                .expect("an answer");
            let problem = assert_problem(&answer, 422, "invalid_value");
            assert_eq!(fields_of(&problem), [name], "{path}");
        }
        for unknown in ["999", "18446744073709551615"] {
            let path = path.replace("ID", unknown);
            let answer = admin
                .send(method.clone(), &path, body.as_ref())
                .await
                .expect("an answer");
            assert_problem(&answer, 404, "not_found");
        }
    }
    let answer = admin.get("/api/runs?limit=0").await;
    assert_eq!(
        fields_of(&assert_problem(&answer, 422, "invalid_value")),
        ["limit"]
    );
    assert_eq!(
        admin.get("/api/runs?limit=5").await.is(200).json(),
        json!([])
    );
}

#[tokio::test]
async fn a_body_must_be_declared_as_json() {
    let plane = Plane::start().await;
    let body = || {
        Some(
            b"{\"username\":\"alice\",\"password\":\"correct horse\"}"
                .to_vec()
                .into(),
        )
    };
    for wrong in [
        None,
        Some("text/plain"),
        Some("application/x-www-form-urlencoded"),
    ] {
        let answer = plane
            .clients
            .send_bytes(Method::POST, "/auth/signup", body(), wrong)
            .await;
        assert_problem(&answer.expect("an answer"), 415, "unsupported_media_type");
    }
    let declared = Some("application/json; charset=utf-8");
    let answer = plane
        .clients
        .send_bytes(Method::POST, "/auth/signup", body(), declared)
        .await;
    assert_eq!(answer.expect("an answer").status, 201);
}
