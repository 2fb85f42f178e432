//! scratch
#![allow(clippy::unwrap_used, missing_docs, clippy::print_stdout, clippy::indexing_slicing)]
mod support;
use orion_core::*;
use orion_store::*;
use std::process::Command;
use std::time::{Duration, Instant};
use support::Bed;
use tokio::io::AsyncWriteExt;

fn sh(cmd: &str) -> String {
    String::from_utf8(Command::new("sh").args(["-c", cmd]).output().unwrap().stdout).unwrap().trim().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn measure() {
    let count: usize = std::env::var("MEASURE").unwrap().parse().unwrap();
    let bed = Bed::new(0).await;
    let mut plan = bed.plan();
    plan.playbook_command = "/usr/bin/ansible-playbook".into();
    plan.playbooks_dir = "/work/main/playbooks".into();
    let public = std::fs::read_to_string(bed.workers.pool_key().with_extension("pub")).unwrap();
    let daemon = bed.start(&plan);
    daemon.ready().await;
    for i in 1..=count {
        let ip = sh(&format!("docker inspect -f '{{{{.NetworkSettings.IPAddress}}}}' osd{i}"));
        sh(&format!("docker exec osd{i} sh -c \"echo '{}' >> /home/orion-node/.ssh/authorized_keys; rm -rf /var/lib/orion-node/*\"", public.trim()));
        let key = sh(&format!("docker exec osd{i} cat /etc/ssh/ssh_host_ed25519_key.pub"));
        let address = Address { host: ip, port: 22 };
        let name = HostName::parse(&format!("osd{i}")).unwrap();
        bed.store.register(&Registration { hostname: &name, client: address.clone(), contact: address, host_keys: &[key], agent: None }).await.unwrap();
    }
    bed.ready_nodes(count).await;
    println!("ready; load {}", sh("cat /proc/loadavg"));
    let mut look = tokio::net::UnixStream::connect(bed.notify_socket(&plan)).await.unwrap();
    let mut times = Vec::new();
    for _ in 0..7 {
        let start = Instant::now();
        let request = bed.rent(1).await;
        look.write_all(b"look\n").await.unwrap();
        let view = wait(&bed, request).await;
        times.push(start.elapsed().as_millis());
        for rental in &view.rentals { bed.release(rental.id).await; }
        bed.ready_nodes(count).await;
    }
    times.sort_unstable();
    println!("one rent ms {times:?} load {}", sh("cat /proc/loadavg"));
    if count < 20 { return; }
    for _ in 0..3 {
        let start = Instant::now();
        let mut requests = Vec::new();
        for _ in 0..count {
            requests.push(bed.rent(1).await);
            look.write_all(b"look\n").await.unwrap();
        }
        let queued = start.elapsed();
        let mut rentals = Vec::new();
        for request in requests { rentals.extend(wait(&bed, request).await.rentals); }
        println!("{count} rents: queued {queued:?} all {:?} load {}", start.elapsed(), sh("cat /proc/loadavg"));
        for rental in &rentals { bed.release(rental.id).await; }
        bed.ready_nodes(count).await;
        println!("clean after {:?}", start.elapsed());
    }
    let log: Vec<String> = daemon.log_lines().into_iter().filter(|l| l.contains("play ended") || l.contains("a play starts")).collect();
    println!("{}", log.join("\n"));
    if std::env::var("PSS").is_ok() {
        tokio::time::sleep(Duration::from_secs(60)).await;
        println!("{}", sh(&format!("cat /proc/{}/smaps_rollup", daemon.pid())));
    }
}

async fn wait(bed: &Bed, request: RequestId) -> RequestView {
    loop {
        let view = bed.store.request(request).await.unwrap().unwrap();
        if view.state != RequestState::Open { assert_eq!(view.state, RequestState::Active, "{view:?}"); return view; }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
