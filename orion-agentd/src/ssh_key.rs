//! SSH public keys as text.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// The types that OpenSSH on both Debians knows and accepts.
const TYPES: [&str; 7] = [
    "ssh-ed25519",
    "ssh-rsa",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "sk-ssh-ed25519@openssh.com",
    "sk-ecdsa-sha2-nistp256@openssh.com",
];

/// The first two words of a public key file, if they are a key type and base64 that repeats it, as they must.
pub(crate) fn without_comment(text: &str) -> Option<String> {
    let mut words = text.split_ascii_whitespace();
    let (kind, key) = (words.next()?, words.next()?);
    let bytes = STANDARD.decode(key).ok()?;
    let length = usize::try_from(u32::from_be_bytes(*bytes.first_chunk()?)).ok()?;
    let inner = bytes.get(4..)?.get(..length)?;
    (inner == kind.as_bytes()).then(|| format!("{kind} {key}"))
}

/// Whether this is exactly `type base64` of a known type: no options, no comment, no second line.
pub(crate) fn is_bare(text: &str) -> bool {
    let kind = text.split(' ').next().unwrap_or_default();
    TYPES.contains(&kind) && without_comment(text).as_deref() == Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_bare_key_of_a_known_type_is_one() {
        let key = |kind: &str| {
            let mut bytes = u32::try_from(kind.len())
                .expect("short")
                .to_be_bytes()
                .to_vec();
            bytes.extend_from_slice(kind.as_bytes());
            bytes.extend_from_slice(&[7; 36]);
            format!("{kind} {}", STANDARD.encode(bytes))
        };
        let good = key("ssh-ed25519");
        assert!(is_bare(&good));
        for bad in [
            String::new(),
            "ssh-ed25519".to_owned(),
            "ssh-ed25519 AAAA".to_owned(),
            format!("{good} comment"),
            format!("{good}\n"),
            format!(" {good}"),
            format!("command=\"id\" {good}"),
            format!("{good}\n{good}"),
            good.replace(' ', "\t"),
            good.replacen("ssh-ed25519", "ssh-rsa", 1),
            key("ssh-dss"),
            key("cert-authority"),
        ] {
            assert!(!is_bare(&bad), "{bad:?}");
        }
    }
}
