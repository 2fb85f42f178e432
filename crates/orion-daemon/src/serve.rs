//! The accept loop under every HTTP listener: HTTP/1.1 with limits and a graceful stop.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response, StatusCode, header};
use http_body_util::{Either, Full};
use hyper::body::{Body, Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What a listener lets its clients do.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections served at once; further ones wait in the kernel's queue. A connection counts until its last
    /// handler has ended, so that clients that hang up early can't pile up work.
    pub max_connections: usize,
    /// Time for a request's head to arrive; also how long an idle connection is kept.
    pub header_timeout: Duration,
    /// Bytes of a request's head; more is 431.
    pub max_header_bytes: usize,
    /// Number of header lines; more is 431.
    pub max_headers: usize,
    /// How long requests in progress may take once the listener is told to stop.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_connections: 1024,
            header_timeout: Duration::from_secs(10),
            max_header_bytes: 16 * 1024,
            max_headers: 100,
            drain: Duration::from_secs(60),
        }
    }
}

/// Serves `handler` on `listener` until `shutdown`: then it accepts no more, tells each connection to end after its
/// request in progress, and returns when all have ended or `limits.drain` is over.
///
/// Each request is handled in a task of its own: a client that hangs up cancels nothing, and a handler that panics is
/// answered 500 without hurting others. hyper limits neither size nor time of a request's *body*: that is the
/// handler's part (`http_body_util::Limited` inside `tokio::time::timeout`).
pub async fn serve<H, Fut, B>(
    listener: TcpListener,
    handler: H,
    limits: Limits,
    shutdown: CancellationToken,
) where
    H: Fn(Request<Incoming>, SocketAddr) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Response<B>> + Send + 'static,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let connections = TaskTracker::new();
    let permits = Arc::new(Semaphore::new(limits.max_connections));
    let abort = CancellationToken::new();
    loop {
        let accepted = tokio::select! {
            accepted = accept(&listener, &permits) => accepted,
            () = shutdown.cancelled() => break,
        };
        let Some((stream, peer, permit)) = accepted else {
            continue;
        };
        let connection = Connection {
            peer,
            permit: Arc::new(permit),
            handlers: connections.clone(),
            handler: handler.clone(),
        };
        let (shutdown, abort) = (shutdown.clone(), abort.clone());
        connections.spawn(async move {
            tokio::select! {
                () = connection.serve(stream, limits, shutdown) => {}
                () = abort.cancelled() => {}
            }
        });
    }
    drop(listener);
    connections.close();
    if tokio::time::timeout(limits.drain, connections.wait())
        .await
        .is_err()
    {
        tracing::warn!(
            left = connections.len(),
            "connections were cut: the time to drain is over"
        );
        abort.cancel();
    }
}

/// The next connection, once there is room for it; `None` when accepting failed.
async fn accept(
    listener: &TcpListener,
    permits: &Arc<Semaphore>,
) -> Option<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    let permit = Arc::clone(permits).acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, peer)) => {
            if let Err(error) = stream.set_nodelay(true) {
                tracing::debug!(%error, "TCP_NODELAY");
            }
            Some((stream, peer, permit))
        }
        // A client that went away while it queued is no reason to pause.
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionAborted => None,
        Err(error) => {
            // Out of file descriptors or memory: accepting goes on as soon as there are some again.
            tracing::warn!(%error, "no connection can be accepted");
            tokio::time::sleep(Duration::from_millis(200)).await;
            None
        }
    }
}

struct Connection<H> {
    peer: SocketAddr,
    permit: Arc<OwnedSemaphorePermit>,
    handlers: TaskTracker,
    handler: H,
}

impl<H> Connection<H> {
    async fn serve<Fut, B>(self, stream: TcpStream, limits: Limits, shutdown: CancellationToken)
    where
        H: Fn(Request<Incoming>, SocketAddr) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Response<B>> + Send + 'static,
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let peer = self.peer;
        let service = service_fn(move |request| {
            let answer = (self.handler)(request, self.peer);
            let permit = Arc::clone(&self.permit);
            let task = self.handlers.spawn(async move {
                let response = answer.await;
                drop(permit);
                response
            });
            async move {
                let response = match task.await {
                    Ok(response) => response.map(Either::Left),
                    Err(error) => {
                        tracing::error!(%error, %peer, "a handler panicked");
                        internal_error().map(Either::Right)
                    }
                };
                Ok::<_, Infallible>(response)
            }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(limits.header_timeout)
            .max_headers(limits.max_headers)
            .max_header_size(limits.max_header_bytes)
            .serve_connection(TokioIo::new(stream), service);
        tokio::pin!(connection);
        let result = tokio::select! {
            result = connection.as_mut() => result,
            () = shutdown.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = result {
            tracing::debug!(%error, %peer, "connection ended");
        }
    }
}

/// The answer of last resort, when a handler panicked; the listener does not know what was asked.
fn internal_error() -> Response<Full<Bytes>> {
    let body = r#"{"type":"about:blank","title":"Internal Server Error","status":500,"detail":"the server failed to answer","code":"internal"}"#;
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        http::HeaderValue::from_static("application/problem+json"),
    );
    response
}

#[cfg(test)]
mod tests;
