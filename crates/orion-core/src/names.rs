//! Texts that clients and workers choose, checked once at the edge and carried as proof of that.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Names that Debian and its packages give to system users and groups, or that lead to confusion; configuration may add more.
pub const RESERVED_NAMES: &[&str] = &[
    "root",
    "daemon",
    "bin",
    "sys",
    "sync",
    "games",
    "man",
    "lp",
    "mail",
    "news",
    "uucp",
    "proxy",
    "www-data",
    "backup",
    "list",
    "irc",
    "gnats",
    "nobody",
    "nogroup",
    "messagebus",
    "sshd",
    "polkitd",
    "adm",
    "tty",
    "disk",
    "dialout",
    "fax",
    "voice",
    "cdrom",
    "floppy",
    "tape",
    "sudo",
    "audio",
    "dip",
    "operator",
    "src",
    "shadow",
    "utmp",
    "video",
    "sasl",
    "plugdev",
    "staff",
    "users",
    "input",
    "sgx",
    "kvm",
    "render",
    "crontab",
    "netdev",
    "docker",
    "lxd",
    "libvirt",
    "wheel",
    "admin",
    "administrator",
    "ssh",
    "debian",
    "vagrant",
    "ubuntu",
    "ansible",
    "mysql",
    "caddy",
    "postfix",
    "ntp",
    "tcpdump",
    "avahi",
    "lightdm",
    "colord",
    "geoclue",
    "saned",
    "rtkit",
    "pulse",
    "uuidd",
    "dnsmasq",
    "orion",
    "orion-node",
    "orion-client",
    "orion-apid",
    "orion-schedd",
    "orion-agentd",
];

/// A user's name, which is also the name of the account on nodes: `^[a-z][a-z0-9_-]{0,30}$` and not reserved.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(transparent)]
pub struct UserName(String);

impl UserName {
    /// Checks the form and the reserved lists; the error is a sentence for the client.
    pub fn parse(text: &str, also_reserved: &[String]) -> Result<Self, &'static str> {
        let name = Self::stored(text)?;
        if name.is_reserved(also_reserved) {
            return Err("is the name of a system account");
        }
        Ok(name)
    }

    /// A name that is known already, from the database: administrators may have reserved names, which can't rent.
    pub fn stored(text: &str) -> Result<Self, &'static str> {
        let mut bytes = text.bytes();
        let starts_well = bytes.next().is_some_and(|first| first.is_ascii_lowercase());
        let goes_on_well =
            bytes.all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-');
        if !starts_well || !goes_on_well || text.len() > 31 {
            return Err("must match ^[a-z][a-z0-9_-]{0,30}$");
        }
        Ok(Self(text.to_owned()))
    }

    /// Whether an account of this name on a node would be, or look like, a system account.
    pub fn is_reserved(&self, also_reserved: &[String]) -> bool {
        RESERVED_NAMES.contains(&self.0.as_str())
            || self.0.starts_with("systemd-")
            || also_reserved.contains(&self.0)
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for UserName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A clear password on its way through; can't be printed or serialised, is never stored.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(String);

impl Password {
    /// The longest accepted, in characters. crypt(3) takes 511 bytes; four bytes make the widest character.
    pub const MAX_CHARS: usize = 127;

    /// Any character works but control characters; lengths count characters. The error is a sentence for the client.
    pub fn parse(text: &str, min_chars: usize) -> Result<Self, String> {
        let chars = text.chars().count();
        if text.chars().any(char::is_control) {
            return Err("must not contain control characters".to_owned());
        }
        if chars < min_chars || chars > Self::MAX_CHARS {
            return Err(format!(
                "must have {min_chars} to {} characters",
                Self::MAX_CHARS
            ));
        }
        Ok(Self(text.to_owned()))
    }

    /// A password as it came from a login, which was checked when it was set.
    pub fn given(text: &str) -> Self {
        Self(text.to_owned())
    }

    /// The clear text. Callers hash it or put it into the one answer that carries it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(..)")
    }
}

/// A worker's host name: RFC 1123 labels in lower case, at most 253 bytes. Data only: it never reaches an inventory.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HostName(String);

impl TryFrom<String> for HostName {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::parse(&text)
    }
}

impl From<HostName> for String {
    fn from(name: HostName) -> Self {
        name.0
    }
}

impl HostName {
    /// Capitals are folded; the error is a sentence for the client.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let label_is_good = |label: &str| {
            !label.is_empty()
                && label.len() <= 63
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-')
        };
        if text.len() > 253 || !text.split('.').all(label_is_good) {
            return Err(
                "must be a host name: labels of letters, digits and inner dashes, at most 253 bytes",
            );
        }
        Ok(Self(text.to_ascii_lowercase()))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_safe_unix_names_become_users() {
        let long = "a".repeat(32);
        for bad in [
            "",
            "root",
            "sshd",
            "systemd-network",
            "a;b",
            "../x",
            "-rf",
            "Alice",
            "élan",
            "{{ 1 }}",
            "a b",
            "1a",
            &long,
        ] {
            assert!(UserName::parse(bad, &[]).is_err(), "{bad}");
        }
        for good in ["a", "alice", "a-b_9", &"a".repeat(31)] {
            assert!(UserName::parse(good, &[]).is_ok(), "{good}");
        }
        assert!(UserName::parse("deploy", &["deploy".to_owned()]).is_err());
    }

    #[test]
    fn passwords_are_taken_to_the_letter_but_for_control_characters() {
        for good in ["pass word", "it's \"$HOME\" {{ x }}", "пароль-Ω"] {
            assert_eq!(Password::parse(good, 8).unwrap().expose(), good);
        }
        for bad in ["line\nbreak", "nul\0nul1", "seven77", &"x".repeat(128)] {
            assert!(Password::parse(bad, 8).is_err(), "{bad:?}");
        }
        assert_eq!(format!("{:?}", Password::given("secret")), "Password(..)");
    }

    #[test]
    fn host_names_are_rfc_1123() {
        assert_eq!(
            HostName::parse("Worker1.Lab").unwrap().as_str(),
            "worker1.lab"
        );
        for bad in [
            "",
            "a..b",
            "-a",
            "a-",
            "a b",
            "{{ 1 }}",
            "a;b",
            "a\n",
            &"a".repeat(64),
        ] {
            assert!(HostName::parse(bad).is_err(), "{bad:?}");
        }
    }
}
