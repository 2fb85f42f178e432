//! Configuration in layers: compiled defaults, then `/etc/orion/NAME.toml`, then `NAME.d/*.toml` in the order of
//! their names, then the environment. Every fault is reported at once, each with its file or variable and its key.
//! Secrets never come through here: a setting holds the path of a secret file (see [`crate::secret_file`]).

pub(crate) mod faults;
mod layers;
mod print;
mod values;
mod verify;

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Serialize, de::DeserializeOwned};

pub use faults::{Fault, Faults};

use crate::log::LogSettings;
use crate::ops::OpsSettings;
use layers::Layers;

/// The arguments every daemon takes; flatten it into the daemon's own clap struct.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct ConfigArgs {
    /// Read FILE instead of /etc/orion/NAME.toml, and the *.toml files of the directory named like FILE with `.d`
    #[arg(long, value_name = "FILE", global = true)]
    pub config: Option<PathBuf>,
    /// Check the configuration, say what is wrong with it, and exit (0: good, 78: bad)
    #[arg(long, global = true)]
    pub check_config: bool,
    /// Print the configuration in effect, with the source of each value, and exit
    #[arg(long, global = true)]
    pub print_config: bool,
}

/// A daemon's settings: one struct whose serialised default is the list of all keys there are.
///
/// Every key must be present in the serialised default (so no `skip_serializing_if`; a key without a default is an
/// `Option` that is `None`). A table that is empty in the default accepts any key.
pub trait Settings: Serialize + DeserializeOwned + Default + Clone {
    /// The daemon's name, as in `orion-apid`: it names the file, the directory and, in capitals, the variables.
    const NAME: &'static str;

    /// Further environment variables, each with the dotted key it sets. `ORION_NAME__…` wins over them.
    const ENV_ALIASES: &'static [(&'static str, &'static str)] = &[];

    /// Whether the daemon starts although its ops listener's address is taken, and listens there as soon as it is free.
    const OPS_MAY_WAIT: bool = false;

    /// Rules that a type can't express: ranges, and what two keys mean together. Report all of them.
    fn check(&self, faults: &mut Faults);

    /// The `[log]` table; its own rules are checked without the daemon's help.
    fn log(&self) -> &LogSettings;

    /// The `[ops]` table; its own rules are checked without the daemon's help.
    fn ops(&self) -> &OpsSettings;
}

/// Good settings, and where each came from.
#[derive(Debug, Clone)]
pub struct Loaded<S> {
    /// The settings in effect.
    pub settings: S,
    printed: String,
}

impl<S> Loaded<S> {
    /// The settings in effect as TOML; a comment behind each value says where it came from.
    pub fn print(&self) -> &str {
        &self.printed
    }
}

/// Everything that is wrong with a configuration.
#[derive(Debug, thiserror::Error)]
pub struct ConfigError {
    faults: Vec<Fault>,
}

impl ConfigError {
    /// Each fault, files before variables, in the order of the keys.
    pub fn faults(&self) -> &[Fault] {
        &self.faults
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the configuration has {} fault(s)", self.faults.len())?;
        for fault in &self.faults {
            write!(f, "\n  {fault}")?;
        }
        Ok(())
    }
}

/// Reads the daemon's configuration from this process's files and environment.
///
/// # Errors
/// Every fault there is, not only the first one.
pub fn load<S: Settings>(args: &ConfigArgs) -> Result<Loaded<S>, ConfigError> {
    load_from(Path::new("/etc/orion"), args, std::env::vars_os())
}

/// As [`load`], with the directory and the environment given (for tests and for checks of foreign trees).
///
/// # Errors
/// Every fault there is, not only the first one.
pub fn load_from<S: Settings>(
    directory: &Path,
    args: &ConfigArgs,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Loaded<S>, ConfigError> {
    let mut faults = Vec::new();
    let mut layers = Layers::with_defaults(&S::default(), &mut faults);
    layers.add_files(S::NAME, directory, args.config.as_deref(), &mut faults);
    layers.add_environment::<S>(environment, &mut faults);
    let settings = verify::verify::<S>(&layers, &mut faults);
    match settings {
        Some(settings) if faults.is_empty() => Ok(Loaded {
            printed: print::print(&layers, S::NAME),
            settings,
        }),
        Some(_) | None => Err(ConfigError { faults }),
    }
}

#[cfg(test)]
mod tests;
