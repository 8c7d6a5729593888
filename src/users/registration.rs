//! Making accounts: which names are free to take, what must be proved first, and the commit that
//! makes the account, its profile, and the end of its registration session at once.

use std::sync::Arc;

use chatd_base::{Error, Refusal, Result, UserNid, token};
use chatd_storage::{Batch, accounts, notices::Notice, profiles as profile_rows, uia};
use ruma_common::{OwnedUserId, UserId};
use serde_json::Value;

use crate::{
    Deps,
    logins::ts,
    passwords::Passwords,
    profiles::{DISPLAYNAME, Profiles},
    uia::{Passed, Stage},
};

/// Longest user id, in bytes.
const MAX_USER_ID: usize = 255;

/// An account that is asked for.
#[derive(Debug, Default)]
pub struct NewAccount {
    /// Made up if absent.
    pub localpart: Option<String>,
    /// Without one, the account cannot log in with a password.
    pub password: Option<String>,
    pub admin: bool,
    /// `bot`, `support` and the like; absent for people.
    pub user_type: Option<String>,
    /// The local part if absent.
    pub displayname: Option<String>,
    /// Ended, and its registration token used up, together with the account being made.
    pub passed: Option<Passed>,
}

/// An account that has been made.
#[derive(Clone, Debug)]
pub struct Registered {
    pub user: UserNid,
    pub user_id: OwnedUserId,
}

/// Makes accounts.
pub struct Registration {
    deps: Deps,
    passwords: Arc<Passwords>,
    profiles: Arc<Profiles>,
}

impl Registration {
    pub(crate) fn new(deps: &Deps, passwords: &Arc<Passwords>, profiles: &Arc<Profiles>) -> Self {
        let (passwords, profiles) = (passwords.clone(), profiles.clone());
        Self { deps: deps.clone(), passwords, profiles }
    }

    /// What a client has to prove before it may register.
    pub fn flows(&self) -> &'static [&'static [Stage]] {
        if self.deps.config.registration.requires_token {
            &[&[Stage::RegistrationToken, Stage::Dummy]]
        } else {
            &[&[Stage::Dummy]]
        }
    }

    /// Refuses local parts that cannot be a user of this server, and those that are taken in any
    /// case of their letters.
    pub async fn check_localpart(&self, localpart: &str) -> Result<()> {
        self.check_name(localpart)?;
        if accounts::list_by_localpart(&self.deps.pool, localpart).await?.is_empty() {
            return Ok(());
        }
        Err(taken())
    }

    /// As [`Registration::check_localpart`], but does not tell names that are taken if that is
    /// configured so (`inhibit_user_in_use_error`). For before a client has proved anything.
    pub async fn check_localpart_early(&self, localpart: &str) -> Result<()> {
        if self.deps.config.registration.inhibit_user_in_use_error {
            return self.check_name(localpart);
        }
        self.check_localpart(localpart).await
    }

    fn check_name(&self, localpart: &str) -> Result<()> {
        let registration = &self.deps.config.registration;
        let allow_underscore = registration.allow_underscore_prefixed_registration;
        let id_length = localpart.len() + self.deps.config.server_name.as_str().len() + 2;
        check(localpart, id_length, allow_underscore)
            .map_err(|message| Refusal::invalid_username(message).into())
    }

    /// Makes an account for a person or a program. Refuses names that are not free and passwords
    /// that the policy does not allow.
    pub async fn register(&self, new: NewAccount) -> Result<Registered> {
        let localpart = new.localpart.clone().unwrap_or_else(made_up_name);
        self.check_localpart(&localpart).await?;
        let password_hash = match &new.password {
            Some(password) => {
                self.passwords.check_policy(password)?;
                Some(self.passwords.hash(password).await?)
            }
            None => None,
        };
        self.make(localpart, password_hash, new, false).await
    }

    /// Makes a guest account.
    pub async fn register_guest(&self) -> Result<Registered> {
        let localpart: String =
            token::random_letters(12).bytes().map(|b| char::from(b'0' + b % 10)).collect();
        self.make(localpart, None, NewAccount::default(), true).await
    }

    async fn make(
        &self,
        localpart: String,
        password_hash: Option<String>,
        new: NewAccount,
        is_guest: bool,
    ) -> Result<Registered> {
        let user_id = UserId::parse(format!("@{localpart}:{}", self.deps.config.server_name))
            .map_err(|error| Refusal::invalid_username(error.to_string()))?;
        let user = self.deps.interner.user(user_id.as_str()).await?;
        let displayname = new.displayname.unwrap_or_else(|| localpart.clone());
        let mut batch = Batch::new();
        let row = accounts::NewAccount {
            user,
            localpart,
            password_hash,
            created_ts: ts(self.deps.clock.now_ms()),
            is_admin: new.admin,
            is_guest,
            user_type: new.user_type,
        };
        accounts::insert(&mut batch, row);
        if !is_guest && !displayname.is_empty() {
            let (name, value) = (DISPLAYNAME.to_owned(), Value::from(displayname).to_string());
            profile_rows::upsert(&mut batch, profile_rows::Field { user, name, value });
        }
        if let Some(passed) = new.passed {
            end(&mut batch, &passed);
        }
        self.deps.notices.tell(&mut batch, Notice::Profile { user });
        let outcome = self.deps.pool.commit(batch).await;
        self.profiles.forget(user);
        outcome.map_err(refused)?;
        tracing::info!(user.id = %user_id, "a user has registered");
        Ok(Registered { user, user_id })
    }
}

fn end(batch: &mut Batch, passed: &Passed) {
    if let Some(token) = &passed.registration_token {
        uia::use_registration_token(batch, token);
    }
    if let Some(session) = &passed.session {
        uia::delete(batch, session);
    }
}

fn refused(error: chatd_storage::Error) -> Error {
    if error.is_unique_violation() {
        return taken();
    }
    if error.is_token_used_up() {
        return Refusal::forbidden("the registration token has no use left").into();
    }
    error.into()
}

fn taken() -> Error {
    Refusal::user_in_use("that user name is taken").into()
}

fn made_up_name() -> String {
    token::random_letters(12).to_ascii_lowercase()
}

/// Why nobody can have the name `localpart`.
fn check(localpart: &str, id_length: usize, allow_underscore: bool) -> Result<(), &'static str> {
    let allowed =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"=_-./+".contains(&byte);
    if !localpart.bytes().all(allowed) {
        return Err("a user name can only contain characters a-z, 0-9, and =_-./+");
    }
    if localpart.is_empty() {
        return Err("the user name is empty");
    }
    if localpart.starts_with('_') && !allow_underscore {
        return Err("a user name may not begin with _");
    }
    if id_length > MAX_USER_ID {
        return Err("a user id may not be longer than 255 characters");
    }
    if localpart.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err("names of digits only are for guests");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_nobody_can_have() {
        let id_length = |name: &str| name.len() + 10;
        for good in ["alice", "a.b-c_d=e/f+g", "1a", "a_"] {
            assert_eq!(check(good, id_length(good), false), Ok(()), "{good}");
        }
        for bad in ["", "Alice", "a b", "\u{e9}", "_a", "1234", "a:b", "@a"] {
            assert!(check(bad, id_length(bad), false).is_err(), "{bad}");
        }
        let long = "a".repeat(246);
        assert!(check(&long, id_length(&long), false).is_err());
        assert_eq!(check("_a", 12, true), Ok(()));
    }
}
