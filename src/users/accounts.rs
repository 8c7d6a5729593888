//! Accounts: finding them by what people type, passwords, and closing them.

use std::sync::Arc;

use chatd_base::{Refusal, Requester, Result, UserNid};
use chatd_storage::{Batch, accounts, notices::Notice, profiles as profile_rows};
use ruma_common::{ServerName, UserId};

pub use chatd_storage::accounts::Account;

use crate::{Deps, devices::Devices, passwords::Passwords, profiles::Profiles};

/// Accounts of this server.
pub struct Accounts {
    deps: Deps,
    passwords: Arc<Passwords>,
    devices: Arc<Devices>,
    profiles: Arc<Profiles>,
}

impl Accounts {
    pub(crate) fn new(
        deps: &Deps,
        passwords: &Arc<Passwords>,
        devices: &Arc<Devices>,
        profiles: &Arc<Profiles>,
    ) -> Self {
        Self {
            deps: deps.clone(),
            passwords: passwords.clone(),
            devices: devices.clone(),
            profiles: profiles.clone(),
        }
    }

    /// The account that `name` means: a user id or a local part, in the right case, or in any
    /// case if that leaves only one.
    pub async fn find(&self, name: &str) -> Result<Option<Account>> {
        let Some(localpart) = localpart_of(name, &self.deps.config.server_name) else {
            return Ok(None);
        };
        let mut found = accounts::list_by_localpart(&self.deps.pool, localpart).await?;
        let exact = format!("@{localpart}:{}", self.deps.config.server_name);
        if let Some(at) = found.iter().position(|account| account.user_id == exact) {
            return Ok(Some(found.swap_remove(at)));
        }
        Ok(if found.len() == 1 { found.pop() } else { None })
    }

    /// What attempts to log in as `name` are counted under: the same however it is written.
    pub fn attempts_key(&self, name: &str) -> String {
        let server_name = &self.deps.config.server_name;
        match localpart_of(name, server_name) {
            Some(localpart) => format!("@{localpart}:{server_name}").to_lowercase(),
            None => name.to_lowercase(),
        }
    }

    /// The account of `user`, if it is one of this server.
    pub async fn get(&self, user: UserNid) -> Result<Option<Account>> {
        Ok(accounts::get(&self.deps.pool, user).await?)
    }

    /// The account that `name` and `password` open. Refuses with 403, always after the same time.
    pub async fn check_password(&self, name: &str, password: &str) -> Result<Account> {
        let account = self.find(name).await?;
        if account.as_ref().is_some_and(|account| account.deactivated) {
            return Err(deactivated().into());
        }
        let hash = account.as_ref().and_then(|account| account.password_hash.as_deref());
        let is_right = self.passwords.verify(password, hash).await?;
        account
            .filter(|_| is_right)
            .ok_or_else(|| Refusal::forbidden("wrong user name or password").into())
    }

    /// Sets a new password. With `log_out_others`, only the session of `who` goes on.
    pub async fn set_password(
        &self,
        who: &Requester,
        password: &str,
        log_out_others: bool,
    ) -> Result<()> {
        let hash = self.passwords.hash(password).await?;
        let mut batch = Batch::new();
        accounts::set_password(&mut batch, who.user, &hash);
        self.deps.pool.commit(batch).await?;
        if log_out_others {
            self.devices.delete_all_but(who).await?;
        }
        Ok(())
    }

    /// Closes the account: no password, devices, tokens, keys, backups or account data; with
    /// `erase` no profile either. Its rooms are left by the caller, who knows about rooms. The name
    /// stays taken.
    pub async fn deactivate(&self, user: UserNid, user_id: &UserId, erase: bool) -> Result<()> {
        let notices = self.deps.notices.clone();
        let close = move |batch: &mut Batch| {
            notices.tell(batch, Notice::Profile { user });
            accounts::deactivate(batch, user, erase);
            if erase {
                profile_rows::delete_all(batch, user);
            }
        };
        let outcome = self.devices.delete_all_with(user, user_id, close).await;
        self.profiles.forget(user);
        outcome
    }
}

/// 403 for accounts that have been closed.
pub fn deactivated() -> Refusal {
    Refusal::new(403, "M_USER_DEACTIVATED", "this account has been deactivated")
}

/// The local part that somebody means who types `name`; `None` for users of other servers.
fn localpart_of<'a>(name: &'a str, server_name: &ServerName) -> Option<&'a str> {
    match name.strip_prefix('@') {
        None => Some(name),
        Some(rest) => {
            let (localpart, server) = rest.split_once(':')?;
            (server == server_name.as_str()).then_some(localpart)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_local_part_or_an_id_of_this_server() {
        let here = <&ServerName>::try_from("x.org:8448").unwrap();
        assert_eq!(localpart_of("alice", here), Some("alice"));
        assert_eq!(localpart_of("@alice:x.org:8448", here), Some("alice"));
        assert_eq!(localpart_of("@alice:x.org", here), None);
        assert_eq!(localpart_of("@alice", here), None);
    }
}
