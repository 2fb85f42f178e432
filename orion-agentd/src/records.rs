//! The account module's records on this worker, `accounts/<uid>.json` in the state directory: read, never written.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use orion_core::api::{MAX_REPORTED, ReportedAccount};
use orion_core::{AccountState, Uid};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::clock::{Now, wall_seconds};

/// Records read for one beat at most; a worker makes one for each rental it ever had.
const MAX_READ: usize = 4096;
/// Bytes of a record at most; the module writes some 200.
const MAX_BYTES: u64 = 16 * 1024;
/// The control plane gives out no UID below.
const LOWEST_UID: u32 = 100_000;

/// What the agent needs of a record; it may hold more.
#[derive(Deserialize)]
struct Record {
    uid: u32,
    epoch: u64,
    state: AccountState,
}

/// The accounts this worker knows of, at most [`MAX_REPORTED`]: the present ones first, then those of the highest UIDs. A file that is no good record is left out: a beat must not fail for it.
///
/// # Errors
/// When the directory or a record can't be read: a list without what is in there would say that an account is lost.
pub(crate) fn read(state_dir: &Path) -> io::Result<Vec<ReportedAccount>> {
    let entries = match std::fs::read_dir(state_dir.join("accounts")) {
        Ok(entries) => entries,
        // It is made with the first account.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let paths = entries
        .map(|entry| entry.map(|entry| entry.path()))
        .filter(|path| {
            path.as_ref()
                .map_or(true, |path| path.extension().is_some_and(|it| it == "json"))
        });
    let mut paths = paths.collect::<io::Result<Vec<PathBuf>>>()?;
    // The newest first, where there are too many.
    paths.sort_by_key(|path| std::cmp::Reverse(uid_of(path)));
    paths.truncate(MAX_READ);
    let mut accounts = read_listed(&paths)?;
    accounts.sort_by_key(|account| {
        (
            account.state != AccountState::Present,
            std::cmp::Reverse(account.uid),
        )
    });
    accounts.truncate(MAX_REPORTED);
    Ok(accounts)
}

fn read_listed(paths: &[PathBuf]) -> io::Result<Vec<ReportedAccount>> {
    let mut accounts = Vec::new();
    for path in paths {
        match read_one(path) {
            Ok(account) => accounts.extend(account),
            // It went since it was listed.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(accounts)
}

/// Which UID the file is named after.
fn uid_of(path: &Path) -> Option<u32> {
    path.file_stem()?.to_str()?.parse().ok()
}

/// `None` when it is no good record.
fn read_one(path: &Path) -> io::Result<Option<ReportedAccount>> {
    // Never a pipe or a device: opening one could wait for ever.
    if !std::fs::symlink_metadata(path)?.is_file() {
        return Ok(None);
    }
    let mut text = Vec::new();
    File::open(path)?.take(MAX_BYTES).read_to_end(&mut text)?;
    let Ok(record) = serde_json::from_slice::<Record>(&text) else {
        return Ok(None);
    };
    let is_named_so = path
        .file_stem()
        .is_some_and(|stem| stem == record.uid.to_string().as_str());
    let is_plausible =
        is_named_so && matches!(record.state, AccountState::Present | AccountState::Gone);
    Ok(is_plausible.then_some(ReportedAccount {
        uid: Uid(record.uid),
        epoch: record.epoch,
        state: record.state,
        locked: false,
    }))
}

/// When an account's record lets it end at the latest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Bound {
    /// The record does not say.
    Unsaid,
    /// It is to go: the control plane has begun to delete it.
    ToGo,
    /// Then.
    At {
        /// Seconds since 1970.
        wall_s: f64,
        /// Seconds of CLOCK_BOOTTIME in the boot of that id.
        boot_s: f64,
        boot_id: String,
        /// When the record was written, seconds since 1970.
        written_s: f64,
    },
}

impl Bound {
    /// The end in boot seconds of the running boot.
    pub(crate) fn end_s(&self, boot_id: &str, now: Now) -> Option<f64> {
        let Self::At {
            wall_s,
            boot_s,
            boot_id: written_in,
            written_s,
        } = self
        else {
            return None;
        };
        if written_in == boot_id && !boot_id.is_empty() {
            return Some(*boot_s);
        }
        // Never more than there was at first, however far back the clock was set since.
        let left_s = (wall_s - now.wall_s).min(wall_s - written_s);
        Some(now.boot_s + left_s.max(0.0))
    }
}

/// What a countdown needs of the record of a present account.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Held {
    pub(crate) epoch: u64,
    pub(crate) bound: Bound,
}

/// The accounts in state `present`, of managed UIDs alone. One whose record is damaged is there, but says nothing.
///
/// # Errors
/// When the directory can't be read: nothing is known then, least of all that an account is gone.
pub(crate) fn held(state_dir: &Path) -> io::Result<BTreeMap<Uid, Option<Held>>> {
    let entries = match std::fs::read_dir(state_dir.join("accounts")) {
        Ok(entries) => entries,
        // It is made with the first account.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(error) => return Err(error),
    };
    let mut found = BTreeMap::new();
    for entry in entries {
        let name = entry?.file_name();
        let uid = name.to_str().and_then(|name| name.strip_suffix(".json"));
        let uid = uid.and_then(|uid| uid.parse().ok()).map(Uid);
        let Some(uid) = uid.filter(|uid| is_managed(*uid)) else {
            continue;
        };
        match held_one(state_dir, uid) {
            Ok(None) => {}
            Ok(Some(held)) => drop(found.insert(uid, Some(held))),
            Err(_) => drop(found.insert(uid, None)),
        }
    }
    Ok(found)
}

/// One of them; `None` when it is gone, or never was.
///
/// # Errors
/// When the record can't be read or is damaged.
pub(crate) fn held_one(state_dir: &Path, uid: Uid) -> io::Result<Option<Held>> {
    let path = state_dir.join("accounts").join(format!("{}.json", uid.0));
    let written = match std::fs::symlink_metadata(&path) {
        Ok(metadata) if metadata.is_file() => metadata.modified()?,
        Ok(_) => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut text = String::new();
    File::open(&path)?
        .take(MAX_BYTES)
        .read_to_string(&mut text)?;
    let record: Record = serde_json::from_str(&text)?;
    if record.uid != uid.0 || record.state != AccountState::Present {
        return Ok(None);
    }
    Ok(Some(Held {
        epoch: record.epoch,
        bound: bound_of(&serde_json::from_str(&text)?, written),
    }))
}

fn bound_of(record: &Value, written: SystemTime) -> Bound {
    // As many digits as survive being written and read again: a bound counts once, so it must be known again.
    let milliseconds = |seconds: f64| (seconds * 1000.0).round() / 1000.0;
    let seconds = |key: &str| {
        let seconds = record.get(key).and_then(Value::as_f64);
        seconds.map(milliseconds)
    };
    match seconds("ends_at_wall") {
        None => Bound::Unsaid,
        Some(wall_s) if wall_s <= 0.0 => Bound::ToGo,
        Some(wall_s) => Bound::At {
            wall_s,
            boot_s: seconds("ends_at_boot").unwrap_or_default(),
            boot_id: match (seconds("ends_at_boot"), record.get("boot_id")) {
                (Some(_), Some(Value::String(boot_id))) => boot_id.clone(),
                _ => String::new(),
            },
            written_s: milliseconds(wall_seconds(written)),
        },
    }
}

/// Whether a UID can be one of Orion's: `uid_base` is never lower, and what is reserved is never one.
pub(crate) fn is_managed(uid: Uid) -> bool {
    (LOWEST_UID..u32::MAX - 1).contains(&uid.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state_dir(name: &str) -> PathBuf {
        let name = format!("orion-agentd-records-{name}-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(path.join("accounts")).expect("made");
        path
    }

    fn write(directory: &Path, name: &str, text: &str) {
        std::fs::write(directory.join("accounts").join(name), text).expect("written");
    }

    fn record(uid: u32, epoch: u64, state: &str) -> String {
        format!(r#"{{"uid":{uid},"name":"alice","epoch":{epoch},"state":"{state}","boot_id":"b"}}"#)
    }

    #[test]
    fn garbage_among_the_records_is_left_out() {
        let directory = state_dir("garbage");
        write(&directory, "1000002.json", &record(1_000_002, 1, "present"));
        write(&directory, "1000001.json", &record(1_000_001, 7, "gone"));
        write(&directory, "1000003.json", "{\"uid\":1000003,");
        write(&directory, "1000004.json", "");
        std::fs::write(directory.join("accounts/1000010.json"), b"\xff").expect("written");
        write(&directory, "1000005.json", &record(1_000_006, 1, "present"));
        write(
            &directory,
            "1000007.json",
            &record(1_000_007, 1, "levitating"),
        );
        write(
            &directory,
            "1000008.json.tmp",
            &record(1_000_008, 1, "present"),
        );
        write(&directory, "notes.txt", "x");
        std::fs::create_dir(directory.join("accounts/1000009.json")).expect("made");
        let found = read(&directory).expect("read");
        std::fs::remove_dir_all(&directory).expect("removed");
        let found: Vec<(u32, u64)> = found.iter().map(|a| (a.uid.0, a.epoch)).collect();
        assert_eq!(found, [(1_000_002, 1), (1_000_001, 7)]);
    }

    #[test]
    fn only_present_accounts_of_managed_uids_are_held_and_damage_hides_none() {
        let directory = state_dir("held");
        let with_end = |uid: u32, end: &str| {
            let text = format!(
                r#"{{"uid":{uid},"epoch":2,"state":"present","ends_at_wall":{end},"ends_at_boot":50.5,"boot_id":"b"}}"#
            );
            write(&directory, &format!("{uid}.json"), &text);
        };
        with_end(1_000_001, "2000000000.25");
        with_end(1_000_002, "0");
        with_end(1_000_003, "\"soon\"");
        with_end(99_999, "2000000000.25");
        with_end(u32::MAX, "2000000000.25");
        write(&directory, "1000004.json", &record(1_000_004, 1, "gone"));
        write(&directory, "1000005.json", "{\"uid\":1000005,");
        write(
            &directory,
            "1000006.json.new",
            &record(1_000_006, 1, "present"),
        );
        let found = held(&directory).expect("read");
        std::fs::remove_dir_all(&directory).expect("removed");
        let uids: Vec<u32> = found.keys().map(|uid| uid.0).collect();
        assert_eq!(uids, [1_000_001, 1_000_002, 1_000_003, 1_000_005]);
        let bound = |uid| found[&Uid(uid)].as_ref().map(|held| &held.bound);
        assert!(matches!(bound(1_000_001), Some(Bound::At { .. })));
        assert_eq!(bound(1_000_002), Some(&Bound::ToGo));
        assert_eq!(bound(1_000_003), Some(&Bound::Unsaid));
        assert_eq!(bound(1_000_005), None);
        assert!(held(Path::new("/nonexistent")).expect("none").is_empty());
    }

    #[test]
    fn a_worker_without_records_reports_nothing() {
        assert!(read(Path::new("/nonexistent")).expect("none").is_empty());
    }

    #[test]
    fn records_that_can_not_be_read_are_not_reported_as_none() {
        let directory = state_dir("unreadable");
        std::fs::remove_dir(directory.join("accounts")).expect("removed");
        std::fs::write(directory.join("accounts"), "in the way").expect("written");
        let found = read(&directory);
        std::fs::remove_dir_all(&directory).expect("removed");
        assert!(found.is_err(), "{found:?}");
        let listed = |path: &str| read_listed(&[PathBuf::from(path)]);
        // A regular file whose reading fails, also for root.
        assert!(listed("/proc/self/mem").is_err());
        let gone = listed("/nonexistent/1000001.json").expect("it went since it was listed");
        assert!(gone.is_empty());
    }

    #[test]
    fn present_accounts_are_reported_however_many_are_gone() {
        let directory = state_dir("many");
        for uid in 2_000_000..2_000_300 {
            write(&directory, &format!("{uid}.json"), &record(uid, 1, "gone"));
        }
        write(&directory, "1000001.json", &record(1_000_001, 3, "present"));
        let found = read(&directory).expect("read");
        std::fs::remove_dir_all(&directory).expect("removed");
        assert_eq!(found.len(), MAX_REPORTED);
        assert_eq!(found[0].uid, Uid(1_000_001));
        assert_eq!(found[1].uid, Uid(2_000_299));
    }

    #[test]
    fn the_newest_records_are_read_where_there_are_too_many() {
        let directory = state_dir("too-many");
        let end = 2_000_000 + 2 * u32::try_from(MAX_READ).expect("few");
        for uid in 2_000_000..end {
            write(&directory, &format!("{uid}.json"), &record(uid, 1, "gone"));
        }
        let found = read(&directory).expect("read");
        std::fs::remove_dir_all(&directory).expect("removed");
        let found: Vec<u32> = found.iter().map(|account| account.uid.0).collect();
        let newest: Vec<u32> = (2_000_000..end).rev().take(MAX_REPORTED).collect();
        assert_eq!(found, newest);
    }
}
