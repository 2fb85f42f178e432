//! Rights as types: a handler that wants a [`Principal`] or an [`Admin`] can't be called without one.

use http::{HeaderMap, header};
use orion_core::{ProblemCode, Role, UserId, UserName};
use orion_store::{Scope, Store};

use crate::auth::token::{self, Tokens};
use crate::http::problem::Failure;

/// A user with a good token, as the database knows them now.
#[derive(Debug, Clone)]
pub struct Principal {
    /// The user.
    pub id: UserId,
    /// The user's name, which is also the accounts' name.
    pub name: UserName,
    role: Role,
}

impl Principal {
    /// Whose things this caller may see and end.
    pub fn scope(&self) -> Scope {
        match self.role {
            Role::User => Scope::Own(self.id),
            Role::Admin => Scope::All,
        }
    }

    /// The same caller as an administrator.
    ///
    /// # Errors
    /// `forbidden` for everybody else.
    pub fn into_admin(self) -> Result<Admin, Failure> {
        match self.role {
            Role::Admin => Ok(Admin { id: self.id }),
            Role::User => {
                let detail = "only administrators may do this";
                Err(Failure::new(ProblemCode::Forbidden, detail))
            }
        }
    }
}

/// An administrator with a good token.
#[derive(Debug, Clone, Copy)]
pub struct Admin {
    /// The administrator, for the log.
    pub id: UserId,
}

/// Finds out who sent a request: the token says who, the user's row says whether that still holds and what they may.
///
/// # Errors
/// `token_missing`, `token_invalid`, `token_expired`; `database_down`.
pub async fn principal(
    headers: &HeaderMap,
    tokens: &Tokens,
    store: &Store,
) -> Result<Principal, Failure> {
    let bearer = tokens.read(bearer_token(headers)?)?;
    let user = store.user(bearer.user).await?;
    let user = user.ok_or_else(|| token::invalid(&"the user does not exist"))?;
    if user.token_version != bearer.token_version {
        return Err(token::invalid(&"the token was revoked"));
    }
    Ok(Principal {
        id: user.id,
        name: user.name,
        role: user.role,
    })
}

fn bearer_token(headers: &HeaderMap) -> Result<&str, Failure> {
    let missing = || {
        let detail = "send the token of a login as `Authorization: Bearer TOKEN`";
        Failure::new(ProblemCode::TokenMissing, detail)
    };
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let value = values.next().ok_or_else(missing)?;
    if values.next().is_some() {
        return Err(token::invalid(&"there are two Authorization headers"));
    }
    let value = value.to_str().map_err(|error| token::invalid(&error))?;
    let (scheme, token) = value.split_once(' ').ok_or_else(missing)?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(missing());
    }
    Ok(token.trim_matches(' '))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn of(values: &[&'static str]) -> Result<String, ProblemCode> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(header::AUTHORIZATION, HeaderValue::from_static(value));
        }
        bearer_token(&headers)
            .map(str::to_owned)
            .map_err(|failure| failure.code)
    }

    #[test]
    fn the_token_stands_behind_the_word_bearer_in_any_case() {
        assert_eq!(of(&["Bearer a.b.c"]).unwrap(), "a.b.c");
        assert_eq!(of(&["bearer  a.b.c"]).unwrap(), "a.b.c");
    }

    #[test]
    fn without_a_bearer_token_it_is_missing_and_with_two_it_is_invalid() {
        for none in [&[][..], &["Basic eDp5"], &["a.b.c"]] {
            assert_eq!(of(none), Err(ProblemCode::TokenMissing), "{none:?}");
        }
        assert_eq!(
            of(&["Bearer a", "Bearer b"]),
            Err(ProblemCode::TokenInvalid)
        );
    }
}
