//! What an instance remembers, and what it does when rows have passed it by (R4).

use chatd_base::{Position, Requester, WriterId};

use super::*;

/// The requester that a user is.
async fn requester(house: &House, name: &str) -> Requester {
    let nid = house.rooms.users.deps.interner.user(name).await.unwrap();
    Requester {
        user_id: user(name),
        user: nid,
        device_id: None,
        token: 1,
        is_admin: false,
        is_guest: false,
        address: None,
    }
}

#[tokio::test]
async fn whoever_has_left_unheard_types_no_more() {
    let house = House::open().await;
    let room = house.room("11").await;
    let alice = requester(&house, "@alice:here.example").await;
    let typing = &house.rooms.users.typing;
    typing.set(&alice, &room, Some(30_000)).await.unwrap();
    // By another instance, whose row does not come.
    let rows = house.database.connect().await.unwrap();
    let left = "UPDATE memberships SET membership = 'l' WHERE user_nid = $1";
    assert_eq!(rows.execute(left, &[&alice.user.0]).await.unwrap(), 1);
    let events = &house.rooms.users.deps.streams.events;
    events.skip(WriterId(99), Position(events.token().max().0 + 1));
    let refused = typing.set(&alice, &room, Some(30_000)).await.unwrap_err();
    assert_eq!(refused.errcode(), Some("M_FORBIDDEN"));
}
