//! Profiles of other servers' users. What was answered is remembered for a short while, since
//! clients ask for the same profile field by field.

use std::sync::Arc;

use chatd_base::{Error, Refusal, Result};
use chatd_servers::Ask;
use chatd_users::profiles::Profile;
use ruma_common::UserId;
use serde_json::{Map, Value};

use super::{Queries, encoded, told};

/// Profiles that are remembered (R8), each of at most the size below.
pub(super) const MOST: usize = 2_000;
const MOST_BYTES: usize = 80 << 10;
const FOR_MS: u64 = 60_000;

/// A profile as it was answered; `None`: there is none.
#[derive(Clone)]
pub(super) struct Remembered {
    profile: Option<Arc<Profile>>,
    until_ms: u64,
}

impl Queries {
    /// The profile of a user of another server, at most a minute old.
    pub async fn profile(&self, user: &UserId) -> Result<Arc<Profile>> {
        let known = self.profiles.get(user);
        let known = known.filter(|known| self.clock.now_ms() < known.until_ms);
        let profile = match known {
            Some(known) => known.profile,
            None => {
                let profile = self.ask_profile(user).await?.map(Arc::new);
                let until_ms = self.clock.now_ms() + FOR_MS;
                let remembered = Remembered { profile: profile.clone(), until_ms };
                self.profiles.insert(user.to_owned(), remembered);
                profile
            }
        };
        profile.ok_or_else(|| Refusal::not_found("there is no profile of that user").into())
    }

    async fn ask_profile(&self, user: &UserId) -> Result<Option<Profile>> {
        let server = user.server_name();
        let path =
            format!("/_matrix/federation/v1/query/profile?user_id={}", encoded(user.as_str()));
        let ask = Ask::get(path).most_bytes(MOST_BYTES);
        let fields: Map<String, Value> = match self.servers.client.ask_json(server, ask).await {
            Ok(fields) => fields,
            Err(failure) => match told(server, failure) {
                Error::Refused(refusal) if refusal.status == 404 => return Ok(None),
                error => return Err(error),
            },
        };
        let fields = fields.into_iter().filter(|(_, value)| !value.is_null()).collect();
        Ok(Some(Profile { fields, is_local: false }))
    }
}
