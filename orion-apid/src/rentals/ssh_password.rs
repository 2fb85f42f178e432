//! The SSH password of a rental: chosen by the client, or derived from a server key so that it need not be stored;
//! and its crypt(3) form for the worker.

use std::sync::Arc;

use hmac::{Hmac, KeyInit, Mac};
use orion_core::{Password, RentalId};
use orion_daemon::Key;
use sha_crypt::{PasswordHasher as _, ShaCrypt};
use sha2::Sha256;
use tokio::sync::Semaphore;

use crate::http::problem::Failure;

/// 32 characters that nobody takes for another: Crockford's alphabet in lower case (no i, l, o, u).
const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

/// Characters of a derived password, five bits each: 120 bits.
const LENGTH: usize = 24;

/// Keeps what derives from one key for different purposes apart.
const PASSWORD_LABEL: &[u8] = b"orion ssh password 1\0";
const DIGEST_LABEL: &[u8] = b"orion rent body 1\0";

/// The password of this rental under `key`; the same again for the same version.
///
/// # Errors
/// `internal`, which can't happen: HMAC takes keys of any length.
pub fn derived(key: &Key, rental: RentalId, version: u32) -> Result<Password, Failure> {
    let parts: [&[u8]; 3] = [
        PASSWORD_LABEL,
        &rental.0.to_be_bytes(),
        &version.to_be_bytes(),
    ];
    let code = authenticate(key, &parts)?;
    let text: String = code
        .iter()
        .filter_map(|byte| ALPHABET.get(usize::from(byte & 31)))
        .take(LENGTH)
        .map(|letter| char::from(*letter))
        .collect();
    Ok(Password::given(&text))
}

/// The digest of a rent's body that is stored with its idempotency key. With a key, because a body may hold a password
/// that a plain digest would let anybody guess.
///
/// # Errors
/// `internal`, which can't happen: HMAC takes keys of any length.
pub fn body_digest(key: &Key, body: &[u8]) -> Result<[u8; 32], Failure> {
    authenticate(key, &[DIGEST_LABEL, body])
}

fn authenticate(key: &Key, parts: &[&[u8]]) -> Result<[u8; 32], Failure> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key.expose()).map_err(Failure::internal)?;
    for part in parts {
        mac.update(part);
    }
    Ok(mac.finalize().into_bytes().into())
}

/// Makes crypt(3) hashes off the async threads, apart from the logins' queue.
#[derive(Debug)]
pub struct Crypt {
    running: Arc<Semaphore>,
}

impl Crypt {
    /// As many at once as there are processors.
    pub fn new() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            running: Arc::new(Semaphore::new(processors)),
        }
    }

    /// The hashes of these passwords, in their order, each with a salt of its own.
    ///
    /// # Errors
    /// `internal`: no random bytes.
    pub async fn hashes(&self, passwords: Vec<Password>) -> Result<Vec<String>, Failure> {
        let permit = Arc::clone(&self.running)
            .acquire_owned()
            .await
            .map_err(Failure::internal)?;
        let task = tokio::task::spawn_blocking(move || {
            let hashes = passwords.iter().map(random_salt_hash).collect();
            drop(permit);
            hashes
        });
        task.await.map_err(Failure::internal)?
    }
}

impl Default for Crypt {
    fn default() -> Self {
        Self::new()
    }
}

fn random_salt_hash(password: &Password) -> Result<String, Failure> {
    let mut salt = [0; 12];
    getrandom::fill(&mut salt).map_err(|error| Failure::internal(error.to_string()))?;
    sha512_crypt(password, &salt)
}

/// `$6$` with 5,000 rounds. Twelve bytes are the sixteen characters of salt that crypt(3) reads: with more it would
/// answer with a shorter salt than it was given, and no password would ever match.
fn sha512_crypt(password: &Password, salt: &[u8; 12]) -> Result<String, Failure> {
    let hash = ShaCrypt::SHA512
        .hash_password_with_salt(password.expose().as_bytes(), salt)
        .map_err(|error| {
            Failure::internal(format!("an account password can't be hashed: {error}"))
        })?;
    // 5,000 rounds are the default and so not written; some readers of shadow know no other form.
    Ok(hash.as_str().replacen("$rounds=5000$", "$", 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use sha_crypt::PasswordVerifier as _;
    use std::collections::HashSet;

    fn key(byte: u8) -> Key {
        Key::new([byte; 32])
    }

    #[test]
    fn a_derived_password_depends_on_key_rental_and_version_and_on_nothing_else() {
        let of = |byte, rental, version| {
            let password = derived(&key(byte), RentalId(rental), version).unwrap();
            password.expose().to_owned()
        };
        let all: HashSet<_> = [of(1, 1, 1), of(2, 1, 1), of(1, 2, 1), of(1, 1, 2)].into();
        assert_eq!(all.len(), 4);
        assert_eq!(of(1, 1, 1), of(1, 1, 1));
        for text in all {
            assert_eq!(text.len(), LENGTH);
            assert!(text.bytes().all(|byte| ALPHABET.contains(&byte)), "{text}");
            assert!(Password::parse(&text, 20).is_ok());
        }
    }

    #[test]
    fn a_derived_password_never_changes_from_one_version_of_orion_to_the_next() {
        // Made with: python3 -c "import hmac; …" over the label, the id and the version as big-endian numbers.
        let password = derived(&key(7), RentalId(42), 1).unwrap();
        assert_eq!(password.expose(), "rhnjkrybpkepmqgbc6njmx7m");
    }

    #[test]
    fn a_digest_is_no_password_and_depends_on_key_and_body() {
        let digest = body_digest(&key(1), b"{}").unwrap();
        assert_ne!(digest, body_digest(&key(2), b"{}").unwrap());
        assert_ne!(digest, body_digest(&key(1), b"{ }").unwrap());
        assert_eq!(digest, body_digest(&key(1), b"{}").unwrap());
    }

    #[test]
    fn the_hash_is_what_crypt_3_makes_of_the_same_salt() {
        for (password, expected) in [
            (
                "pass word",
                "$6$OdZKOdZKOdZKOdZK$R9B09UGONlFt7dWenIACnZELpE7pW4KHBSUi6KD7967GPghG5aEnZIZYwboJjVh6UMTPiDEC/EmBIg2ZywOCx1",
            ),
            (
                "it's \"$HOME\" {{ x }} é",
                "$6$OdZKOdZKOdZKOdZK$D3JG3mtzoDAVlJjsM6rNNelXXV3hWyjil1Cv.5csgb9iLyFhJGdrm1DYcSRpltNfA4gHjGUgDAfyJ.xpMSd9T.",
            ),
        ] {
            let hash = sha512_crypt(&Password::given(password), &[0x5a; 12]).unwrap();
            assert_eq!(hash, expected);
        }
    }

    #[tokio::test]
    async fn equal_passwords_get_different_salts_of_sixteen_characters() {
        let passwords = vec![Password::given("secret-secret"); 2];
        let hashes = Crypt::new().hashes(passwords).await.unwrap();
        assert_ne!(hashes[0], hashes[1]);
        for hash in &hashes {
            let parts: Vec<_> = hash.split('$').collect();
            assert_eq!(
                (parts[1], parts[2].len(), parts.len()),
                ("6", 16, 4),
                "{hash}"
            );
            assert!(
                ShaCrypt::SHA512
                    .verify_password(b"secret-secret", hash.as_str())
                    .is_ok()
            );
        }
    }
}
