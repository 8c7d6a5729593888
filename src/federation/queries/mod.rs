//! What clients ask of other servers, through this one: profiles, aliases, room lists, keys,
//! spaces, events by time. What comes back is checked for its form and its size; what it says is the
//! other server's business.

mod directory;
mod hierarchy;
mod keys;
mod moments;
mod profiles;
mod spaces;
mod summary;

use std::sync::Arc;

use chatd_base::{Cache, Clock, Error, Refusal, Requester, Result};
use chatd_config::Config;
use chatd_rooms::{Rooms, read::Reader};
use chatd_servers::{Failure, Servers};
use chatd_users::Users;
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use ruma_common::{OwnedServerName, OwnedUserId, RoomId, ServerName};

use crate::turns::Turns;
pub use directory::{PlaceOfAlias, RoomListQuery};
pub use hierarchy::{HierarchyPage, HierarchyQuery};
pub use keys::Claims;
use profiles::Remembered;
pub use summary::RoomSummary;

use crate::joining::Joining;

/// What a value in a query string may not have as it is.
const RESERVED: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'#')
    .add(b'%')
    .add(b'&')
    .add(b'+')
    .add(b',')
    .add(b'/')
    .add(b':')
    .add(b';')
    .add(b'<')
    .add(b'=')
    .add(b'>')
    .add(b'?')
    .add(b'@')
    .add(b'[')
    .add(b']')
    .add(b'^')
    .add(b'`')
    .add(b'{')
    .add(b'|')
    .add(b'}');

/// Codes that speak of the access token of whoever asked. The other server means this one; clients
/// would take it for theirs and log out.
const OF_TOKENS: &[&str] =
    &["M_UNKNOWN_TOKEN", "M_MISSING_TOKEN", "M_USER_LOCKED", "M_USER_DEACTIVATED"];

/// Servers that are asked about one room (R8).
const MOST_SERVERS: usize = 3;

/// Asks other servers on behalf of clients.
pub struct Queries {
    config: Arc<Config>,
    users: Arc<Users>,
    rooms: Arc<Rooms>,
    reader: Reader,
    servers: Servers,
    joining: Arc<Joining>,
    clock: Clock,
    profiles: Cache<OwnedUserId, Remembered>,
    spaces: Cache<spaces::Key, spaces::Remembered>,
    /// Who looks for events by time.
    lookups: Turns,
}

impl Queries {
    pub(crate) fn new(deps: &crate::Deps, joining: &Arc<Joining>) -> Self {
        Self {
            config: deps.config.clone(),
            users: deps.users.clone(),
            rooms: deps.rooms.clone(),
            reader: deps.reader.clone(),
            servers: deps.servers.clone(),
            joining: joining.clone(),
            clock: deps.users.deps.clock.clone(),
            profiles: Cache::new("remote_profiles", profiles::MOST),
            spaces: Cache::new("remote_spaces", spaces::MOST),
            lookups: Turns::default(),
        }
    }

    /// Servers that may tell a user of a room that nobody here is in: that of whoever has invited
    /// the user, those that the client names, that of the room's id.
    async fn servers_that_know(
        &self,
        who: &Requester,
        room: &RoomId,
        via: &[OwnedServerName],
    ) -> Result<Vec<OwnedServerName>> {
        let standing = self.rooms.owner.standing(&who.user_id, room).await?;
        let mut servers = self.joining.candidates(room, via, standing.as_ref()).await?;
        servers.truncate(MOST_SERVERS);
        Ok(servers)
    }
}

/// A value as a query string has it.
fn encoded(text: &str) -> String {
    utf8_percent_encode(text, RESERVED).to_string()
}

/// What a client is told where another server has not answered as it should.
fn told(server: &ServerName, failure: Failure) -> Error {
    let refusal = match failure {
        Failure::Refused { status, errcode, error, .. } if is_for_clients(status, &errcode) => {
            let usual = if status == 404 { "M_NOT_FOUND" } else { "M_UNKNOWN" };
            let errcode = if errcode.is_empty() { usual.to_owned() } else { errcode };
            Refusal::new(status, errcode, error)
        }
        Failure::Forbidden(_) => Refusal::forbidden(failure.told()),
        other => {
            tracing::debug!(server.name = %server, failure = %other, "a server was of no help");
            Refusal::new(502, "M_UNKNOWN", format!("{server} cannot be asked at the moment"))
        }
    };
    refusal.into()
}

/// Whether the refusal is about what the client wants, rather than about this server.
pub(crate) fn is_for_clients(status: u16, errcode: &str) -> bool {
    (400..500).contains(&status) && ![401, 429].contains(&status) && !is_of_token(errcode)
}

/// Whether a code speaks of the access token of whoever has asked.
pub(crate) fn is_of_token(errcode: &str) -> bool {
    OF_TOKENS.contains(&errcode)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told_of(status: u16, errcode: &str) -> (u16, String) {
        let server = ServerName::parse("a.example").unwrap();
        let (errcode, body) = (errcode.to_owned(), serde_json::Value::Null);
        let failure = Failure::Refused { status, errcode, error: String::new(), body };
        match told(&server, failure) {
            Error::Refused(refusal) => (refusal.status, refusal.errcode.into_owned()),
            Error::Internal(error) => panic!("{error}"),
        }
    }

    #[test]
    fn clients_are_told_what_concerns_them() {
        for (status, errcode, expected) in [
            (404, "M_NOT_FOUND", (404, "M_NOT_FOUND")),
            (404, "", (404, "M_NOT_FOUND")),
            (403, "M_FORBIDDEN", (403, "M_FORBIDDEN")),
            (400, "ORG.EXAMPLE", (400, "ORG.EXAMPLE")),
            (401, "M_UNAUTHORIZED", (502, "M_UNKNOWN")),
            (403, "M_UNKNOWN_TOKEN", (502, "M_UNKNOWN")),
            (429, "M_LIMIT_EXCEEDED", (502, "M_UNKNOWN")),
            (500, "M_FORBIDDEN", (502, "M_UNKNOWN")),
        ] {
            let (status, errcode) = told_of(status, errcode);
            assert_eq!((status, errcode.as_str()), expected);
        }
    }

    #[test]
    fn values_stay_values() {
        assert_eq!(encoded("@a:b.example&c=d"), "%40a%3Ab.example%26c%3Dd");
        assert_eq!(encoded("#é+ /"), "%23%C3%A9%2B%20%2F");
    }
}
