use crate::support::Plane;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Longer than any limit of a listener.
const PATIENCE: Duration = Duration::from_secs(40);

/// Reads until the connection ends; a reset counts as an end.
async fn rest_of(stream: &mut TcpStream) -> String {
    let mut all = Vec::new();
    let read = async {
        let mut chunk = [0; 4096];
        while let Ok(length @ 1..) = stream.read(&mut chunk).await {
            all.extend_from_slice(&chunk[..length]);
        }
    };
    tokio::time::timeout(PATIENCE, read)
        .await
        .expect("the connection ends");
    String::from_utf8_lossy(&all).into_owned()
}

async fn connect(plane: &Plane) -> TcpStream {
    let address: SocketAddr = plane.daemon.address("clients").await;
    TcpStream::connect(address).await.expect("a connection")
}

async fn still_serves(plane: &Plane) {
    assert_eq!(plane.clients.get("/api/health").await.status, 200);
}

#[tokio::test]
async fn a_header_that_never_ends_gets_431_or_a_closed_connection() {
    let plane = Plane::start().await;
    let mut stream = connect(&plane).await;
    stream
        .write_all(b"GET /api/health HTTP/1.1\r\nx: ")
        .await
        .expect("written");
    let flood = tokio::spawn(async move {
        let filler = [b'a'; 8192];
        for _ in 0..4096 {
            if stream.write_all(&filler).await.is_err() {
                break;
            }
        }
        rest_of(&mut stream).await
    });
    let answer = tokio::time::timeout(PATIENCE, flood)
        .await
        .expect("in time")
        .expect("no panic");
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 431"),
        "{answer}"
    );
    still_serves(&plane).await;
}

#[tokio::test]
async fn a_client_that_never_finishes_its_head_is_disconnected() {
    let plane = Plane::start().await;
    let mut slow = connect(&plane).await;
    slow.write_all(b"GET /api/health HTTP/1.1\r\nhost: x\r\n")
        .await
        .expect("written");
    let mut silent = connect(&plane).await;
    let (slow, silent) = tokio::join!(rest_of(&mut slow), rest_of(&mut silent));
    assert!(slow.is_empty() || slow.starts_with("HTTP/1.1 4"), "{slow}");
    assert!(silent.is_empty(), "{silent}");
    still_serves(&plane).await;
}

#[tokio::test]
async fn too_many_header_lines_are_431() {
    let plane = Plane::start().await;
    let mut stream = connect(&plane).await;
    let lines: String = (0..200)
        .map(|number| format!("x-{number}: y\r\n"))
        .collect();
    let head = format!("GET /api/health HTTP/1.1\r\nhost: x\r\n{lines}\r\n");
    stream.write_all(head.as_bytes()).await.expect("written");
    let answer = rest_of(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
}

async fn send_huge(plane: &Plane, head: &str, chunk: &[u8]) -> String {
    let stream = connect(plane).await;
    let (mut read, mut write) = stream.into_split();
    write.write_all(head.as_bytes()).await.expect("written");
    let chunk = chunk.to_vec();
    // As a simple client does: everything is sent before anything is read, and a broken pipe ends it without an answer.
    for _ in 0..160 {
        write
            .write_all(&chunk)
            .await
            .expect("the body is still read");
    }
    let mut answer = vec![0; 4096];
    let read = tokio::time::timeout(PATIENCE, read.read(&mut answer))
        .await
        .expect("in time");
    let length = read.expect("an answer and no reset");
    String::from_utf8_lossy(&answer[..length]).into_owned()
}

#[tokio::test]
async fn a_body_of_10_mb_is_413_whether_its_length_was_declared_or_not() {
    let plane = Plane::start().await;
    let filler = vec![b'a'; 64 * 1024];
    let head = format!(
        "POST /auth/login HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        filler.len() * 160
    );
    let answer = send_huge(&plane, &head, &filler).await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    assert!(answer.contains("body_too_large"), "{answer}");
    let head = "POST /auth/login HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n";
    let mut chunk = b"10000\r\n".to_vec();
    chunk.extend_from_slice(&filler);
    chunk.extend_from_slice(b"\r\n");
    let answer = send_huge(&plane, head, &chunk).await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    still_serves(&plane).await;
}

#[tokio::test]
async fn a_refused_caller_with_a_large_body_still_gets_the_answer() {
    let plane = Plane::start().await;
    let filler = vec![b'a'; 64 * 1024];
    let head = format!(
        "POST /api/rent HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        filler.len() * 160
    );
    let answer = send_huge(&plane, &head, &filler).await;
    assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
}

#[tokio::test]
async fn a_body_that_does_not_arrive_is_408() {
    let plane = Plane::start().await;
    let mut stream = connect(&plane).await;
    let head = "POST /auth/login HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 50\r\n\r\n{\"user";
    stream.write_all(head.as_bytes()).await.expect("written");
    let answer = rest_of(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    assert!(answer.contains("request_timeout"), "{answer}");
    still_serves(&plane).await;
}

#[tokio::test]
async fn who_asks_before_sending_too_much_is_answered_without_being_invited() {
    let plane = Plane::start().await;
    let mut stream = connect(&plane).await;
    let head = "POST /auth/login HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\
                expect: 100-continue\r\ncontent-length: 10000000\r\n\r\n";
    stream.write_all(head.as_bytes()).await.expect("written");
    let start = Instant::now();
    let answer = rest_of(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    // Nobody waits for a body that was not asked for.
    assert!(
        start.elapsed() < Duration::from_secs(4),
        "{:?}",
        start.elapsed()
    );
}
