//! How Ansible is run: one ansible-playbook over many hosts, in a private directory, contained, judged per host.
//!
//! Nothing here knows the database. The executor hands over [`Target`]s and hears a [`Verdict`] for each host as soon as
//! that host is done.

mod command;
mod directory;
mod events;
mod instance;
mod inventory;
mod play;
mod processes;
mod target;
#[cfg(test)]
mod testing;

pub(crate) use command::OutputTail;
pub(crate) use events::{Verdict, verdicts_in};
pub(crate) use instance::Instance;
pub(crate) use play::PlayEnd;
pub(crate) use processes::Containment;
pub(crate) use target::{BadTarget, CheckedTarget, Step, Target, plain_key};

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use orion_core::{AddressGuard, RunKind};

use crate::config::ScheddSettings;

/// What every play of this process has in common.
#[derive(Debug, Clone)]
pub(crate) struct PlaySettings {
    /// The program.
    pub playbook_command: PathBuf,
    /// Where the playbooks are.
    pub playbooks_dir: PathBuf,
    /// HOME of the program.
    pub state_dir: PathBuf,
    /// The account on the workers.
    pub user: String,
    /// The pool's private key; the one before it may lie beside it.
    pub pool_key_file: PathBuf,
    /// Asked for each host before the play.
    pub addresses: AddressGuard,
    /// One host's time.
    pub host_timeout: Duration,
    /// ssh's ConnectTimeout.
    pub connect_timeout: Duration,
    /// How long the files of a client whose rental was moved are kept; zero is not at all.
    pub keep_home: Duration,
}

impl PlaySettings {
    /// The part of the settings that plays need.
    pub(crate) fn of(settings: &ScheddSettings) -> Self {
        Self {
            playbook_command: settings.ansible.playbook_command.clone(),
            playbooks_dir: settings.ansible.playbooks_dir.clone(),
            state_dir: settings.executor.state_dir.clone(),
            user: settings.ssh.user.clone(),
            pool_key_file: settings.ssh.pool_key_file.clone(),
            addresses: settings.address_guard(),
            host_timeout: Duration::from_secs(settings.executor.host_timeout_s.into()),
            connect_timeout: Duration::from_secs(settings.ssh.connect_timeout_s.into()),
            keep_home: Duration::from_secs(u64::from(settings.migration.keep_home_hours) * 3600),
        }
    }

    /// What the module on the worker limits itself to, so that it ends before Ansible gives up on it: three quarters of
    /// the host's time, since connecting takes its share of that.
    fn module_limit(&self) -> Duration {
        self.host_timeout.mul_f64(0.75).max(Duration::from_secs(1))
    }
}

/// Runs plays; cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Ansible {
    settings: Arc<PlaySettings>,
    instance: Arc<Instance>,
    containment: Arc<Containment>,
}

impl Ansible {
    /// Plays of this instance.
    pub(crate) fn new(
        settings: PlaySettings,
        instance: Instance,
        containment: Containment,
    ) -> Self {
        Self {
            settings: Arc::new(settings),
            instance: Arc::new(instance),
            containment: Arc::new(containment),
        }
    }

    /// Lets a host into a play, or says why not. To be asked right before the play.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn check(&self, target: Target) -> Result<CheckedTarget, BadTarget> {
        target.checked(&self.settings.addresses)
    }
}

/// The playbook of a kind of run.
fn playbook(kind: RunKind) -> &'static str {
    match kind {
        RunKind::Provision => "create_user.yml",
        RunKind::Clean => "delete_user.yml",
        RunKind::Inspect => "health_check.yml",
    }
}
