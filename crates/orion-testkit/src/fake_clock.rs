//! A clock that a test sets, for programs that run: never the machine's own.

use crate::scratch::Scratch;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

/// libfaketime in front of a program's wall clock; what counts from the boot stays true. Clones are one clock.
#[derive(Clone, Debug)]
pub struct FakeClock(Arc<Scratch>);

impl FakeClock {
    /// A clock that is right.
    pub fn right() -> Self {
        let clock = Self(Arc::new(Scratch::new("clock")));
        clock.set_ahead(0);
        clock
    }

    /// Sets it: so many seconds ahead of the machine's, or, negative, behind.
    pub fn set_ahead(&self, seconds: i64) {
        // In one step: half a file would be another time.
        let new = self.0.write_secret("new", format!("{seconds:+}\n"));
        fs::rename(new, self.file()).expect("the clock's file in place");
    }

    /// What a program that shall see this clock is started with.
    pub fn environment(&self) -> [(String, String); 4] {
        let set = |name: &str, value: String| (name.to_owned(), value);
        [
            set("LD_PRELOAD", library().display().to_string()),
            set("DONT_FAKE_MONOTONIC", "1".to_owned()),
            set("FAKETIME_NO_CACHE", "1".to_owned()),
            set("FAKETIME_TIMESTAMP_FILE", self.file().display().to_string()),
        ]
    }

    fn file(&self) -> PathBuf {
        self.0.join("ahead")
    }
}

/// `/usr/lib/<architecture>/faketime/libfaketimeMT.so.1`, the one for programs with threads.
fn library() -> PathBuf {
    let architectures = fs::read_dir("/usr/lib").expect("/usr/lib");
    architectures
        .map(|entry| entry.expect("an entry").path())
        .map(|path| path.join("faketime/libfaketimeMT.so.1"))
        .find(|path| path.is_file())
        .expect("libfaketime (package faketime) is there")
}
