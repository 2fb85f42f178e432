use super::*;
use orion_testkit::{PATIENCE, Scratch, wait_until};
use std::fs;
use std::process::Stdio;

const QUICK: [(Signal, Duration); 3] = [
    (Signal::INT, Duration::from_millis(200)),
    (Signal::TERM, Duration::from_millis(200)),
    (Signal::KILL, Duration::from_secs(10)),
];

/// Each child says that it is there by a file of its number, then sleeps. `$1` is a directory outside of the play.
const FAMILY: &str = r#"
    stubborn='trap "" INT TERM; while :; do sleep 1; done'
    # A child that ignores what can be ignored.
    sh -c "touch $1/1; $stubborn" &
    # In a session of its own, as the workers of ansible-core 2.19.
    setsid sh -c "touch $1/2; $stubborn" &
    # Without its parents, and somewhere else.
    ( cd / && setsid sh -c "touch $1/3; $stubborn" & )
    # With another environment and its place only, as OpenSSH's masters.
    ( env -i setsid sh -c "touch $1/4; PATH=/usr/bin:/bin; $stubborn" & )
    touch $1/0
    wait
"#;

struct Play {
    child: Child,
    leader: i32,
    mark: Mark,
    directory: PathBuf,
    notes: PathBuf,
}

impl Play {
    /// Starts the family and waits until all of it is there.
    async fn start(containment: &Containment, scratch: &Scratch, number: u64) -> Self {
        let directory = scratch
            .path()
            .canonicalize()
            .unwrap()
            .join(format!("play-{number}"));
        let notes = scratch.join(&format!("notes-{number}"));
        fs::create_dir(&directory).unwrap();
        fs::create_dir(&notes).unwrap();
        let instance = scratch.path().file_name().unwrap().to_str().unwrap();
        let mark = Mark::of_play(instance, number);
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", FAMILY, "family"])
            .arg(&notes)
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env(Mark::VARIABLE, mark.value())
            .current_dir(&directory)
            .stdin(Stdio::null())
            .process_group(0);
        let (child, leader) = containment.spawn(&mut command).unwrap();
        let play = Self {
            child,
            leader,
            mark,
            directory,
            notes,
        };
        let missing = || {
            (0..5)
                .find(|n| !play.notes.join(n.to_string()).exists())
                .map_or(Ok(()), Err)
        };
        wait_until("the whole family is there", PATIENCE, missing).await;
        play
    }

    fn wanted(&self, leader: Option<i32>) -> Wanted<'_> {
        Wanted::Play {
            mark: &self.mark,
            directory: &self.directory,
            leader,
        }
    }

    async fn end(mut self, containment: &Containment) {
        containment
            .climb(&self.wanted(Some(self.leader)), &QUICK)
            .unwrap();
        self.child.wait().await.unwrap();
        containment.forget(self.leader);
    }
}

#[tokio::test]
async fn the_ladder_ends_every_process_of_a_play_and_none_of_another() {
    let scratch = Scratch::new("ladder");
    let containment = Containment::new().unwrap();
    let one = Play::start(&containment, &scratch, 1).await;
    let other = Play::start(&containment, &scratch, 2).await;
    assert!(members(&one.wanted(Some(one.leader))).len() >= 5);

    let wanted = one.wanted(Some(one.leader));
    containment.climb(&wanted, &QUICK).unwrap();
    assert!(members(&wanted).is_empty());
    assert!(members(&other.wanted(Some(other.leader))).len() >= 5);
    one.end(&containment).await;
    other.end(&containment).await;
}

#[tokio::test]
async fn what_a_play_leaves_behind_is_found_without_its_leader() {
    let scratch = Scratch::new("ladder");
    let containment = Containment::new().unwrap();
    let mut play = Play::start(&containment, &scratch, 1).await;
    // As a kill -9 of ansible-playbook alone.
    play.child.kill().await.unwrap();
    containment.forget(play.leader);
    assert!(members(&play.wanted(None)).len() >= 4);
    containment.climb(&play.wanted(None), &QUICK).unwrap();
    assert!(members(&play.wanted(None)).is_empty());
}

#[tokio::test]
async fn orphans_are_reaped_and_tokios_children_are_not() {
    let scratch = Scratch::new("ladder");
    let containment = Containment::new().unwrap();
    let play = Play::start(&containment, &scratch, 1).await;
    let mut own = Command::new("/bin/sh");
    own.args(["-c", "exit 7"]).stdin(Stdio::null());
    let (mut own, own_pid) = containment.spawn(&mut own).unwrap();
    let dead = || {
        let own = processes().into_iter().find(|seen| seen.pid == own_pid);
        if own.is_some_and(|own| own.dead) {
            Ok(())
        } else {
            Err("it is not dead yet")
        }
    };
    wait_until("our own child is dead and not reaped", PATIENCE, dead).await;

    play.end(&containment).await;
    let us = i32::try_from(std::process::id()).unwrap();
    let zombies = || {
        containment.reap_orphans();
        let is_orphan = |seen: &Seen| seen.dead && seen.parent == us && seen.pid != own_pid;
        let orphans: Vec<i32> = processes()
            .iter()
            .filter(|seen| is_orphan(seen))
            .map(|seen| seen.pid)
            .collect();
        if orphans.is_empty() {
            Ok(())
        } else {
            Err(format!("{orphans:?} are there"))
        }
    };
    wait_until("no orphan is left as a zombie", PATIENCE, zombies).await;
    assert_eq!(own.wait().await.unwrap().code(), Some(7));
}
