//! A control plane whose answers are scripted, and a worker's files for an agent under test.

pub(crate) mod worker;

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::{Request, Response};
use orion_core::{JoinLine, PublicKey, Seed};
use orion_daemon::Limits;
use orion_signature::{SigningKey, VerifiedRequest, sign_answer, verify_request};
use orion_testkit::PATIENCE;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// The longest pause of the agents here.
pub(crate) const LONGEST: Duration = Duration::from_millis(200);

/// What the control plane does with a request.
pub(crate) enum Reply {
    Json(u16, Value),
    /// What is said without a script, plus these fields; `Forgery` says whose it is.
    Forged(Forgery, Value),
    Raw(u16, String),
    /// Bytes that are no HTTP.
    NotHttp,
    /// Nothing, and the connection closes.
    Close,
    /// Nothing, ever.
    Hang,
}

/// What somebody in between does with an answer.
#[derive(Clone, Copy)]
pub(crate) enum Forgery {
    /// The fields are put in without a signature.
    Unsigned,
    /// The fields are put in after the control plane has signed.
    Altered,
    /// All of it is signed with another key.
    Foreign,
    /// The last signed answer to a beat comes again.
    Replayed,
}

/// A request as the control plane saw it.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) path: String,
    pub(crate) body: Value,
    /// Whose it is: every request of an agent is signed.
    pub(crate) signed: VerifiedRequest,
}

struct Script {
    register: VecDeque<Reply>,
    beat: VecDeque<Reply>,
    /// The keys that sign answers.
    keys: Vec<SigningKey>,
    /// What answers without a script tell beside the rest.
    trust: Value,
    last_beat: Option<Response<Full<Bytes>>>,
}

pub(crate) struct ControlPlane {
    address: SocketAddr,
    script: Arc<Mutex<Script>>,
    requests: mpsc::UnboundedReceiver<Seen>,
    stop: CancellationToken,
}

pub(crate) fn signing_key(number: u8) -> SigningKey {
    SigningKey::from_seed(&Seed::from_bytes([number; 32])).expect("a key")
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
        let script = Arc::new(Mutex::new(Script {
            register: VecDeque::new(),
            beat: VecDeque::new(),
            keys: vec![signing_key(200)],
            trust: json!({}),
            last_beat: None,
        }));
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

    /// The line that lets a worker join here.
    pub(crate) fn join_line(&self) -> JoinLine {
        JoinLine {
            endpoint: self.url(),
            token: Seed::from_bytes([100; 32]),
            signing_key: self.public_keys()[0],
        }
    }

    /// The keys that sign, newest first.
    pub(crate) fn public_keys(&self) -> Vec<PublicKey> {
        let script = self.script.lock().expect("lock");
        script.keys.iter().map(SigningKey::public).collect()
    }

    pub(crate) fn sign_with(&self, numbers: &[u8]) {
        let keys = numbers.iter().map(|number| signing_key(*number)).collect();
        self.script.lock().expect("lock").keys = keys;
    }

    /// What answers tell from now on: `signing_keys`, `pool_keys`, `status`.
    pub(crate) fn tell(&self, trust: Value) {
        self.script.lock().expect("lock").trust = trust;
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
        let seen = self.next().await;
        assert_eq!(seen.path, path);
        seen.body
    }

    /// The body of the next request for `path`, after any number of requests for `other`.
    pub(crate) async fn expect_after(&mut self, path: &str, other: &str) -> Value {
        loop {
            let seen = self.next().await;
            if seen.path == path {
                return seen.body;
            }
            assert_eq!(seen.path, other);
        }
    }

    /// A request that is there already.
    pub(crate) fn try_next(&mut self) -> Option<Seen> {
        self.requests.try_recv().ok()
    }

    /// The next request, and who signed it.
    pub(crate) async fn next(&mut self) -> Seen {
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
    seen: &mpsc::UnboundedSender<Seen>,
    script: &Mutex<Script>,
) -> Response<Full<Bytes>> {
    let (mut parts, body) = request.into_parts();
    let path = parts.uri.path().to_owned();
    let body = body.collect().await.expect("a body").to_bytes();
    // What a proxy strips is not signed.
    let (_, signed) = path.split_once("/api/workers/").expect("a path of ours");
    parts.uri = format!("/api/workers/{signed}").parse().expect("a path");
    let signed = verify_request(&parts, &body).await.expect("signed");
    let body = serde_json::from_slice(&body).expect("JSON");
    let registers = path.ends_with("/register");
    let (scripted, keys, usual, last_beat) = {
        let mut script = script.lock().expect("lock");
        let scripted = if registers {
            script.register.pop_front()
        } else {
            script.beat.pop_front()
        };
        let usual = merged(usual(registers), &script.trust);
        let last_beat = script.last_beat.clone();
        (scripted, script.keys.clone(), usual, last_beat)
    };
    // The test may have seen enough.
    seen.send(Seen { path, body, signed }).unwrap_or_default();
    let signed = async |status: u16, body: String, keys: &[SigningKey]| {
        sign_answer(response(status, body), &parts.headers, keys)
            .await
            .expect("signed")
    };
    let spoiled = |how: &str| {
        let builder = Response::builder().header(SPOIL, how);
        builder.body(Full::default()).expect("a response")
    };
    match scripted {
        Some(Reply::Json(status, body)) => signed(status, body.to_string(), &keys).await,
        Some(Reply::Raw(status, body)) => signed(status, body, &keys).await,
        Some(Reply::NotHttp) => spoiled("not-http"),
        Some(Reply::Close) => spoiled("close"),
        Some(Reply::Hang) => std::future::pending().await,
        Some(Reply::Forged(forgery, fields)) => {
            let forged = merged(usual.clone(), &fields).to_string();
            match forgery {
                Forgery::Unsigned => response(200, forged),
                Forgery::Altered => {
                    let good = signed(200, usual.to_string(), &keys).await;
                    good.map(|_| Full::from(forged))
                }
                Forgery::Foreign => signed(200, forged, &[signing_key(66)]).await,
                Forgery::Replayed => last_beat.expect("a beat was answered"),
            }
        }
        None if registers => signed(201, usual.to_string(), &keys).await,
        None => {
            let answer = signed(200, usual.to_string(), &keys).await;
            script.lock().expect("lock").last_beat = Some(answer.clone());
            answer
        }
    }
}

fn response(status: u16, body: String) -> Response<Full<Bytes>> {
    let builder = Response::builder().status(status);
    builder.body(Full::from(body)).expect("a response")
}

/// What is said where nothing else is scripted.
fn usual(registers: bool) -> Value {
    if registers {
        json!({"message": "Worker enregistré avec succès", "node_id": 42, "next_beat_s": 1})
    } else {
        json!({"next_beat_s": 1, "accounts": [], "end": []})
    }
}

fn merged(mut body: Value, fields: &Value) -> Value {
    for (name, value) in fields.as_object().expect("an object") {
        body[name] = value.clone();
    }
    body
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
