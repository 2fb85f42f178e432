//! Simulated workers for a benchmark, in a process of their own so that their CPU is nobody else's.
//!
//! `bench-workers ADDRESS COUNT`: on that address of this machine. Prints the path of the pool's private key, then `PORT HOST_KEY` of each worker; runs until it is
//! killed, and leaves its files in TMPDIR.
#![allow(
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a fault in a benchmark ends it"
)]

use orion_testkit::Workers;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let address = arguments.next().and_then(|address| address.parse().ok());
    let count = arguments.next().and_then(|count| count.parse().ok());
    let workers = Workers::listening_on(
        address.expect("an IPv4 address"),
        count.expect("how many workers"),
    );
    println!("{}", workers.pool_key().display());
    for worker in workers.all() {
        println!("{} {}", worker.port(), worker.host_key());
    }
    println!("ready");
    loop {
        std::thread::park();
    }
}
