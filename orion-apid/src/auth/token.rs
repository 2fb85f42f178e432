//! Bearer tokens: JWT signed with HS256 and nothing else, the key named by `kid`, revocable by the user's row.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{
    Algorithm, DecodingKey, EncodingKey, Header, Validation, decode, decode_header, encode,
};
use orion_core::{ProblemCode, UserId};
use orion_daemon::Keyring;
use serde::{Deserialize, Serialize};

use crate::http::problem::Failure;

const ISSUER: &str = "orion";
const AUDIENCE: &str = "orion-api";

/// How far the clocks of two replicas may be apart (seconds).
const LEEWAY_S: u64 = 5;

/// What a good token says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bearer {
    /// Whose it is.
    pub user: UserId,
    /// The user's token version when it was made; a higher one in the user's row revokes it.
    pub token_version: u32,
}

/// Makes and reads tokens.
#[derive(Debug)]
pub struct Tokens {
    keys: Keyring,
    lifetime: Duration,
    validation: Validation,
}

#[derive(Serialize, Deserialize)]
struct Claims {
    iss: String,
    aud: String,
    /// The user's id. Not the name: names may be given again some day.
    sub: String,
    iat: u64,
    exp: u64,
    /// The token version.
    ver: u32,
}

impl Tokens {
    /// Signs with the keyring's current key and accepts all of its keys. Installs jsonwebtoken's cryptography for the
    /// process, without which it would panic at the first token.
    pub fn new(keys: Keyring, lifetime: Duration) -> Self {
        if jsonwebtoken::crypto::aws_lc::DEFAULT_PROVIDER
            .install_default()
            .is_err()
        {
            tracing::debug!("the token cryptography was installed before");
        }
        let mut validation = Validation::new(Algorithm::HS256);
        validation.leeway = LEEWAY_S;
        validation.set_issuer(&[ISSUER]);
        validation.set_audience(&[AUDIENCE]);
        // A missing claim would otherwise pass where a wrong one does not.
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        Self {
            keys,
            lifetime,
            validation,
        }
    }

    /// A token for this user, from now on.
    ///
    /// # Errors
    /// `internal`: the clock is before 1970, or the token can't be signed.
    pub fn issue(&self, bearer: Bearer) -> Result<String, Failure> {
        self.issue_at(bearer, SystemTime::now())
    }

    fn issue_at(&self, bearer: Bearer, now: SystemTime) -> Result<String, Failure> {
        let now = now
            .duration_since(UNIX_EPOCH)
            .map_err(Failure::internal)?
            .as_secs();
        let (id, key) = self.keys.current();
        let claims = Claims {
            iss: ISSUER.to_owned(),
            aud: AUDIENCE.to_owned(),
            sub: bearer.user.to_string(),
            iat: now,
            exp: now.saturating_add(self.lifetime.as_secs()),
            ver: bearer.token_version,
        };
        let header = Header {
            kid: Some(id.as_str().to_owned()),
            ..Header::new(Algorithm::HS256)
        };
        encode(&header, &claims, &EncodingKey::from_secret(key.expose())).map_err(Failure::internal)
    }

    /// Reads a token. Whether the user still exists and has this version is the caller's question to the database.
    ///
    /// # Errors
    /// `token_expired`, or `token_invalid` for everything else; the log alone learns why.
    pub fn read(&self, token: &str) -> Result<Bearer, Failure> {
        // Of the header only `kid` is used. The algorithm is ours to say.
        let header = decode_header(token).map_err(|error| invalid(&error))?;
        let key = header.kid.as_deref().and_then(|kid| self.keys.get(kid));
        let key = key.ok_or_else(|| invalid(&"no key of ours is named"))?;
        let key = DecodingKey::from_secret(key.expose());
        let claims = match decode::<Claims>(token, &key, &self.validation) {
            Ok(data) => data.claims,
            Err(error) if matches!(error.kind(), ErrorKind::ExpiredSignature) => {
                let detail = "the token has expired; log in again";
                return Err(Failure::new(ProblemCode::TokenExpired, detail));
            }
            Err(error) => return Err(invalid(&error)),
        };
        let user = claims.sub.parse().map_err(|error| invalid(&error))?;
        Ok(Bearer {
            user,
            token_version: claims.ver,
        })
    }
}

/// A token that is not good; also used where the user's row revokes it.
pub fn invalid(reason: &dyn std::fmt::Display) -> Failure {
    tracing::debug!(%reason, "a token was refused");
    Failure::new(
        ProblemCode::TokenInvalid,
        "the token is not valid; log in again",
    )
}

#[cfg(test)]
mod tests;
