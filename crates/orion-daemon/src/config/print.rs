//! The configuration in effect as TOML. Secrets can't appear: settings hold only the paths of secret files.

use std::fmt::Write;

use figment::value::{Dict, Value};

use super::layers::Layers;

pub(super) fn print(layers: &Layers, name: &str) -> String {
    let mut text = format!("# {name}: the configuration in effect\n");
    print_table(&mut text, layers, "", &layers.merged());
    text
}

/// Plain values first: in TOML a key behind a `[table]` line would belong to that table.
fn print_table(text: &mut String, layers: &Layers, table: &str, values: &Dict) {
    let path = |key: &str| {
        if table.is_empty() {
            key.to_owned()
        } else {
            format!("{table}.{key}")
        }
    };
    for (key, value) in values {
        let source = layers.source_of(&path(key));
        if as_table(value).is_some() {
            continue;
        }
        let written = match (value, toml::Value::try_from(value)) {
            (Value::Empty(..), _) => writeln!(text, "# {key} is not set"),
            (_, Ok(value)) => writeln!(text, "{key} = {value}  # {source}"),
            (_, Err(error)) => writeln!(text, "# {key} can't be shown as TOML: {error}"),
        };
        // Writing to a String can't fail.
        written.unwrap_or_default();
    }
    for (key, value) in values {
        if let Some(inner) = as_table(value) {
            let path = path(key);
            writeln!(text, "\n[{path}]").unwrap_or_default();
            print_table(text, layers, &path, inner);
        }
    }
}

fn as_table(value: &Value) -> Option<&Dict> {
    value.as_dict().filter(|inner| !inner.is_empty())
}
