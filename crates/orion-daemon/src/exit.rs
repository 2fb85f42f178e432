//! From `main` to the exit code: 0 good, 1 failed, 78 (EX_CONFIG) misconfigured. systemd does not restart on 78.

use std::future::Future;
use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use crate::config::{ConfigArgs, Loaded, Settings, load};
use crate::secret::SecretError;

/// The exit code of a daemon that failed.
pub const EXIT_FAILURE: u8 = 1;

/// The exit code of a daemon whose configuration is bad: `EX_CONFIG` of sysexits(3).
pub const EXIT_CONFIG: u8 = 78;

/// How many threads a daemon's runtime has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Threads {
    /// The main thread alone: least memory, for the agent.
    One,
    /// One per processor.
    Many,
}

/// An error that only another configuration heals; a daemon that ends with it exits 78.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Misconfigured(pub String);

/// Reads the configuration, answers `--check-config` and `--print-config`, sets up the log, runs `body` on a new
/// runtime and makes its result an exit code. A [`SecretError`] or [`Misconfigured`] anywhere in the error is 78.
pub fn run<S, F, Fut>(args: &ConfigArgs, threads: Threads, body: F) -> ExitCode
where
    S: Settings,
    F: FnOnce(S) -> Fut,
    Fut: Future<Output = anyhow::Result<()>>,
{
    let loaded: Loaded<S> = match load(args) {
        Ok(loaded) => loaded,
        Err(error) => {
            say(&mut std::io::stderr(), &format!("{}: {error}\n", S::NAME));
            return ExitCode::from(EXIT_CONFIG);
        }
    };
    if args.print_config {
        say(&mut std::io::stdout(), loaded.print());
        return ExitCode::SUCCESS;
    }
    if args.check_config {
        say(&mut std::io::stdout(), "configuration is good\n");
        return ExitCode::SUCCESS;
    }
    crate::log::init(loaded.settings.log());
    match block_on(threads, || body(loaded.settings)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::from(exit_code(&error))
        }
    }
}

fn block_on<Fut>(threads: Threads, body: impl FnOnce() -> Fut) -> anyhow::Result<()>
where
    Fut: Future<Output = anyhow::Result<()>>,
{
    let mut builder = match threads {
        Threads::One => tokio::runtime::Builder::new_current_thread(),
        Threads::Many => tokio::runtime::Builder::new_multi_thread(),
    };
    let runtime = builder.enable_all().build()?;
    let result = runtime.block_on(async { body().await });
    // Work on blocking threads can't be cancelled and must not keep a stopped daemon alive.
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

fn exit_code(error: &anyhow::Error) -> u8 {
    let configuration = error
        .chain()
        .any(|cause| cause.is::<SecretError>() || cause.is::<Misconfigured>());
    if configuration {
        EXIT_CONFIG
    } else {
        EXIT_FAILURE
    }
}

/// Writes to a terminal or a pipe; when its reader is gone there is nobody left to tell.
fn say(to: &mut dyn Write, text: &str) {
    to.write_all(text.as_bytes())
        .and_then(|()| to.flush())
        .unwrap_or_default();
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn an_error_about_a_secret_file_exits_78_however_deep_it_is() {
        let error = anyhow::Error::from(SecretError::Empty("/x".into()))
            .context("starting")
            .context("running");
        assert_eq!(exit_code(&error), EXIT_CONFIG);
        let error = Err::<(), _>(Misconfigured("no".to_owned())).context("starting");
        assert_eq!(exit_code(&error.expect_err("is one")), EXIT_CONFIG);
    }

    #[test]
    fn another_error_exits_1() {
        assert_eq!(
            exit_code(&anyhow::anyhow!("the disk is full")),
            EXIT_FAILURE
        );
    }
}
