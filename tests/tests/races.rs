//! Many clients of two orion-apid at once. `ORION_RACE_ROUNDS` changes the number of rounds.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "helpers of tests"
)]

use orion_testkit::{Answer, Client};
use orion_tests::{Cluster, Plan, rent_of};
use std::time::Instant;

fn rounds(default: u32) -> u32 {
    let rounds = std::env::var("ORION_RACE_ROUNDS").ok();
    rounds.map_or(default, |text| text.parse().unwrap())
}

/// Clients of 8 users, at both orion-apid in turn.
async fn clients(cluster: &Cluster, count: usize) -> Vec<Client> {
    let mut users = Vec::new();
    for number in 0..count.min(8) {
        users.push(cluster.user(&format!("user{number}")).await);
    }
    let mut clients = Vec::new();
    for number in 0..count {
        let apid = &cluster.apids[number % cluster.apids.len()];
        clients.push(users[number % users.len()].at(apid.address("clients").await));
    }
    clients
}

async fn rent_at_once(clients: &[Client], count: u32) -> Vec<(usize, Answer)> {
    let all: Vec<_> = clients
        .iter()
        .map(|client| {
            let client = client.clone();
            tokio::spawn(async move { client.post("/api/rent", &rent_of(count)).await })
        })
        .collect();
    let mut answers = Vec::new();
    for (number, one) in all.into_iter().enumerate() {
        answers.push((number, one.await.unwrap()));
    }
    answers
}

/// Releases every machine of the answers that brought some, each by its user; returns how many answers did.
async fn release(clients: &[Client], answers: &[(usize, Answer)]) -> usize {
    let mut won = 0;
    for (number, answer) in answers {
        if answer.status == 200 {
            won += 1;
            for machine in answer.json().as_array().unwrap() {
                let path = format!("/api/release/{}", machine["rental_id"]);
                clients[*number].post_empty(&path).await.expect(200);
            }
        } else {
            assert_eq!(
                (answer.status.as_u16(), answer.code().as_str()),
                (503, "no_free_node"),
                "{answer}"
            );
            assert!(answer.headers.contains_key("retry-after"), "{answer}");
        }
    }
    won
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn in_a_race_of_64_clients_for_5_nodes_5_win() {
    let plan = Plan {
        apids: 2,
        ..Plan::workers(5)
    };
    let cluster = Cluster::start(plan).await;
    let clients = clients(&cluster, 64).await;
    let (start, rounds) = (Instant::now(), rounds(200));
    for round in 0..rounds {
        let answers = rent_at_once(&clients, 1).await;
        let machines: usize = cluster.workers.accounts().len();
        assert_eq!(machines, 5, "round {round}: accounts on workers");
        let won = release(&clients, &answers).await;
        assert_eq!(won, 5, "round {round}");
        cluster.ready_nodes(5).await;
        assert_eq!(cluster.at_rest().await, 0, "round {round}");
    }
    eprintln!("{rounds} rounds in {} s", start.elapsed().as_secs());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn in_a_race_of_2_clients_for_both_of_2_nodes_exactly_one_wins() {
    let plan = Plan {
        apids: 2,
        ..Plan::workers(2)
    };
    let cluster = Cluster::start(plan).await;
    let clients = clients(&cluster, 2).await;
    let (start, rounds) = (Instant::now(), rounds(1_000));
    for round in 0..rounds {
        let answers = rent_at_once(&clients, 2).await;
        let won = release(&clients, &answers).await;
        assert_eq!(won, 1, "round {round}");
        cluster.ready_nodes(2).await;
    }
    assert_eq!(cluster.at_rest().await, 0);
    eprintln!("{rounds} rounds in {} s", start.elapsed().as_secs());
}
