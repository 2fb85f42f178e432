//! Instants as the database gives them.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use time::PrimitiveDateTime;
use time::format_description::FormatItem;
use time::macros::format_description;

const FORMAT: &[FormatItem<'_>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:6]");

/// An instant of the database's UTC clock, written with microseconds and no suffix: `2025-11-15T21:46:30.988892`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct UtcTime(pub PrimitiveDateTime);

impl fmt::Display for UtcTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.format(FORMAT).map_err(|_| fmt::Error)?.fmt(f)
    }
}

impl Serialize for UtcTime {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for UtcTime {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        PrimitiveDateTime::parse(&text, FORMAT)
            .map(Self)
            .map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instants_keep_their_microseconds_and_have_no_suffix() {
        let text = "\"2025-11-15T21:46:30.988892\"";
        let instant: UtcTime = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&instant).unwrap(), text);
        let whole: UtcTime = serde_json::from_str("\"2025-11-15T21:46:30.000000\"").unwrap();
        assert_eq!(whole.to_string(), "2025-11-15T21:46:30.000000");
    }
}
