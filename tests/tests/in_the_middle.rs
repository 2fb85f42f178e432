//! Somebody on the wire between agents and the control plane can delay and drop, and nothing else. A real agent, a real
//! orion-apid, and a real proxy between them.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "helpers of tests"
)]

use orion_testkit::{
    Client, Daemon, DaemonBuilder, PATIENCE, Scratch, wait_until, wait_until_async,
};
use orion_tests::{Cluster, Plan};
use serde_json::json;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// What the proxy does with answers.
type Tamper = Arc<dyn Fn(&[u8], &[Vec<u8>]) -> Option<Vec<u8>> + Send + Sync>;

/// A proxy that sees every byte, one exchange a connection.
#[derive(Clone)]
struct Proxy {
    address: SocketAddr,
    tamper: Arc<Mutex<Tamper>>,
    /// Answers as they came.
    seen: Arc<Mutex<Vec<Vec<u8>>>>,
    tampered: Arc<Mutex<usize>>,
}

fn faithful() -> Tamper {
    Arc::new(|answer, _| Some(answer.to_vec()))
}

impl Proxy {
    async fn start(behind: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let proxy = Self {
            address: listener.local_addr().unwrap(),
            tamper: Arc::new(Mutex::new(faithful())),
            seen: Arc::default(),
            tampered: Arc::default(),
        };
        let running = proxy.clone();
        tokio::spawn(async move {
            while let Ok((agent, _)) = listener.accept().await {
                let proxy = running.clone();
                tokio::spawn(async move { proxy.exchange(agent, behind).await });
            }
        });
        proxy
    }

    async fn exchange(&self, agent: TcpStream, behind: SocketAddr) -> std::io::Result<()> {
        let server = TcpStream::connect(behind).await?;
        let (mut from_agent, mut to_agent) = agent.into_split();
        let (mut from_server, mut to_server) = server.into_split();
        let upwards =
            tokio::spawn(async move { tokio::io::copy(&mut from_agent, &mut to_server).await });
        let mut answer = Vec::new();
        from_server.read_to_end(&mut answer).await?;
        upwards.abort();
        let earlier = self.seen.lock().unwrap().clone();
        let tamper = self.tamper.lock().unwrap().clone();
        let passed = tamper(&answer, &earlier);
        self.seen.lock().unwrap().push(answer.clone());
        if passed.as_ref() != Some(&answer) {
            *self.tampered.lock().unwrap() += 1;
        }
        match passed {
            Some(bytes) => to_agent.write_all(&bytes).await,
            None => Ok(()),
        }
    }

    fn set(&self, tamper: Tamper) {
        *self.tampered.lock().unwrap() = 0;
        *self.tamper.lock().unwrap() = tamper;
    }

    async fn tampered_with(&self, count: usize) {
        wait_until("answers were tampered with", PATIENCE, || {
            let tampered = *self.tampered.lock().unwrap();
            if tampered >= count {
                Ok(())
            } else {
                Err(tampered.to_string())
            }
        })
        .await;
    }
}

fn replaced(from: &'static str, to: &'static str) -> Tamper {
    Arc::new(move |answer, _| {
        let text = String::from_utf8_lossy(answer).replace(from, to);
        Some(text.into_bytes())
    })
}

fn without(header: &'static str) -> Tamper {
    Arc::new(move |answer, _| {
        let text = String::from_utf8_lossy(answer).into_owned();
        let kept = text
            .split("\r\n")
            .filter(|line| !line.to_ascii_lowercase().starts_with(header));
        Some(kept.collect::<Vec<_>>().join("\r\n").into_bytes())
    })
}

/// An agent of the cluster's first worker, which reaches the control plane through the proxy.
async fn agent(cluster: &Cluster, proxy: &Proxy, files: &Scratch) -> Daemon {
    let admin = cluster.admin("chief").await;
    let order = json!({"endpoint": format!("http://{}", proxy.address)});
    let token = admin
        .post("/api/join-tokens", &order)
        .await
        .expect(201)
        .json();
    let worker = &cluster.workers[0];
    files.write_secret("join", token["join_line"].as_str().unwrap());
    files.write_secret("ssh_host_ed25519_key.pub", worker.host_key());
    files.write_secret("state/.keep", "");
    files.write_secret("login/.keep", "");
    let path = |name: &str| files.join(name).display().to_string();
    let config = format!(
        r#"
        join_file = "{join}"
        hostname = "{hostname}"
        host_keys = "{host_keys}"
        state_dir = "{state}"
        login_dir = "{login}"
        [advertise]
        host = "localhost"
        port = {port}
        [ops]
        listen = "127.0.0.1:0"
        [log]
        format = "json"
        "#,
        join = path("join"),
        hostname = worker.hostname(),
        host_keys = path("ssh_host_*_key.pub"),
        state = path("state"),
        login = path("login"),
        port = worker.port(),
    );
    DaemonBuilder::new("orion-agentd", config).start()
}

/// A counter that the agent shows.
async fn counter(agent: &Daemon, name: &str) -> u64 {
    let ops = Client::new(agent.address("ops").await);
    let text = String::from_utf8_lossy(&ops.get("/metrics").await.body).into_owned();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(&format!("{name} ")));
    line.unwrap().parse().unwrap()
}

async fn beats_again(agent: &Daemon) {
    let before = counter(agent, "orion_agent_beats_total").await;
    wait_until_async("beats are answered well", PATIENCE, || async {
        let now = counter(agent, "orion_agent_beats_total").await;
        if now > before {
            Ok(())
        } else {
            Err(now.to_string())
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_man_in_the_middle_can_delay_and_drop_and_nothing_else() {
    let plan = Plan {
        mode: "token",
        ..Plan::workers(1)
    };
    let cluster = Cluster::start(plan).await;
    let proxy = Proxy::start(cluster.apids[0].address("agents").await).await;
    let files = Scratch::new("middle");
    let agent = agent(&cluster, &proxy, &files).await;
    cluster.ready_nodes(1).await;
    beats_again(&agent).await;

    let replay: Tamper = Arc::new(|_, earlier| earlier.last().cloned());
    let attacks: [(&str, Tamper); 6] = [
        (
            "another status",
            replaced("HTTP/1.1 200 OK", "HTTP/1.1 201 OK"),
        ),
        (
            "another body",
            replaced("\"next_beat_s\":5", "\"next_beat_s\":1"),
        ),
        (
            "another key to let in",
            replaced("ssh-ed25519 AAAAC3", "ssh-ed25519 AAAAC4"),
        ),
        ("no signature", without("signature")),
        ("no digest", without("content-digest")),
        ("an old answer", replay),
    ];
    for (what, tamper) in attacks {
        proxy.set(tamper);
        proxy.tampered_with(1).await;
        let before = counter(&agent, "orion_agent_beats_total").await;
        proxy.tampered_with(3).await;
        assert_eq!(
            counter(&agent, "orion_agent_beats_total").await,
            before,
            "{what}: believed"
        );
        proxy.set(faithful());
        beats_again(&agent).await;
    }
    let log = agent.log_lines().join("\n");
    assert!(
        log.contains("not signed") && log.contains("does not fit"),
        "{log}"
    );

    // Dropping is possible, and heals.
    proxy.set(Arc::new(|_, _| None));
    proxy.tampered_with(2).await;
    proxy.set(faithful());
    beats_again(&agent).await;
    cluster.ready_nodes(1).await;
    assert_eq!(cluster.db.sql_one("SELECT COUNT(*) FROM nodes"), "1");
}
