//! From rows to types; what doesn't fit is an error that names the column.

use crate::StoreError;
use mysql_async::Row;
use mysql_async::prelude::FromValue;
use orion_core::UtcTime;
use std::fmt::Display;
use std::str::FromStr;
use time::PrimitiveDateTime;

/// A host, as an IP address or a configured name, and a TCP port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Address {
    /// IP address or name.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

impl Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} port {}", self.host, self.port)
    }
}

pub(crate) fn column<T: FromValue>(row: &mut Row, column: &'static str) -> Result<T, StoreError> {
    match row.take_opt(column) {
        Some(Ok(value)) => Ok(value),
        Some(Err(error)) => Err(StoreError::Corrupt {
            column,
            reason: error.to_string(),
        }),
        None => Err(StoreError::Corrupt {
            column,
            reason: "the statement does not return it".to_owned(),
        }),
    }
}

/// A state or a checked text.
pub(crate) fn word<T>(row: &mut Row, name: &'static str) -> Result<T, StoreError>
where
    T: FromStr,
    T::Err: Display,
{
    let text: String = column(row, name)?;
    text.parse().map_err(|error: T::Err| StoreError::Corrupt {
        column: name,
        reason: error.to_string(),
    })
}

pub(crate) fn word_or_null<T>(row: &mut Row, name: &'static str) -> Result<Option<T>, StoreError>
where
    T: FromStr,
    T::Err: Display,
{
    let text: Option<String> = column(row, name)?;
    text.map(|text| text.parse())
        .transpose()
        .map_err(|error: T::Err| StoreError::Corrupt {
            column: name,
            reason: error.to_string(),
        })
}

pub(crate) fn instant(row: &mut Row, name: &'static str) -> Result<UtcTime, StoreError> {
    column::<PrimitiveDateTime>(row, name).map(UtcTime)
}

pub(crate) fn instant_or_null(
    row: &mut Row,
    name: &'static str,
) -> Result<Option<UtcTime>, StoreError> {
    Ok(column::<Option<PrimitiveDateTime>>(row, name)?.map(UtcTime))
}

pub(crate) fn address(
    row: &mut Row,
    host: &'static str,
    port: &'static str,
) -> Result<Option<Address>, StoreError> {
    let host: Option<String> = column(row, host)?;
    let port: Option<u16> = column(row, port)?;
    Ok(host.zip(port).map(|(host, port)| Address { host, port }))
}
