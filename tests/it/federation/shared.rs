//! A room that a scenario's server shares with another server of the test kit.

use chatd_kit::{Other, Server, User, other::Room};

/// A public room of Alice's that Bob, of another server, has joined.
pub struct Shared {
    pub alice: User,
    pub other: Other,
    pub bob: String,
    /// Its id.
    pub room: String,
    /// What the other server knows of it.
    pub far: Room,
}

/// Makes both servers' users, and a room of `version` in which they are.
pub async fn shared(server: &Server, version: &str) -> Shared {
    let alice = server.user(&format!("alice{version}")).await;
    let room = alice.create_room().preset("public_chat").version(version).await;
    let other = Other::start().await;
    let bob = other.user("bob");
    let far = other.join(&server.peer(), &room, &bob).await;
    Shared { alice, other, bob, room, far }
}
