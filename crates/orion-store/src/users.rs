//! Who may log in to the API.

use crate::row::{column, word};
use crate::tx::{Finish, bounded, unit};
use crate::{Store, StoreError};
use mysql_async::prelude::Queryable;
use mysql_async::{Params, Row};
use orion_core::{Role, UserId, UserName};
use std::fmt;

/// A row of `users`.
#[derive(Clone)]
pub struct User {
    /// The user.
    pub id: UserId,
    /// The name, which is also the accounts' name.
    pub name: UserName,
    /// The password's hash with its parameters, as a PHC string.
    pub password_phc: String,
    /// What the user may do.
    pub role: Role,
    /// Tokens that carry a lower one are revoked.
    pub token_version: u32,
}

impl fmt::Debug for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("User")
            .field("id", &self.id)
            .field("name", &self.name)
            .field("role", &self.role)
            .finish_non_exhaustive()
    }
}

const SELECT: &str = "SELECT id, name, password_phc, role, token_version FROM users";

fn user(mut row: Row) -> Result<User, StoreError> {
    let name: String = column(&mut row, "name")?;
    Ok(User {
        id: UserId(column(&mut row, "id")?),
        name: UserName::stored(&name).map_err(|reason| StoreError::Corrupt {
            column: "name",
            reason: reason.to_owned(),
        })?,
        password_phc: column(&mut row, "password_phc")?,
        role: word(&mut row, "role")?,
        token_version: column(&mut row, "token_version")?,
    })
}

impl Store {
    /// A new user, or `None` where the name is taken.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn create_user(
        &self,
        name: &UserName,
        password_phc: &str,
        role: Role,
    ) -> Result<Option<UserId>, StoreError> {
        let created = unit!(self, |tx| {
            let now = tx.now;
            let id = tx
                .insert(
                    "INSERT INTO users (name, password_phc, role, created_at) VALUES (?, ?, ?, ?)",
                    (name.as_str(), password_phc, role.as_str(), now),
                )
                .await?;
            Finish::Commit(Some(UserId(id)))
        });
        match created {
            Err(error) if error.is_duplicate("users_name") => Ok(None),
            other => other,
        }
    }

    async fn one_user(&self, condition: &str, params: Params) -> Result<Option<User>, StoreError> {
        let sql = format!("{SELECT} WHERE {condition}");
        bounded(async {
            self.conn()
                .await?
                .exec_first(sql, params)
                .await?
                .map(user)
                .transpose()
        })
        .await
    }

    /// For a login.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn user_by_name(&self, name: &UserName) -> Result<Option<User>, StoreError> {
        self.one_user("name = ?", (name.as_str(),).into()).await
    }

    /// For a token.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn user(&self, id: UserId) -> Result<Option<User>, StoreError> {
        self.one_user("id = ?", (id.0,).into()).await
    }

    /// Replaces the hash of an unchanged password by one with more rounds.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn update_password(&self, id: UserId, password_phc: &str) -> Result<(), StoreError> {
        unit!(self, |tx| {
            tx.change(
                "UPDATE users SET password_phc = ? WHERE id = ?",
                (password_phc, id.0),
            )
            .await?;
            Finish::Commit(())
        })
    }
}
