//! The account module's records on this worker, `accounts/<uid>.json` in the state directory: read, never written.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use orion_core::api::ReportedAccount;
use orion_core::{AccountState, Uid};
use serde::Deserialize;

/// Records read for one beat at most; a worker makes one for each rental it ever had.
const MAX_READ: usize = 4096;
/// Accounts in one beat at most: the present ones first, then those of the highest UIDs.
const MAX_REPORTED: usize = 256;
/// Bytes of a record at most; the module writes some 200.
const MAX_BYTES: u64 = 16 * 1024;

/// What the agent needs of a record; it may hold more.
#[derive(Deserialize)]
struct Record {
    uid: u32,
    epoch: u64,
    state: AccountState,
}

/// The accounts this worker knows of. A file that is no good record is left out: a beat must not fail for it.
pub(crate) fn read(state_dir: &Path) -> Vec<ReportedAccount> {
    // The directory is made with the first account.
    let Ok(entries) = std::fs::read_dir(state_dir.join("accounts")) else {
        return Vec::new();
    };
    let mut accounts: Vec<ReportedAccount> = entries
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "json")
        })
        .take(MAX_READ)
        .filter_map(|path| read_one(&path))
        .collect();
    accounts.sort_by_key(|account| {
        (
            account.state != AccountState::Present,
            std::cmp::Reverse(account.uid),
        )
    });
    accounts.truncate(MAX_REPORTED);
    accounts
}

fn read_one(path: &Path) -> Option<ReportedAccount> {
    let stem = path.file_stem()?.to_str()?;
    // Never a pipe or a device: opening one could wait for ever.
    if !std::fs::symlink_metadata(path).ok()?.is_file() {
        return None;
    }
    let mut text = String::new();
    File::open(path)
        .ok()?
        .take(MAX_BYTES)
        .read_to_string(&mut text)
        .ok()?;
    let record: Record = serde_json::from_str(&text).ok()?;
    let plausible = stem == record.uid.to_string()
        && matches!(record.state, AccountState::Present | AccountState::Gone);
    plausible.then_some(ReportedAccount {
        uid: Uid(record.uid),
        epoch: record.epoch,
        state: record.state,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

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
        let found = read(&directory);
        std::fs::remove_dir_all(&directory).expect("removed");
        let found: Vec<(u32, u64)> = found.iter().map(|a| (a.uid.0, a.epoch)).collect();
        assert_eq!(found, [(1_000_002, 1), (1_000_001, 7)]);
    }

    #[test]
    fn a_worker_without_records_reports_nothing() {
        assert!(read(Path::new("/nonexistent")).is_empty());
    }

    #[test]
    fn present_accounts_are_reported_however_many_are_gone() {
        let directory = state_dir("many");
        for uid in 2_000_000..2_000_300 {
            write(&directory, &format!("{uid}.json"), &record(uid, 1, "gone"));
        }
        write(&directory, "1000001.json", &record(1_000_001, 3, "present"));
        let found = read(&directory);
        std::fs::remove_dir_all(&directory).expect("removed");
        assert_eq!(found.len(), MAX_REPORTED);
        assert_eq!(found[0].uid, Uid(1_000_001));
        assert_eq!(found[1].uid, Uid(2_000_299));
    }
}
