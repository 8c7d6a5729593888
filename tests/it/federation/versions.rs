//! Rooms of every version, shared by two servers: what people do in them comes out the same on
//! both. Once with chatd on both sides, and with Synapse on either.

use chatd_kit::{Server, Settings, Synapse, between, other::VERSIONS};
use serde_json::json;

use super::acts::{
    Cast, comes, empower, same_state, same_timeline, says, shared_room, until_event, until_member,
    until_section, until_state,
};

impl Cast {
    async fn of(host: &Server, guest: &Server) -> Self {
        Self {
            host: host.user("alice").await,
            guest: guest.user("bob").await,
            third: guest.user("carol").await,
            via: host.name().to_owned(),
        }
    }

    /// Talk, redactions, topics, levels, kicks and bans.
    async fn live_together(&self, version: &str) {
        let (host, guest, third) = (&self.host, &self.guest, &self.third);
        let room = shared_room(host, guest, version).await;
        let first = says(host, &[guest], &room, "from the host").await;
        let spoken = says(guest, &[host], &room, "from the guest").await;
        host.redact(&room, &spoken).await.ok();
        for user in [host, guest] {
            chatd_kit::eventually("a redaction", || async {
                let event = until_event(user, &room, &spoken).await;
                if event["content"] == json!({}) { Ok(()) } else { Err(event.to_string()) }
            })
            .await;
        }

        let topic = |topic: &str| json!({"topic": topic});
        guest.set_state(&room, "m.room.topic", "", &topic("no")).await.refused(403, "M_FORBIDDEN");
        empower(host, &room, guest, 50).await;
        let may = |content: &serde_json::Value| content["users"][&guest.id] == 50;
        until_state(guest, &room, ("m.room.power_levels", ""), may).await;
        guest.set_state(&room, "m.room.topic", "", &topic("yes")).await.ok();
        until_state(host, &room, ("m.room.topic", ""), |content| content["topic"] == "yes").await;

        comes(host, third, &room).await;
        host.change("kick", &room, third).await.ok();
        until_section(third, &room, "leave").await;
        host.change("ban", &room, third).await.ok();
        until_member(guest, &room, third, "ban").await;
        // Synapse calls it M_BAD_STATE.
        assert_eq!(third.join_via(&room, &self.via).await.status, 403);
        host.change("unban", &room, third).await.ok();
        comes(host, third, &room).await;
        third.leave(&room).await.ok();
        until_member(host, &room, third, "leave").await;

        let last = says(guest, &[host], &room, "the last").await;
        same_state(&[host, guest], &room).await;
        same_timeline(&[host, guest], &room, &first, &[last]).await;
    }

    /// Declines an invitation; a public room is joined without one, left, and joined again.
    async fn come_and_go(&self, version: &str) {
        let (host, guest) = (&self.host, &self.guest);
        let closed = host.create_room().version(version).invite(guest).await;
        until_section(guest, &closed, "invite").await;
        guest.leave(&closed).await.ok();
        until_member(host, &closed, guest, "leave").await;

        let open = host.create_room().version(version).preset("public_chat").await;
        for _ in 0..2 {
            guest.join_via(&open, &self.via).await.ok();
            until_member(host, &open, guest, "join").await;
            says(guest, &[host], &open, "here I am").await;
            guest.leave(&open).await.ok();
            until_member(host, &open, guest, "leave").await;
        }
        guest.join_via(&open, &self.via).await.ok();
        until_member(host, &open, guest, "join").await;
        let first = says(guest, &[host], &open, "here I am again").await;
        let last = says(host, &[guest], &open, "and so am I").await;
        same_state(&[host, guest], &open).await;
        same_timeline(&[host, guest], &open, &first, &[last]).await;
    }

    /// Knocking, from version 7 on.
    async fn knock(&self, version: &str) {
        let (host, guest) = (&self.host, &self.guest);
        let rule = json!({"join_rule": "knock"});
        let room = host.create_room().version(version).state("m.room.join_rules", rule).await;
        guest.join_via(&room, &self.via).await.refused(403, "M_FORBIDDEN");
        guest.knock_via(&room, &self.via).await.ok();
        until_section(guest, &room, "knock").await;
        until_member(host, &room, guest, "knock").await;
        comes(host, guest, &room).await;
        says(guest, &[host], &room, "let in").await;
        same_state(&[host, guest], &room).await;
    }

    /// Who is in one room may join another, from version 8 on.
    async fn join_restricted(&self, version: &str) {
        let (host, guest, third) = (&self.host, &self.guest, &self.third);
        let first = shared_room(host, guest, version).await;
        let rule = json!({
            "join_rule": "restricted",
            "allow": [{"type": "m.room_membership", "room_id": first, "via": [self.via]}],
        });
        let room = host.create_room().version(version).state("m.room.join_rules", rule).await;
        third.join_via(&room, &self.via).await.refused(403, "M_FORBIDDEN");
        guest.join_via(&room, &self.via).await.ok();
        until_member(host, &room, guest, "join").await;
        says(guest, &[host], &room, "by the side door").await;
        same_state(&[host, guest], &room).await;
    }

    /// A room of the next version takes the place of one.
    async fn upgrade(&self, version: &str) {
        let (host, guest) = (&self.host, &self.guest);
        let old = shared_room(host, guest, version).await;
        let next = VERSIONS.iter().skip_while(|other| *other != &version).nth(1);
        let new = host.upgrade(&old, next.unwrap_or(&"11")).await.string("replacement_room");
        let is_named = |content: &serde_json::Value| content["replacement_room"] == *new;
        until_state(guest, &old, ("m.room.tombstone", ""), is_named).await;
        comes(host, guest, &new).await;
        says(guest, &[host], &new, "we have moved").await;
        same_state(&[host, guest], &new).await;
    }

    async fn do_in(&self, versions: &[&str]) {
        for version in versions {
            let number: u32 = version.parse().expect("versions are numbers");
            chatd_kit::say(format!("room version {version}"));
            self.live_together(version).await;
            self.come_and_go(version).await;
            self.upgrade(version).await;
            if number >= 7 {
                self.knock(version).await;
            }
            if number >= 8 {
                self.join_restricted(version).await;
            }
        }
    }
}

between! {
    async fn rooms_of_every_version(here: Server, there: Server) in (monoliths) {
        Cast::of(&here, &there).await.do_in(VERSIONS).await;
    }

    /// The oldest version, one of today, and the newest.
    async fn rooms_of_a_fleet(here: Server, there: Server) in (fleet_here, fleet_there) {
        Cast::of(&here, &there).await.do_in(&["1", "10", "12"]).await;
    }
}

/// Whom Synapse has in many rooms it tells more slowly of each further one, so every version has
/// people of its own.
#[tokio::test]
async fn rooms_of_every_version_with_synapse_as_guest() {
    let (synapse, server) = (Synapse::shared().await, chatd().await);
    for version in VERSIONS {
        let cast = Cast {
            host: server.user(&format!("alice-{version}")).await,
            guest: synapse.user("bob").await,
            third: synapse.user("carol").await,
            via: server.name().to_owned(),
        };
        cast.do_in(&[version]).await;
    }
}

#[tokio::test]
async fn rooms_of_every_version_with_synapse_as_host() {
    let (synapse, server) = (Synapse::shared().await, chatd().await);
    for version in VERSIONS {
        let cast = Cast {
            host: synapse.user("alice").await,
            guest: server.user(&format!("bob-{version}")).await,
            third: server.user(&format!("carol-{version}")).await,
            via: synapse.name().to_owned(),
        };
        cast.do_in(&[version]).await;
    }
}

async fn chatd() -> Server {
    Server::start(env!("CARGO_BIN_EXE_chatd"), Settings::federating()).await
}
