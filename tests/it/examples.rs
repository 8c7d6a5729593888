//! The fleets of `config-examples/` and those of published guides (`CHATD_SEEDS_DIR`), started as
//! they are: people talk there by way of the proxy that `chatd proxy-config` describes.

use std::path::Path;

use chatd_kit::{User, example::Example, guide::Guide, path};
use serde_json::json;

const BINARY: &str = env!("CARGO_BIN_EXE_chatd");

/// Everything that some instance writes for others, once around.
async fn talk(example: &Example) {
    let http = example.http();
    let (alice, bob) = (User::register(&http, "alice").await, User::register(&http, "bob").await);
    let room = alice.create_room().member(&bob).await;
    let mut feed = bob.feed().await;
    let event = alice.send(&room, "hello").await;
    feed.until_event(&room, &event).await;

    alice.typing(&room, true).await.ok();
    feed.until("typing", |synced| synced.ephemeral_of(&room, "m.typing")).await;
    bob.read(&room, &event).await.ok();
    bob.set_account_data("m.test", &json!({"number": 3})).await.ok();
    let account_data = bob.get(path("/user/{}/account_data/m.test", &[&bob.id])).await;
    assert_eq!(account_data.ok()["number"], 3);
    alice.to_device("m.test", "1", &bob, &json!({"said": "psst"})).await.ok();
    feed.until("the whisper", |synced| {
        synced.to_device().into_iter().find(|event| event["content"]["said"] == "psst")
    })
    .await;

    let answer = bob.send(&room, "and hello to you").await;
    let first = alice.sync().await;
    let timeline = first.timeline_ids(&room);
    assert!(timeline.contains(&event) && timeline.contains(&answer), "{timeline:?}");
}

async fn check(folder: &str, instances: usize) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("config-examples").join(folder);
    let mut example = Example::start(Path::new(BINARY), &source)
        .await
        .unwrap_or_else(|error| panic!("{folder} does not start: {error:?}"));
    assert_eq!(example.count(), instances);
    talk(&example).await;
    example.until_ready().await;
}

#[tokio::test]
async fn a_small_fleet() {
    check("small-fleet", 4).await;
}

#[tokio::test]
async fn twelve_containers() {
    check("twelve-containers", 13).await;
}

#[tokio::test]
async fn the_edition_with_chat_app_names() {
    check("editions/chat-app", 13).await;
}

#[tokio::test]
async fn the_edition_whose_workers_name_the_main_process() {
    check("editions/replication-host", 11).await;
}

#[tokio::test]
async fn the_edition_with_main_in_the_instance_map() {
    check("editions/instance-map", 12).await;
}

#[tokio::test]
async fn the_edition_with_sockets_and_a_narrow_way_out() {
    check("editions/outbound", 9).await;
}

/// The guide with this number in the order of the names of their files.
async fn guide(number: usize, instances: usize) {
    let Some(folder) = std::env::var_os("CHATD_SEEDS_DIR") else {
        return chatd_kit::say("CHATD_SEEDS_DIR is not set: the fleets of guides are not started");
    };
    let guide = Guide::read_all(Path::new(&folder)).swap_remove(number);
    let what = guide.path.display().to_string();
    let mut example = Example::of_guide(Path::new(BINARY), guide)
        .await
        .unwrap_or_else(|error| panic!("the fleet of {what} does not start: {error:?}"));
    assert_eq!(example.count(), instances);
    talk(&example).await;
    example.until_ready().await;
}

#[tokio::test]
async fn the_first_guide() {
    guide(0, 12).await;
}

#[tokio::test]
async fn the_second_guide() {
    guide(1, 10).await;
}

#[tokio::test]
async fn the_third_guide() {
    guide(2, 10).await;
}

#[tokio::test]
async fn the_fourth_guide() {
    guide(3, 10).await;
}

#[tokio::test]
async fn the_fifth_guide() {
    guide(4, 13).await;
}
