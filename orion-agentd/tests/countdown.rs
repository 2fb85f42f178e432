//! Access ends on time: what answers may change of it, and what the agent does when none come.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test's helper fails the test"
)]

#[allow(dead_code, reason = "shared by several test programs")]
mod control_plane;

use control_plane::worker::{Worker, free_port};
use control_plane::{ControlPlane, Forgery, Reply};
use serde_json::{Value, json};

const REGISTER: &str = "/api/workers/register";
const BEAT: &str = "/api/workers/beat";
const UID: u32 = 1_000_002;

fn answer(accounts: &Value, end: &Value) -> Reply {
    Reply::Json(
        200,
        json!({"next_beat_s": 3600, "accounts": accounts, "end": end}),
    )
}

fn ends_in(seconds: f64) -> Value {
    json!([{"uid": UID, "epoch": 1, "ends_in_s": seconds}])
}

/// Lets time pass until the account is locked.
async fn is_locked_in_time(worker: &Worker) {
    let look = |worker: &Worker| {
        worker.pass(1.0);
        worker.locked()
    };
    worker.until(look, &vec![UID]).await;
}

/// Two beats: what the first was answered has been followed when the second is there.
async fn answered(plane: &mut ControlPlane) {
    while plane.try_next().is_some() {}
    for _ in 0..2 {
        plane.expect(BEAT).await;
    }
}

#[tokio::test]
async fn with_the_control_plane_down_an_account_is_locked_at_its_end_and_not_before() {
    let worker = Worker::new("lockdown");
    let plane = ControlPlane::start().await;
    let mut line = plane.join_line();
    drop(plane);
    line.endpoint = format!("http://127.0.0.1:{}", free_port());
    worker.join(&line);
    worker.create(UID, 1, 3600.0);
    let agent = worker.agent(&line.endpoint);
    agent.has_failed(3).await;
    worker.pass(3599.0);
    agent.has_failed(agent.failures() + 10).await;
    assert!(worker.locked().is_empty());
    // It asks, and nobody answers.
    is_locked_in_time(&worker).await;
}

#[tokio::test]
async fn an_extension_that_was_told_is_honoured_and_zero_asks_at_once() {
    let mut plane = ControlPlane::start().await;
    let worker = Worker::joined("extended", &plane);
    worker.create(UID, 1, 60.0);
    plane.next_beat(answer(&ends_in(3600.0), &json!([])));
    let _agent = worker.unhurried_agent(&plane);
    plane.expect(REGISTER).await;
    plane.expect(BEAT).await;
    worker
        .until(|worker| worker.has_countdown(3600.0), &true)
        .await;
    worker.pass(3599.0);
    assert!(worker.locked().is_empty());
    // The next beat is an hour away; at zero it comes at once, and its answer gives more time.
    plane.next_beat(answer(&ends_in(100.0), &json!([])));
    assert!(plane.try_next().is_none());
    worker.pass(1.0);
    plane.expect(BEAT).await;
    worker
        .until(|worker| worker.has_countdown(3700.0), &true)
        .await;
    worker.pass(99.0);
    assert!(worker.locked().is_empty());
    plane.next_beat(answer(&json!([]), &json!([])));
    worker.pass(1.0);
    plane.expect(BEAT).await;
    worker.pass(5.0);
    worker.until(Worker::locked, &vec![UID]).await;
    assert!(plane.try_next().is_none(), "it asked once");
}

#[tokio::test]
async fn a_signed_end_locks_at_once_and_a_shorter_time_does_not() {
    let mut plane = ControlPlane::start().await;
    let worker = Worker::joined("ended", &plane);
    worker.create(UID, 1, 3600.0);
    plane.next_beat(answer(&ends_in(0.0), &json!([])));
    let _agent = worker.start(&plane);
    plane.expect(REGISTER).await;
    answered(&mut plane).await;
    worker.pass(100.0);
    answered(&mut plane).await;
    assert!(worker.locked().is_empty());
    plane.next_beat(answer(&json!([]), &json!([UID, UID + 1, 0])));
    worker.until(Worker::locked, &vec![UID]).await;
}

#[tokio::test]
async fn answers_that_the_control_plane_did_not_sign_change_no_countdown() {
    let mut plane = ControlPlane::start().await;
    let worker = Worker::joined("forged", &plane);
    worker.create(UID, 1, 60.0);
    let agent = worker.start(&plane);
    plane.expect(REGISTER).await;
    plane.expect(BEAT).await;
    let evil = json!({"end": [UID], "accounts": ends_in(7200.0)});
    for forgery in [
        Forgery::Unsigned,
        Forgery::Altered,
        Forgery::Foreign,
        Forgery::Replayed,
    ] {
        plane.next_beat(Reply::Forged(forgery, evil.clone()));
    }
    agent.has_failed(4).await;
    answered(&mut plane).await;
    assert!(worker.locked().is_empty());
    // None that gave more time was followed either.
    worker.pass(60.0);
    is_locked_in_time(&worker).await;
}

#[tokio::test]
async fn a_restarted_agent_goes_on_where_it_was() {
    let mut plane = ControlPlane::start().await;
    let worker = Worker::joined("goeson", &plane);
    worker.create(UID, 1, 60.0);
    plane.next_beat(answer(&ends_in(3600.0), &json!([])));
    let agent = worker.start(&plane);
    plane.expect(REGISTER).await;
    answered(&mut plane).await;
    drop(agent);
    worker.pass(3500.0);
    let _agent = worker.start(&plane);
    plane.expect_after(REGISTER, BEAT).await;
    answered(&mut plane).await;
    worker.pass(90.0);
    answered(&mut plane).await;
    assert!(worker.locked().is_empty());
    worker.pass(10.0);
    is_locked_in_time(&worker).await;
}

#[tokio::test]
async fn where_no_answer_can_be_verified_no_account_ends_by_itself() {
    let mut plane = ControlPlane::start().await;
    let worker = Worker::new("openends");
    worker.create(UID, 1, 60.0);
    let _agent = worker.agent(&plane.url());
    plane.expect(REGISTER).await;
    plane.next_beat(answer(&json!([]), &json!([UID])));
    worker.pass(3600.0);
    answered(&mut plane).await;
    worker.pass(3600.0);
    answered(&mut plane).await;
    assert!(worker.locked().is_empty());
}

#[tokio::test]
async fn a_client_is_told_and_a_locked_account_is_reported_as_such() {
    let mut plane = ControlPlane::start().await;
    let worker = Worker::joined("reportlocked", &plane);
    worker.create(UID, 1, 3600.0);
    let _agent = worker.start(&plane);
    plane.expect(REGISTER).await;
    let beat = plane.expect(BEAT).await;
    assert!(beat["accounts"][0].get("locked").is_none());
    worker.pass(3300.0);
    let texts = |worker: &Worker| {
        worker
            .told()
            .pop()
            .map(|(uid, text)| (uid, text.contains("5 minutes")))
    };
    worker.until(texts, &Some((UID, true))).await;
    worker.pass(300.0);
    is_locked_in_time(&worker).await;
    answered(&mut plane).await;
    let beat = plane.expect(BEAT).await;
    assert_eq!(beat["accounts"][0]["locked"], json!(true));
}
