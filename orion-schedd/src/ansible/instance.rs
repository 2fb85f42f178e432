//! One process of orion-schedd as its runtime directory knows it: a file that is locked as long as the process lives.
//!
//! Several instances may share a runtime directory. What an instance without a locked file has left behind, processes
//! and directories of plays, is removed by the next one that starts.

use std::collections::BTreeSet;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::processes::{Containment, Left, Mark, Wanted, processes};

/// This instance's place in the runtime directory.
#[derive(Debug)]
pub(crate) struct Instance {
    id: String,
    places: Places,
    next_play: AtomicU64,
    /// Locked until the process ends, however it ends. Children do not inherit it.
    _lock: File,
}

/// What a start found of instances that are gone.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Swept {
    /// Their ids.
    pub instances: Vec<String>,
    /// What could not be ended.
    pub left: Vec<Left>,
}

#[derive(Debug)]
struct Places {
    plays: PathBuf,
    instances: PathBuf,
}

impl Places {
    fn of(runtime_dir: &Path) -> io::Result<Self> {
        let places = Self {
            plays: runtime_dir.join("plays"),
            instances: runtime_dir.join("instances"),
        };
        for place in [&places.plays, &places.instances] {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(place)?;
        }
        // As /proc shows working directories.
        Ok(Self {
            plays: places.plays.canonicalize()?,
            ..places
        })
    }
}

impl Instance {
    /// Takes a place for `id` (letters and digits) in the runtime directory, which must exist.
    ///
    /// # Errors
    /// When the directory can't be written.
    pub(crate) fn enter(runtime_dir: &Path, id: &str) -> io::Result<Self> {
        let places = Places::of(runtime_dir)?;
        // Locked before it has its name, so that nobody ever sees it unlocked.
        let new = places.instances.join(format!("{id}.new"));
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&new)?;
        flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        std::fs::rename(&new, places.instances.join(id))?;
        Ok(Self {
            id: id.to_owned(),
            places,
            next_play: AtomicU64::new(1),
            _lock: file,
        })
    }

    /// A new play's mark and the path of its directory.
    pub(super) fn next_play(&self) -> (Mark, PathBuf) {
        let number = self.next_play.fetch_add(1, Ordering::Relaxed);
        let directory = self.places.plays.join(format!("{}-{number}", self.id));
        (Mark::of_play(&self.id, number), directory)
    }

    /// Ends the processes and removes the directories of instances that are gone. Blocks.
    ///
    /// # Errors
    /// When the runtime directory can't be read or written.
    pub(crate) fn sweep_the_gone(&self, containment: &Containment) -> io::Result<Swept> {
        let mut swept = Swept::default();
        for instance in self.known_instances()? {
            let Some(lock) = self.lock_if_gone(&instance)? else {
                continue;
            };
            let wanted = Wanted::Instance {
                instance: &instance,
                plays: &self.places.plays,
            };
            if let Err(left) = containment.sweep(&wanted) {
                swept.left.push(left);
            }
            self.remove_traces(&instance)?;
            drop(lock);
            swept.instances.push(instance);
        }
        Ok(swept)
    }

    /// Every other instance of which there is a file, a play's directory, or a process.
    fn known_instances(&self) -> io::Result<BTreeSet<String>> {
        let mut known = BTreeSet::new();
        for entry in std::fs::read_dir(&self.places.instances)? {
            known.extend(entry?.file_name().into_string());
        }
        for entry in std::fs::read_dir(&self.places.plays)? {
            let name = entry?.file_name();
            let instance = name.to_str().and_then(|name| name.split_once('-'));
            known.extend(instance.map(|(instance, _)| instance.to_owned()));
        }
        for process in processes() {
            known.extend(process.instance(&self.places.plays));
        }
        known.retain(|id| *id != self.id && id.bytes().all(|b| b.is_ascii_alphanumeric()));
        Ok(known)
    }

    /// The lock of an instance that is gone; nothing when it lives or somebody else sweeps after it.
    fn lock_if_gone(&self, instance: &str) -> io::Result<Option<File>> {
        // Made where it is missing: two that sweep shall not do it at once.
        let path = self.places.instances.join(instance);
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(file)),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn remove_traces(&self, instance: &str) -> io::Result<()> {
        for entry in std::fs::read_dir(&self.places.plays)? {
            let entry = entry?;
            let name = entry.file_name();
            if name
                .to_str()
                .and_then(|name| name.split_once('-'))
                .is_some_and(|(owner, _)| owner == instance)
            {
                std::fs::remove_dir_all(entry.path())?;
            }
        }
        std::fs::remove_file(self.places.instances.join(instance))
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(self.places.instances.join(&self.id)) {
            tracing::debug!(%error, "this instance's file stays until the next start");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use orion_testkit::{PATIENCE, Scratch, wait_until};
    use tokio::process::{Child, Command};

    /// A process as a play of `instance` leaves it behind.
    fn stray(containment: &Containment, instance: &Instance, runtime_dir: &Path) -> Child {
        let (mark, directory) = instance.next_play();
        std::fs::create_dir_all(&directory).unwrap();
        let mut command = Command::new("sleep");
        command
            .arg("1000")
            .env(Mark::VARIABLE, mark.value())
            .env("ORION_EVENTS", directory.join("events.jsonl"))
            .current_dir(runtime_dir);
        containment.spawn(&mut command).unwrap().0
    }

    /// As the kernel does it at `kill -9`: the lock is gone, the file stays.
    fn dies(instance: Instance) {
        let Instance { places, id, .. } = &instance;
        let file = places.instances.join(id);
        drop(instance);
        std::fs::write(file, "").unwrap();
    }

    fn is_alive(child: &mut Child) -> bool {
        child.try_wait().unwrap().is_none()
    }

    #[tokio::test]
    async fn a_start_ends_what_the_dead_left_and_leaves_the_living_alone() {
        let scratch = Scratch::new("inst");
        let elsewhere = Scratch::new("inst");
        let containment = Containment::default();
        let dead = Instance::enter(scratch.path(), "dead1").unwrap();
        let alive = Instance::enter(scratch.path(), "alive1").unwrap();
        let foreign = Instance::enter(elsewhere.path(), "foreign1").unwrap();
        let mut of_the_dead = stray(&containment, &dead, scratch.path());
        let mut of_the_living = stray(&containment, &alive, scratch.path());
        let mut of_another_place = stray(&containment, &foreign, scratch.path());
        dies(dead);
        dies(foreign);

        let new = Instance::enter(scratch.path(), "new1").unwrap();
        let swept = new.sweep_the_gone(&containment).unwrap();
        assert_eq!(
            swept,
            Swept {
                instances: vec!["dead1".to_owned()],
                left: Vec::new()
            }
        );
        let ended = || {
            if is_alive(&mut of_the_dead) {
                Err("it lives")
            } else {
                Ok(())
            }
        };
        wait_until("the stray process has ended", PATIENCE, ended).await;
        assert!(is_alive(&mut of_the_living) && is_alive(&mut of_another_place));
        let left: Vec<_> = std::fs::read_dir(scratch.join("plays"))
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        assert_eq!(left, ["alive1-1"]);

        for child in [&mut of_the_living, &mut of_another_place] {
            child.kill().await.unwrap();
        }
    }

    #[test]
    fn a_second_start_finds_nothing_to_do() {
        let scratch = Scratch::new("inst");
        let dead = Instance::enter(scratch.path(), "dead1").unwrap();
        dies(dead);
        let new = Instance::enter(scratch.path(), "new1").unwrap();
        let containment = Containment::default();
        assert_eq!(
            new.sweep_the_gone(&containment).unwrap().instances,
            ["dead1"]
        );
        assert_eq!(new.sweep_the_gone(&containment).unwrap(), Swept::default());
        drop(new);
        let nothing = std::fs::read_dir(scratch.join("instances")).unwrap().next();
        assert!(nothing.is_none());
    }
}
