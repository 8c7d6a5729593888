//! Rooms of another server, taken in.

use chatd_storage::rooms as tables;
use chatd_streams::events::Membership;

use super::*;
use crate::{Import, OutOfBand, Route, Verdict, take_apart};

const ALICE: &str = "@alice:here.example";
const BOB: &str = "@bob:there.example";

/// Two servers, each with a database of its own.
async fn two() -> (House, House) {
    let database = Database::empty(Cluster::shared().unwrap()).await.unwrap();
    let there = House::named("there.example", Arc::new(database)).await;
    (House::open().await, there)
}

/// What a server is told of a room, as events.
#[derive(Clone)]
struct Given {
    room_id: OwnedRoomId,
    version: RoomVersionId,
    event: CanonicalJsonObject,
    state: Vec<CanonicalJsonObject>,
    auth_chain: Vec<CanonicalJsonObject>,
    omitted: Option<Vec<String>>,
}

impl Given {
    fn import(self) -> Import {
        let Self { room_id, version, event, state, auth_chain, omitted } = self;
        let rules = version.rules().unwrap();
        let read = |events: Vec<CanonicalJsonObject>| {
            let apart = |event| take_apart(event, &rules, &room_id).ok();
            events.into_iter().filter_map(apart).collect()
        };
        let (state, auth_chain) = (read(state), read(auth_chain));
        Import { version, event, state, auth_chain, room_id, omitted }
    }
}

/// `bob` of `there` joins a room of `here`; what `there` is told is changed by `change`.
async fn join(
    here: &House,
    there: &House,
    room: &RoomId,
    change: impl FnOnce(&mut Given),
) -> chatd_base::Result<OwnedEventId> {
    let template = here.rooms.member_template(&user(BOB), Membership::Join, room).await.unwrap();
    let mut event = template.event;
    there.rooms.finish(&template.version, &mut event).unwrap();
    let received =
        here.rooms.owner.receive_as(room, event.clone(), Route::Forwarded).await.unwrap();
    assert_eq!(received.verdict, Verdict::Accepted);
    let answer = here.rooms.join_answer(room, &received.event_id, false).await.unwrap();
    let read = |texts: &[String]| -> Vec<CanonicalJsonObject> {
        texts.iter().map(|text| serde_json::from_str(text).unwrap()).collect()
    };
    let mut given = Given {
        room_id: room.to_owned(),
        version: template.version,
        event,
        state: read(&answer.state),
        auth_chain: read(&answer.auth_chain),
        omitted: None,
    };
    change(&mut given);
    there.rooms.owner.import(given.import()).await.map(|sent| sent.event_id)
}

/// Has `to` receive an event that `from` has.
async fn pass_on(from: &House, to: &House, room: &RoomId, id: &EventId) -> Verdict {
    let event = from.rooms.federation_events(room, &[id]).await.unwrap().remove(0);
    to.rooms.owner.receive(room, event).await.unwrap().verdict
}

#[tokio::test]
async fn a_room_of_every_version_goes_on_at_both_servers() {
    let (here, there) = two().await;
    for version in ["1", "2", "3", "6", "10", "11", "12"] {
        let room = here.room(version).await;
        here.state(&room, ALICE, "m.room.topic", "", json!({"topic": "first"})).await;
        let joined = join(&here, &there, &room, |_| {}).await.unwrap();
        assert_eq!(there.heads(&room).await, [joined], "version {version}");
        assert!(there.rooms.owner.is_in(&room).await.unwrap());

        let reply = there.say(&room, BOB).await;
        assert_eq!(pass_on(&there, &here, &room, &reply).await, Verdict::Accepted, "{version}");
        let more = here.say(&room, ALICE).await;
        assert_eq!(pass_on(&here, &there, &room, &more).await, Verdict::Accepted, "{version}");

        // It leaves, and comes back to a room that has changed.
        let left = there.state(&room, BOB, "m.room.member", BOB, json!({"membership": "leave"}));
        let left = left.await;
        assert_eq!(pass_on(&there, &here, &room, &left).await, Verdict::Accepted, "{version}");
        assert!(!there.rooms.owner.is_in(&room).await.unwrap());
        let topic = here.state(&room, ALICE, "m.room.topic", "", json!({"topic": "second"})).await;
        let again = join(&here, &there, &room, |_| {}).await.unwrap();
        assert_eq!(there.heads(&room).await, [again], "version {version}");
        assert_eq!(there.current(&room, "m.room.topic", "").await, Some(topic), "{version}");
        let reply = there.say(&room, BOB).await;
        assert_eq!(pass_on(&there, &here, &room, &reply).await, Verdict::Accepted, "{version}");
    }
}

#[tokio::test]
async fn a_repeated_import_has_one_effect() {
    let (here, there) = two().await;
    let room = here.room("11").await;
    let mut kept = None;
    let joined = join(&here, &there, &room, |given| kept = Some(given.clone())).await.unwrap();
    let again = there.rooms.owner.import(kept.unwrap().import()).await.unwrap();
    assert_eq!((again.event_id, again.position.0), (joined.clone(), 0));
    assert_eq!(there.heads(&room).await, [joined]);
}

/// An attempt was cut off before anybody was in, with a server that leaves out members; the next
/// one is told all of them.
#[tokio::test]
async fn an_import_leaves_nothing_of_the_one_before() {
    let (here, there) = two().await;
    let room = here.room("11").await;
    let way = there.rooms.owner.expect(&room, &RoomVersionId::V11).await.unwrap();
    let known = tables::get(&there.pool, room.as_str()).await.unwrap().unwrap();
    let rows = there.database.connect().await.unwrap();
    let left = "INSERT INTO partial_rooms (room, joined, prev, servers, added_ts)
                VALUES ($1, '$joined', '{}', '{here.example}', 0)";
    assert_eq!(rows.execute(left, &[&known.nid.0]).await.unwrap(), 1);
    join(&here, &there, &room, |_| {}).await.unwrap();
    drop(way);
    assert!(!there.rooms.owner.is_partial(&room).await.unwrap());
    there.rooms.whole(&room).await.unwrap();
}

#[tokio::test]
async fn what_is_no_state_of_the_room_is_refused() {
    let (here, there) = two().await;
    let other = here.room("11").await;
    let kind = |event: &CanonicalJsonObject, kind: &str| {
        event.get("type").and_then(CanonicalJsonValue::as_str) == Some(kind)
    };
    let create_of = |room: OwnedRoomId| {
        let (here, kind) = (&here, &kind);
        async move {
            let id = here.current(&room, "m.room.create", "").await.unwrap();
            let event = here.rooms.federation_events(&room, &[&id]).await.unwrap().remove(0);
            assert!(kind(&event, "m.room.create"));
            event
        }
    };
    let foreign = create_of(other).await;
    type Lie = Box<dyn FnOnce(&mut Given)>;
    let lies: Vec<(&str, Lie)> = vec![
        (
            "M_BAD_JSON",
            Box::new(move |given| {
                given.state.retain(|event| !kind(event, "m.room.create"));
                given.state.push(foreign);
            }),
        ),
        ("M_BAD_JSON", Box::new(|given| given.state.clear())),
        ("M_BAD_JSON", Box::new(|given| given.version = RoomVersionId::V10)),
        (
            "M_FORBIDDEN",
            Box::new(move |given| {
                given.state.retain(|event| !kind(event, "m.room.join_rules"));
            }),
        ),
        (
            "M_BAD_JSON",
            Box::new(move |given| {
                given.state.retain(|event| !kind(event, "m.room.power_levels"));
                given.auth_chain.clear();
            }),
        ),
        (
            "M_BAD_JSON",
            Box::new(|given| {
                let twice = given.state[0].clone();
                given.state.push(twice);
            }),
        ),
    ];
    for (number, (errcode, lie)) in lies.into_iter().enumerate() {
        let room = here.room("11").await;
        let refused = join(&here, &there, &room, lie).await.unwrap_err();
        let code = refused.errcode();
        assert!(code == Some(errcode) || code == Some("M_BAD_JSON"), "{number}: {refused}");
        assert!(there.rooms.owner.slot(&room).await.is_err(), "{number}: the room is visible");
        assert!(!there.rooms.owner.is_in(&room).await.unwrap());
    }
}

#[tokio::test]
async fn an_invite_from_elsewhere_becomes_a_join() {
    let (here, there) = two().await;
    for version in ["6", "12"] {
        let room = here.room(version).await;
        let draft = Draft::state(
            user(ALICE),
            "m.room.member",
            BOB,
            object(json!({"membership": "invite"})),
        );
        let signed = here.rooms.signed_invite(&room, &draft).await.unwrap();
        let mut event = signed.event;
        there.rooms.countersign(&signed.version, &mut event).unwrap();
        let shown = signed.shown.iter().map(|raw| (**raw).to_owned()).collect();
        let note = OutOfBand { version: signed.version.clone(), event: event.clone(), shown };
        let noted = there.rooms.owner.note(&room, note.clone()).await.unwrap();
        assert!(noted.position.0 > 0);
        assert_eq!(there.rooms.owner.note(&room, note).await.unwrap().position.0, 0, "a repeat");
        let standing = there.rooms.owner.standing(&user(BOB), &room).await.unwrap().unwrap();
        assert_eq!(standing.membership, Membership::Invite);
        assert!(!there.rooms.owner.is_in(&room).await.unwrap());

        let placed = here.rooms.owner.receive_as(&room, event, Route::Made).await.unwrap();
        assert_eq!(placed.verdict, Verdict::Accepted);
        let joined = join(&here, &there, &room, |_| {}).await.unwrap();
        assert_eq!(there.heads(&room).await, [joined]);
        let row = tables::get(&there.pool, room.as_str()).await.unwrap().unwrap();
        assert_eq!(row.version, version);
    }
}

#[tokio::test]
async fn an_invite_can_be_declined_without_anybody_else() {
    let (here, there) = two().await;
    for version in ["1", "11"] {
        let room = here.room(version).await;
        let content = object(json!({"membership": "invite"}));
        let draft = Draft::state(user(ALICE), "m.room.member", BOB, content);
        let signed = here.rooms.signed_invite(&room, &draft).await.unwrap();
        let note =
            OutOfBand { version: signed.version.clone(), event: signed.event, shown: Vec::new() };
        there.rooms.owner.note(&room, note).await.unwrap();
        let standing = there.rooms.owner.standing(&user(BOB), &room).await.unwrap().unwrap();
        let content = object(json!({"membership": "leave"}));
        let draft = Draft::state(user(BOB), "m.room.member", BOB, content);
        let event = there.rooms.owner.lonely_leave(&room, &standing, &draft).unwrap();
        let note = OutOfBand { version: signed.version, event, shown: Vec::new() };
        there.rooms.owner.note(&room, note).await.unwrap();
        let standing = there.rooms.owner.standing(&user(BOB), &room).await.unwrap().unwrap();
        assert_eq!(standing.membership, Membership::Leave);
    }
}
