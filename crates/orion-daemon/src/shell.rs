//! The life of a daemon: it listens, gets ready, works, is told to stop, drains, and ends in time.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::Settings;
use crate::notify;
use crate::ops::{self, OpsPages};
use crate::readiness::Readiness;

/// Why a daemon could not start.
#[derive(Debug, thiserror::Error)]
pub enum ShellError {
    /// The ops listener's address is taken or not this machine's.
    #[error("the ops listener can't listen on {0}: {1}")]
    Listen(SocketAddr, #[source] io::Error),
    /// The handlers of SIGTERM and SIGINT could not be installed.
    #[error("signals can't be handled: {0}")]
    Signals(#[source] io::Error),
}

/// A started daemon: its ops listener answers, its signals are armed.
#[derive(Debug)]
pub struct Shell {
    name: &'static str,
    shutdown: CancellationToken,
    /// A second signal: stop now.
    impatient: CancellationToken,
    tracker: TaskTracker,
    ready: Readiness,
    ops: SocketAddr,
    ops_stop: CancellationToken,
    failure: Arc<Mutex<Option<anyhow::Error>>>,
}

impl Shell {
    /// Binds the ops listener, arms SIGTERM and SIGINT and tells systemd that the daemon starts. `components` are
    /// what must be [ready](Readiness) before the daemon is; without any it is ready now.
    ///
    /// # Errors
    /// When the listener's address can't be bound (unless the settings let it [wait](Settings::OPS_MAY_WAIT)) or signals can't be handled.
    pub async fn start<S: Settings>(
        settings: &S,
        components: &[&str],
        pages: OpsPages,
    ) -> Result<Self, ShellError> {
        let shell = Self {
            name: S::NAME,
            shutdown: CancellationToken::new(),
            impatient: CancellationToken::new(),
            tracker: TaskTracker::new(),
            ready: Readiness::new(components),
            ops: settings.ops().listen,
            ops_stop: CancellationToken::new(),
            failure: Arc::default(),
        };
        shell.arm_signals()?;
        let ops = ops::start(
            shell.ops,
            S::OPS_MAY_WAIT,
            pages,
            shell.ready.clone(),
            shell.ops_stop.clone(),
        );
        let ops = ops
            .await
            .map_err(|error| ShellError::Listen(shell.ops, error))?;
        notify::keep_watchdog_quiet();
        shell.ready.announce();
        tracing::info!(%ops, version = env!("CARGO_PKG_VERSION"), "{} started", S::NAME);
        Ok(Self { ops, ..shell })
    }

    /// Cancelled when the daemon shall stop; cancelling it stops the daemon.
    pub fn shutdown(&self) -> CancellationToken {
        self.shutdown.clone()
    }

    /// Tasks spawned here are waited for when the daemon stops.
    pub fn tracker(&self) -> &TaskTracker {
        &self.tracker
    }

    /// Where the daemon says what it still lacks.
    pub fn ready(&self) -> &Readiness {
        &self.ready
    }

    /// The address the ops listener really has (the configuration may say port 0).
    pub fn ops_addr(&self) -> SocketAddr {
        self.ops
    }

    /// Spawns a task without which the daemon is of no use. When it ends before the daemon is told to stop, also by
    /// a panic, the daemon stops and [`run`](Self::run) returns an error.
    pub fn vital(
        &self,
        name: &'static str,
        task: impl Future<Output = anyhow::Result<()>> + Send + 'static,
    ) {
        let shutdown = self.shutdown.clone();
        let failure = Arc::clone(&self.failure);
        let task = tokio::spawn(task);
        self.tracker.spawn(async move {
            let error = match task.await {
                Ok(Ok(())) if shutdown.is_cancelled() => return,
                Ok(Ok(())) => anyhow::anyhow!("{name} ended by itself"),
                Ok(Err(error)) => error.context(format!("{name} failed")),
                Err(error) => anyhow::Error::from(error).context(format!("{name} panicked")),
            };
            let mut first = failure.lock().unwrap_or_else(PoisonError::into_inner);
            first.get_or_insert(error);
            drop(first);
            shutdown.cancel();
        });
    }

    /// Runs `body` until it ends, then waits for the tracked tasks. `body` must end when [`shutdown`](Self::shutdown)
    /// is cancelled; `drain` is the longest that it and the tracked tasks may take from then on. A second signal
    /// stops at once. The ops listener answers until the end.
    ///
    /// # Errors
    /// The body's error, that of a [vital](Self::vital) task, or that the daemon did not drain in time.
    pub async fn run(
        self,
        drain: Duration,
        body: impl Future<Output = anyhow::Result<()>>,
    ) -> anyhow::Result<()> {
        let hard_stop = self.hard_stop(drain);
        let work = async {
            let result = body.await;
            // Told here too: a quick body ends before `hard_stop` has looked.
            self.ready.stopping(drain);
            self.shutdown.cancel();
            self.tracker.close();
            self.tracker.wait().await;
            result
        };
        let result = tokio::select! {
            result = work => result,
            error = hard_stop => Err(error),
        };
        self.ops_stop.cancel();
        let failure = self
            .failure
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        match (failure, result) {
            (Some(failure), _) => Err(failure),
            (None, result) => {
                tracing::info!("{} stopped", self.name);
                result
            }
        }
    }

    /// Ends when the time to drain is over, or a second signal came.
    async fn hard_stop(&self, drain: Duration) -> anyhow::Error {
        self.shutdown.cancelled().await;
        self.ready.stopping(drain);
        tokio::select! {
            () = tokio::time::sleep(drain) => {
                anyhow::anyhow!("not drained within {} s ({} tasks left)", drain.as_secs(), self.tracker.len())
            }
            () = self.impatient.cancelled() => anyhow::anyhow!("stopped by a second signal before it was drained"),
        }
    }

    fn arm_signals(&self) -> Result<(), ShellError> {
        let mut terminate = signal(SignalKind::terminate()).map_err(ShellError::Signals)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(ShellError::Signals)?;
        let shutdown = self.shutdown.clone();
        let impatient = self.impatient.clone();
        tokio::spawn(async move {
            for token in [shutdown, impatient] {
                tokio::select! {
                    _ = terminate.recv() => tracing::info!("stopping: SIGTERM"),
                    _ = interrupt.recv() => tracing::info!("stopping: SIGINT"),
                }
                token.cancel();
            }
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests;
