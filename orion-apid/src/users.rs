//! Sign-up and login.

use orion_core::api::{LoginReply, Message};
use orion_core::{Password, ProblemCode, Role, UserName};

use crate::auth::password::Verdict;
use crate::auth::token::Bearer;
use crate::http::fields::Unknown;
use crate::http::problem::Failure;
use crate::http::reply::Reply;
use crate::http::request::Call;

/// `POST /auth/signup`.
///
/// # Errors
/// Bad fields, `username_taken`, `too_many_requests`.
pub async fn signup(call: Call) -> Result<Reply, Failure> {
    let auth = &call.app.settings.auth;
    let mut fields = call.fields()?;
    let name = fields.text("username");
    let name = fields.parse_as("username", name, |text| {
        UserName::parse(&text, &auth.reserved_names)
    });
    let password = fields.text("password");
    let password = fields.parse_as("password", password, |text| {
        Password::parse(&text, auth.min_password_length)
    });
    let (name, password) = fields.finish(Unknown::Refused, name.zip(password))?;
    let phc = call.app.hasher.hash(password).await?;
    match call.app.store.create_user(&name, &phc, Role::User).await? {
        Some(user) => {
            tracing::info!(%user, request_id = call.request_id, "signed up");
            Reply::created(&Message {
                message: "Compte créé".to_owned(),
            })
        }
        None => Err(Failure::field(
            ProblemCode::UsernameTaken,
            "username",
            "is taken",
        )),
    }
}

/// `POST /auth/login`. An unknown name takes as long as a known one and gets the same answer.
///
/// # Errors
/// Wrong types, `login_failed`, `too_many_requests`.
pub async fn login(call: Call) -> Result<Reply, Failure> {
    let app = &call.app;
    let mut fields = call.fields()?;
    let given = fields.text("username").zip(fields.text("password"));
    let (name, password) = fields.finish(Unknown::Refused, given)?;
    let user = match UserName::stored(&name) {
        Ok(name) => app.store.user_by_name(&name).await?,
        Err(_) => None,
    };
    let stored = user.as_ref().map(|user| user.password_phc.clone());
    let verdict = app.hasher.check(Password::given(&password), stored).await?;
    let (Some(user), Verdict::Right | Verdict::Outdated(_)) = (&user, &verdict) else {
        let detail = "the name or the password is wrong";
        return Err(Failure::new(ProblemCode::LoginFailed, detail));
    };
    if let Verdict::Outdated(phc) = verdict {
        app.store.update_password(user.id, &phc).await?;
    }
    let token = app.tokens.issue(Bearer {
        user: user.id,
        token_version: user.token_version,
    })?;
    Reply::ok(&LoginReply { token })
}
