//! One play, from its directory to the last of its processes.

use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use orion_core::{NodeId, RunKind};
use tokio::process::Child;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::directory::PlayDirectory;
use super::events::EventFile;
use super::inventory::{ansible_cfg, inventory, known_hosts};
use super::processes::{Mark, Wanted};
use super::{Ansible, CheckedTarget, OutputTail, Verdict, command};

/// How often the events are looked at. A look is one read(2) of a file in memory.
const LOOK: Duration = Duration::from_millis(20);
/// What a play may take beyond its hosts' time: Ansible's start, here 0.6 to 0.9 s of CPU on an idle machine.
const START_ALLOWANCE: Duration = Duration::from_secs(10);
/// And what each host adds to it, here 20 to 80 ms of CPU.
const HOST_ALLOWANCE: Duration = Duration::from_millis(200);

/// Why a play did not start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PlayError {
    /// Its directory can't be made or filled.
    #[error("a play's directory can't be made: {0}")]
    Directory(#[source] io::Error),
    /// The program can't be started.
    #[error("{0} can't be started: {1}")]
    Start(PathBuf, #[source] io::Error),
}

/// How a play ended. What its hosts did, their verdicts tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PlayEnd {
    /// By itself.
    Exited(ExitStatus),
    /// Its time was over, so it was stopped.
    Overdue,
    /// It was told to stop.
    Stopped,
}

impl PlayEnd {
    /// In a few words, for a run without a result.
    pub(crate) fn describe(self) -> String {
        match self {
            Self::Exited(status) => {
                format!("the play ended ({status}) without a word about this host")
            }
            Self::Overdue => "the play took too long and was stopped".to_owned(),
            Self::Stopped => "the play was stopped".to_owned(),
        }
    }
}

/// A started play.
struct Running {
    child: Child,
    leader: i32,
    events: EventFile,
    verdicts: mpsc::Sender<(NodeId, Verdict)>,
    streams: JoinSet<()>,
}

impl Ansible {
    /// Runs one play over `targets`, each of which is another node, and sends each host's verdict as soon as it is
    /// known. Returns when none of the play's processes is left.
    ///
    /// # Errors
    /// When the play could not start; nothing was done then.
    pub(crate) async fn play(
        &self,
        kind: RunKind,
        targets: &[CheckedTarget],
        verdicts: mpsc::Sender<(NodeId, Verdict)>,
        output: &OutputTail,
        stop: &CancellationToken,
    ) -> Result<PlayEnd, PlayError> {
        let (mark, path) = self.instance.next_play();
        let directory = self.prepare(path, targets)?;
        let mut running = self.start(kind, &directory, &mark, verdicts, output)?;
        let deadline = Instant::now()
            + self.settings.host_timeout
            + START_ALLOWANCE
            + HOST_ALLOWANCE * u32::try_from(targets.len()).unwrap_or(u32::MAX);
        let end = running.follow(deadline, stop).await;
        self.contain(&mut running, &directory, &mark, end).await;
        // What was written while the processes were stopped.
        running.pass_on().await;
        let streams = async { while running.streams.join_next().await.is_some() {} };
        if timeout(Duration::from_secs(1), streams).await.is_err() {
            tracing::warn!("a play's output is still held open by a process outside of it");
        }
        Ok(end)
    }

    fn prepare(
        &self,
        path: PathBuf,
        targets: &[CheckedTarget],
    ) -> Result<PlayDirectory, PlayError> {
        let fill = || -> io::Result<PlayDirectory> {
            let directory = PlayDirectory::create(path)?;
            directory.write("inventory.json", &inventory(&self.settings, targets)?)?;
            directory.write("known_hosts", known_hosts(targets).as_bytes())?;
            let config = ansible_cfg(&self.settings, directory.path(), targets.len());
            directory.write("ansible.cfg", config.as_bytes())?;
            Ok(directory)
        };
        fill().map_err(PlayError::Directory)
    }

    fn start(
        &self,
        kind: RunKind,
        directory: &PlayDirectory,
        mark: &Mark,
        verdicts: mpsc::Sender<(NodeId, Verdict)>,
        output: &OutputTail,
    ) -> Result<Running, PlayError> {
        let inventory = directory.join("inventory.json");
        let mut command = command::command(&self.settings, kind, directory, &inventory, mark);
        let (mut child, leader) = self
            .containment
            .spawn(&mut command)
            .map_err(|error| PlayError::Start(self.settings.playbook_command.clone(), error))?;
        let mut streams = JoinSet::new();
        if let Some(stdout) = child.stdout.take() {
            streams.spawn(output.clone().drain(stdout));
        }
        if let Some(stderr) = child.stderr.take() {
            streams.spawn(output.clone().drain(stderr));
        }
        tracing::debug!(%kind, leader, mark = mark.value(), "a play starts");
        Ok(Running {
            child,
            leader,
            events: EventFile::new(directory.events(), kind),
            verdicts,
            streams,
        })
    }

    /// Ends what is left of the play: everything when it did not end by itself, and what it left behind otherwise.
    async fn contain(
        &self,
        running: &mut Running,
        directory: &PlayDirectory,
        mark: &Mark,
        end: PlayEnd,
    ) {
        let containment = Arc::clone(&self.containment);
        let (mark, path, leader) = (mark.clone(), directory.path().to_owned(), running.leader);
        let exited = matches!(end, PlayEnd::Exited(_));
        let stopped = tokio::task::spawn_blocking(move || {
            let leader = (!exited).then_some(leader);
            let wanted = Wanted::Play {
                mark: &mark,
                directory: &path,
                leader,
            };
            if exited {
                containment.sweep(&wanted)
            } else {
                containment.stop(&wanted)
            }
        });
        match stopped.await {
            Ok(Ok(())) => {}
            Ok(Err(left)) => tracing::error!(%left, "a play's processes can't be ended"),
            Err(error) => tracing::error!(%error, "a play's processes may be left"),
        }
        if !exited && let Err(error) = timeout(Duration::from_secs(1), running.child.wait()).await {
            tracing::error!(leader, %error, "ansible-playbook can't be reaped");
        }
        self.containment.forget(running.leader);
    }
}

impl Running {
    /// Passes verdicts on until the play ends, its time is over, or it shall stop.
    async fn follow(&mut self, deadline: Instant, stop: &CancellationToken) -> PlayEnd {
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let end = tokio::select! {
                _ = look.tick() => None,
                status = self.child.wait() => match status {
                    Ok(status) => Some(PlayEnd::Exited(status)),
                    Err(error) => {
                        tracing::error!(%error, "ansible-playbook's end can't be waited for");
                        Some(PlayEnd::Stopped)
                    }
                },
                () = sleep_until(deadline) => Some(PlayEnd::Overdue),
                () = stop.cancelled() => Some(PlayEnd::Stopped),
            };
            self.pass_on().await;
            if let Some(end) = end {
                return end;
            }
        }
    }

    async fn pass_on(&mut self) {
        match self.events.read_new() {
            Ok(new) => {
                for verdict in new {
                    if self.verdicts.send(verdict).await.is_err() {
                        // Nobody wants to know any more; the play is stopped by whoever went away.
                        return;
                    }
                }
            }
            Err(error) => tracing::warn!(%error, "a play's events can't be read"),
        }
    }
}
