//! Stored events give back the bytes that were signed, in every room version.

use ruma_signatures::{Verified, reference_hash, verify_event};

use super::*;

const ALICE: &str = "@alice:here.example";

#[tokio::test]
async fn every_stored_event_has_its_id_and_its_signatures() {
    let house = House::open().await;
    let client = house.database.connect().await.unwrap();
    for version in 1..=12 {
        let version = version.to_string();
        let room = house.room(&version).await;
        let tricky =
            json!({"body": "\u{0} \" \\ ü 😀 \u{2028}", "n": [1, -9, {"b": null, "a": 1}]});
        let kept = house.state(&room, ALICE, "org.example.\u{fc}", "key \u{1F600}", tricky).await;
        let gone = house.say(&room, ALICE).await;
        let mut redaction = Draft::message(user(ALICE), "m.room.redaction", Map::new());
        redaction.redacts = Some(gone.clone());
        house.rooms.redact(&room, redaction.clone()).await.unwrap();
        // A redacted redaction: room versions before 11 lose its `redacts`.
        let by = house.heads(&room).await.remove(0);
        redaction.redacts = Some(by.clone());
        house.rooms.redact(&room, redaction).await.unwrap();

        let sql =
            "SELECT event_id FROM events e JOIN rooms r ON r.nid = e.room WHERE r.room_id = $1";
        let rows = client.query(sql, &[&room.as_str()]).await.unwrap();
        let ids: Vec<OwnedEventId> =
            rows.iter().map(|row| row.get::<_, String>(0).try_into().unwrap()).collect();
        let refs: Vec<&EventId> = ids.iter().map(|id| &**id).collect();
        let events = house.rooms.federation_events(&room, &refs).await.unwrap();
        assert_eq!(events.len(), ids.len());
        let rules = RoomVersionId::try_from(version.as_str()).unwrap().rules().unwrap();
        let keys = signer("here.example").public_keys();
        let mut redacted = 0;
        for event in &events {
            let verified = verify_event(&keys, event, &rules)
                .unwrap_or_else(|error| panic!("version {version}: {error}: {event:?}"));
            let id = match event.get("event_id").and_then(CanonicalJsonValue::as_str) {
                Some(id) => id.to_owned(),
                None => format!("${}", reference_hash(event, &rules).unwrap()),
            };
            assert!(ids.iter().any(|known| known.as_str() == id), "version {version}: {id}");
            if verified == Verified::Signatures {
                redacted += 1;
                assert!(id == gone.as_str() || id == by.as_str(), "{id} is not redacted");
            }
            assert!(id != kept.as_str() || verified == Verified::All);
        }
        assert!(redacted >= 1, "version {version}");
    }
}
