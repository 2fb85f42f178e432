//! How the control plane gets in: the keys of `orion-node`, from where they are good, and sshd's patience with it.
//!
//! Everything here follows from verified answers alone. The address from which the control plane was seen to log in
//! restricts its keys and exempts it from sshd's penalties, but only while it does get in (`status` is `alive`): one that
//! moved must be able to come back by itself. An address that stands for others, a gateway, does neither.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use orion_core::NodeStatus;
use orion_core::api::Trust;
use tokio::process::Command;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::config::AgentSettings;
use crate::machine::Machine;
use crate::pace::Pace;
use crate::{files, ssh_key};

/// The pool has one key, and two while it is rotated.
const MAX_KEYS: usize = 8;
/// sshd is asked about a handful of lines.
const DROPIN_PATIENCE: Duration = Duration::from_secs(60);

/// Why the control plane may be unable to log in.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoginError {
    #[error("{0} can't be kept up to date: {1}")]
    File(PathBuf, #[source] io::Error),
    #[error("{0}, the home of orion-node, is not there: the control plane can't log in")]
    NoHome(PathBuf),
}

/// The files, and what sshd was told of them.
pub(crate) struct Login {
    home: PathBuf,
    source: PathBuf,
    exempt: PathBuf,
    machine: Machine,
    proven: Duration,
    /// When the source that is in use was taken up, by this process.
    taken_up: Option<Instant>,
    /// The keys that were told last; at first those of the file, without what restricts them.
    keys: Vec<String>,
    /// What was told last of this node.
    status: Option<NodeStatus>,
    /// The exemption that sshd's drop-in was last made with; unknown after a start.
    applied: Option<Option<IpAddr>>,
    applying: Option<Applying>,
}

/// sshd's drop-in being made.
struct Applying {
    exemption: Option<IpAddr>,
    task: JoinHandle<Result<(), String>>,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login").field("home", &self.home).finish()
    }
}

impl Login {
    pub(crate) fn new(settings: &AgentSettings, machine: Machine, pace: Pace) -> Self {
        let known = settings.login_dir.join(".ssh/authorized_keys");
        Self {
            // Without a file, or with one that can't be read, there are none until some are told.
            keys: files::read(&known)
                .ok()
                .flatten()
                .as_deref()
                .map_or_else(Vec::new, keys_of),
            status: None,
            proven: pace.proven,
            taken_up: None,
            home: settings.login_dir.clone(),
            source: settings.state_dir.join("source"),
            exempt: settings.state_dir.join("exempt"),
            machine,
            applied: None,
            applying: None,
        }
    }

    /// Makes the files say what a verified answer says; what it leaves out is as it was.
    pub(crate) async fn follow(&mut self, trust: &Trust) -> Result<(), LoginError> {
        if !trust.pool_keys.is_empty() {
            let good = trust.pool_keys.iter().filter(|key| ssh_key::is_bare(key));
            self.keys = good.take(MAX_KEYS).cloned().collect();
        }
        self.status = trust.status.or(self.status);
        let from = self.usable_source()?;
        self.write_keys(from)?;
        let written = match from {
            Some(address) => {
                files::replace_changed(&self.exempt, &format!("{address}\n"), 0o600).map(drop)
            }
            None => files::remove(&self.exempt).map(drop),
        };
        written.map_err(failed(&self.exempt))?;
        self.apply(from).await;
        Ok(())
    }

    /// The address from which alone the keys shall be good.
    fn usable_source(&mut self) -> Result<Option<IpAddr>, LoginError> {
        let source = read_address(&self.source);
        match self.status {
            Some(NodeStatus::Alive) => {}
            Some(NodeStatus::Suspect | NodeStatus::Dead) => {
                // A source that shut the control plane out is not used again until it is seen anew: one that moved would
                // else be let in and shut out by turns.
                let taken_up = self.taken_up.take();
                if taken_up.is_some_and(|at| at.elapsed() < self.proven) {
                    files::remove(&self.source).map_err(failed(&self.source))?;
                }
                return Ok(None);
            }
            Some(NodeStatus::Unknown) => return Ok(None),
            // Nothing was told since the start: as it was before.
            None => return Ok(read_address(&self.exempt)),
        }
        let gateways = (self.machine.gateways)();
        let usable = source
            .filter(|address| !(self.machine.is_own)(*address) && !gateways.contains(address));
        if usable != read_address(&self.exempt) {
            self.taken_up = usable.map(|_| Instant::now());
        }
        Ok(usable)
    }

    fn write_keys(&self, from: Option<IpAddr>) -> Result<(), LoginError> {
        if !self.home.is_dir() {
            return Err(LoginError::NoHome(self.home.clone()));
        }
        let mut text = String::new();
        for key in &self.keys {
            match from {
                Some(address) => text.push_str(&format!("restrict,from=\"{address}\" {key}\n")),
                None => text.push_str(&format!("restrict {key}\n")),
            }
        }
        let directory = self.home.join(".ssh");
        let path = directory.join("authorized_keys");
        // sshd reads it as orion-node, who has no business changing it.
        make_readable_directory(&directory)
            .and_then(|()| files::replace_changed(&path, &text, 0o644))
            .map(|changed| {
                if changed {
                    tracing::info!("the control plane's login keys were brought up to date");
                }
            })
            .map_err(failed(&path))
    }

    /// Has sshd's drop-in made anew where the exemption changed, beside the beats: sshd is asked several times.
    async fn apply(&mut self, from: Option<IpAddr>) {
        if let Some(done) = self
            .applying
            .take_if(|applying| applying.task.is_finished())
        {
            self.applied = Some(done.exemption);
            let said = done.task.await;
            let said = said.unwrap_or_else(|error| Err(error.to_string()));
            if let Err(error) = said {
                tracing::error!("sshd's drop-in can't be brought up to date: {error}");
            }
        }
        let program = &self.machine.sshd_dropin;
        if self.applied == Some(from) || self.applying.is_some() || !program.exists() {
            return;
        }
        let mut command = Command::new(program);
        command
            .arg("apply")
            .stdin(std::process::Stdio::null())
            .kill_on_drop(true);
        self.applying = Some(Applying {
            exemption: from,
            task: tokio::spawn(finish(command)),
        });
    }
}

async fn finish(mut command: Command) -> Result<(), String> {
    let output = timeout(DROPIN_PATIENCE, command.output())
        .await
        .map_err(|_| format!("not within {} s", DROPIN_PATIENCE.as_secs()))?
        .map_err(|error| error.to_string())?;
    let text = [output.stdout, output.stderr].concat();
    let text: String = String::from_utf8_lossy(&text).chars().take(500).collect();
    if output.status.success() {
        if !text.trim().is_empty() {
            tracing::info!("sshd-dropin: {}", text.trim());
        }
        return Ok(());
    }
    Err(format!("{}: {}", output.status, text.trim()))
}

/// The keys of a file that `write_keys` wrote.
fn keys_of(text: &str) -> Vec<String> {
    let keys = text.lines().filter_map(|line| line.split_once(' '));
    keys.map(|(_, key)| key.to_owned())
        .filter(|key| ssh_key::is_bare(key))
        .collect()
}

fn failed(path: &std::path::Path) -> impl FnOnce(io::Error) -> LoginError {
    let path = path.to_owned();
    move |error| LoginError::File(path, error)
}

/// One line with an address. What can't be read is as good as absent: the keys are then good from everywhere.
fn read_address(path: &std::path::Path) -> Option<IpAddr> {
    let text = files::read(path).ok()??;
    let address: IpAddr = text.trim().parse().ok()?;
    Some(address.to_canonical())
}

fn make_readable_directory(path: &std::path::Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    if !path.is_dir() {
        std::fs::create_dir(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))?;
    }
    Ok(())
}
