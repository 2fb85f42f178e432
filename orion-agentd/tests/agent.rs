//! The agent against a scripted control plane over real connections.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test's helper fails the test"
)]

#[allow(dead_code, reason = "shared by several test programs")]
mod control_plane;

use std::time::Duration;

use control_plane::worker::{Worker, ed25519, free_port};
use control_plane::{ControlPlane, Reply};
use serde_json::json;

const REGISTER: &str = "/api/workers/register";
const BEAT: &str = "/api/workers/beat";

fn node_unknown() -> Reply {
    Reply::Json(
        404,
        json!({"status": 404, "code": "node_unknown", "detail": "x"}),
    )
}

#[tokio::test]
async fn it_registers_and_then_beats() {
    let mut plane = ControlPlane::start().await;
    let worker = Worker::new("registers");
    let _agent = worker.agent(&plane.url());
    let body = plane.expect(REGISTER).await;
    assert_eq!(body["hostname"], "worker1");
    assert_eq!(body["ip"], "127.0.0.1");
    assert_eq!(body["ssh_port"], 22);
    assert_eq!(body["host_keys"], json!([ed25519(1)]));
    assert_eq!(body["agent"], env!("CARGO_PKG_VERSION"));
    assert!(
        body["boot_id"].as_str().is_some_and(|id| id.len() == 36),
        "{body}"
    );
    for _ in 0..3 {
        let beat = plane.expect(BEAT).await;
        assert_eq!(beat["node_id"], 42);
        assert_eq!(beat["boot_id"], body["boot_id"]);
        assert_eq!(beat["accounts"], json!([]));
    }
}

#[tokio::test]
async fn it_waits_for_a_control_plane_that_is_not_there_yet() {
    let port = free_port();
    let worker = Worker::new("waits");
    let agent = worker.agent(&format!("http://127.0.0.1:{port}"));
    agent.has_failed(3).await;
    let mut plane = ControlPlane::start_on(port).await;
    plane.expect(REGISTER).await;
    plane.expect(BEAT).await;
}

#[tokio::test]
async fn a_base_url_with_a_path_and_the_full_url_work() {
    let mut plane = ControlPlane::start().await;
    let worker = Worker::new("urls");
    let agent = worker.agent(&format!("{}/orion/", plane.url()));
    plane.expect("/orion/api/workers/register").await;
    plane.expect("/orion/api/workers/beat").await;
    drop(agent);
    let mut plane = ControlPlane::start().await;
    let _agent = worker.agent(&format!("{}/api/workers/register", plane.url()));
    plane.expect(REGISTER).await;
    plane.expect(BEAT).await;
}

#[tokio::test]
async fn a_control_plane_that_forgot_the_node_gets_a_new_registration() {
    let mut plane = ControlPlane::start().await;
    plane.next_beat(node_unknown());
    let worker = Worker::new("forgotten");
    let _agent = worker.agent(&plane.url());
    for path in [REGISTER, BEAT, REGISTER, BEAT] {
        plane.expect(path).await;
    }
}

#[tokio::test]
async fn another_404_is_no_reason_to_register_again() {
    let mut plane = ControlPlane::start().await;
    plane.next_beat(Reply::Json(
        404,
        json!({"status": 404, "code": "not_found", "detail": "x"}),
    ));
    plane.next_beat(Reply::Raw(404, "<html>no such site</html>".to_owned()));
    let worker = Worker::new("other404");
    let _agent = worker.agent(&plane.url());
    for path in [REGISTER, BEAT, BEAT, BEAT] {
        plane.expect(path).await;
    }
}

#[tokio::test]
async fn a_restarted_agent_registers_again() {
    let mut plane = ControlPlane::start().await;
    let worker = Worker::new("restarts");
    let agent = worker.agent(&plane.url());
    plane.expect(REGISTER).await;
    plane.expect(BEAT).await;
    drop(agent);
    let _agent = worker.agent(&plane.url());
    plane.expect_after(REGISTER, BEAT).await;
}

#[tokio::test]
async fn a_told_address_is_sent_instead_of_the_local_one() {
    let mut plane = ControlPlane::start().await;
    let worker = Worker::new("told");
    let mut settings = worker.settings(&plane.url());
    settings.ssh_port = 22221;
    settings.advertise.host = Some("192.0.2.10".to_owned());
    settings.contact.host = Some("host.docker.internal".to_owned());
    let _agent = worker.agent_with(settings);
    let body = plane.expect(REGISTER).await;
    assert_eq!(
        (&body["ip"], &body["ssh_port"]),
        (&json!("192.0.2.10"), &json!(22221))
    );
    assert_eq!(
        body["contact"],
        json!({"host": "host.docker.internal", "port": 22221})
    );
}

#[tokio::test]
async fn changed_host_keys_are_registered() {
    let mut plane = ControlPlane::start().await;
    let worker = Worker::new("keys");
    let _agent = worker.agent(&plane.url());
    plane.expect(REGISTER).await;
    plane.expect(BEAT).await;
    worker.write_host_key(2);
    let body = plane.expect_after(REGISTER, BEAT).await;
    assert_eq!(body["host_keys"], json!([ed25519(2)]));
}

#[tokio::test]
async fn host_keys_that_vanish_for_a_moment_stop_no_beats() {
    let mut plane = ControlPlane::start().await;
    let worker = Worker::new("nokeys");
    let _agent = worker.agent(&plane.url());
    plane.expect(REGISTER).await;
    worker.remove_host_key();
    for _ in 0..5 {
        plane.expect(BEAT).await;
    }
}

#[tokio::test]
async fn it_registers_only_when_the_machine_has_host_keys() {
    let mut plane = ControlPlane::start().await;
    let worker = Worker::new("firstboot");
    worker.remove_host_key();
    let agent = worker.agent(&plane.url());
    agent.has_failed(3).await;
    worker.write_host_key(7);
    let body = plane.expect(REGISTER).await;
    assert_eq!(body["host_keys"], json!([ed25519(7)]));
}

#[tokio::test]
async fn a_refused_registration_is_tried_again_slowly_until_it_is_taken() {
    let mut plane = ControlPlane::start().await;
    let stranger =
        json!({"status": 409, "code": "hostname_taken", "detail": "worker1 has another host key"});
    for _ in 0..3 {
        plane.next_register(Reply::Json(409, stranger.clone()));
    }
    let worker = Worker::new("stranger");
    let begin = std::time::Instant::now();
    let agent = worker.agent(&plane.url());
    for _ in 0..4 {
        plane.expect(REGISTER).await;
    }
    // Three pauses of at least half the longest one; quick ones would have taken a tenth of that.
    assert!(
        begin.elapsed() >= 3 * control_plane::LONGEST / 2,
        "{:?}",
        begin.elapsed()
    );
    plane.expect(BEAT).await;
    assert_eq!(agent.failures(), 3);
}

#[tokio::test]
async fn answers_that_make_no_sense_are_survived() {
    let mut plane = ControlPlane::start().await;
    for garbage in [
        "",
        "{",
        "[]",
        "{\"message\":\"x\"}",
        "{\"node_id\":-1,\"next_beat_s\":5,\"message\":\"x\"}",
    ] {
        plane.next_register(Reply::Raw(200, garbage.to_owned()));
    }
    plane.next_register(Reply::Raw(200, "x".repeat(100_000)));
    plane.next_register(Reply::Raw(302, String::new()));
    plane.next_register(Reply::NotHttp);
    plane.next_register(Reply::Close);
    plane.next_beat(Reply::Raw(200, "{}".to_owned()));
    plane.next_beat(Reply::NotHttp);
    plane.next_beat(Reply::Close);
    plane.next_beat(Reply::Json(
        500,
        json!({"code": 5, "detail": [], "errors": {}}),
    ));
    let worker = Worker::new("garbage");
    let _agent = worker.agent(&plane.url());
    for _ in 0..10 {
        plane.expect(REGISTER).await;
    }
    for _ in 0..5 {
        plane.expect(BEAT).await;
    }
}

#[tokio::test]
async fn a_control_plane_that_never_answers_is_given_up_and_asked_again() {
    let mut plane = ControlPlane::start().await;
    plane.next_register(Reply::Hang);
    plane.next_beat(Reply::Hang);
    let worker = Worker::new("hangs");
    let _agent = worker.agent(&plane.url());
    for path in [REGISTER, REGISTER, BEAT, BEAT] {
        plane.expect(path).await;
    }
}

#[tokio::test]
async fn a_control_plane_that_is_away_for_a_while_needs_no_new_registration() {
    let mut plane = ControlPlane::start().await;
    for _ in 0..3 {
        plane.next_beat(Reply::Json(
            503,
            json!({"status": 503, "code": "database_down", "detail": "x"}),
        ));
    }
    let worker = Worker::new("outage");
    let agent = worker.agent(&plane.url());
    plane.expect(REGISTER).await;
    for _ in 0..4 {
        plane.expect(BEAT).await;
    }
    assert_eq!(agent.failures(), 3);
}

#[tokio::test]
async fn accounts_on_record_are_reported() {
    let mut plane = ControlPlane::start().await;
    let worker = Worker::new("accounts");
    worker.write_record(
        1_000_002,
        &json!({"uid": 1_000_002, "name": "alice", "epoch": 3, "state": "present"}).to_string(),
    );
    worker.write_record(1_000_003, "garbage");
    let _agent = worker.agent(&plane.url());
    plane.expect(REGISTER).await;
    let beat = plane.expect(BEAT).await;
    assert_eq!(
        beat["accounts"],
        json!([{"uid": 1_000_002, "epoch": 3, "state": "present"}])
    );
}

#[tokio::test]
async fn a_beat_says_nothing_of_accounts_whose_records_can_not_be_read() {
    let mut plane = ControlPlane::start().await;
    let worker = Worker::new("unreadable");
    worker.hide_records();
    let _agent = worker.agent(&plane.url());
    plane.expect(REGISTER).await;
    let beat = plane.expect(BEAT).await;
    assert_eq!(beat.get("accounts"), None, "{beat}");
}

#[tokio::test]
async fn an_answer_can_not_make_it_beat_faster_or_slower_than_its_bounds() {
    let mut plane = ControlPlane::start().await;
    plane.next_beat(Reply::Json(
        200,
        json!({"next_beat_s": 0, "accounts": [], "end": []}),
    ));
    plane.next_beat(Reply::Json(
        200,
        json!({"next_beat_s": 4_000_000_000_u32, "accounts": [], "end": []}),
    ));
    let worker = Worker::new("bounds");
    let _agent = worker.agent(&plane.url());
    for path in [REGISTER, BEAT] {
        plane.expect(path).await;
    }
    let begin = std::time::Instant::now();
    plane.expect(BEAT).await;
    assert!(
        begin.elapsed() >= Duration::from_millis(10),
        "{:?}",
        begin.elapsed()
    );
    plane.expect(BEAT).await;
}
