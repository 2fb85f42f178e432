//! The layers of a configuration. figment merges them and remembers where each value came from; reading files and
//! variables is done here, because figment's own providers search parent directories, quote offending values and
//! guess the types of variables.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use figment::value::{Dict, Map, Value};
use figment::{Figment, Metadata, Profile, Provider};
use serde::Serialize;

use super::values::fitting_value;
use super::{Fault, Settings};

/// The name under which compiled defaults appear as a source.
pub(super) const DEFAULT: &str = "compiled default";

/// One source of values.
#[derive(Debug, Clone)]
pub(super) struct Layer {
    pub(super) source: String,
    pub(super) values: Dict,
}

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.source.clone())
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        Ok(Map::from([(Profile::Default, self.values.clone())]))
    }
}

/// All layers, lowest first, and what figment makes of them.
#[derive(Debug)]
pub(super) struct Layers {
    pub(super) defaults: Dict,
    pub(super) above: Vec<Layer>,
    figment: Figment,
}

impl Layers {
    pub(super) fn with_defaults<S: Serialize>(default: &S, faults: &mut Vec<Fault>) -> Self {
        let defaults = match Value::serialize(default).map(Value::into_dict) {
            Ok(Some(dict)) => dict,
            Ok(None) | Err(_) => {
                faults.push(fault(DEFAULT, "", "the compiled defaults are not a table"));
                Dict::new()
            }
        };
        let lowest = Layer {
            source: DEFAULT.to_owned(),
            values: defaults.clone(),
        };
        Self {
            defaults,
            above: Vec::new(),
            figment: Figment::from(lowest),
        }
    }

    /// Adds `/etc/orion/NAME.toml` (which may be missing) or the file named on the command line (which may not),
    /// then the files of the directory beside it.
    pub(super) fn add_files(
        &mut self,
        name: &str,
        directory: &Path,
        named: Option<&Path>,
        faults: &mut Vec<Fault>,
    ) {
        let main = match named {
            // An absolute path, so that messages and --print-config say exactly which file was read.
            Some(path) => std::path::absolute(path).unwrap_or_else(|_| path.to_owned()),
            None => directory.join(format!("{name}.toml")),
        };
        self.add_file(&main, named.is_some(), faults);
        let (drop_ins, directory) = match drop_ins(&main.with_extension("d")) {
            Ok(found) => found,
            Err(fault) => {
                faults.push(fault);
                return;
            }
        };
        for path in drop_ins {
            self.add_file(&directory.join(path), true, faults);
        }
    }

    fn add_file(&mut self, path: &Path, must_exist: bool, faults: &mut Vec<Fault>) {
        let source = path.display().to_string();
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && !must_exist => return,
            Err(error) => {
                faults.push(fault(&source, "", &format!("can't be read: {error}")));
                return;
            }
        };
        match parse(&text) {
            Ok(values) => self.add(Layer { source, values }),
            Err(message) => faults.push(fault(&source, "", &message)),
        }
    }

    /// Adds the variables the settings name as aliases, then `ORION_NAME__TABLE__KEY=value`.
    pub(super) fn add_environment<S: Settings>(
        &mut self,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
        faults: &mut Vec<Fault>,
    ) {
        let prefix = format!("{}__", S::NAME.replace('-', "_").to_uppercase());
        let mut found: Vec<(bool, String, String, OsString)> = Vec::new();
        for (variable, raw) in environment {
            let Ok(variable) = variable.into_string() else {
                continue;
            };
            if let Some(rest) = variable.strip_prefix(&prefix) {
                let key = rest.to_lowercase().replace("__", ".");
                found.push((true, variable, key, raw));
            } else if let Some((_, key)) =
                S::ENV_ALIASES.iter().find(|(alias, _)| *alias == variable)
            {
                found.push((false, variable, (*key).to_owned(), raw));
            }
        }
        // Aliases first (false < true), then by name, so that the outcome never depends on the environment's order.
        found.sort();
        for (_, variable, key, raw) in found {
            let source = format!("environment variable {variable}");
            let Ok(raw) = raw.into_string() else {
                faults.push(fault(&source, &key, "is not UTF-8"));
                continue;
            };
            let value = fitting_value::<S>(&self.defaults, &key, &raw);
            let values = nest(&key, value);
            self.add(Layer { source, values });
        }
    }

    fn add(&mut self, layer: Layer) {
        self.figment = std::mem::take(&mut self.figment).merge(layer.clone());
        self.above.push(layer);
    }

    /// All layers merged.
    pub(super) fn merged(&self) -> Dict {
        self.figment
            .data()
            .ok()
            .and_then(|mut profiles| profiles.remove(&Profile::Default))
            .unwrap_or_default()
    }

    /// Where the value of `key` came from; for a key that no layer sets, its nearest table's source.
    pub(super) fn source_of(&self, key: &str) -> String {
        let mut key = key;
        loop {
            if let Some(metadata) = self.figment.find_metadata(key) {
                return metadata.name.to_string();
            }
            match key.rsplit_once('.') {
                Some((table, _)) => key = table,
                None => return DEFAULT.to_owned(),
            }
        }
    }
}

pub(super) fn fault(source: &str, key: &str, message: &str) -> Fault {
    Fault {
        source: source.to_owned(),
        key: key.to_owned(),
        message: message.to_owned(),
    }
}

/// A table with nothing but `value` at the dotted `key`.
fn nest(key: &str, value: Value) -> Dict {
    match key.split_once('.') {
        Some((table, rest)) => Dict::from([(table.to_owned(), Value::from(nest(rest, value)))]),
        None => Dict::from([(key.to_owned(), value)]),
    }
}

/// The `*.toml` files of a directory in the order of their names; none when there is no such directory.
fn drop_ins(directory: &Path) -> Result<(Vec<PathBuf>, PathBuf), Fault> {
    let unreadable = |error: std::io::Error| {
        fault(
            &directory.display().to_string(),
            "",
            &format!("can't be read: {error}"),
        )
    };
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Ok((Vec::new(), directory.to_owned()));
        }
        Err(error) => return Err(unreadable(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = PathBuf::from(entry.map_err(unreadable)?.file_name());
        // A name that begins with a dot is an editor's or a package tool's leftover.
        let hidden = name.as_os_str().as_encoded_bytes().first() == Some(&b'.');
        if !hidden
            && name
                .extension()
                .is_some_and(|extension| extension == "toml")
        {
            names.push(name);
        }
    }
    names.sort();
    Ok((names, directory.to_owned()))
}

/// Parses TOML; the message of a syntax error has line and column, and none of the text, which may be a secret.
fn parse(text: &str) -> Result<Dict, String> {
    let table: toml::Table = toml::from_str(text).map_err(|error| {
        let (line, column) = position(text, error.span().map_or(0, |span| span.start));
        format!(
            "line {line}, column {column}: is not TOML: {}",
            syntax_message(&error)
        )
    })?;
    Value::serialize(table)
        .ok()
        .and_then(Value::into_dict)
        .ok_or_else(|| "is not a table".to_owned())
}

/// The parser's message up to the first quotation: what it quotes is the file's text.
fn syntax_message(error: &toml::de::Error) -> String {
    let message = error.message();
    let end = message.find(['`', '"', '\n']).unwrap_or(message.len());
    let message = message.get(..end).unwrap_or_default().trim_end();
    if message.is_empty() {
        "syntax error".to_owned()
    } else {
        message.to_owned()
    }
}

fn position(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before
        .rsplit('\n')
        .next()
        .map_or(0, |last| last.chars().count())
        + 1;
    (line, column)
}
