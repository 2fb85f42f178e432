//! The line that lets a worker join: `http://orion.example#TOKEN.KEY`. One word, so that it survives being pasted; behind
//! the `#`, which no HTTP client sends anywhere, the token and the control plane's public key.

use crate::{PublicKey, Seed};
use std::fmt;
use std::str::FromStr;

/// Where the control plane is, what lets a worker in, and what it knows the control plane by. Holds a secret.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinLine {
    /// The base URL of the agents' listener, as agents reach it.
    pub endpoint: String,
    /// The token; the database keeps only the public half.
    pub token: Seed,
    /// The key that signs the control plane's answers.
    pub signing_key: PublicKey,
}

impl JoinLine {
    /// The line, for the one answer that carries it and the one file that keeps it.
    pub fn expose(&self) -> String {
        let Self {
            endpoint,
            token,
            signing_key,
        } = self;
        format!("{endpoint}#{}.{signing_key}", token.expose_text())
    }
}

impl FromStr for JoinLine {
    /// A sentence that doesn't repeat the text.
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const FORM: &str = "must be a join line, http://orion.example#TOKEN.KEY";
        let (endpoint, secret) = text.trim().split_once('#').ok_or(FORM)?;
        let (token, key) = secret.split_once('.').ok_or(FORM)?;
        let plain = |c: char| c.is_ascii_graphic();
        if !endpoint.starts_with("http://") || !endpoint.chars().all(plain) {
            return Err(FORM);
        }
        Ok(Self {
            endpoint: endpoint.to_owned(),
            token: token.parse().map_err(|_| "its token was cut or changed")?,
            signing_key: key
                .parse()
                .map_err(|_| "its control plane's key was cut or changed")?,
        })
    }
}

impl fmt::Debug for JoinLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinLine({}#..{})", self.endpoint, self.signing_key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line() -> JoinLine {
        JoinLine {
            endpoint: "http://orion.example:8081".to_owned(),
            token: Seed::from_bytes([1; 32]),
            signing_key: PublicKey::from_bytes([2; 32]),
        }
    }

    #[test]
    fn a_line_is_one_word_and_is_read_back() {
        let text = line().expose();
        assert!(!text.contains(char::is_whitespace));
        assert_eq!(text.parse(), Ok(line()));
        assert_eq!(format!("  {text}\n").parse(), Ok(line()));
    }

    #[test]
    fn a_line_that_was_cut_or_changed_is_refused() {
        let text = line().expose();
        for bad in [
            "",
            "http://orion.example",
            &text[..text.len() - 1],
            &text.replace("http:", "https:"),
            &text.replace('.', ""),
            &text.replacen("orion.example", "orion example", 1),
            &text.replace('#', "#A"),
        ] {
            assert!(bad.parse::<JoinLine>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_token_does_not_print() {
        assert!(!format!("{:?}", line()).contains(&line().token.expose_text()));
    }
}
