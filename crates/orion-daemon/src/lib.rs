//! The process shell of Orion's daemons: configuration, secret files, logs, signals, `sd_notify`, the ops listener
//! and the accept loop under every HTTP listener.
//!
//! A daemon's `main.rs` is [`run`] around its own async function, which starts a [`Shell`] and hands it the work:
//!
//! ```no_run
//! # use orion_daemon::{ConfigArgs, Faults, LogSettings, OpsPages, OpsSettings, Settings, Shell, Threads};
//! # #[derive(Clone, serde::Serialize, serde::Deserialize)]
//! # struct MySettings { log: LogSettings, ops: OpsSettings }
//! # impl Default for MySettings {
//! #     fn default() -> Self { Self { log: LogSettings::default(), ops: OpsSettings::on_port(9301) } }
//! # }
//! # impl Settings for MySettings {
//! #     const NAME: &'static str = "orion-apid";
//! #     fn check(&self, _: &mut Faults) {}
//! #     fn log(&self) -> &LogSettings { &self.log }
//! #     fn ops(&self) -> &OpsSettings { &self.ops }
//! # }
//! fn main() -> std::process::ExitCode {
//!     let args = ConfigArgs::default();
//!     orion_daemon::run(&args, Threads::Many, async |settings: MySettings| {
//!         let shell = Shell::start(&settings, &["database", "schema"], OpsPages::default()).await?;
//!         let ready = shell.ready().clone();
//!         let shutdown = shell.shutdown();
//!         shell
//!             .run(std::time::Duration::from_secs(60), async move {
//!                 ready.set_ready("database");
//!                 ready.set_ready("schema");
//!                 shutdown.cancelled().await;
//!                 Ok(())
//!             })
//!             .await
//!     })
//! }
//! ```
//!
//! This crate knows nothing of rentals, nodes or databases.

mod config;
mod exit;
mod key_file;
mod keyring;
mod log;
mod notify;
mod ops;
mod own_address;
mod readiness;
mod secret;
mod serve;
mod shell;

pub use config::{ConfigArgs, ConfigError, Fault, Faults, Loaded, Settings, load, load_from};
pub use exit::{EXIT_CONFIG, EXIT_FAILURE, Misconfigured, Threads, run};
pub use key_file::{KeyDirectory, make_key_file};
pub use keyring::{Key, KeyId, Keyring, generate_key_line};
pub use log::{LogFormat, LogSettings};
pub use ops::{OpsPages, OpsSettings};
pub use own_address::is_own_address;
pub use readiness::Readiness;
pub use secret::{SecretError, secret_file};
pub use serve::{Limits, serve};
pub use shell::{Shell, ShellError};

/// What [`OpsPages::new`] takes; re-exported so that a daemon need not name the crate's version.
pub use prometheus_client::registry::Registry;

#[cfg(test)]
mod testing;
