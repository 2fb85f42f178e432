//! The store against a model: random sequences of everything that can happen to it, on a real MariaDB, with simulated
//! workers that act on what runs ask for, late, twice, or not at all. After each step the rules of DESIGN 5 and 6 are
//! checked, in the rows and on the workers; at the end everything is driven to rest, and accounts on workers must equal
//! live rentals.
//!
//! A failing case is shrunk and printed with its seed. Again, and only that one:
//!
//! ```text
//! ORION_MODEL_SEED=<64 hexadecimal digits> cargo nextest run -p orion-store random
//! ```
//!
//! `Both` runs two steps at once, so a replay may need several tries: `ORION_MODEL_REPEAT=50`. Longer runs:
//! `ORION_MODEL_SECONDS=3600` (45 without it); longer cases: `ORION_MODEL_STEPS=200` (up to 80 without it).
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "a test and its helpers"
)]

mod apply;
mod case;
mod rest;
mod step;
#[path = "../support/mod.rs"]
mod support;
mod world;

use case::{Case, Tally};
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};
use std::cell::RefCell;
use std::time::{Duration, Instant};
use step::Step;
use support::Bed;
use tokio::runtime::Runtime;

const DEFAULT_SECONDS: u64 = 45;
const DEFAULT_STEPS: usize = 80;

/// Unoptimised futures and generators are large.
const STACK_BYTES: usize = 32 << 20;

#[test]
fn the_rules_hold_whatever_happens_at_random() {
    let thread = std::thread::Builder::new().stack_size(STACK_BYTES);
    let cases = thread.spawn(cases).unwrap();
    if let Err(panic) = cases.join() {
        std::panic::resume_unwind(panic);
    }
}

fn cases() {
    let runtime = Runtime::new().unwrap();
    let bed = runtime.block_on(Bed::new());
    let tally = RefCell::new(Tally::default());
    if let Ok(seed) = std::env::var("ORION_MODEL_SEED") {
        for _ in 0..variable("ORION_MODEL_REPEAT", 1) {
            one_case(&runtime, &bed, &seed, &tally);
        }
        eprintln!("{:?}", tally.borrow());
        return;
    }
    let limit = Duration::from_secs(variable("ORION_MODEL_SECONDS", DEFAULT_SECONDS));
    let start = Instant::now();
    while start.elapsed() < limit {
        let seed: String = (0..4).map(|_| format!("{:016x}", random())).collect();
        one_case(&runtime, &bed, &seed, &tally);
    }
    let tally = tally.into_inner();
    eprintln!("{tally:?}");
    tally.was_worth_it();
}

/// Generates, runs and, when it fails, shrinks the case of a seed.
fn one_case(runtime: &Runtime, bed: &Bed, seed: &str, tally: &RefCell<Tally>) {
    let config = Config {
        cases: 1,
        failure_persistence: None,
        max_shrink_iters: 400,
        max_shrink_time: 120_000,
        ..Config::default()
    };
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes(seed));
    let most = usize::try_from(variable("ORION_MODEL_STEPS", 0))
        .unwrap()
        .max(DEFAULT_STEPS);
    let strategy = (2..=5_u32, proptest::collection::vec(step::any(), 30..=most));
    let result = TestRunner::new_with_rng(config, rng).run(&strategy, |(workers, steps)| {
        let run = runtime.block_on(run(bed, workers, &steps, tally));
        run.map_err(TestCaseError::fail)
    });
    match result {
        Ok(()) => tally.borrow_mut().cases += 1,
        Err(TestError::Fail(reason, (workers, steps))) => {
            panic!("ORION_MODEL_SEED={seed}\n{workers} workers, {steps:#?}\n{reason}")
        }
        Err(TestError::Abort(reason)) => panic!("ORION_MODEL_SEED={seed}: {reason}"),
    }
}

async fn run(
    bed: &Bed,
    workers: u32,
    steps: &[Step],
    tally: &RefCell<Tally>,
) -> Result<(), String> {
    let case = Case::start(bed, workers).await?;
    let result = async {
        for (number, step) in steps.iter().enumerate() {
            let done = match case.apply(step).await {
                Ok(()) => case.check().await,
                Err(error) => Err(error),
            };
            done.map_err(|error| format!("step {number}, {step:?}: {error}"))?;
        }
        rest::reach(&case)
            .await
            .map_err(|error| format!("at rest: {error}"))
    };
    let result = result.await;
    let moved = "SELECT COUNT(*) FROM events WHERE kind = 'rental_moved'";
    case.shared().tally.moved = case.number(moved).await?;
    let drained = format!("{moved} AND detail LIKE '%drained%'");
    case.shared().tally.drained = case.number(&drained).await?;
    tally.borrow_mut().add(&case.tally(), steps.len());
    result
}

fn variable(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .map_or(default, |text| text.parse().expect(name))
}

fn bytes(seed: &str) -> Vec<u8> {
    assert_eq!(seed.len(), 64, "a seed has 64 hexadecimal digits");
    (0..32)
        .map(|at| u8::from_str_radix(&seed[2 * at..2 * at + 2], 16).expect("hexadecimal"))
        .collect()
}

fn random() -> u64 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    RandomState::new().build_hasher().finish()
}
