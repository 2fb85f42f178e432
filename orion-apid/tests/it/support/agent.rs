//! An agent that signs, and says what a hostile one would.

use super::{host_key, worker};
use http::{HeaderMap, Request};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use orion_core::{JoinLine, PublicKey, Seed};
use orion_signature::{Signer, SigningKey, sign_request, verify_answer};
use orion_testkit::{Answer, Client};
use serde_json::{Value, json};

pub(crate) fn key(byte: u8) -> SigningKey {
    SigningKey::from_seed(&Seed::from_bytes([byte; 32])).unwrap()
}

/// A worker with a key of its own.
#[derive(Clone)]
pub(crate) struct Agent {
    pub(crate) number: u16,
    pub(crate) key: SigningKey,
    pub(crate) next_key: Option<SigningKey>,
    pub(crate) token: Option<SigningKey>,
    pub(crate) trusted: Vec<PublicKey>,
    pub(crate) counter: u64,
    pub(crate) agents: Client,
}

/// A request that is ready to be sent, or to be altered first.
#[derive(Clone)]
pub(crate) struct Sealed {
    pub(crate) path: &'static str,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

pub(crate) const REGISTER: &str = "/api/workers/register";
pub(crate) const BEAT: &str = "/api/workers/beat";

impl Agent {
    pub(crate) fn new(agents: &Client, number: u16) -> Self {
        Self {
            number,
            key: key(u8::try_from(number).unwrap()),
            next_key: None,
            token: None,
            trusted: Vec::new(),
            counter: 0,
            agents: agents.clone(),
        }
    }

    /// With a join line.
    pub(crate) fn with_line(agents: &Client, number: u16, line: &str) -> Self {
        let line: JoinLine = line.parse().unwrap();
        Self {
            token: Some(SigningKey::from_seed(&line.token).unwrap()),
            trusted: vec![line.signing_key],
            ..Self::new(agents, number)
        }
    }

    pub(crate) fn registration(&self) -> Value {
        let mut body = worker(self.number);
        body["host_keys"] = json!([host_key(self.number)]);
        body["signing_key"] = json!(self.trusted.first());
        body
    }

    /// Signs with all its keys, at its next counter.
    pub(crate) async fn seal(&mut self, path: &'static str, body: &Value) -> Sealed {
        self.counter += 1;
        let request = Request::post(path)
            .body(Full::from(body.to_string()))
            .unwrap();
        let mut keys = vec![(Signer::Agent, &self.key)];
        keys.extend(self.token.iter().map(|key| (Signer::Token, key)));
        keys.extend(self.next_key.iter().map(|key| (Signer::NextKey, key)));
        let (parts, body) = sign_request(request, self.counter, &keys)
            .await
            .unwrap()
            .into_parts();
        Sealed {
            path,
            headers: parts.headers,
            body: body.collect().await.unwrap().to_bytes(),
        }
    }

    pub(crate) async fn send(&self, sealed: &Sealed) -> Answer {
        let mut client = self.agents.clone();
        for (name, value) in &sealed.headers {
            client = client.with_header(name.as_str(), value.to_str().unwrap());
        }
        let body = Some(sealed.body.clone());
        client
            .send_bytes(
                http::Method::POST,
                sealed.path,
                body,
                Some("application/json"),
            )
            .await
            .unwrap()
    }

    /// Signs, sends, and believes the answer only if it is the control plane's where it knows its key.
    pub(crate) async fn ask(&mut self, path: &'static str, body: &Value) -> Answer {
        let sealed = self.seal(path, body).await;
        let answer = self.send(&sealed).await;
        if !self.trusted.is_empty() {
            believe(&answer, &sealed, &self.trusted).await.unwrap();
        }
        answer
    }

    pub(crate) async fn register(&mut self) -> Answer {
        let body = self.registration();
        self.ask(REGISTER, &body).await
    }

    pub(crate) async fn beat(&mut self, node: &Value) -> Answer {
        let body = json!({"node_id": node, "boot_id": "b", "agent": "0.1.0", "signing_key": self.trusted.first()});
        self.ask(BEAT, &body).await
    }
}

/// Whether one of the keys signed this answer to that request.
pub(crate) async fn believe(
    answer: &Answer,
    sealed: &Sealed,
    trusted: &[PublicKey],
) -> Result<(), orion_signature::SignatureError> {
    let mut response = http::Response::new(Full::new(answer.body.clone()));
    *response.status_mut() = answer.status;
    *response.headers_mut() = answer.headers.clone();
    verify_answer(response, &sealed.headers, trusted).await
}
