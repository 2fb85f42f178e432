//! Keys with ids, so that they can be rotated: whatever is derived from a key stores that key's id.

use std::fmt;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use secrecy::{ExposeSecret, SecretBox, SecretString};

use crate::secret::{SecretError, secret_file};

/// The name of a key: 1 to 32 characters of `A-Z a-z 0-9 _ -`. Public: it stands in rows and tokens.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyId(String);

impl KeyId {
    /// A key id, or `None` when the text is not one.
    pub fn new(text: &str) -> Option<Self> {
        let good = |c: u8| c.is_ascii_alphanumeric() || c == b'_' || c == b'-';
        ((1..=32).contains(&text.len()) && text.bytes().all(good)).then(|| Self(text.to_owned()))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// 32 secret bytes. They do not print and are wiped from memory in the end.
pub struct Key(SecretBox<[u8; 32]>);

impl Key {
    /// A key of the given bytes.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(SecretBox::new(Box::new(bytes)))
    }

    /// The bytes, for the one call that needs them.
    pub fn expose(&self) -> &[u8; 32] {
        self.0.expose_secret()
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key([REDACTED])")
    }
}

/// The keys of one file, in its order: the first is used for new things, the others still prove old ones.
#[derive(Debug)]
pub struct Keyring {
    current: (KeyId, Key),
    older: Vec<(KeyId, Key)>,
}

impl Keyring {
    /// Reads a secret file with one `id:base64(32 bytes)` a line, the current key first. Blank lines and lines that
    /// begin with `#` are skipped.
    ///
    /// # Errors
    /// As [`secret_file`]; and for a line that is no key, or an id that is there twice.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, SecretError> {
        let path = path.as_ref();
        let text = secret_file(path)?;
        let mut keys: Vec<(KeyId, Key)> = Vec::new();
        for (index, line) in text.expose_secret().lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let malformed = |reason| SecretError::Malformed {
                path: path.to_owned(),
                line: index + 1,
                reason,
            };
            let (id, key) = parse_line(line).map_err(malformed)?;
            if keys.iter().any(|(other, _)| *other == id) {
                return Err(malformed("this key id is there twice"));
            }
            keys.push((id, key));
        }
        let mut keys = keys.into_iter();
        let current = keys
            .next()
            .ok_or_else(|| SecretError::Empty(path.to_owned()))?;
        Ok(Self {
            current,
            older: keys.collect(),
        })
    }

    /// A keyring of one key, for tests.
    pub fn single(id: KeyId, key: Key) -> Self {
        Self {
            current: (id, key),
            older: Vec::new(),
        }
    }

    /// The key for everything new.
    pub fn current(&self) -> (&KeyId, &Key) {
        (&self.current.0, &self.current.1)
    }

    /// The key of this id, current or older.
    pub fn get(&self, id: &str) -> Option<&Key> {
        self.iter()
            .find(|(found, _)| found.as_str() == id)
            .map(|(_, key)| key)
    }

    /// All keys, the current one first.
    pub fn iter(&self) -> impl Iterator<Item = (&KeyId, &Key)> {
        std::iter::once(&self.current)
            .chain(&self.older)
            .map(|(id, key)| (id, key))
    }
}

fn parse_line(line: &str) -> Result<(KeyId, Key), &'static str> {
    let (id, text) = line.split_once(':').ok_or("must be id:base64")?;
    let id = KeyId::new(id).ok_or("the key id must be 1 to 32 characters of A-Z a-z 0-9 _ -")?;
    let bytes = STANDARD.decode(text).map_err(|_| "the key is not base64")?;
    let bytes = <[u8; 32]>::try_from(bytes).map_err(|_| "the key must have 32 bytes")?;
    Ok((id, Key::new(bytes)))
}

/// A line with a new random key under `id`, newline included, for [`make_key_file`](crate::make_key_file).
///
/// # Errors
/// When the system gives no random bytes.
pub fn generate_key_line(id: &KeyId) -> Result<SecretString, SecretError> {
    let mut bytes = [0_u8; 32];
    getrandom::fill(&mut bytes).map_err(|error| SecretError::NoRandom(error.to_string()))?;
    Ok(SecretString::from(format!(
        "{id}:{}\n",
        STANDARD.encode(bytes)
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Directory;

    fn line(id: &str, byte: u8) -> String {
        format!("{id}:{}", STANDARD.encode([byte; 32]))
    }

    #[test]
    fn the_first_key_is_current_and_the_others_are_found_by_id() {
        let directory = Directory::new();
        let text = format!("# rotated in May\n{}\n\n{}\n", line("k2", 2), line("k1", 1));
        let ring = Keyring::load(directory.write_secret("keys", &text)).expect("good file");
        let (id, key) = ring.current();
        assert_eq!((id.as_str(), key.expose()), ("k2", &[2; 32]));
        assert_eq!(ring.get("k1").map(Key::expose), Some(&[1; 32]));
        assert!(ring.get("k3").is_none());
    }

    #[test]
    fn no_key_is_seen_in_what_a_keyring_prints() {
        let directory = Directory::new();
        let text = format!("{}\n", line("k1", 0xa5));
        let ring = Keyring::load(directory.write_secret("keys", &text)).expect("good file");
        let printed = format!("{ring:?} {ring:#?}");
        assert!(printed.contains("k1") && printed.contains("REDACTED"));
        assert!(!printed.contains(&STANDARD.encode([0xa5; 32])), "{printed}");
        assert!(
            !printed.contains("165") && !printed.contains("a5"),
            "{printed}"
        );
    }

    #[test]
    fn a_bad_line_is_named_by_its_number_and_not_quoted() {
        let directory = Directory::new();
        let short = format!("k1:{}", STANDARD.encode([7; 16]));
        for bad in [
            "c2VjcmV0",
            "k 1:c2VjcmV0",
            "k1:c2Vj!cmV0",
            &short,
            &line("k0", 9),
        ] {
            let text = format!("{}\n{bad}\n", line("k0", 1));
            let error = Keyring::load(directory.write_secret("keys", &text)).expect_err(bad);
            assert!(
                matches!(error, SecretError::Malformed { line: 2, .. }),
                "{error}"
            );
            let shown = format!("{error} {error:?}");
            assert!(
                !shown.contains("c2Vj") && !shown.contains("CQkJ"),
                "{shown}"
            );
        }
    }

    #[test]
    fn generated_keys_differ_and_load() {
        let directory = Directory::new();
        let id = KeyId::new("k1").expect("good id");
        let first = generate_key_line(&id).expect("random");
        let second = generate_key_line(&id).expect("random");
        assert_ne!(first.expose_secret(), second.expose_secret());
        let ring = Keyring::load(directory.write_secret("keys", first.expose_secret()));
        assert_eq!(ring.expect("good file").current().0, &id);
    }
}
