//! Waiting for conditions. Tests never sleep for a fixed time.

use std::fmt::Display;
use std::future::Future;
use std::time::{Duration, Instant};

/// How long tests wait for what should come soon: long, since a loaded machine is slow, and only a failure waits it out.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until `condition` is `Ok`, looking again after 10 to 100 ms. After `limit` it panics with `what` and the last
/// `Err`, which says what was seen instead.
///
/// `condition` runs on the calling thread and may block briefly.
pub async fn wait_until<T, E: Display>(
    what: &str,
    limit: Duration,
    mut condition: impl FnMut() -> Result<T, E>,
) -> T {
    wait_until_async(what, limit, || std::future::ready(condition())).await
}

/// [`wait_until`] for a condition that needs to await something.
pub async fn wait_until_async<T, E, F>(
    what: &str,
    limit: Duration,
    mut condition: impl FnMut() -> F,
) -> T
where
    E: Display,
    F: Future<Output = Result<T, E>>,
{
    let start = Instant::now();
    let mut pause = Duration::from_millis(10);
    loop {
        match condition().await {
            Ok(value) => return value,
            Err(seen) if start.elapsed() >= limit => {
                panic!("waited {} s until {what}, but: {seen}", limit.as_secs_f32());
            }
            Err(_) => tokio::time::sleep(pause).await,
        }
        pause = (pause * 3 / 2).min(Duration::from_millis(100));
    }
}
