//! SSH host public keys as agents send them. They end up in `known_hosts` files, so only what is one passes.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::http::fields::Fields;

/// The key types that OpenSSH and our probes understand.
const TYPES: [&str; 5] = [
    "ssh-ed25519",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "ssh-rsa",
];

/// The longest key (bytes): RSA with 4,096 bits has 724 and some.
const MAX_BYTES: usize = 1024;

/// The keys of one registration.
#[derive(Debug)]
pub struct HostKeys;

impl HostKeys {
    /// The most keys of one worker.
    pub const MOST: usize = 16;

    /// The good ones of `given`; each other is a fault that names its place, as `host_keys.2`.
    pub fn check(fields: &mut Fields, given: Vec<String>) -> Vec<String> {
        let mut good: Vec<String> = Vec::with_capacity(given.len());
        for (index, key) in given.into_iter().enumerate() {
            let place = format!("host_keys.{index}");
            match check_one(&key) {
                Ok(()) if good.contains(&key) => fields.fault(&place, "is there twice"),
                Ok(()) => good.push(key),
                Err(reason) => fields.fault(&place, reason),
            }
        }
        good
    }
}

fn check_one(key: &str) -> Result<(), String> {
    if key.len() > MAX_BYTES {
        return Err(format!("must have at most {MAX_BYTES} bytes"));
    }
    let (kind, text) = key
        .split_once(' ')
        .ok_or("must be a type and base64, parted by one space")?;
    if !TYPES.contains(&kind) {
        return Err(format!("must have one of the types {}", TYPES.join(", ")));
    }
    let blob = STANDARD
        .decode(text)
        .map_err(|_| "must have base64 behind its type and nothing else")?;
    // RFC 4253: the blob begins with its own type as a string with a length of four bytes.
    let named = blob.split_first_chunk::<4>().and_then(|(length, rest)| {
        let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
        rest.split_at_checked(length)
    });
    match named {
        Some((inner, rest)) if inner == kind.as_bytes() && !rest.is_empty() => Ok(()),
        Some(_) | None => Err("must be a key of the type it names".to_owned()),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A made-up key of a type.
    pub(crate) fn key(kind: &str, inner: &str, byte: u8) -> String {
        let mut blob = u32::try_from(inner.len()).unwrap().to_be_bytes().to_vec();
        blob.extend_from_slice(inner.as_bytes());
        blob.extend_from_slice(&32_u32.to_be_bytes());
        blob.extend_from_slice(&[byte; 32]);
        format!("{kind} {}", STANDARD.encode(blob))
    }

    #[test]
    fn keys_of_every_known_type_pass() {
        for kind in TYPES {
            assert_eq!(check_one(&key(kind, kind, 1)), Ok(()), "{kind}");
        }
        let real =
            "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGMlsfyUcfMMsmwCx1kSzPRFVgJFLVbHzJNwIZ5fqaG7";
        assert_eq!(check_one(real), Ok(()));
    }

    #[test]
    fn a_key_must_be_of_the_type_it_names() {
        assert!(
            check_one(&key("ssh-ed25519", "ssh-rsa", 1))
                .unwrap_err()
                .contains("type it names")
        );
        assert!(
            check_one("ssh-ed25519 AAAA")
                .unwrap_err()
                .contains("type it names")
        );
        assert!(
            check_one("ssh-ed25519 /////w==")
                .unwrap_err()
                .contains("type it names")
        );
    }

    #[test]
    fn what_could_forge_a_line_of_known_hosts_is_refused() {
        let good = key("ssh-ed25519", "ssh-ed25519", 1);
        for bad in [
            String::new(),
            "ssh-ed25519".to_owned(),
            format!("{good} comment"),
            format!("{good}\n* {good}"),
            format!("@cert-authority {good}"),
            format!(" {good}"),
            good.replace(' ', "  "),
            key("ssh-dss", "ssh-dss", 1),
            format!("{good}{}", "A".repeat(1024)),
        ] {
            assert!(check_one(&bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn bad_keys_and_doubles_are_named_by_their_place() {
        let mut fields = Fields::parse(b"{}").unwrap();
        let good = key("ssh-rsa", "ssh-rsa", 1);
        let kept = HostKeys::check(&mut fields, vec![good.clone(), "x".into(), good.clone()]);
        assert_eq!(kept, [good]);
        let failure = fields
            .finish(crate::http::fields::Unknown::Tolerated, Some(()))
            .unwrap_err();
        let names: Vec<_> = failure
            .errors
            .iter()
            .map(|error| error.field.as_str())
            .collect();
        assert_eq!(names, ["host_keys.1", "host_keys.2"]);
    }
}
