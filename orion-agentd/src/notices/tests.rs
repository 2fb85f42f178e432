use super::*;
use std::io::Read;
use std::os::fd::OwnedFd;

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Action, tcflow};

/// A terminal of whoever runs the tests: what is seen on it, and its name.
fn terminal() -> (File, PathBuf) {
    let outer: OwnedFd = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("opened");
    grantpt(&outer).expect("granted");
    unlockpt(&outer).expect("unlocked");
    let name = ptsname(&outer, Vec::new()).expect("named");
    (
        File::from(outer),
        PathBuf::from(name.into_string().expect("text")),
    )
}

fn own() -> Uid {
    Uid(rustix::process::geteuid().as_raw())
}

/// A directory with links to `paths`, as nothing but a hostile client would make one.
fn links(name: &str, paths: &[&Path]) -> PathBuf {
    let directory =
        std::env::temp_dir().join(format!("orion-notices-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&directory).expect("made");
    for (number, path) in paths.iter().enumerate() {
        std::os::unix::fs::symlink(path, directory.join(number.to_string())).expect("linked");
    }
    directory
}

#[test]
fn the_steps_are_fifteen_five_and_one_minute() {
    for (left_s, wanted) in [
        (3600.0, None),
        (900.1, None),
        (900.0, Some(15)),
        (300.1, Some(15)),
        (300.0, Some(5)),
        (60.1, Some(5)),
        (60.0, Some(1)),
        (0.0, Some(1)),
    ] {
        assert_eq!(step(left_s), wanted, "{left_s}");
    }
}

#[test]
fn it_says_when_what_becomes_of_the_account_and_how_to_get_more_time() {
    for (left_s, words) in [
        (899.3, "in 15 minutes."),
        (300.0, "in 5 minutes."),
        (60.0, "in 1 minute."),
        (0.2, "in 1 minute."),
    ] {
        let text = text(left_s);
        assert!(text.contains(words), "{text}");
        assert!(text.contains("is removed then") && text.contains("POST /api/extend/"));
        assert!(text.is_ascii());
    }
}

#[test]
fn a_terminal_of_the_uid_shows_it() {
    let (mut outer, path) = terminal();
    let mut file = open(&path, own()).expect("opened").expect("its own");
    file.write_all(b"told\n").expect("written");
    let mut seen = [0; 6];
    outer.read_exact(&mut seen).expect("read");
    assert_eq!(&seen, b"told\r\n");
}

#[test]
fn a_terminal_of_somebody_else_a_file_and_a_link_are_left_alone() {
    let (_outer, path) = terminal();
    assert!(open(&path, Uid(own().0 + 1)).expect("seen").is_none());
    let directory = links("left", &[&path, Path::new("/etc/passwd")]);
    std::fs::write(directory.join("file"), "").expect("written");
    assert_eq!(tell_all(&directory, own(), "told"), 0);
    assert_eq!(std::fs::read(directory.join("file")).expect("read"), b"");
    std::fs::remove_dir_all(&directory).expect("removed");
}

#[test]
fn a_terminal_that_was_stopped_is_not_waited_for() {
    let (_outer, path) = terminal();
    let inner = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(OFlags::NOCTTY.bits().cast_signed())
        .open(&path)
        .expect("opened");
    tcflow(&inner, Action::OOff).expect("stopped");
    let mut file = open(&path, own()).expect("opened").expect("its own");
    let error = file.write(b"told\n").expect_err("it takes nothing");
    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
}

#[test]
fn a_uid_that_is_none_of_orions_has_no_terminals() {
    let (_outer, path) = terminal();
    let terminals = PseudoTerminals {
        directory: path.parent().expect("/dev/pts").to_owned(),
    };
    for uid in [0, 1000, 65_534, u32::MAX] {
        assert_eq!(terminals.tell(Uid(uid), "told"), 0);
    }
}

/// As root alone can a terminal be given to a client.
#[test]
fn as_root_a_clients_terminal_is_told_and_nobody_elses() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let uid = 3_100_000_000 + std::process::id();
    let ((mut outer, path), (_other, _)) = (terminal(), terminal());
    std::os::unix::fs::chown(&path, Some(uid), None).expect("given");
    let terminals = PseudoTerminals::default();
    assert_eq!(terminals.tell(Uid(uid + 1), "told"), 0);
    assert_eq!(terminals.tell(Uid(uid), "told"), 1);
    let mut seen = [0; 4];
    outer.read_exact(&mut seen).expect("read");
    assert_eq!(&seen, b"told");
}
