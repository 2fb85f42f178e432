//! Agents that only beat, with real keys, at the interval that the answers dictate; each beat is a connection of its own,
//! as orion-agentd's are.
//!
//! `bench-beats nodes COUNT`: prints `(ID, 'PUBLIC_KEY')` of each agent's node, one a line.
//! `bench-beats run ADDRESS COUNT WARM_S MEASURE_S`: beats; prints `begin` when it has beaten for WARM_S, and MEASURE_S later
//! what it saw since: `beats N failed N p50_ms N p99_ms N`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a fault in a benchmark ends it"
)]

use http::{Method, Request, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1::handshake;
use hyper_util::rt::TokioIo;
use orion_core::Seed;
use orion_signature::{Signer, SigningKey, sign_request};
use serde_json::{Value, json};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};

type Fault = Box<dyn std::error::Error + Send + Sync>;

/// The interval of an agent that was not told any.
const UNTOLD: Duration = Duration::from_secs(5);
/// The first beats are spread over this time: nothing is measured of agents that start all at once.
const FIRST: Duration = Duration::from_secs(25);

/// What was seen since it was last taken.
#[derive(Default)]
struct Seen {
    took: Vec<Duration>,
    failed: usize,
    said: Option<String>,
}

impl Seen {
    /// How long the agent shall wait now.
    fn note(&mut self, answer: Result<Value, Fault>, took: Duration) -> Duration {
        match answer {
            Ok(answer) => {
                self.took.push(took);
                let told = answer.get("next_beat_s").and_then(Value::as_f64);
                told.map_or(UNTOLD, Duration::from_secs_f64)
            }
            Err(error) => {
                self.failed += 1;
                self.said.get_or_insert_with(|| error.to_string());
                UNTOLD
            }
        }
    }
}

fn key(node: u64) -> SigningKey {
    let mut seed = [7; 32];
    seed.iter_mut()
        .zip(node.to_be_bytes())
        .for_each(|(byte, new)| *byte = new);
    SigningKey::from_seed(&Seed::from_bytes(seed)).expect("a key")
}

async fn beat(address: &str, node: u64, counter: u64, key: &SigningKey) -> Result<Value, Fault> {
    // What beats.sh has put into the database: nothing to follow up.
    let account = json!({"uid": 1_000_000 + node, "epoch": 1, "state": "present", "locked": false});
    let body = json!({"node_id": node, "boot_id": "b", "agent": "0.1.0", "accounts": [account]});
    let request = Request::builder()
        .method(Method::POST)
        .uri("/api/workers/beat")
        .header(header::HOST, address)
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::CONNECTION, "close")
        .body(Full::from(serde_json::to_vec(&body)?))?;
    let request = sign_request(request, counter, &[(Signer::Agent, key)]).await?;
    let stream = TokioIo::new(TcpStream::connect(address).await?);
    let (mut sender, connection) = handshake::<_, Full<Bytes>>(stream).await?;
    let connection = tokio::spawn(connection);
    let answer = sender.send_request(request).await?;
    let status = answer.status();
    let body = answer.into_body().collect().await?.to_bytes();
    drop(sender);
    connection.await??;
    if status != 200 {
        return Err(format!("{status}: {}", String::from_utf8_lossy(&body)).into());
    }
    Ok(serde_json::from_slice(&body)?)
}

/// One agent, for ever.
async fn agent(address: Arc<str>, node: u64, of: u64, seen: Arc<Mutex<Seen>>) {
    let key = key(node);
    // Far apart in time, however near their numbers are.
    let place = node.wrapping_mul(2_654_435_761) % of;
    sleep(FIRST.mul_f64(place as f64 / of as f64)).await;
    for counter in 1.. {
        let start = Instant::now();
        let answer = beat(&address, node, counter, &key).await;
        let pause = seen.lock().unwrap().note(answer, start.elapsed());
        sleep(pause).await;
    }
}

async fn run(address: &str, count: u64, warm: Duration, measure: Duration) {
    let address: Arc<str> = address.into();
    let seen: Arc<Mutex<Seen>> = Arc::default();
    for node in 1..=count {
        tokio::spawn(agent(Arc::clone(&address), node, count, Arc::clone(&seen)));
    }
    sleep(warm).await;
    *seen.lock().unwrap() = Seen::default();
    println!("begin");
    sleep(measure).await;
    let mut seen = std::mem::take(&mut *seen.lock().unwrap());
    seen.took.sort_unstable();
    let share = |share: f64| {
        let place = (seen.took.len() as f64 * share) as usize;
        seen.took.get(place).map_or(0, Duration::as_millis)
    };
    let (p50, p99) = (share(0.5), share(0.99));
    let said = seen.said.unwrap_or_default();
    println!(
        "beats {} failed {} p50_ms {p50} p99_ms {p99} {said}",
        seen.took.len(),
        seen.failed
    );
}

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["nodes", count] => {
            for node in 1..=count.parse().expect("a count") {
                println!("({node}, '{}')", key(node).public());
            }
        }
        ["run", address, count, warm, measure] => {
            let seconds = |text: &str| Duration::from_secs(text.parse().expect("seconds"));
            let count = count.parse().expect("a count");
            run(address, count, seconds(warm), seconds(measure)).await;
        }
        _ => panic!("bench-beats nodes COUNT | run ADDRESS COUNT WARM_S MEASURE_S"),
    }
}
