//! The end of the homes that the account module keeps, `homes/*.tar` in the state directory: a file's time is over when
//! its modification time is past.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::clock::{Clock, wall_seconds};
use crate::files;

/// Between two looks.
const LOOK: Duration = Duration::from_secs(60);

/// Looks for ever; drop the future to stop.
pub(crate) async fn run(state_dir: std::path::PathBuf, clock: Arc<dyn Clock>) {
    let mut said = None;
    loop {
        let (state_dir, now_s) = (state_dir.clone(), clock.now().wall_s);
        // Removing a large file takes its time, in which beats go on.
        let done = tokio::task::spawn_blocking(move || remove_over(&state_dir, now_s)).await;
        let error = match done {
            Ok(Ok(0)) => None,
            Ok(Ok(removed)) => {
                tracing::info!(removed, "kept homes whose time was over are gone");
                None
            }
            Ok(Err(error)) => Some(error.to_string()),
            Err(error) => Some(error.to_string()),
        };
        if let Some(error) = error.as_ref().filter(|_| said != error) {
            tracing::error!("kept homes whose time is over can't be removed: {error}");
        }
        said = error;
        tokio::time::sleep(LOOK).await;
    }
}

/// Removes what is over at `now_s` (seconds since 1970); says how many.
fn remove_over(state_dir: &Path, now_s: f64) -> io::Result<usize> {
    let directory = state_dir.join("homes");
    match std::fs::symlink_metadata(&directory) {
        Ok(metadata) if metadata.is_dir() => {}
        Ok(_) => return Err(io::Error::other("homes is no directory")),
        // It is made with the first home that is kept.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(error),
    }
    // While the module is at work it may be writing one, whose time is still that of its last byte.
    let Some(_lock) = files::try_lock(&state_dir.join("lock"))? else {
        return Ok(0);
    };
    let mut removed = 0;
    for entry in std::fs::read_dir(&directory)? {
        let entry = entry?;
        // Of the entry itself: no link is followed.
        let metadata = entry.metadata()?;
        if metadata.is_file() && wall_seconds(metadata.modified()?) <= now_s {
            std::fs::remove_file(entry.path())?;
            removed += 1;
        }
    }
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::path::PathBuf;
    use std::time::SystemTime;

    fn state_dir(name: &str) -> PathBuf {
        let name = format!("orion-agentd-homes-{name}-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(path.join("homes")).expect("made");
        path
    }

    /// An archive that ends that many seconds from now.
    fn keep(state_dir: &Path, name: &str, seconds: i64) {
        let file = File::create(state_dir.join("homes").join(name)).expect("made");
        let moved = Duration::from_secs(seconds.unsigned_abs());
        let now = SystemTime::now();
        let end = if seconds < 0 {
            now - moved
        } else {
            now + moved
        };
        file.set_modified(end).expect("set");
    }

    fn names(state_dir: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(state_dir.join("homes")).expect("read");
        let names = entries.map(|entry| entry.expect("entry").file_name().into_string());
        let mut names: Vec<_> = names.map(|name| name.expect("text")).collect();
        names.sort();
        names
    }

    fn now_s() -> f64 {
        wall_seconds(SystemTime::now())
    }

    #[test]
    fn a_home_goes_when_its_time_is_over_and_not_before() {
        let directory = state_dir("over");
        keep(&directory, "1000001-2.tar", -1);
        keep(&directory, "1000002-2.tar", 3600);
        keep(&directory, "1000003-2.tar.new", -1);
        assert_eq!(remove_over(&directory, now_s()).expect("read"), 2);
        assert_eq!(names(&directory), ["1000002-2.tar"]);
        assert_eq!(remove_over(&directory, now_s() + 3599.0).expect("read"), 0);
        assert_eq!(remove_over(&directory, now_s() + 3601.0).expect("read"), 1);
        std::fs::remove_dir_all(&directory).expect("removed");
    }

    #[test]
    fn links_and_directories_stay_and_lead_nowhere() {
        let directory = state_dir("links");
        let precious = directory.join("precious");
        std::fs::create_dir(&precious).expect("made");
        std::fs::write(precious.join("note"), "stays").expect("written");
        std::os::unix::fs::symlink(precious.join("note"), directory.join("homes/link"))
            .expect("linked");
        std::fs::create_dir(directory.join("homes/1000001-2.tar")).expect("made");
        let later_s = now_s() + 1.0e6;
        assert_eq!(remove_over(&directory, later_s).expect("read"), 0);
        assert!(precious.join("note").exists());
        std::fs::remove_dir_all(directory.join("homes")).expect("removed");
        std::os::unix::fs::symlink(&precious, directory.join("homes")).expect("linked");
        remove_over(&directory, later_s).expect_err("it is a link");
        assert!(precious.join("note").exists());
        std::fs::remove_dir_all(&directory).expect("removed");
    }

    #[test]
    fn while_the_module_is_at_work_nothing_is_removed() {
        let directory = state_dir("busy");
        keep(&directory, "1000001-2.tar.new", -1);
        let module = files::try_lock(&directory.join("lock")).expect("opened");
        assert_eq!(remove_over(&directory, now_s()).expect("read"), 0);
        drop(module);
        assert_eq!(remove_over(&directory, now_s()).expect("read"), 1);
        std::fs::remove_dir_all(&directory).expect("removed");
    }

    #[test]
    fn a_worker_that_never_kept_a_home_has_nothing_to_remove() {
        assert_eq!(
            remove_over(Path::new("/nonexistent"), 0.0).expect("none"),
            0
        );
    }
}
