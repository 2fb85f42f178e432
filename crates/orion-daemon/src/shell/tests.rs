use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;
use crate::config::Faults;
use crate::log::LogSettings;
use crate::ops::{OpsPages, OpsSettings};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;

#[derive(Clone, Serialize, Deserialize)]
struct Sample {
    log: LogSettings,
    ops: OpsSettings,
}

impl Default for Sample {
    fn default() -> Self {
        Self {
            log: LogSettings::default(),
            ops: OpsSettings::on_port(0),
        }
    }
}

impl Settings for Sample {
    const NAME: &'static str = "orion-sample";

    fn check(&self, _faults: &mut Faults) {}

    fn log(&self) -> &LogSettings {
        &self.log
    }

    fn ops(&self) -> &OpsSettings {
        &self.ops
    }
}

/// Settings of a daemon whose ops listener may wait for its address.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(transparent)]
struct Patient(Sample);

impl Settings for Patient {
    const NAME: &'static str = Sample::NAME;
    const OPS_MAY_WAIT: bool = true;

    fn check(&self, _faults: &mut Faults) {}

    fn log(&self) -> &LogSettings {
        &self.0.log
    }

    fn ops(&self) -> &OpsSettings {
        &self.0.ops
    }
}

async fn start(components: &[&str], pages: OpsPages) -> Shell {
    Shell::start(&Sample::default(), components, pages)
        .await
        .expect("started")
}

async fn ask(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.expect("connected");
    let head = format!("{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("read");
    answer
}

const LONG: Duration = Duration::from_secs(60);

#[tokio::test]
async fn the_ops_listener_answers_at_once_and_says_what_is_missing() {
    let shell = start(&["database"], OpsPages::default()).await;
    let ops = shell.ops_addr();
    assert!(ask(ops, "GET /livez").await.starts_with("HTTP/1.1 200"));
    shell
        .ready()
        .set_not_ready("database", "connection refused");
    let answer = ask(ops, "GET /readyz").await;
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    assert!(
        answer.contains(r#"{"reasons":{"database":"connection refused"},"status":"not ready"}"#),
        "{answer}"
    );
    shell.ready().set_ready("database");
    assert!(ask(ops, "GET /readyz").await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn metrics_and_a_daemons_own_pages_are_shown_and_nothing_else() {
    let mut registry = Registry::default();
    let counter: Counter = Counter::default();
    registry.register("rents", "Rents answered", counter.clone());
    let pages =
        OpsPages::new(registry).page("/jobs", || async { serde_json::json!([{"job": "expire"}]) });
    let shell = start(&[], pages).await;
    counter.inc_by(3);
    let ops = shell.ops_addr();
    assert!(ask(ops, "GET /metrics").await.contains("rents_total 3"));
    assert!(
        ask(ops, "GET /jobs")
            .await
            .contains(r#"[{"job":"expire"}]"#)
    );
    assert!(ask(ops, "GET /other").await.starts_with("HTTP/1.1 404"));
    let refused = ask(ops, "POST /jobs").await;
    assert!(
        refused.starts_with("HTTP/1.1 405") && refused.contains("allow: GET, HEAD"),
        "{refused}"
    );
}

#[tokio::test]
async fn tracked_tasks_are_waited_for_when_the_body_ends() {
    let shell = start(&[], OpsPages::default()).await;
    let ready = shell.ready().clone();
    let (shutdown, ops) = (shell.shutdown(), shell.ops_addr());
    let (tell, told) = tokio::sync::oneshot::channel();
    shell.tracker().spawn(async move {
        shutdown.cancelled().await;
        while ready.is_ready() {
            tokio::task::yield_now().await;
        }
        // The listener still answers while the daemon drains.
        let answer = ask(ops, "GET /readyz").await;
        tell.send(answer).expect("somebody waits");
    });
    shell.run(LONG, async { Ok(()) }).await.expect("drained");
    let answer = told.await.expect("the task ran to its end");
    assert!(
        answer.starts_with("HTTP/1.1 503") && answer.contains("stopping"),
        "{answer}"
    );
}

#[tokio::test]
async fn a_daemon_that_does_not_drain_is_stopped_hard() {
    let shell = start(&[], OpsPages::default()).await;
    shell.shutdown().cancel();
    let error = shell
        .run(Duration::from_millis(50), std::future::pending())
        .await;
    assert!(
        error
            .expect_err("not drained")
            .to_string()
            .contains("not drained")
    );
}

#[tokio::test]
async fn a_vital_task_that_ends_fails_or_panics_stops_the_daemon() {
    for (how, expected) in [(0, "ended by itself"), (1, "failed"), (2, "panicked")] {
        let shell = start(&[], OpsPages::default()).await;
        shell.vital("the loop", async move {
            assert_ne!(how, 2, "asked for");
            if how == 1 {
                Err(anyhow::anyhow!("why"))
            } else {
                Ok(())
            }
        });
        let shutdown = shell.shutdown();
        let body = async move {
            shutdown.cancelled().await;
            Ok(())
        };
        let error = shell.run(LONG, body).await.expect_err("the task is vital");
        assert!(format!("{error:#}").contains(expected), "{error:#}");
    }
}

#[tokio::test]
async fn a_vital_task_may_end_once_the_daemon_stops() {
    let shell = start(&[], OpsPages::default()).await;
    let shutdown = shell.shutdown();
    shell.vital("the loop", async move {
        shutdown.cancelled().await;
        Ok(())
    });
    shell.run(LONG, async { Ok(()) }).await.expect("a good end");
}

#[tokio::test]
async fn an_ops_address_that_is_taken_is_an_error_unless_it_may_be_waited_for() {
    let taken = std::net::TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)).expect("bound");
    let listen = taken.local_addr().expect("address");
    let sample = Sample {
        ops: OpsSettings { listen },
        ..Sample::default()
    };
    let error = Shell::start(&sample, &[], OpsPages::default()).await;
    assert!(matches!(error, Err(ShellError::Listen(address, _)) if address == listen));
    let shell = Shell::start(&Patient(sample), &[], OpsPages::default())
        .await
        .expect("started");
    drop(taken);
    let answers = async {
        while TcpStream::connect(listen).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        ask(listen, "GET /livez").await
    };
    let answer = tokio::time::timeout(LONG, answers).await.expect("in time");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    drop(shell);
}
