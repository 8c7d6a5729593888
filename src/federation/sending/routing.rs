//! To which servers an event goes: those in the room just before it, and the one whose user it
//! puts out of the room.

use std::collections::{BTreeSet, HashSet};

use chatd_base::{Position, Result, RoomNid};
use chatd_config::Config;
use chatd_rooms::hosts::Hosts;
use chatd_storage::{Pool, hosts, sending::ToSend};
use ruma_common::{OwnedServerName, ServerName, UserId};
use serde_json::Value;

/// The servers that each of `events` goes to, in their order. A constant number of queries.
pub(super) async fn destinations(
    config: &Config,
    hosts: &Hosts,
    events: &[ToSend],
) -> Result<Vec<BTreeSet<OwnedServerName>>> {
    let at: Vec<(RoomNid, Position)> = events.iter().map(|event| (event.room, event.pos)).collect();
    let present = hosts.servers_before(&at).await?;
    let one = |(event, servers): (&ToSend, Vec<OwnedServerName>)| {
        let all = servers.into_iter().chain(put_out(event));
        all.filter(|server| may_have(config, event, server)).collect()
    };
    Ok(events.iter().zip(present).map(one).collect())
}

/// Those of `events` that go to `server`.
pub(super) async fn for_server(
    pool: &Pool,
    config: &Config,
    server: &ServerName,
    events: Vec<ToSend>,
) -> Result<Vec<ToSend>> {
    let at: Vec<(RoomNid, Position)> = events.iter().map(|event| (event.room, event.pos)).collect();
    let present = hosts::list_present_before(pool, server.as_str(), &at).await?;
    let present: HashSet<(RoomNid, Position)> = present.into_iter().collect();
    let goes = |event: &ToSend| {
        let is_there = present.contains(&(event.room, event.pos))
            || put_out(event).is_some_and(|target| target == server);
        is_there && may_have(config, event, server)
    };
    Ok(events.into_iter().filter(goes).collect())
}

/// The server of the user whose invite, knock or membership the event ends. It may be in the room
/// with nobody else, or not be there. Invites do not count: they are carried by a request of
/// their own.
fn put_out(event: &ToSend) -> Option<OwnedServerName> {
    let (user, content) = event.member.as_ref()?;
    let content: Value = serde_json::from_str(content).ok()?;
    let membership = content.get("membership")?.as_str()?;
    let user = <&UserId>::try_from(user.as_str()).ok()?;
    matches!(membership, "leave" | "ban").then(|| user.server_name().to_owned())
}

/// Never this server, nor one that is not talked to, nor the one that has made the event here.
fn may_have(config: &Config, event: &ToSend, server: &ServerName) -> bool {
    *server != config.server_name
        && config.federation.may_talk_to(server)
        && maker(event).is_none_or(|maker| maker != server)
}

/// The server that has made the event here: what others make here are memberships of their own
/// users. An invite in the name of one of them, which an identity server has signed, is made by this
/// server.
fn maker(event: &ToSend) -> Option<&ServerName> {
    let (user, _) = event.member.as_ref()?;
    let sender = <&UserId>::try_from(event.sender.as_str()).ok()?;
    (*user == event.sender).then(|| sender.server_name())
}

#[cfg(test)]
mod tests {
    use chatd_base::{EventNid, WriterId};

    use super::*;

    fn member(user: &str, membership: &str) -> ToSend {
        ToSend {
            nid: EventNid(1),
            pos: Position(1),
            writer: WriterId(1),
            room: RoomNid(1),
            sender: "@a:a.example".to_owned(),
            member: Some((user.to_owned(), format!("{{\"membership\":\"{membership}\"}}"))),
        }
    }

    #[test]
    fn only_memberships_of_their_own_are_made_by_others() {
        let made = |user: &str, membership: &str| {
            maker(&member(user, membership)).map(ServerName::to_string)
        };
        assert_eq!(made("@a:a.example", "join").as_deref(), Some("a.example"));
        assert_eq!(made("@b:b.example", "invite"), None);
    }

    #[test]
    fn whoever_is_put_out_hears_of_it() {
        for (membership, hears) in
            [("leave", true), ("ban", true), ("invite", false), ("join", false)]
        {
            let target = put_out(&member("@b:b.example", membership));
            assert_eq!(target.is_some_and(|server| server == "b.example"), hears, "{membership}");
        }
    }
}
