//! Decodes a JSON object field by field and collects every fault, so that a client learns of all of them at once.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;

use orion_core::{FieldError, ProblemCode};
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;

use crate::http::problem::Failure;

/// What becomes of fields that nobody asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unknown {
    /// A fault: a misspelt optional field must not be ignored.
    Refused,
    /// Fine: an agent may be newer than we are.
    Tolerated,
}

/// The fields of an object that were not taken yet, and the faults found so far.
///
/// The getters return `None` where the value is bad, which is a fault then, or where an optional one is absent or
/// null. [`finish`](Self::finish) turns faults into the answer.
#[derive(Debug)]
pub struct Fields {
    values: BTreeMap<String, Value>,
    /// Put in front of names: `contact.` inside of `contact`.
    prefix: String,
    wrong_types: bool,
    errors: Vec<FieldError>,
}

impl Fields {
    /// The object that a body holds.
    ///
    /// # Errors
    /// `malformed_json` where the body is not JSON, `wrong_type` where it is JSON but no object.
    pub fn parse(body: &[u8]) -> Result<Self, Failure> {
        let not_json = |error: &dyn fmt::Display| {
            let detail = format!("the body must be a JSON object: {error}");
            Failure::new(ProblemCode::MalformedJson, detail)
        };
        if body.trim_ascii().is_empty() {
            return Err(not_json(&"it is empty"));
        }
        serde_json::from_slice::<IgnoredAny>(body).map_err(|error| not_json(&error))?;
        let entries: Entries = match serde_json::from_slice(body) {
            Ok(entries) => entries,
            Err(error) if error.is_data() => {
                let detail = "the body must be a JSON object";
                return Err(Failure::new(ProblemCode::WrongType, detail));
            }
            Err(error) => return Err(not_json(&error)),
        };
        let mut fields = Self::of(BTreeMap::new(), String::new());
        for (name, value) in entries.0 {
            if fields.values.insert(name.clone(), value).is_some() {
                fields.fault(&name, "is there twice");
            }
        }
        Ok(fields)
    }

    fn of(values: BTreeMap<String, Value>, prefix: String) -> Self {
        Self {
            values,
            prefix,
            wrong_types: false,
            errors: Vec::new(),
        }
    }

    /// Records that the value of `name` is not allowed.
    pub fn fault(&mut self, name: &str, detail: impl Into<String>) {
        let field = format!("{}{name}", self.prefix);
        self.errors.push(FieldError {
            field,
            detail: detail.into(),
        });
    }

    fn wrong_type(&mut self, name: &str, detail: &str) {
        self.wrong_types = true;
        self.fault(name, detail);
    }

    fn required(&mut self, name: &str) -> Option<Value> {
        let value = self.values.remove(name);
        if value.is_none() {
            self.fault(name, "is missing");
        }
        value
    }

    fn optional(&mut self, name: &str) -> Option<Value> {
        self.values.remove(name).filter(|value| !value.is_null())
    }

    fn as_text(&mut self, name: &str, value: Value) -> Option<String> {
        match value {
            Value::String(text) => Some(text),
            Value::Null
            | Value::Bool(_)
            | Value::Number(_)
            | Value::Array(_)
            | Value::Object(_) => {
                self.wrong_type(name, "must be a text");
                None
            }
        }
    }

    fn as_whole(&mut self, name: &str, value: &Value, range: &RangeInclusive<u64>) -> Option<u64> {
        let Some(number) = value.as_number() else {
            self.wrong_type(name, "must be a whole number");
            return None;
        };
        if number.as_f64().is_none_or(|float| float.fract() != 0.0) {
            self.wrong_type(name, "must be a whole number");
            return None;
        }
        let within = whole(number).filter(|whole| range.contains(whole));
        if within.is_none() {
            self.fault(
                name,
                format!("must be {} to {}", range.start(), range.end()),
            );
        }
        within
    }

    /// A text that must be there.
    pub fn text(&mut self, name: &str) -> Option<String> {
        let value = self.required(name)?;
        self.as_text(name, value)
    }

    /// A text that may be absent or null.
    pub fn optional_text(&mut self, name: &str) -> Option<String> {
        let value = self.optional(name)?;
        self.as_text(name, value)
    }

    /// A whole number that must be there, within `range`.
    pub fn whole(&mut self, name: &str, range: &RangeInclusive<u64>) -> Option<u64> {
        let value = self.required(name)?;
        self.as_whole(name, &value, range)
    }

    /// A whole number that may be absent (but not null), within `range`; `default` then.
    pub fn whole_or(
        &mut self,
        name: &str,
        range: &RangeInclusive<u64>,
        default: u64,
    ) -> Option<u64> {
        match self.values.remove(name) {
            None => Some(default),
            Some(value) => self.as_whole(name, &value, range),
        }
    }

    /// A TCP port that must be there.
    pub fn port(&mut self, name: &str) -> Option<u16> {
        let port = self.whole(name, &(1..=u64::from(u16::MAX)))?;
        u16::try_from(port).ok()
    }

    /// A number that must be there.
    pub fn number(&mut self, name: &str) -> Option<f64> {
        let number = self.required(name)?.as_f64();
        if number.is_none() {
            self.wrong_type(name, "must be a number");
        }
        number
    }

    /// A list of at most `most` texts; empty where it is absent or null. Faults name the element, as in `host_keys.2`.
    pub fn texts(&mut self, name: &str, most: usize) -> Vec<String> {
        let items = match self.optional(name) {
            None => return Vec::new(),
            Some(Value::Array(items)) => items,
            Some(_) => {
                self.wrong_type(name, "must be a list of texts");
                return Vec::new();
            }
        };
        if items.len() > most {
            self.fault(name, format!("must have at most {most} elements"));
            return Vec::new();
        }
        let named = |(index, item)| (format!("{name}.{index}"), item);
        items
            .into_iter()
            .enumerate()
            .map(named)
            .filter_map(|(name, item)| self.as_text(&name, item))
            .collect()
    }

    /// A list of anything that may be absent or null.
    pub fn optional_list(&mut self, name: &str) -> Option<Vec<Value>> {
        let Value::Array(items) = self.optional(name)? else {
            self.wrong_type(name, "must be a list");
            return None;
        };
        Some(items)
    }

    /// An object that may be absent or null, read by `read`; `unknown` is about the fields inside.
    pub fn object<T>(
        &mut self,
        name: &str,
        unknown: Unknown,
        read: impl FnOnce(&mut Self) -> Option<T>,
    ) -> Option<T> {
        let Value::Object(values) = self.optional(name)? else {
            self.wrong_type(name, "must be an object");
            return None;
        };
        let prefix = format!("{}{name}.", self.prefix);
        let mut inner = Self::of(values.into_iter().collect(), prefix);
        let read = read(&mut inner);
        inner.refuse_unknown(unknown);
        self.wrong_types |= inner.wrong_types;
        self.errors.append(&mut inner.errors);
        read
    }

    /// Turns a value that was taken into what it stands for; the error of `parse` is the fault's sentence.
    pub fn parse_as<V, T, E: Into<String>>(
        &mut self,
        name: &str,
        value: Option<V>,
        parse: impl FnOnce(V) -> Result<T, E>,
    ) -> Option<T> {
        match parse(value?) {
            Ok(parsed) => Some(parsed),
            Err(reason) => {
                self.fault(name, reason);
                None
            }
        }
    }

    fn refuse_unknown(&mut self, unknown: Unknown) {
        if unknown == Unknown::Refused {
            for name in std::mem::take(&mut self.values).into_keys() {
                // The name is the client's own text and may be as long as a body.
                let name: String = name.chars().take(64).collect();
                self.fault(&name, "is not a field of this request");
            }
        }
    }

    /// `value`, if nothing was wrong.
    ///
    /// # Errors
    /// `wrong_type` where a value had the wrong type, else `invalid_value`, with every fault.
    pub fn finish<T>(mut self, unknown: Unknown, value: Option<T>) -> Result<T, Failure> {
        self.refuse_unknown(unknown);
        let code = if self.wrong_types {
            ProblemCode::WrongType
        } else {
            ProblemCode::InvalidValue
        };
        match value {
            Some(value) if self.errors.is_empty() => Ok(value),
            None if self.errors.is_empty() => {
                Err(Failure::internal("a field vanished without a fault"))
            }
            Some(_) | None => Err(Failure::fields(code, self.errors)),
        }
    }
}

/// The number as u64, also where it is written `1e3`; `None` where it is negative or too large.
fn whole(number: &serde_json::Number) -> Option<u64> {
    number.as_u64().or_else(|| {
        // Exact in f64 up to 2^53, which no range here exceeds in that notation.
        let float = number
            .as_f64()
            .filter(|float| (0.0..=9_007_199_254_740_992.0).contains(float))?;
        format!("{float:.0}").parse().ok()
    })
}

/// An object with its fields as they stand, also those that are there twice.
struct Entries(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;
        impl<'de> Visitor<'de> for Collect {
            type Value = Entries;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(Collect)
    }
}

#[cfg(test)]
mod tests;
