use super::*;
use tokio::net::UnixListener;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

const LONG: Duration = Duration::from_secs(30);

struct Socket(PathBuf);

impl Socket {
    fn new() -> Self {
        let mut bytes = [0; 8];
        getrandom::fill(&mut bytes).unwrap();
        let name = format!("orion-apid-{:x}.sock", u64::from_be_bytes(bytes));
        Self(std::env::temp_dir().join(name))
    }

    async fn accept(
        &self,
        listener: &UnixListener,
    ) -> (tokio::io::Lines<BufReader<OwnedReadHalf>>, OwnedWriteHalf) {
        let (stream, _) = listener.accept().await.unwrap();
        let (read, write) = stream.into_split();
        (BufReader::new(read).lines(), write)
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if self.0.exists() {
            std::fs::remove_file(&self.0).unwrap();
        }
    }
}

async fn soon<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(LONG, future).await.expect("in time")
}

#[tokio::test]
async fn look_is_said_and_settled_is_heard_by_every_waiter_of_that_request() {
    let socket = Socket::new();
    let listener = UnixListener::bind(&socket.0).unwrap();
    let schedd = Schedd::default();
    let stop = CancellationToken::new();
    let task = tokio::spawn(
        schedd
            .clone()
            .keep_connected(socket.0.clone(), stop.clone()),
    );
    let (mut lines, mut write) = socket.accept(&listener).await;
    schedd.look();
    assert_eq!(
        soon(lines.next_line()).await.unwrap().as_deref(),
        Some("look")
    );
    let waiters = [schedd.waiter(RequestId(7)), schedd.waiter(RequestId(7))];
    let other = schedd.waiter(RequestId(8));
    write
        .write_all(b"nonsense\nsettled x\nsettled 7\n")
        .await
        .unwrap();
    for waiter in &waiters {
        soon(waiter.bell.notified()).await;
    }
    let heard = tokio::time::timeout(Duration::ZERO, other.bell.notified()).await;
    assert!(heard.is_err(), "another request's waiter was woken");
    stop.cancel();
    soon(task).await.unwrap();
}

#[tokio::test]
async fn a_settlement_that_comes_before_anybody_waits_is_not_lost() {
    let schedd = Schedd::default();
    let waiter = schedd.waiter(RequestId(1));
    schedd.hear("settled 1");
    soon(waiter.bell.notified()).await;
}

#[tokio::test]
async fn a_look_without_a_line_is_said_once_there_is_one_and_waiters_are_woken() {
    let socket = Socket::new();
    let schedd = Schedd::default();
    let stop = CancellationToken::new();
    schedd.look();
    schedd.look();
    let waiter = schedd.waiter(RequestId(1));
    let task = tokio::spawn(
        schedd
            .clone()
            .keep_connected(socket.0.clone(), stop.clone()),
    );
    let listener = UnixListener::bind(&socket.0).unwrap();
    let (mut lines, write) = socket.accept(&listener).await;
    assert_eq!(
        soon(lines.next_line()).await.unwrap().as_deref(),
        Some("look")
    );
    soon(waiter.bell.notified()).await;
    // schedd restarts: the next connection works like the first.
    drop((lines, write));
    let (mut lines, _write) = socket.accept(&listener).await;
    schedd.look();
    assert_eq!(
        soon(lines.next_line()).await.unwrap().as_deref(),
        Some("look")
    );
    stop.cancel();
    soon(task).await.unwrap();
}

#[tokio::test]
async fn nothing_is_kept_of_waiters_that_went_away() {
    let schedd = Schedd::default();
    let first = schedd.waiter(RequestId(1));
    let second = schedd.waiter(RequestId(1));
    drop(first);
    schedd.hear("settled 1");
    soon(second.bell.notified()).await;
    drop(second);
    assert!(schedd.shared.waiters().is_empty());
}
