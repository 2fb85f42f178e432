//! The ops listener, on loopback: is the process alive, is it ready and why not, metrics, and a daemon's own pages.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use prometheus_client::registry::Registry;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::config::faults::Faults;
use crate::readiness::Readiness;
use crate::serve::{Limits, serve};

/// The `[ops]` table of a configuration.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OpsSettings {
    /// Where the ops listener listens; it has no authentication, so only loopback is accepted.
    pub listen: SocketAddr,
}

impl OpsSettings {
    /// 127.0.0.1 and this port; 0 takes a free one.
    pub fn on_port(port: u16) -> Self {
        Self {
            listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port),
        }
    }

    pub(crate) fn check(&self, faults: &mut Faults) {
        faults.require(
            self.listen.ip().is_loopback(),
            "ops.listen",
            "must be a loopback address: everybody who reaches it may read it",
        );
    }
}

type PageFuture = Pin<Box<dyn Future<Output = serde_json::Value> + Send>>;
type Page = Box<dyn Fn() -> PageFuture + Send + Sync>;

/// What a daemon shows on its ops listener beside `/livez` and `/readyz`: metrics, and pages of its own.
#[derive(Default)]
pub struct OpsPages {
    registry: Registry,
    pages: BTreeMap<&'static str, Page>,
}

impl OpsPages {
    /// `/metrics` shows this registry; register everything before.
    pub fn new(registry: Registry) -> Self {
        Self {
            registry,
            pages: BTreeMap::new(),
        }
    }

    /// Adds a page at `path` (as `/jobs`): each GET calls `page` and answers what it returns as JSON.
    #[must_use]
    pub fn page<F, Fut>(mut self, path: &'static str, page: F) -> Self
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = serde_json::Value> + Send + 'static,
    {
        self.pages.insert(path, Box::new(move || Box::pin(page())));
        self
    }
}

impl fmt::Debug for OpsPages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpsPages")
            .field("pages", &self.pages.keys())
            .finish_non_exhaustive()
    }
}

/// Between two tries to bind an address that is taken.
const RETRY: Duration = Duration::from_secs(1);

/// Binds and serves in the background until `stop`; returns the address that was bound, or is going to be: with
/// `may_wait`, one that is taken is waited for in the background.
pub(crate) async fn start(
    listen: SocketAddr,
    may_wait: bool,
    pages: OpsPages,
    ready: Readiness,
    stop: CancellationToken,
) -> io::Result<SocketAddr> {
    let error = match TcpListener::bind(listen).await {
        Ok(listener) => {
            let bound = listener.local_addr()?;
            tokio::spawn(answer_all(listener, pages, ready, stop));
            return Ok(bound);
        }
        Err(error) => error,
    };
    if !may_wait {
        return Err(error);
    }
    tracing::warn!("the ops listener can't listen on {listen} yet: {error}; trying on");
    tokio::spawn(async move {
        if let Some(listener) = stop.run_until_cancelled(bound_when_free(listen)).await {
            tracing::info!(%listen, "the ops listener listens now");
            answer_all(listener, pages, ready, stop).await;
        }
    });
    Ok(listen)
}

async fn bound_when_free(listen: SocketAddr) -> TcpListener {
    loop {
        tokio::time::sleep(RETRY).await;
        if let Ok(listener) = TcpListener::bind(listen).await {
            return listener;
        }
    }
}

async fn answer_all(
    listener: TcpListener,
    pages: OpsPages,
    ready: Readiness,
    stop: CancellationToken,
) {
    let pages = Arc::new(pages);
    let handler = move |request: Request<Incoming>, _peer: SocketAddr| {
        let (pages, ready) = (Arc::clone(&pages), ready.clone());
        async move { answer(request.method(), request.uri().path(), &pages, &ready).await }
    };
    let limits = Limits {
        max_connections: 16,
        drain: Duration::from_secs(1),
        ..Limits::default()
    };
    serve(listener, handler, limits, stop).await;
}

async fn answer(
    method: &Method,
    path: &str,
    pages: &OpsPages,
    ready: &Readiness,
) -> Response<Full<Bytes>> {
    if method != Method::GET && method != Method::HEAD {
        let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n");
        response
            .headers_mut()
            .insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match path {
        "/livez" => text(StatusCode::OK, "alive\n"),
        "/readyz" => readyz(ready),
        "/metrics" => metrics(&pages.registry),
        other => match pages.pages.get(other) {
            Some(page) => json(StatusCode::OK, &page().await),
            None => text(StatusCode::NOT_FOUND, "no such page\n"),
        },
    }
}

fn readyz(ready: &Readiness) -> Response<Full<Bytes>> {
    let reasons = ready.reasons();
    let (status, word) = if reasons.is_empty() {
        (StatusCode::OK, "ready")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not ready")
    };
    json(
        status,
        &serde_json::json!({"status": word, "reasons": reasons}),
    )
}

fn metrics(registry: &Registry) -> Response<Full<Bytes>> {
    let mut page = String::new();
    match prometheus_client::encoding::text::encode(&mut page, registry) {
        Ok(()) => {
            let openmetrics = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            respond(StatusCode::OK, openmetrics, page)
        }
        Err(error) => {
            tracing::error!(%error, "metrics can't be encoded");
            text(
                StatusCode::INTERNAL_SERVER_ERROR,
                "metrics can't be encoded\n",
            )
        }
    }
}

fn json(status: StatusCode, value: &serde_json::Value) -> Response<Full<Bytes>> {
    respond(status, "application/json", format!("{value}\n"))
}

fn text(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    respond(status, "text/plain; charset=utf-8", text.to_owned())
}

fn respond(status: StatusCode, content_type: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
