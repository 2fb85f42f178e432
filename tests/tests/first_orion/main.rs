//! Defects of the first Orion, each shown not to be here.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "helpers of tests"
)]

mod ending;
mod moving;
mod trust;

use orion_testkit::{Client, PATIENCE, wait_until};
use orion_tests::{Cluster, rent_of};
use serde_json::Value;

/// Rents machines in one request; the rentals' ids.
async fn rent<const COUNT: usize>(client: &Client) -> [Value; COUNT] {
    let count = u32::try_from(COUNT).unwrap();
    let machines = client.post("/api/rent", &rent_of(count)).await;
    let machines = machines.expect(200).json();
    std::array::from_fn(|machine| machines[machine]["rental_id"].clone())
}

async fn release(client: &Client, rental: &Value) {
    let path = format!("/api/release/{rental}");
    client.post_empty(&path).await.expect(200);
}

/// Waits until a statement answers this.
async fn until(cluster: &Cluster, what: &str, statement: &str, answer: &str) {
    wait_until(what, PATIENCE, || {
        let said = cluster.db.sql_one(statement);
        if said == answer { Ok(()) } else { Err(said) }
    })
    .await;
}

async fn until_rental_is(cluster: &Cluster, rental: &Value, state: &str) {
    let statement = format!("SELECT state FROM rentals WHERE id = {rental}");
    until(
        cluster,
        &format!("rental {rental} is {state}"),
        &statement,
        state,
    )
    .await;
}

/// The rental's time is over, by the database's clock.
fn time_is_over(cluster: &Cluster, rental: &Value) {
    cluster.db.sql(&format!(
        "UPDATE rentals SET leased_from = leased_from - INTERVAL 3 HOUR, leased_until = UTC_TIMESTAMP(6) WHERE id = {rental}"
    ));
}
