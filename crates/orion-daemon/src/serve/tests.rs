use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Notify;

use super::*;

struct Server {
    address: SocketAddr,
    shutdown: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

async fn server<H, Fut>(limits: Limits, handler: H) -> Server
where
    H: Fn(String) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = &'static str> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let address = listener.local_addr().expect("address");
    let shutdown = CancellationToken::new();
    let answer = move |request: Request<Incoming>, _peer| {
        let body = handler(request.uri().path().to_owned());
        async move { Response::new(Full::<Bytes>::from(body.await)) }
    };
    let task = tokio::spawn(serve(listener, answer, limits, shutdown.clone()));
    Server {
        address,
        shutdown,
        task,
    }
}

async fn echo(_path: String) -> &'static str {
    "hello"
}

async fn connect(server: &Server) -> TcpStream {
    TcpStream::connect(server.address).await.expect("connected")
}

/// Everything until the server closes.
async fn read_all(stream: &mut TcpStream) -> String {
    let mut text = Vec::new();
    let end = stream.read_to_end(&mut text);
    tokio::time::timeout(Duration::from_secs(20), end)
        .await
        .expect("the server closes")
        .expect("read");
    String::from_utf8_lossy(&text).into_owned()
}

async fn read_until(stream: &mut TcpStream, end: &str) -> String {
    let mut text = String::new();
    while !text.ends_with(end) {
        let mut byte = [0; 1];
        let read = tokio::time::timeout(Duration::from_secs(20), stream.read_exact(&mut byte));
        read.await.expect("in time").expect("more");
        text.push(char::from(byte[0]));
    }
    text
}

async fn send(stream: &mut TcpStream, text: &str) {
    stream.write_all(text.as_bytes()).await.expect("sent");
}

const GET: &str = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";

#[tokio::test]
async fn a_connection_serves_several_requests() {
    let server = server(Limits::default(), echo).await;
    let mut stream = connect(&server).await;
    for _ in 0..3 {
        send(&mut stream, GET).await;
        assert!(
            read_until(&mut stream, "hello")
                .await
                .starts_with("HTTP/1.1 200")
        );
    }
}

#[tokio::test]
async fn a_head_that_is_too_large_or_has_too_many_lines_is_431() {
    let server = server(Limits::default(), echo).await;
    let many = "a: b\r\n".repeat(200);
    let large = format!("a: {}\r\n", "b".repeat(17 * 1024));
    for header in [many, large] {
        let mut stream = connect(&server).await;
        send(
            &mut stream,
            &format!("GET / HTTP/1.1\r\nHost: x\r\n{header}\r\n"),
        )
        .await;
        let answer = read_all(&mut stream).await;
        assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
    }
}

#[tokio::test]
async fn a_head_that_never_ends_is_cut_off_in_time() {
    let limits = Limits {
        header_timeout: Duration::from_millis(100),
        ..Limits::default()
    };
    let server = server(limits, echo).await;
    let mut stream = connect(&server).await;
    send(&mut stream, "GET / HTTP/1.1\r\nHost: x\r\nX-Never").await;
    read_all(&mut stream).await;
    let mut silent = connect(&server).await;
    read_all(&mut silent).await;
}

#[tokio::test]
async fn connections_beyond_the_cap_wait_until_another_ends() {
    let limits = Limits {
        max_connections: 1,
        ..Limits::default()
    };
    let server = server(limits, echo).await;
    let mut first = connect(&server).await;
    send(&mut first, GET).await;
    read_until(&mut first, "hello").await;
    let mut second = connect(&server).await;
    send(&mut second, GET).await;
    let mut byte = [0; 1];
    let early = tokio::time::timeout(Duration::from_millis(200), second.read(&mut byte)).await;
    assert!(
        early.is_err(),
        "the second connection was served while the first was open"
    );
    drop(first);
    let answer = read_until(&mut second, "hello").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[tokio::test]
async fn a_handler_goes_on_when_its_client_hangs_up() {
    let (entered, go, done) = (
        Arc::new(Notify::new()),
        Arc::new(Notify::new()),
        Arc::new(Notify::new()),
    );
    let signals = (Arc::clone(&entered), Arc::clone(&go), Arc::clone(&done));
    let server = server(Limits::default(), move |path| {
        let (entered, go, done) = signals.clone();
        async move {
            if path == "/slow" {
                entered.notify_one();
                go.notified().await;
                done.notify_one();
            }
            "hello"
        }
    })
    .await;
    let mut stream = connect(&server).await;
    send(&mut stream, "GET /slow HTTP/1.1\r\nHost: x\r\n\r\n").await;
    entered.notified().await;
    drop(stream);
    // The server has seen the hang-up by the time it has served somebody else.
    let mut other = connect(&server).await;
    send(&mut other, GET).await;
    read_until(&mut other, "hello").await;
    go.notify_one();
    let finished = tokio::time::timeout(Duration::from_secs(20), done.notified());
    finished.await.expect("the handler ran to its end");
}

#[tokio::test]
async fn a_panic_in_a_handler_is_answered_500_and_hurts_nobody_else() {
    let server = server(Limits::default(), |path| async move {
        assert_ne!(path, "/panic", "asked for");
        "hello"
    })
    .await;
    let mut stream = connect(&server).await;
    send(&mut stream, "GET /panic HTTP/1.1\r\nHost: x\r\n\r\n").await;
    let answer = read_until(&mut stream, "}").await;
    assert!(
        answer.starts_with("HTTP/1.1 500") && answer.contains("application/problem+json"),
        "{answer}"
    );
    send(&mut stream, GET).await;
    read_until(&mut stream, "hello").await;
}

#[tokio::test]
async fn a_stop_lets_a_request_end_closes_idle_connections_and_accepts_no_more() {
    let (entered, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let signals = (Arc::clone(&entered), Arc::clone(&go));
    let server = server(Limits::default(), move |path| {
        let (entered, go) = signals.clone();
        async move {
            if path == "/slow" {
                entered.notify_one();
                go.notified().await;
            }
            "hello"
        }
    })
    .await;
    let mut idle = connect(&server).await;
    send(&mut idle, GET).await;
    read_until(&mut idle, "hello").await;
    let mut busy = connect(&server).await;
    send(&mut busy, "GET /slow HTTP/1.1\r\nHost: x\r\n\r\n").await;
    entered.notified().await;
    server.shutdown.cancel();
    assert_eq!(read_all(&mut idle).await, "");
    assert!(
        TcpStream::connect(server.address).await.is_err(),
        "still accepts"
    );
    assert!(!server.task.is_finished());
    go.notify_one();
    let answer = read_all(&mut busy).await;
    assert!(
        answer.starts_with("HTTP/1.1 200") && answer.ends_with("hello"),
        "{answer}"
    );
    server.task.await.expect("ended");
}

#[tokio::test]
async fn a_request_that_outlasts_the_drain_is_cut() {
    let entered = Arc::new(Notify::new());
    let signal = Arc::clone(&entered);
    let limits = Limits {
        drain: Duration::from_millis(100),
        ..Limits::default()
    };
    let server = server(limits, move |_| {
        signal.notify_one();
        std::future::pending()
    })
    .await;
    let mut stream = connect(&server).await;
    send(&mut stream, GET).await;
    entered.notified().await;
    server.shutdown.cancel();
    assert_eq!(read_all(&mut stream).await, "");
    server.task.await.expect("ended");
}

#[tokio::test]
async fn work_of_clients_that_hung_up_counts_against_the_cap() {
    let running = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&running);
    let limits = Limits {
        max_connections: 2,
        ..Limits::default()
    };
    let server = server(limits, move |_| {
        counter.fetch_add(1, Ordering::SeqCst);
        std::future::pending()
    })
    .await;
    for _ in 0..2 {
        let mut stream = connect(&server).await;
        send(&mut stream, GET).await;
    }
    while running.load(Ordering::SeqCst) < 2 {
        tokio::task::yield_now().await;
    }
    let mut third = connect(&server).await;
    send(&mut third, GET).await;
    let mut byte = [0; 1];
    let early = tokio::time::timeout(Duration::from_millis(200), third.read(&mut byte)).await;
    assert!(early.is_err() && running.load(Ordering::SeqCst) == 2);
}
