//! Values by their dotted keys, in a tree as deep as the serialised defaults.

use figment::value::{Dict, Value};

use super::Settings;

/// The value that a variable's text means for `key`: text where the default is text, else what it looks like, as
/// long as the settings take it; a list may be written `a,b`.
pub(super) fn fitting_value<S: Settings>(defaults: &Dict, key: &str, raw: &str) -> Value {
    let text = Value::from(raw);
    let parsed = match raw.parse::<Value>() {
        Ok(value) => value,
        Err(never) => match never {},
    };
    let list: Vec<Value> = raw
        .split(',')
        .map(|item| Value::from(item.trim()))
        .collect();
    let text_by_default = matches!(find(defaults, key), Some(Value::String(..)));
    let candidates = if text_by_default {
        [text.clone(), parsed.clone(), Value::from(list), text]
    } else {
        [parsed.clone(), Value::from(list), text, parsed.clone()]
    };
    candidates
        .into_iter()
        .find(|candidate| try_alone::<S>(defaults, key, candidate).is_ok())
        .unwrap_or(parsed)
}

/// Would the settings take `value` at `key`, were all else at its default?
pub(super) fn try_alone<S: Settings>(
    defaults: &Dict,
    key: &str,
    value: &Value,
) -> Result<(), Box<figment::Error>> {
    let mut tree = defaults.clone();
    set(&mut tree, key, value.clone());
    match Value::from(tree).deserialize::<S>() {
        Ok(_) => Ok(()),
        Err(error) => Err(Box::new(error)),
    }
}

fn join(table: &str, key: &str) -> String {
    if table.is_empty() {
        key.to_owned()
    } else {
        format!("{table}.{key}")
    }
}

/// Keys that the defaults do not have. A table that is empty in the defaults takes any key.
pub(super) fn unknown_keys(table: &str, values: &Dict, defaults: &Dict) -> Vec<String> {
    let mut unknown = Vec::new();
    for (key, value) in values {
        let path = join(table, key);
        match (value, defaults.get(key)) {
            (_, None) => unknown.push(path),
            (Value::Dict(_, inner), Some(Value::Dict(_, known))) if !known.is_empty() => {
                unknown.extend(unknown_keys(&path, inner, known));
            }
            (_, Some(_)) => {}
        }
    }
    unknown
}

/// The known keys with their merged values, each as deep as the defaults' tables go.
pub(super) fn leaves(table: &str, values: &Dict, defaults: &Dict) -> Vec<(String, Value)> {
    let mut found = Vec::new();
    for (key, value) in values {
        let path = join(table, key);
        match (value, defaults.get(key)) {
            (_, None) => {}
            (Value::Dict(_, inner), Some(Value::Dict(_, known))) if !known.is_empty() => {
                found.extend(leaves(&path, inner, known));
            }
            (_, Some(_)) => found.push((path, value.clone())),
        }
    }
    found
}

fn find<'a>(tree: &'a Dict, key: &str) -> Option<&'a Value> {
    match key.split_once('.') {
        Some((table, rest)) => match tree.get(table) {
            Some(Value::Dict(_, inner)) => find(inner, rest),
            Some(_) | None => None,
        },
        None => tree.get(key),
    }
}

pub(super) fn set(tree: &mut Dict, key: &str, value: Value) {
    let Some((table, rest)) = key.split_once('.') else {
        tree.insert(key.to_owned(), value);
        return;
    };
    let mut inner = match tree.remove(table) {
        Some(Value::Dict(_, inner)) => inner,
        Some(_) | None => Dict::new(),
    };
    set(&mut inner, rest, value);
    tree.insert(table.to_owned(), Value::from(inner));
}
