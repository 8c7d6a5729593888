//! Which servers may know a room, how they are tried, and what is made of their refusals.

use chatd_base::{Error, Refusal, Requester, Result};
use chatd_rooms::Standing;
use chatd_servers::{Ask, Failure};
use chatd_streams::events::Membership;
use futures::future::BoxFuture;
use ruma_common::{OwnedRoomId, OwnedServerName, RoomAliasId, RoomId, RoomOrAliasId, ServerName};
use serde::Deserialize;

use super::{Found, Joining, template::Wish};
use crate::{queries::is_for_clients, uri};

/// Servers that are asked for one request (R8).
const MOST: usize = 10;
/// Servers of an alias that are taken on.
const MOST_OF_ALIAS: usize = 50;

/// Why a server has not helped.
pub(super) enum Trial {
    /// This server could not do its part.
    Ours(Error),
    Theirs(Failure),
}

impl From<Error> for Trial {
    fn from(error: Error) -> Self {
        Self::Ours(error)
    }
}

impl From<Failure> for Trial {
    fn from(failure: Failure) -> Self {
        Self::Theirs(failure)
    }
}

impl Joining {
    /// What the user wants to be in the room, and the servers that may help.
    pub(super) async fn wish<'a>(
        &self,
        who: &'a Requester,
        room_id: &'a RoomId,
        servers: &[OwnedServerName],
        membership: Membership,
        reason: Option<&str>,
    ) -> Result<(Wish<'a>, Vec<OwnedServerName>)> {
        let rooms = &self.deps.rooms;
        let standing = rooms.owner.standing(&who.user_id, room_id).await?;
        let candidates = self.candidates(room_id, servers, standing.as_ref()).await?;
        let mut content = rooms.profile_content(&who.user_id).await?;
        if let Some(reason) = reason {
            content.insert("reason".to_owned(), reason.into());
        }
        Ok((Wish { user: &who.user_id, room_id, membership, content }, candidates))
    }

    /// What the first of the servers that helps has given. Refuses if none does, or if one says
    /// what all of them would say.
    pub(super) async fn by_first<'a, T>(
        &self,
        room_id: &RoomId,
        candidates: &'a [OwnedServerName],
        attempt: impl Fn(&'a ServerName) -> BoxFuture<'a, Result<T, Trial>>,
    ) -> Result<T> {
        let mut failures = Vec::new();
        for server in candidates {
            match attempt(server).await {
                Ok(given) => return Ok(given),
                Err(Trial::Ours(error)) => return Err(error),
                Err(Trial::Theirs(failure)) => {
                    tracing::info!(room.id = %room_id, server = %server, %failure,
                        "a server has not helped into a room");
                    let ends = is_final(&failure);
                    failures.push((server.clone(), failure));
                    if ends {
                        break;
                    }
                }
            }
        }
        Err(unreached(&failures).into())
    }

    /// The room that an id or an alias names, with servers that may know it: `via`, and those that
    /// the alias's server tells.
    pub async fn find(&self, room: &RoomOrAliasId, via: Vec<OwnedServerName>) -> Result<Found> {
        let alias = match <&RoomId>::try_from(room) {
            Ok(room_id) => return Ok(Found { room_id: room_id.to_owned(), servers: via }),
            Err(alias) => alias,
        };
        if alias.server_name() == self.deps.config.server_name {
            let room_id = self.deps.rooms.resolve(room).await?;
            return Ok(Found { room_id, servers: via });
        }
        let found = self.ask_for_alias(alias).await?;
        let servers = via.into_iter().chain(found.servers).collect();
        Ok(Found { room_id: found.room_id, servers })
    }

    /// What the server of an alias says of it.
    pub async fn ask_for_alias(&self, alias: &RoomAliasId) -> Result<Found> {
        #[derive(Deserialize)]
        struct Answer {
            room_id: OwnedRoomId,
            #[serde(default)]
            servers: Vec<String>,
        }
        let server = alias.server_name();
        let ask = Ask::get(uri!("/_matrix/federation/v1/query/directory?room_alias={}", alias));
        let asked = self.deps.servers.client.ask_json::<Answer>(server, ask).await;
        let answer = asked.map_err(|failure| match failure {
            Failure::Refused { status: 404, .. } => {
                Refusal::not_found(format!("the room alias {alias} does not exist"))
            }
            other => unreached(&[(server.to_owned(), other)]),
        })?;
        let servers = answer.servers.iter().take(MOST_OF_ALIAS);
        let servers = servers.filter_map(|name| OwnedServerName::try_from(name.as_str()).ok());
        Ok(Found { room_id: answer.room_id, servers: servers.chain([server.to_owned()]).collect() })
    }

    /// The servers to ask about a room, the most promising first: who has invited the user, those
    /// that the client names, that of the room's id, and those that were in the room when this
    /// server was.
    pub(crate) async fn candidates(
        &self,
        room_id: &RoomId,
        given: &[OwnedServerName],
        standing: Option<&Standing>,
    ) -> Result<Vec<OwnedServerName>> {
        let invited = standing.filter(|standing| standing.membership == Membership::Invite);
        let inviter = invited.map(|standing| standing.event.sender.server_name().to_owned());
        let known = self.deps.rooms.hosts.servers_in_room(room_id).await?;
        let of_id = room_id.server_name().map(ServerName::to_owned);
        let all = inviter.into_iter().chain(given.iter().cloned()).chain(of_id).chain(known);
        let mut candidates: Vec<OwnedServerName> = Vec::new();
        for server in all {
            if server != self.deps.config.server_name && !candidates.contains(&server) {
                candidates.push(server);
            }
            if candidates.len() == MOST {
                break;
            }
        }
        Ok(candidates)
    }
}

/// Whether it is of use to ask another server after this answer: not if the room itself does not
/// want the user, which all servers in it know.
fn is_final(failure: &Failure) -> bool {
    matches!(failure, Failure::Refused { status, errcode, .. }
        if *status == 403 && errcode == "M_FORBIDDEN"
            || errcode == "M_INCOMPATIBLE_ROOM_VERSION"
            || errcode == "M_UNSUPPORTED_ROOM_VERSION")
}

/// What the client is told when no server has helped: what a server has refused, else that none
/// could be reached.
pub(super) fn unreached(failures: &[(OwnedServerName, Failure)]) -> Refusal {
    if failures.is_empty() {
        return Refusal::not_found("no server that is in the room is known");
    }
    let refused = failures.iter().find_map(|(server, failure)| match failure {
        Failure::Refused { status, errcode, error, .. } if (400..500).contains(status) => {
            Some((server, *status, errcode.clone(), error))
        }
        _ => None,
    });
    if let Some((server, status, errcode, error)) = refused {
        // What another server thinks of this one's requests is not the client's fault.
        let is_known = status != 405 && errcode != "M_UNRECOGNIZED";
        if is_known && is_for_clients(status, &errcode) && errcode.starts_with("M_") {
            return Refusal::new(status, errcode, format!("{server}: {error}"));
        }
    }
    let whys: Vec<String> =
        failures.iter().map(|(server, why)| format!("{server}: {}", why.told())).collect();
    let message = format!("no server could help: {}", whys.join("; "));
    Refusal::new(502, "M_UNKNOWN", message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(status: u16, errcode: &str) -> Failure {
        Failure::Refused {
            status,
            errcode: errcode.to_owned(),
            error: "no".to_owned(),
            body: serde_json::Value::Null,
        }
    }

    #[test]
    fn a_refusal_counts_more_than_a_server_that_is_away() {
        let of = |failures: Vec<Failure>| {
            let name = || OwnedServerName::try_from("there.example").unwrap();
            let failures: Vec<_> = failures.into_iter().map(|f| (name(), f)).collect();
            let refusal = unreached(&failures);
            assert!(!refusal.message.contains("10.0.0.7"), "{refusal}");
            (refusal.status, refusal.errcode.into_owned())
        };
        let away = || Failure::Away("through 10.0.0.7:3128: connection refused".to_owned());
        let is = |status, code: &str| (status, code.to_owned());
        assert_eq!(of(vec![]), is(404, "M_NOT_FOUND"));
        assert_eq!(of(vec![away()]), is(502, "M_UNKNOWN"));
        assert_eq!(of(vec![away(), refused(403, "M_FORBIDDEN")]), is(403, "M_FORBIDDEN"));
        assert_eq!(of(vec![refused(404, "M_NOT_FOUND"), away()]), is(404, "M_NOT_FOUND"));
        assert_eq!(of(vec![refused(404, "M_UNRECOGNIZED")]), is(502, "M_UNKNOWN"));
        assert_eq!(of(vec![refused(401, "M_UNAUTHORIZED")]), is(502, "M_UNKNOWN"));
        // Clients would take it for their own access token, and log out.
        assert_eq!(of(vec![refused(403, "M_UNKNOWN_TOKEN")]), is(502, "M_UNKNOWN"));
        assert_eq!(of(vec![refused(500, "M_UNKNOWN")]), is(502, "M_UNKNOWN"));
    }
}
