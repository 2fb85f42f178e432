//! How the control plane gets in: the keys of `orion-node`, from where they are good, and sshd's patience with it.
//!
//! Everything here follows from verified answers alone. The addresses from which the control plane was seen to log in
//! restrict its keys and are exempt from sshd's penalties, but only while it does get in (`status` is `alive`): one that
//! moved must be able to come back by itself. An address that stands for others, as a gateway does, is never exempt, and
//! restricts nothing where there is no other.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
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
/// The note holds no more.
const MAX_SOURCES: usize = 8;
/// What begins a key's list of addresses.
const FROM: &str = "from=\"";
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
    /// When the sources in use began to shut others out, in this process.
    taken_up: Option<Instant>,
    /// From where alone the keys are good; from everywhere where there is none. At first what the file says.
    from: Vec<IpAddr>,
    /// The keys that were told last; at first those of the file, without what restricts them.
    keys: Vec<String>,
    /// What was told last of this node.
    status: Option<NodeStatus>,
    /// The exemption that sshd's drop-in was last made with; unknown after a start.
    applied: Option<Vec<IpAddr>>,
    applying: Option<Applying>,
}

/// sshd's drop-in being made.
struct Applying {
    exemption: Vec<IpAddr>,
    task: JoinHandle<Result<(), String>>,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login").field("home", &self.home).finish()
    }
}

impl Login {
    pub(crate) fn new(settings: &AgentSettings, machine: Machine, pace: Pace) -> Self {
        let known = files::read(&settings.login_dir.join(".ssh/authorized_keys"));
        // Without a file, or with one that can't be read, there are none until some are told.
        let known = known.ok().flatten().unwrap_or_default();
        Self {
            keys: keys_of(&known),
            from: sources_of(&known),
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
        self.from = self.good_sources()?;
        self.write_keys()?;
        let exempt = self.unshared(&self.from);
        let written = if exempt.is_empty() {
            files::remove(&self.exempt).map(drop)
        } else {
            files::replace_changed(&self.exempt, &format!("{}\n", listed(&exempt)), 0o600).map(drop)
        };
        written.map_err(failed(&self.exempt))?;
        self.apply(exempt).await;
        Ok(())
    }

    /// The addresses from which alone the keys shall be good.
    fn good_sources(&mut self) -> Result<Vec<IpAddr>, LoginError> {
        match self.status {
            Some(NodeStatus::Alive) => {}
            Some(NodeStatus::Suspect | NodeStatus::Dead) => {
                // Sources that shut the control plane out are not used again until they are seen anew: one that moved
                // would else be let in and shut out by turns.
                let taken_up = self.taken_up.take();
                if taken_up.is_some_and(|at| at.elapsed() < self.proven) {
                    files::remove(&self.source).map_err(failed(&self.source))?;
                }
                return Ok(Vec::new());
            }
            Some(NodeStatus::Unknown) => return Ok(Vec::new()),
            // Nothing was told since the start: as it was before.
            None => return Ok(self.from.clone()),
        }
        let mut sources = read_sources(&self.source);
        if self.unshared(&sources).is_empty() {
            sources.clear();
        }
        // More sources than before shut nobody out.
        let shut_out = |known: &IpAddr| !sources.contains(known);
        if self.from.is_empty() || self.from.iter().any(shut_out) {
            self.taken_up = (!sources.is_empty()).then(Instant::now);
        }
        Ok(sources)
    }

    /// Those that stand for nobody else. A control plane that comes through a gateway is let in from there beside
    /// them, or it would be shut out; clients may come through it too, so sshd goes on punishing it.
    fn unshared(&self, addresses: &[IpAddr]) -> Vec<IpAddr> {
        let gateways = (self.machine.gateways)();
        let unshared = addresses
            .iter()
            .filter(|address| !(self.machine.is_own)(**address) && !gateways.contains(address));
        unshared.copied().collect()
    }

    fn write_keys(&self) -> Result<(), LoginError> {
        if !self.home.is_dir() {
            return Err(LoginError::NoHome(self.home.clone()));
        }
        let mut text = String::new();
        for key in &self.keys {
            match listed(&self.from) {
                from if from.is_empty() => text.push_str(&format!("restrict {key}\n")),
                from => text.push_str(&format!("restrict,{FROM}{from}\" {key}\n")),
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
    async fn apply(&mut self, exemption: Vec<IpAddr>) {
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
        if self.applied.as_ref() == Some(&exemption) || self.applying.is_some() || !program.exists()
        {
            return;
        }
        let mut command = Command::new(program);
        command
            .arg("apply")
            .stdin(std::process::Stdio::null())
            .kill_on_drop(true);
        self.applying = Some(Applying {
            exemption,
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

fn failed(path: &Path) -> impl FnOnce(io::Error) -> LoginError {
    let path = path.to_owned();
    move |error| LoginError::File(path, error)
}

/// The sources that a file names that `write_keys` wrote.
fn sources_of(text: &str) -> Vec<IpAddr> {
    let options = text.split(' ').next().unwrap_or_default();
    let list = options
        .split_once(FROM)
        .and_then(|(_, list)| list.split_once('"'));
    let (list, _) = list.unwrap_or_default();
    list.split(',')
        .filter_map(|address| address.parse().ok())
        .collect()
}

/// As sshd takes a list of addresses.
fn listed(addresses: &[IpAddr]) -> String {
    let addresses: Vec<String> = addresses.iter().map(IpAddr::to_string).collect();
    addresses.join(",")
}

/// The note's addresses, in an order that does not depend on when they were seen. What can't be read is as good as
/// absent: the keys are then good from everywhere.
fn read_sources(path: &Path) -> Vec<IpAddr> {
    let text = files::read(path).ok().flatten().unwrap_or_default();
    let mut sources: Vec<IpAddr> = text
        .lines()
        .filter_map(noted_source)
        .take(MAX_SOURCES)
        .collect();
    sources.sort_unstable();
    sources.dedup();
    sources
}

/// Of a line `ADDRESS SECONDS`; the time at which it was seen is missing in notes of older versions.
fn noted_source(line: &str) -> Option<IpAddr> {
    let (address, seen) = line.split_once(' ').unwrap_or((line, "0"));
    seen.parse::<u64>().ok()?;
    let address: IpAddr = address.parse().ok()?;
    Some(address.to_canonical())
}

/// At each write: a crash may have come between making it and opening it.
fn make_readable_directory(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    const MODE: u32 = 0o755;
    if !path.is_dir() {
        std::fs::create_dir(path)?;
    }
    if std::fs::metadata(path)?.permissions().mode() & 0o7777 != MODE {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(MODE))?;
    }
    Ok(())
}
