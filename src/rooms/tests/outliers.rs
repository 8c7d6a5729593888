//! Events without a place in the timeline.

use super::*;

const BOB: &str = "@bob:there.example";

fn with_auth(event: &CanonicalJsonObject, auth: &[&str]) -> CanonicalJsonObject {
    let mut event = event.clone();
    let ids = auth.iter().map(|id| CanonicalJsonValue::from(*id)).collect();
    event.insert("auth_events".to_owned(), CanonicalJsonValue::Array(ids));
    event.remove("signatures");
    hash_and_sign_event(
        "there.example",
        &signer("there.example"),
        &mut event,
        &RoomVersionId::V10.rules().unwrap().redaction,
    )
    .unwrap();
    event
}

#[tokio::test]
async fn outliers_are_judged_by_their_auth_events() {
    let house = House::open().await;
    let room = house.room("10").await;
    let heads = house.heads(&room).await;
    let prev: Vec<&EventId> = heads.iter().map(|id| &**id).collect();
    let join = house.foreign(&room, &prev, member(BOB, "join")).await;
    let uninvited = house.foreign(&room, &prev, message("@carol:there.example")).await;
    let lost = with_auth(&join, &["$nobody_has_it"]);

    let owner = &house.rooms.owner;
    let all = vec![uninvited.clone(), lost.clone(), join.clone()];
    let stored = owner.store_outliers(&room, all.clone()).await.unwrap();
    assert_eq!(stored.events.len(), 2);
    assert_eq!(stored.left_out.len(), 1);
    assert_eq!(stored.missing.iter().map(|id| id.as_str()).collect::<Vec<_>>(), ["$nobody_has_it"]);
    let rejected =
        |sender: &str| stored.events.values().find(|pdu| pdu.sender == sender).unwrap().rejected;
    assert!(!rejected(BOB) && rejected("@carol:there.example"));
    assert_eq!(house.heads(&room).await, heads, "the room is as it was");

    // What is known stays what it is, and comes back as it was signed.
    let again = owner.store_outliers(&room, all).await.unwrap();
    for (id, pdu) in &stored.events {
        assert_eq!(again.events[id].nid, pdu.nid);
    }
    let ids: Vec<&EventId> = stored.events.keys().map(|id| &**id).collect();
    let mut back = house.rooms.federation_events(&room, &ids).await.unwrap();
    back.sort_by_key(|event| event.get("type") != join.get("type"));
    assert_eq!(back, [join, uninvited]);
}
