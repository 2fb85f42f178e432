//! A control plane whose answers are scripted, and a worker's files for an agent under test.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::{Request, Response};
use orion_agentd::{Agent, AgentSettings, Metrics, Pace};
use orion_daemon::{Limits, Readiness, Registry};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// The longest pause of the agents here.
pub(crate) const LONGEST: Duration = Duration::from_millis(200);

/// How long a test waits for what must come.
const PATIENCE: Duration = Duration::from_secs(30);

/// What the control plane does with a request.
pub(crate) enum Reply {
    Json(u16, Value),
    Raw(u16, String),
    /// Bytes that are no HTTP.
    NotHttp,
    /// Nothing, and the connection closes.
    Close,
    /// Nothing, ever.
    Hang,
}

#[derive(Default)]
struct Script {
    register: VecDeque<Reply>,
    beat: VecDeque<Reply>,
}

pub(crate) struct ControlPlane {
    address: SocketAddr,
    script: Arc<Mutex<Script>>,
    requests: mpsc::UnboundedReceiver<(String, Value)>,
    stop: CancellationToken,
}

impl ControlPlane {
    pub(crate) async fn start() -> Self {
        Self::start_on(0).await
    }

    pub(crate) async fn start_on(port: u16) -> Self {
        let front = TcpListener::bind((Ipv4Addr::LOCALHOST, port))
            .await
            .expect("bound");
        let address = front.local_addr().expect("address");
        let script = Arc::new(Mutex::new(Script::default()));
        let (seen, requests) = mpsc::unbounded_channel();
        let stop = CancellationToken::new();
        let scripted = Arc::clone(&script);
        let handler = move |request: Request<Incoming>, _peer: SocketAddr| {
            let (seen, script) = (seen.clone(), Arc::clone(&scripted));
            async move { answer(request, &seen, &script).await }
        };
        let back = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .await
            .expect("bound");
        let behind = back.local_addr().expect("address");
        tokio::spawn(orion_daemon::serve(
            back,
            handler,
            Limits::default(),
            stop.clone(),
        ));
        tokio::spawn(relay(front, behind, stop.clone()));
        Self {
            address,
            script,
            requests,
            stop,
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Answers the next registration that has no answer yet; without a script all are taken.
    pub(crate) fn next_register(&self, reply: Reply) {
        self.script.lock().expect("lock").register.push_back(reply);
    }

    /// The same for beats.
    pub(crate) fn next_beat(&self, reply: Reply) {
        self.script.lock().expect("lock").beat.push_back(reply);
    }

    /// The next request's body; the request must be for `path`.
    pub(crate) async fn expect(&mut self, path: &str) -> Value {
        let (found, body) = self.next().await;
        assert_eq!(found, path);
        body
    }

    /// The body of the next request for `path`, after any number of requests for `other`.
    pub(crate) async fn expect_after(&mut self, path: &str, other: &str) -> Value {
        loop {
            let (found, body) = self.next().await;
            if found == path {
                return body;
            }
            assert_eq!(found, other);
        }
    }

    async fn next(&mut self) -> (String, Value) {
        let request = tokio::time::timeout(PATIENCE, self.requests.recv()).await;
        request
            .expect("a request in time")
            .expect("the control plane runs")
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Tells `relay` to spoil this answer.
const SPOIL: &str = "x-spoil";

async fn answer(
    request: Request<Incoming>,
    seen: &mpsc::UnboundedSender<(String, Value)>,
    script: &Mutex<Script>,
) -> Response<Full<Bytes>> {
    let path = request.uri().path().to_owned();
    let body = request
        .into_body()
        .collect()
        .await
        .expect("a body")
        .to_bytes();
    let body = serde_json::from_slice(&body).expect("JSON");
    let registers = path.ends_with("/register");
    let scripted = {
        let mut script = script.lock().expect("lock");
        if registers {
            script.register.pop_front()
        } else {
            script.beat.pop_front()
        }
    };
    // The test may have seen enough.
    seen.send((path, body)).unwrap_or_default();
    let response = |status: u16, body: String| {
        let builder = Response::builder().status(status);
        builder.body(Full::from(body)).expect("a response")
    };
    let spoiled = |how: &str| {
        let builder = Response::builder().header(SPOIL, how);
        builder.body(Full::default()).expect("a response")
    };
    match scripted {
        Some(Reply::Json(status, body)) => response(status, body.to_string()),
        Some(Reply::Raw(status, body)) => response(status, body),
        Some(Reply::NotHttp) => spoiled("not-http"),
        Some(Reply::Close) => spoiled("close"),
        Some(Reply::Hang) => std::future::pending().await,
        None if registers => {
            let reply = json!({"message": "Worker enregistré avec succès", "node_id": 42, "next_beat_s": 1});
            response(201, reply.to_string())
        }
        None => response(
            200,
            json!({"next_beat_s": 1, "accounts": [], "end": []}).to_string(),
        ),
    }
}

/// Passes bytes on, and replaces answers that ask for it by what no HTTP server would send.
async fn relay(front: TcpListener, behind: SocketAddr, stop: CancellationToken) {
    loop {
        let accepted = tokio::select! {
            accepted = front.accept() => accepted,
            () = stop.cancelled() => return,
        };
        let (mut client, _) = accepted.expect("accepted");
        tokio::spawn(async move {
            let mut server = TcpStream::connect(behind).await.expect("connected");
            let (mut from_client, mut to_client) = client.split();
            let (mut from_server, mut to_server) = server.split();
            let forth = async {
                // Either side may go away at any time.
                tokio::io::copy(&mut from_client, &mut to_server)
                    .await
                    .unwrap_or_default();
            };
            let back = async {
                let mut answer = Vec::new();
                tokio::io::AsyncReadExt::read_to_end(&mut from_server, &mut answer)
                    .await
                    .unwrap_or_default();
                let head = String::from_utf8_lossy(&answer).into_owned();
                if head.contains("x-spoil: not-http") {
                    answer = b"SSH-2.0-OpenSSH_9.2\r\n".to_vec();
                } else if head.contains("x-spoil: close") {
                    answer.clear();
                }
                to_client.write_all(&answer).await.unwrap_or_default();
            };
            tokio::select! {
                () = back => {}
                () = async { forth.await; std::future::pending().await } => {}
            }
        });
    }
}

/// A public key file's first two words; keys with other numbers differ.
pub(crate) fn ed25519(number: u8) -> String {
    let mut bytes = vec![0, 0, 0, 11];
    bytes.extend_from_slice(b"ssh-ed25519");
    bytes.extend_from_slice(&[0, 0, 0, 32]);
    bytes.extend_from_slice(&[number; 32]);
    format!("ssh-ed25519 {}", STANDARD.encode(bytes))
}

/// A port that was free a moment ago.
pub(crate) fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("bound");
    listener.local_addr().expect("address").port()
}

/// A worker's host keys and records in a directory that goes away by itself.
pub(crate) struct Worker(PathBuf);

impl Worker {
    pub(crate) fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("orion-agentd-{name}-{}", std::process::id()));
        std::fs::create_dir_all(path.join("accounts")).expect("made");
        let worker = Self(path);
        worker.write_host_key(1);
        worker
    }

    pub(crate) fn write_host_key(&self, number: u8) {
        let text = format!("{} root@worker1\n", ed25519(number));
        let new = self.0.join("new");
        std::fs::write(&new, text).expect("written");
        std::fs::rename(new, self.host_key()).expect("renamed");
    }

    pub(crate) fn remove_host_key(&self) {
        std::fs::remove_file(self.host_key()).expect("removed");
    }

    fn host_key(&self) -> PathBuf {
        self.0.join("ssh_host_ed25519_key.pub")
    }

    pub(crate) fn write_record(&self, uid: u32, text: &str) {
        std::fs::write(self.0.join(format!("accounts/{uid}.json")), text).expect("written");
    }

    pub(crate) fn settings(&self, url: &str) -> AgentSettings {
        AgentSettings {
            api_endpoint: Some(url.to_owned()),
            hostname: Some("worker1".to_owned()),
            host_keys: self.0.join("ssh_host_*_key.pub"),
            state_dir: self.0.clone(),
            ..AgentSettings::default()
        }
    }

    pub(crate) fn agent(&self, url: &str) -> RunningAgent {
        self.agent_with(self.settings(url))
    }

    pub(crate) fn agent_with(&self, settings: AgentSettings) -> RunningAgent {
        let pace = Pace {
            first: Duration::from_millis(20),
            longest: LONGEST,
            connect: Duration::from_secs(2),
            exchange: Duration::from_millis(500),
            beat_bounds: (Duration::from_millis(20), Duration::from_millis(40)),
        };
        let endpoint = settings.endpoint().expect("a good URL");
        let metrics = Metrics::registered(&mut Registry::default());
        let agent = Agent::new(
            settings,
            endpoint,
            pace,
            metrics.clone(),
            Readiness::new(&[]),
        );
        RunningAgent {
            metrics,
            task: tokio::spawn(agent.run()),
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).expect("removed");
    }
}

/// An agent that ends with the test.
pub(crate) struct RunningAgent {
    metrics: Metrics,
    task: JoinHandle<()>,
}

impl RunningAgent {
    pub(crate) fn failures(&self) -> u64 {
        self.metrics.failures()
    }

    /// Waits until that many registrations and beats have failed.
    pub(crate) async fn has_failed(&self, times: u64) {
        let failed = async {
            while self.failures() < times {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, failed)
            .await
            .expect("failures in time");
    }
}

impl Drop for RunningAgent {
    fn drop(&mut self) {
        self.task.abort();
    }
}
