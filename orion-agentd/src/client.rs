//! A small HTTP client for the control plane's listener for agents: plain HTTP/1.1, one exchange a connection, with
//! time-outs and bounds. No TLS, and so no TLS library in the agent: every request is signed, and where the agent knows
//! the control plane's keys, what they have not signed is no answer.

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use http::{HeaderMap, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use orion_core::PublicKey;
use orion_signature::{SignatureError, Signer, SigningKey, sign_request, verify_answer};
use serde::Serialize;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};

use crate::endpoint::{BEAT, Endpoint, REGISTER};
use crate::identity::VERSION;
use crate::pace::Pace;

/// Bytes of an answer's body at most.
const MAX_ANSWER: usize = 64 * 1024;
/// Bytes of an answer's head at most.
const MAX_HEAD: usize = 16 * 1024;

/// What is asked of the control plane.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Call {
    Register,
    Beat,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExchangeError {
    #[error("the name {0} can't be resolved: {1}")]
    Lookup(String, io::Error),
    #[error("can't connect to {0}: {1}")]
    Connect(String, io::Error),
    #[error("no connection to {0} within {1} s")]
    ConnectTimeout(String, u64),
    #[error("no answer within {0} s")]
    Timeout(u64),
    #[error("the answer is larger than 64 KiB")]
    TooLarge,
    #[error("the exchange failed: {0}")]
    Http(String),
    #[error("the request can't be signed: {0}")]
    Unsigned(SignatureError),
    #[error(
        "an answer was not believed: {0}. Somebody in between changes answers, or the control plane has other keys and \
         this worker needs a new join line"
    )]
    Unbelieved(SignatureError),
}

/// An answer, whatever its status.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    /// From a `Retry-After` in seconds.
    pub(crate) retry_after: Option<Duration>,
    pub(crate) body: Bytes,
    /// Whether a key that the agent trusts has signed it.
    pub(crate) verified: bool,
}

/// How one request is signed, and who may answer it.
#[derive(Debug)]
pub(crate) struct Signing<'a> {
    pub(crate) counter: u64,
    pub(crate) keys: Vec<(Signer, &'a SigningKey)>,
    /// Empty where whatever answers must do.
    pub(crate) trusted: &'a [PublicKey],
}

/// A connection for one exchange.
#[derive(Debug)]
pub(crate) struct Link {
    stream: TcpStream,
    deadline: Instant,
    /// This machine's address as the control plane's side of the network sees it (but for address translation).
    pub(crate) local: IpAddr,
}

#[derive(Debug)]
pub(crate) struct Client {
    endpoint: Endpoint,
    pace: Pace,
}

impl Client {
    pub(crate) fn new(endpoint: Endpoint, pace: Pace) -> Self {
        Self { endpoint, pace }
    }

    /// Connects; the time for the whole exchange runs from here.
    pub(crate) async fn connect(&self) -> Result<Link, ExchangeError> {
        let deadline = Instant::now() + self.pace.exchange;
        let connected = timeout_at(deadline, self.connect_to_any()).await;
        let stream = connected.map_err(|_| self.connect_timeout(self.pace.exchange))??;
        let local = stream
            .local_addr()
            .map_err(|error| self.connect_error(error))?;
        Ok(Link {
            stream,
            deadline,
            local: local.ip(),
        })
    }

    /// Tries each address of the endpoint's name in turn.
    async fn connect_to_any(&self) -> Result<TcpStream, ExchangeError> {
        let host = self.endpoint.host.as_str();
        let addresses = tokio::net::lookup_host((host, self.endpoint.port));
        let addresses = addresses
            .await
            .map_err(|error| ExchangeError::Lookup(host.to_owned(), error))?;
        let mut last = ExchangeError::Lookup(host.to_owned(), io::ErrorKind::NotFound.into());
        for address in addresses {
            match timeout(self.pace.connect, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => last = self.connect_error(error),
                Err(_) => last = self.connect_timeout(self.pace.connect),
            }
        }
        Err(last)
    }

    fn connect_error(&self, error: io::Error) -> ExchangeError {
        ExchangeError::Connect(self.peer(), error)
    }

    fn connect_timeout(&self, after: Duration) -> ExchangeError {
        ExchangeError::ConnectTimeout(self.peer(), after.as_secs())
    }

    fn peer(&self) -> String {
        format!("{}:{}", self.endpoint.host, self.endpoint.port)
    }

    /// Posts `body` as JSON, signed, and reads the answer.
    pub(crate) async fn post(
        &self,
        link: Link,
        call: Call,
        body: &impl Serialize,
        signing: &Signing<'_>,
    ) -> Result<Answer, ExchangeError> {
        let mut request = sign_request(self.request(call, body)?, signing.counter, &signing.keys)
            .await
            .map_err(ExchangeError::Unsigned)?;
        let signed = request.headers().clone();
        // The signature is about the path that the control plane sees, whatever a proxy in front of it wants.
        let path = match call {
            Call::Register => &self.endpoint.register,
            Call::Beat => &self.endpoint.beat,
        };
        *request.uri_mut() = Uri::from(path.clone());
        let answer = timeout_at(link.deadline, exchange(link.stream, request))
            .await
            .map_err(|_| ExchangeError::Timeout(self.pace.exchange.as_secs()))??;
        believed(answer, &signed, signing.trusted).await
    }

    fn request(
        &self,
        call: Call,
        body: &impl Serialize,
    ) -> Result<Request<Full<Bytes>>, ExchangeError> {
        let failed = |error: &dyn std::fmt::Display| ExchangeError::Http(error.to_string());
        let path = match call {
            Call::Register => REGISTER,
            Call::Beat => BEAT,
        };
        let body = serde_json::to_vec(body).map_err(|error| failed(&error))?;
        Request::builder()
            .method(Method::POST)
            .uri(path)
            .header(header::HOST, &self.endpoint.authority)
            .header(header::USER_AGENT, format!("orion-agentd/{VERSION}"))
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::ACCEPT, "application/json")
            .header(header::CONNECTION, "close")
            .body(Full::from(body))
            .map_err(|error| failed(&error))
    }
}

/// An answer of which nothing is looked at before it is known whose it is.
async fn believed(
    answer: Response<Bytes>,
    request: &HeaderMap,
    trusted: &[PublicKey],
) -> Result<Answer, ExchangeError> {
    let verified = !trusted.is_empty();
    if verified {
        verify_answer(answer.clone().map(Full::new), request, trusted)
            .await
            .map_err(ExchangeError::Unbelieved)?;
    }
    let (head, body) = answer.into_parts();
    let retry_after = head.headers.get(header::RETRY_AFTER);
    let retry_after = retry_after.and_then(|value| value.to_str().ok()?.parse().ok());
    Ok(Answer {
        status: head.status,
        // Not covered by a signature, but all that it can do is to delay, which whoever is in between can do anyway.
        retry_after: retry_after.map(Duration::from_secs),
        body,
        verified,
    })
}

async fn exchange(
    stream: TcpStream,
    request: Request<Full<Bytes>>,
) -> Result<Response<Bytes>, ExchangeError> {
    let failed = |error: hyper::Error| ExchangeError::Http(describe(&error));
    let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
        .max_buf_size(MAX_HEAD)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(failed)?;
    // Dropped with this future, and so is the connection, whatever the other side does.
    let mut driver = JoinSet::new();
    driver.spawn(connection);
    let (head, body) = sender
        .send_request(request)
        .await
        .map_err(failed)?
        .into_parts();
    let body = Limited::new(body, MAX_ANSWER)
        .collect()
        .await
        .map_err(|error| {
            if error.is::<LengthLimitError>() {
                ExchangeError::TooLarge
            } else {
                ExchangeError::Http(error.to_string())
            }
        })?;
    Ok(Response::from_parts(head, body.to_bytes()))
}

/// hyper's message and the reason below it, which alone says what happened.
fn describe(error: &hyper::Error) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}
