//! The line to orion-schedd: "look" after new work was committed, "settled" when a request was decided. A speed-up and
//! never a need: whoever waits also looks at the database.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use orion_core::RequestId;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// Between two attempts to connect.
const RECONNECT: Duration = Duration::from_millis(500);

/// A schedd that does not read is as good as none.
const WRITE_TIMEOUT: Duration = Duration::from_secs(2);

/// A handle of the line; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Schedd {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// Holds one "look" until it is sent: many become one.
    look: Notify,
    waiters: Mutex<HashMap<RequestId, Vec<Arc<Notify>>>>,
}

impl Schedd {
    /// Tells schedd that there is work. Never waits.
    pub fn look(&self) {
        self.shared.look.notify_one();
    }

    /// Registers for the end of a request. Register before you look at the database, so that nothing falls between.
    pub fn waiter(&self, request: RequestId) -> Waiter {
        let bell = Arc::new(Notify::new());
        let mut waiters = self.shared.waiters();
        waiters.entry(request).or_default().push(Arc::clone(&bell));
        drop(waiters);
        Waiter {
            shared: Arc::clone(&self.shared),
            request,
            bell,
        }
    }

    /// Keeps a connection to `socket` until `stop`.
    pub async fn keep_connected(self, socket: PathBuf, stop: CancellationToken) {
        let mut reported = false;
        loop {
            let error = tokio::select! {
                error = self.converse(&socket, &mut reported) => error,
                () = stop.cancelled() => return,
            };
            // Once for each outage: a control plane may well run without a schedd of its own.
            if !reported {
                reported = true;
                tracing::warn!(socket = %socket.display(), %error, "no line to orion-schedd: polling the database");
            }
            tokio::select! {
                () = tokio::time::sleep(RECONNECT) => {}
                () = stop.cancelled() => return,
            }
        }
    }

    /// One connection's life; returns why it ended.
    async fn converse(&self, socket: &Path, reported: &mut bool) -> io::Error {
        let stream = match UnixStream::connect(socket).await {
            Ok(stream) => stream,
            Err(error) => return error,
        };
        tracing::info!(socket = %socket.display(), "connected to orion-schedd");
        *reported = false;
        // Whatever was settled while there was no line is found in the database now.
        self.shared.ring_all();
        let (read, mut write) = stream.into_split();
        let mut lines = BufReader::new(read).lines();
        loop {
            tokio::select! {
                line = lines.next_line() => match line {
                    Ok(Some(line)) => self.hear(&line),
                    Ok(None) => return io::ErrorKind::UnexpectedEof.into(),
                    Err(error) => return error,
                },
                () = self.shared.look.notified() => {
                    let sent = tokio::time::timeout(WRITE_TIMEOUT, write.write_all(b"look\n")).await;
                    if let Err(error) = sent.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
                        // For the next connection: the work is still there.
                        self.look();
                        return error;
                    }
                }
            }
        }
    }

    fn hear(&self, line: &str) {
        match line.strip_prefix("settled ").map(str::parse) {
            Some(Ok(request)) => self.shared.ring(request),
            // A newer schedd may say more.
            Some(Err(_)) | None => tracing::debug!(?line, "orion-schedd said something unknown"),
        }
    }
}

impl Shared {
    fn waiters(&self) -> MutexGuard<'_, HashMap<RequestId, Vec<Arc<Notify>>>> {
        // The map is valid after every statement, so a panic elsewhere does not spoil it.
        self.waiters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ring(&self, request: RequestId) {
        for bell in self.waiters().get(&request).into_iter().flatten() {
            bell.notify_one();
        }
    }

    fn ring_all(&self) {
        for bell in self.waiters().values().flatten() {
            bell.notify_one();
        }
    }
}

/// Waits for one request's end; deregisters itself.
#[derive(Debug)]
pub struct Waiter {
    shared: Arc<Shared>,
    request: RequestId,
    bell: Arc<Notify>,
}

impl Waiter {
    /// Returns when schedd said something about the request, or after `limit`.
    pub async fn wait(&self, limit: Duration) {
        if tokio::time::timeout(limit, self.bell.notified())
            .await
            .is_err()
        {
            tracing::trace!(request = %self.request, "nothing heard");
        }
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        let mut waiters = self.shared.waiters();
        if let Some(bells) = waiters.get_mut(&self.request) {
            bells.retain(|bell| !Arc::ptr_eq(bell, &self.bell));
            if bells.is_empty() {
                waiters.remove(&self.request);
            }
        }
    }
}

#[cfg(test)]
mod tests;
