//! ed25519 keys as they travel: 32 bytes, written as 43 characters of unpadded base64url. What signs and verifies is in
//! `orion-signature`.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

/// A text that is no key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be 32 bytes in base64url without padding, which are 43 characters")]
pub struct NotAKey;

fn decode(text: &str) -> Result<[u8; 32], NotAKey> {
    let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| NotAKey)?;
    <[u8; 32]>::try_from(bytes).map_err(|_| NotAKey)
}

/// The public half of an ed25519 key. As long as a fingerprint, so it is its own.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    /// Length of the text (characters), as wide as the columns that hold one.
    pub const TEXT_CHARS: usize = 43;

    /// The key of these bytes. Whether they are a point on the curve shows when something is verified.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl FromStr for PublicKey {
    type Err = NotAKey;

    fn from_str(text: &str) -> Result<Self, NotAKey> {
        decode(text).map(Self)
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&URL_SAFE_NO_PAD.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

impl Serialize for PublicKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PublicKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// The secret an ed25519 key follows from. It can't be printed or serialised.
#[derive(Clone, PartialEq, Eq)]
pub struct Seed([u8; 32]);

impl Seed {
    /// The seed of these bytes, which must be random.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The bytes, for the one call that makes a key of them.
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }

    /// The text, for the one place that must carry it.
    pub fn expose_text(&self) -> String {
        URL_SAFE_NO_PAD.encode(self.0)
    }
}

impl FromStr for Seed {
    type Err = NotAKey;

    fn from_str(text: &str) -> Result<Self, NotAKey> {
        decode(text).map(Self)
    }
}

impl fmt::Debug for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Seed(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_read_back_from_its_text() {
        let key = PublicKey::from_bytes([0xfb; 32]);
        let text = key.to_string();
        assert_eq!(text.len(), PublicKey::TEXT_CHARS);
        assert_eq!(text.parse(), Ok(key));
        assert_eq!(serde_json::to_string(&key).unwrap(), format!("\"{text}\""));
        assert_eq!(
            serde_json::from_str::<PublicKey>(&format!("\"{text}\"")).unwrap(),
            key
        );
    }

    #[test]
    fn only_32_bytes_in_their_one_written_form_are_a_key() {
        let text = PublicKey::from_bytes([7; 32]).to_string();
        for bad in [
            "",
            "x",
            &text[1..],
            &format!("{text}="),
            &format!("{text}A"),
            &format!(" {text}"),
            &text.replace(&text[..1], "+"),
            // Bits that no byte holds.
            &format!("{}B", &text[..42]),
        ] {
            assert_eq!(bad.parse::<PublicKey>(), Err(NotAKey), "{bad}");
            assert_eq!(bad.parse::<Seed>().err(), Some(NotAKey), "{bad}");
        }
    }

    #[test]
    fn a_seed_does_not_print() {
        let seed = Seed::from_bytes([0xa5; 32]);
        let printed = format!("{seed:?} {seed:#?}");
        assert!(!printed.contains("165") && !printed.contains(&seed.expose_text()));
    }
}
