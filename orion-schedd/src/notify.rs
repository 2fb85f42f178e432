//! The socket over which orion-apid says `look` when there is work, and hears `settled <request id>` when a request is
//! decided. A speed-up, never a need: what is not heard here is found in the database.

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use orion_core::RequestId;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Notify, Semaphore, broadcast};
use tokio_util::sync::CancellationToken;

/// Connections at once; orion-apid needs one for each process.
const MAX_CONNECTIONS: usize = 32;
/// The longest line is `look`.
const MAX_LINE: u64 = 64;
/// What a reader may lag behind; it polls the database for the rest.
const BACKLOG: usize = 1024;
/// A peer that does not read is dropped.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);

/// Tells who waits that there may be work; many calls before a look are one.
#[derive(Debug, Clone, Default)]
pub(crate) struct Wake(Arc<Notify>);

impl Wake {
    /// Somebody shall look.
    pub(crate) fn wake(&self) {
        self.0.notify_one();
    }

    /// Waits until somebody called [`wake`](Self::wake) since the last time.
    pub(crate) async fn woken(&self) {
        self.0.notified().await;
    }
}

/// Tells every connection that a request left `open`.
#[derive(Debug, Clone)]
pub(crate) struct Settled(broadcast::Sender<RequestId>);

impl Default for Settled {
    fn default() -> Self {
        Self(broadcast::Sender::new(BACKLOG))
    }
}

impl Settled {
    /// To whoever listens.
    pub(crate) fn tell(&self, request: RequestId) {
        // An error means that nobody listens.
        self.0.send(request).unwrap_or_default();
    }
}

/// The bound socket; its file is removed when dropped.
#[derive(Debug)]
pub(crate) struct NotifySocket {
    listener: UnixListener,
    path: PathBuf,
}

impl NotifySocket {
    /// Binds `path` with mode 0660. A file that a dead process left is replaced.
    ///
    /// # Errors
    /// When another process listens there, or the directory can't be written.
    pub(crate) async fn bind(path: &Path) -> io::Result<Self> {
        remove_stale(path).await?;
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, Permissions::from_mode(0o660))?;
        Ok(Self {
            listener,
            path: path.to_owned(),
        })
    }

    /// Serves until `shutdown`. Each `look` wakes everybody in `wakes`.
    pub(crate) async fn serve(
        self,
        wakes: Vec<Wake>,
        settled: Settled,
        shutdown: CancellationToken,
    ) {
        let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let wakes: Arc<[Wake]> = wakes.into();
        loop {
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                () = shutdown.cancelled() => return,
            };
            match accepted {
                Ok((stream, _)) => {
                    let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else {
                        tracing::warn!(
                            most = MAX_CONNECTIONS,
                            "a connection to the notify socket is one too many"
                        );
                        continue;
                    };
                    let (wakes, heard) = (Arc::clone(&wakes), settled.0.subscribe());
                    let shutdown = shutdown.clone();
                    tokio::spawn(async move {
                        connection(stream, &wakes, heard, &shutdown).await;
                        drop(slot);
                    });
                }
                Err(error) => {
                    // Too many open files, for example; that passes.
                    tracing::warn!(%error, "the notify socket can't accept");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

impl Drop for NotifySocket {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::debug!(%error, "the notify socket's file stays");
        }
    }
}

async fn remove_stale(path: &Path) -> io::Result<()> {
    match std::fs::symlink_metadata(path) {
        Ok(metadata) if metadata.file_type().is_socket() => {}
        // Whatever else is there is not ours to remove; binding says so.
        Ok(_) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    }
    if UnixStream::connect(path).await.is_ok() {
        return Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            "another process listens there",
        ));
    }
    std::fs::remove_file(path)
}

async fn connection(
    stream: UnixStream,
    wakes: &[Wake],
    heard: broadcast::Receiver<RequestId>,
    shutdown: &CancellationToken,
) {
    let (reader, writer) = stream.into_split();
    tokio::select! {
        () = read(reader, wakes) => {}
        () = write(writer, heard) => {}
        () = shutdown.cancelled() => {}
    }
}

/// Until the peer is gone or says something too long.
async fn read(reader: OwnedReadHalf, wakes: &[Wake]) {
    let mut reader = BufReader::with_capacity(256, reader);
    let mut line = Vec::new();
    loop {
        line.clear();
        match (&mut reader)
            .take(MAX_LINE)
            .read_until(b'\n', &mut line)
            .await
        {
            Ok(_) if line.ends_with(b"\n") => {}
            Ok(_) | Err(_) => return,
        }
        // Words of a newer orion-apid are not ours to answer.
        if line == b"look\n" {
            for wake in wakes {
                wake.wake();
            }
        }
    }
}

async fn write(mut writer: OwnedWriteHalf, mut heard: broadcast::Receiver<RequestId>) {
    loop {
        let line = match heard.recv().await {
            Ok(request) => format!("settled {request}\n"),
            Err(broadcast::error::RecvError::Lagged(_)) => continue,
            Err(broadcast::error::RecvError::Closed) => return,
        };
        match tokio::time::timeout(WRITE_TIMEOUT, writer.write_all(line.as_bytes())).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) | Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use orion_testkit::Scratch;

    struct Served {
        path: PathBuf,
        wake: Wake,
        settled: Settled,
        shutdown: CancellationToken,
        _scratch: Scratch,
    }

    async fn serve() -> Served {
        let scratch = Scratch::new("notify");
        let path = scratch.join("notify.sock");
        let socket = NotifySocket::bind(&path).await.unwrap();
        let (wake, settled, shutdown) = (
            Wake::default(),
            Settled::default(),
            CancellationToken::new(),
        );
        tokio::spawn(socket.serve(vec![wake.clone()], settled.clone(), shutdown.clone()));
        Served {
            path,
            wake,
            settled,
            shutdown,
            _scratch: scratch,
        }
    }

    async fn patient<T>(what: impl Future<Output = T>) -> T {
        tokio::time::timeout(orion_testkit::PATIENCE, what)
            .await
            .expect("in time")
    }

    #[tokio::test]
    async fn look_wakes_and_settled_is_told_to_every_connection() {
        let served = serve().await;
        let mut streams = Vec::new();
        for _ in 0..2 {
            let mut stream = UnixStream::connect(&served.path).await.unwrap();
            // Until this is heard, the connection may not have been accepted.
            stream.write_all(b"what\nlook\n").await.unwrap();
            patient(served.wake.woken()).await;
            streams.push(stream);
        }
        served.settled.tell(RequestId(42));
        for stream in streams {
            let mut line = String::new();
            patient(BufReader::new(stream).read_line(&mut line))
                .await
                .unwrap();
            assert_eq!(line, "settled 42\n");
        }
    }

    #[tokio::test]
    async fn a_peer_that_says_too_much_is_dropped() {
        let served = serve().await;
        let mut stream = UnixStream::connect(&served.path).await.unwrap();
        let too_much = vec![b'x'; 4096];
        // May fail half-way, when the other side has hung up already.
        stream.write_all(&too_much).await.unwrap_or_default();
        let mut rest = Vec::new();
        patient(stream.read_to_end(&mut rest))
            .await
            .unwrap_or_default();
        assert!(rest.is_empty());
    }

    #[tokio::test]
    async fn the_socket_is_for_owner_and_group_and_goes_away_with_its_process() {
        let served = serve().await;
        let mode = std::fs::metadata(&served.path)
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o660);
        assert!(NotifySocket::bind(&served.path).await.is_err());
        served.shutdown.cancel();
        let gone = || {
            if served.path.exists() {
                Err("it is there")
            } else {
                Ok(())
            }
        };
        orion_testkit::wait_until("the socket's file is gone", orion_testkit::PATIENCE, gone).await;
    }

    #[tokio::test]
    async fn a_socket_that_a_dead_process_left_is_replaced_and_another_file_is_not() {
        let scratch = Scratch::new("notify");
        let path = scratch.join("s");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        NotifySocket::bind(&path).await.unwrap();
        std::fs::write(&path, "a file").unwrap();
        assert!(NotifySocket::bind(&path).await.is_err());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "a file");
    }
}
