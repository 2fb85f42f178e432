//! Finds every fault of a layered configuration at once. figment stops at the first one, so keys are walked against
//! the tree of the serialised defaults, and each value that is set is tried alone, on top of the defaults.

use figment::error::{Actual, Kind};
use figment::value::Value;

use super::layers::{DEFAULT, Layers, fault};
use super::values::{leaves, set, try_alone, unknown_keys};
use super::{Fault, Faults, Settings};

/// Checks all layers and builds the settings; `None` when not even the defaults can be built.
pub(super) fn verify<S: Settings>(layers: &Layers, faults: &mut Vec<Fault>) -> Option<S> {
    for layer in &layers.above {
        for key in unknown_keys("", &layer.values, &layers.defaults) {
            faults.push(fault(&layer.source, &key, "is not a key of this daemon"));
        }
    }
    let mut good = layers.defaults.clone();
    let mut bad_keys = Vec::new();
    for (key, value) in leaves("", &layers.merged(), &layers.defaults) {
        match try_alone::<S>(&layers.defaults, &key, &value) {
            Ok(()) => set(&mut good, &key, value),
            Err(error) => {
                let exact = exact_key(&key, &error);
                faults.push(fault(
                    &layers.source_of(&exact),
                    &exact,
                    &describe(&error.kind),
                ));
                bad_keys.push(key);
            }
        }
    }
    // Keys with a fault keep their default here, so that the daemon's own rules are checked on the others too.
    let settings: S = match Value::from(good).deserialize() {
        Ok(settings) => settings,
        Err(error) => {
            let key = error.path.join(".");
            faults.push(fault(DEFAULT, &key, &describe(&error.kind)));
            return None;
        }
    };
    let mut found = Faults::default();
    settings.check(&mut found);
    settings.log().check(&mut found);
    settings.ops().check(&mut found);
    for (key, message) in found.found() {
        if !bad_keys.contains(key) {
            faults.push(fault(&layers.source_of(key), key, message));
        }
    }
    Some(settings)
}

/// A value below a leaf (an element of a list, a table behind an `Option`) has a longer path than the leaf.
fn exact_key(leaf: &str, error: &figment::Error) -> String {
    let path = error.path.join(".");
    if path.starts_with(leaf) {
        path
    } else {
        leaf.to_owned()
    }
}

/// What is wrong with a value, without quoting text: a secret may have been put under a wrong key.
fn describe(kind: &Kind) -> String {
    match kind {
        Kind::Message(message) => format!("is not good: {message}"),
        Kind::InvalidType(actual, expected) | Kind::InvalidValue(actual, expected) => {
            format!("must be {expected}, not {}", describe_actual(actual))
        }
        Kind::InvalidLength(length, expected) => format!("must be {expected}, not {length} values"),
        Kind::UnknownVariant(_, expected) => format!("must be one of {}", expected.join(", ")),
        Kind::UnknownField(_, expected) => {
            format!("has an unknown key beside {}", expected.join(", "))
        }
        Kind::MissingField(field) => format!("lacks `{field}`"),
        Kind::DuplicateField(field) => format!("has `{field}` twice"),
        Kind::ISizeOutOfRange(_) | Kind::USizeOutOfRange(_) => "is out of range".to_owned(),
        Kind::Unsupported(_) | Kind::UnsupportedKey(..) => "is of an unsupported type".to_owned(),
    }
}

fn describe_actual(actual: &Actual) -> String {
    match actual {
        Actual::Bool(value) => format!("{value}"),
        Actual::Unsigned(value) => format!("{value}"),
        Actual::Signed(value) => format!("{value}"),
        Actual::Float(value) => format!("{value}"),
        Actual::Str(_) | Actual::Char(_) => "a text".to_owned(),
        Actual::Bytes(_) => "bytes".to_owned(),
        Actual::Unit | Actual::Option => "nothing".to_owned(),
        Actual::Seq => "a list".to_owned(),
        Actual::Map => "a table".to_owned(),
        Actual::NewtypeStruct
        | Actual::Enum
        | Actual::UnitVariant
        | Actual::NewtypeVariant
        | Actual::TupleVariant
        | Actual::StructVariant
        | Actual::Other(_) => "a value of another kind".to_owned(),
    }
}
