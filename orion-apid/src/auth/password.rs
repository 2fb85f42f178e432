//! Users' passwords: PBKDF2-HMAC-SHA256 as PHC strings, off the async threads, never more at once than processors.

use std::sync::Arc;

use orion_core::{Password, ProblemCode};
use pbkdf2::password_hash::{PasswordHasher as _, PasswordVerifier as _};
use pbkdf2::phc::PasswordHash;
use pbkdf2::{Algorithm, Params, Pbkdf2};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::Semaphore;

use crate::http::problem::Failure;

/// The OWASP figure for PBKDF2-HMAC-SHA256; a check takes about 60 ms.
pub const ROUNDS: u32 = 600_000;

/// Made with the current rounds and a password that nobody has: checked when a user is unknown, so that the answer
/// takes as long as for a known one.
const NOBODY: &str = "$pbkdf2-sha256$i=600000,l=32$b3Jpb24gbm9ib2R5IHNhbHQ$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

/// What checking a password told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It is another one, or there is no such user.
    Wrong,
    /// It is the one.
    Right,
    /// It is the one, and its hash should be replaced by this one, which has the current rounds.
    Outdated(String),
}

/// Hashes and checks passwords with a bound on what runs and on what waits.
#[derive(Debug)]
pub struct PasswordHasher {
    /// One permit for each processor.
    running: Arc<Semaphore>,
    /// One permit for each that runs or waits.
    admitted: Arc<Semaphore>,
    waiting: Gauge,
    refused: Counter,
}

impl PasswordHasher {
    /// At most `queue` passwords wait beside those being hashed; `waiting` and `refused` show it.
    pub fn new(queue: usize, waiting: Gauge, refused: Counter) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            running: Arc::new(Semaphore::new(processors)),
            admitted: Arc::new(Semaphore::new(processors.saturating_add(queue))),
            waiting,
            refused,
        }
    }

    /// Makes the PHC string of a new password.
    ///
    /// # Errors
    /// `too_many_requests` where the queue is full.
    pub async fn hash(&self, password: Password) -> Result<String, Failure> {
        self.run(move || hash(&password)).await
    }

    /// Checks a password against a user's PHC string; `None` for a user who does not exist, who takes as long.
    ///
    /// # Errors
    /// `too_many_requests` where the queue is full; `internal` where the stored string is none of ours.
    pub async fn check(
        &self,
        password: Password,
        stored: Option<String>,
    ) -> Result<Verdict, Failure> {
        self.run(move || check(&password, stored.as_deref())).await
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        let Ok(admitted) = Arc::clone(&self.admitted).try_acquire_owned() else {
            self.refused.inc();
            let detail = "too many passwords are being checked; try again soon";
            return Err(Failure::new(ProblemCode::TooManyRequests, detail).retry_after(2));
        };
        let waiting = Waiting::new(self.waiting.clone());
        let running = Arc::clone(&self.running)
            .acquire_owned()
            .await
            .map_err(Failure::internal)?;
        drop(waiting);
        // The permits go along: the work can't be cancelled, so it counts until it is done.
        let task = tokio::task::spawn_blocking(move || {
            let result = work();
            drop((running, admitted));
            result
        });
        task.await.map_err(Failure::internal)?
    }
}

/// Counts itself for as long as it lives.
struct Waiting(Gauge);

impl Waiting {
    fn new(gauge: Gauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.dec();
    }
}

fn hash(password: &Password) -> Result<String, Failure> {
    let params = Params::new(ROUNDS).map_err(unusable)?;
    let hashed = Pbkdf2::new(Algorithm::Pbkdf2Sha256, params)
        .hash_password(password.expose().as_bytes())
        .map_err(unusable)?;
    Ok(hashed.to_string())
}

fn check(password: &Password, stored: Option<&str>) -> Result<Verdict, Failure> {
    let parsed = PasswordHash::new(stored.unwrap_or(NOBODY)).map_err(unusable)?;
    let matches = Pbkdf2::default().verify_password(password.expose().as_bytes(), &parsed);
    match (matches, stored) {
        (Ok(()), Some(_)) => {}
        (Err(pbkdf2::password_hash::Error::PasswordInvalid), _) | (Ok(()), None) => {
            return Ok(Verdict::Wrong);
        }
        (Err(error), _) => return Err(unusable(error)),
    }
    let params = Params::try_from(&parsed).map_err(unusable)?;
    let current = parsed.algorithm.as_str() == Algorithm::PBKDF2_SHA256_ID;
    if current && params.rounds() >= ROUNDS {
        return Ok(Verdict::Right);
    }
    hash(password).map(Verdict::Outdated)
}

fn unusable(error: impl std::fmt::Display) -> Failure {
    Failure::internal(format!("a password hash can't be made or read: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hasher(queue: usize) -> (PasswordHasher, Gauge, Counter) {
        let (waiting, refused) = (Gauge::default(), Counter::default());
        let hasher = PasswordHasher::new(queue, waiting.clone(), refused.clone());
        (hasher, waiting, refused)
    }

    #[test]
    fn a_hash_is_a_phc_string_with_600000_rounds_and_a_salt_of_its_own() {
        let password = Password::given("correct horse");
        let (first, second) = (hash(&password).unwrap(), hash(&password).unwrap());
        assert!(
            first.starts_with("$pbkdf2-sha256$i=600000,l=32$"),
            "{first}"
        );
        assert_ne!(first, second);
        assert_eq!(check(&password, Some(&first)).unwrap(), Verdict::Right);
        let other = Password::given("correct horsf");
        assert_eq!(check(&other, Some(&first)).unwrap(), Verdict::Wrong);
    }

    #[test]
    fn an_unknown_user_is_checked_like_a_known_one() {
        let parsed = PasswordHash::new(NOBODY).unwrap();
        assert_eq!(Params::try_from(&parsed).unwrap().rounds(), ROUNDS);
        let verdict = check(&Password::given(""), None).unwrap();
        assert_eq!(verdict, Verdict::Wrong);
    }

    #[test]
    fn fewer_rounds_than_today_are_replaced_at_the_next_login() {
        let params = Params::new(1000).unwrap();
        let old = Pbkdf2::new(Algorithm::Pbkdf2Sha256, params);
        let old = old.hash_password(b"correct horse").unwrap().to_string();
        let password = Password::given("correct horse");
        let Verdict::Outdated(new) = check(&password, Some(&old)).unwrap() else {
            panic!("not replaced");
        };
        assert_eq!(check(&password, Some(&new)).unwrap(), Verdict::Right);
        assert_eq!(
            check(&Password::given("x"), Some(&old)).unwrap(),
            Verdict::Wrong
        );
    }

    #[test]
    fn a_stored_text_that_is_no_hash_is_a_fault_of_ours() {
        let failure = check(&Password::given("x"), Some("plain")).unwrap_err();
        assert_eq!(failure.code, ProblemCode::Internal);
    }

    #[tokio::test]
    async fn beyond_the_queue_the_answer_is_429_and_the_queue_empties_again() {
        let (hasher, waiting, refused) = hasher(1);
        let hasher = Arc::new(hasher);
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..processors + 2 {
            let hasher = Arc::clone(&hasher);
            tasks.spawn(async move { hasher.hash(Password::given("x")).await });
        }
        let mut outcomes = Vec::new();
        while let Some(outcome) = tasks.join_next().await {
            outcomes.push(outcome.unwrap().map_err(|failure| failure.code));
        }
        let full = outcomes
            .iter()
            .filter(|o| **o == Err(ProblemCode::TooManyRequests))
            .count();
        assert_eq!((full, refused.get(), waiting.get()), (1, 1, 0));
        assert!(hasher.hash(Password::given("x")).await.is_ok());
    }
}
