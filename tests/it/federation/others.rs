//! The kit's own other servers: if they do not get on with each other, what they find elsewhere
//! means nothing.

use chatd_kit::{
    Other,
    other::{Reply, VERSIONS},
};
use serde_json::json;

#[tokio::test]
async fn others_share_rooms_of_every_version() {
    let (here, there) = (Other::start().await, Other::start().await);
    let (alice, bob) = (here.user("alice"), there.user("bob"));
    for version in VERSIONS {
        let room = here.create_room(version, &alice);
        let first = room.say(&alice, "before");
        let far = there.join(&here.peer(), &room.id(), &bob).await;
        assert_eq!(room.membership(&bob), "join", "version {version}");
        assert_eq!(far.current(), room.current(), "version {version}");
        let text = far.say(&bob, "after");
        there.deliver(&here.peer(), std::slice::from_ref(&text)).await;
        assert_eq!(room.heads(), std::slice::from_ref(&text.id), "version {version}");

        let ids = format!(
            "/_matrix/federation/v1/state_ids/{}?event_id={}",
            segment(&room.id()),
            segment(&text.id)
        );
        let ids = there.get(&here.peer(), &ids).await;
        let count = ids.ok()["pdu_ids"].as_array().map_or(0, Vec::len);
        assert_eq!(count, room.current().len(), "version {version}");
        let missing = json!({
            "earliest_events": [first.id],
            "latest_events": [text.id],
            "limit": 10,
        });
        let route = format!("/_matrix/federation/v1/get_missing_events/{}", segment(&room.id()));
        let missing = there.ask(&here.peer(), "POST", &route, Some(&missing)).await;
        assert_eq!(missing.ok()["events"].as_array().map_or(0, Vec::len), 1, "the join of bob");
        there.leave(&here.peer(), &room.id(), &bob).await.ok();
        assert_eq!(room.membership(&bob), "leave", "version {version}");
    }
    assert!(here.problems().is_empty(), "{:?}", here.problems());
}

#[tokio::test]
async fn an_other_server_knows_a_lie() {
    let (here, there) = (Other::start().await, Other::start().await);
    let (alice, bob) = (here.user("alice"), there.user("bob"));
    let room = here.create_room("11", &alice);
    let far = there.join(&here.peer(), &room.id(), &bob).await;
    let text = far.draft(&bob, "m.room.message", json!({"body": "true"})).make();
    let forged = text.forged(&far.rules(), |event| event["content"]["body"] = "false".into());
    let answer = there.send(&here.peer(), std::slice::from_ref(&forged), &[]).await;
    assert!(answer.ok()["pdus"][&forged.id]["error"].is_string(), "{answer}");
    assert_eq!(here.problems().len(), 1, "{:?}", here.problems());
    let stranger = Other::start().await;
    let alien =
        far.draft(&bob, "m.room.message", json!({})).signed_as(&there.name(), &stranger.key());
    let answer = there.send(&here.peer(), &[alien.make()], &[]).await;
    assert!(answer.text.contains("error"), "{answer}");
}

#[tokio::test]
async fn an_other_server_does_as_it_is_told() {
    let (here, there) = (Other::start().await, Other::start().await);
    let version = "/_matrix/federation/v1/version";
    here.always("GET", version, Reply::refused(418, "M_TEAPOT"));
    there.get(&here.peer(), version).await.refused(418, "M_TEAPOT");
    here.behave();
    there.get(&here.peer(), version).await.ok();
    assert_eq!(here.seen("GET", version).len(), 2);
    here.go_away();
    let gone = here.peer();
    let request =
        chatd_kit::http::Http::new(format!("http://{}", gone.name)).request("GET", version);
    assert!(request.send().await.is_err(), "nobody listens");
    here.come_back().await;
    there.get(&here.peer(), version).await.ok();
}

fn segment(text: &str) -> String {
    chatd_kit::path("{}", &[text])
}
