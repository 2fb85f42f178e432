//! What can be said about a fault of a configuration, without repeating values that may be misplaced secrets.

use std::fmt;

/// One fault: where it stands, which key, and what is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// A file's path, `environment variable NAME`, or `compiled default`.
    pub source: String,
    /// The dotted key (`listen.clients`); empty when the fault is not about one key.
    pub key: String,
    /// What is wrong, in one sentence.
    pub message: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.source)?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.message)
    }
}

/// Collects what [`Settings::check`](crate::Settings::check) finds; the sources are added afterwards.
#[derive(Debug, Default)]
pub struct Faults {
    found: Vec<(String, String)>,
}

impl Faults {
    /// Records that the value of the dotted `key` is wrong.
    pub fn add(&mut self, key: impl Into<String>, message: impl Into<String>) {
        self.found.push((key.into(), message.into()));
    }

    /// Records `message` about `key` unless `good` holds.
    pub fn require(&mut self, good: bool, key: &str, message: impl Into<String>) {
        if !good {
            self.add(key, message);
        }
    }

    /// True when nothing was found.
    pub fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// What was found so far, as (key, message).
    pub fn found(&self) -> &[(String, String)] {
        &self.found
    }
}
