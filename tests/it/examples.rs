//! The fleets of `config-examples/` and those of published guides (`CHATD_SEEDS_DIR`), started as
//! they are: people talk there by way of the proxy that `chatd proxy-config` describes.

use std::{path::Path, pin::Pin, sync::Arc};

use chatd_kit::{Server, User, example::Example, guide::Guide, path, say};
use serde_json::json;

const BINARY: &str = env!("CARGO_BIN_EXE_chatd");

/// Fleets among which the scenarios are divided.
const FLEETS: usize = 11;

type Scenario = fn(Server) -> Pin<Box<dyn Future<Output = ()>>>;

macro_rules! scenarios {
    ($($file:ident::$name:ident,)*) => {
        /// Those that need no settings of their own, and nothing but what clients see.
        const SCENARIOS: &[(&str, Scenario)] = &[
            $((concat!(stringify!($file), "::", stringify!($name)), |server| Box::pin(crate::$file::$name::scenario(server))),)*
        ];
    };
}

scenarios! {
    account::a_profile_is_public_and_reaches_the_rooms,
    account::account_data_is_kept_and_synced,
    account::tags_are_set_listed_and_removed,
    device_lists::devices_of_those_who_come_and_go_are_told,
    edge::an_event_that_is_too_large_harms_no_other,
    edge::bodies_that_are_not_json_are_refused,
    edge::browsers_may_ask_from_anywhere,
    edge::content_types_do_not_matter,
    edge::contents_that_are_not_objects_are_refused,
    edge::deep_nesting_is_refused_without_harm,
    edge::large_bodies_are_refused,
    edge::numbers_have_to_be_canonical,
    edge::odd_ids_and_paths_are_refused,
    edge::percent_encoding_is_taken_literally,
    edge::queries_of_the_wrong_type,
    edge::tokens_are_asked_for,
    edge::unknown_endpoints_and_methods_are_told_apart,
    edge::wrong_types_are_refused,
    encryption::a_fallback_key_is_used_when_the_others_are,
    encryption::a_star_reaches_every_device,
    encryption::a_to_device_message_arrives_once,
    encryption::a_to_device_message_is_kept_until_it_is_acknowledged,
    encryption::concurrent_claims_never_share_a_key,
    encryption::cross_signing_keys_are_kept_and_shown,
    encryption::cross_signing_keys_are_replaced_with_the_password_only,
    encryption::device_lists_tell_who_has_changed,
    encryption::key_backups_have_versions_and_counts,
    encryption::keys_are_uploaded_counted_and_queried,
    encryption::many_to_device_messages_come_in_order,
    encryption::one_time_keys_are_given_out_once,
    encryption::users_vouch_for_each_other,
    live::a_private_receipt_is_seen_by_its_owner,
    live::a_public_receipt_is_seen_by_all,
    live::a_sync_sets_presence,
    live::presence_is_seen_by_those_who_share_a_room,
    live::read_markers_set_all_three,
    live::receipts_are_kept_for_each_thread,
    live::typing_is_seen_and_ends,
    live::unread_counts_of_threads_are_apart_when_asked_for,
    live::unread_counts_rise_and_are_reset,
    push::own_rules_are_put_ordered_and_deleted,
    push::room_mentions_need_power,
    push::rules_decide_what_counts,
    push::the_defaults_are_those_of_the_specification,
    push::wrong_rules_are_refused,
    room_rules::a_reaction_counts_once,
    room_rules::every_change_of_a_membership,
    room_rules::knocks_are_for_rooms_that_allow_them,
    room_rules::redactions_of_both_forms,
    room_rules::relations_are_to_known_events_of_the_room,
    room_rules::restricted_joins_say_who_vouches,
    room_rules::version_12_rooms_have_creators,
    rooms::a_forgotten_room_is_gone_from_view,
    rooms::a_redaction_takes_the_content_only,
    rooms::aliases_point_to_rooms,
    rooms::create_room_refuses_what_cannot_be,
    rooms::every_field_of_create_room_is_used,
    rooms::every_room_version_works,
    rooms::joined_rooms_lists_what_is_joined,
    rooms::kicks_and_bans_need_power,
    rooms::people_come_and_go,
    rooms::presets_set_who_may_join_and_read,
    rooms::reasons_travel_with_memberships,
    rooms::restricted_rooms_let_members_of_another_room_in,
    rooms::state_is_set_read_and_guarded,
    rooms::the_default_room_version_is_12,
    rooms::visibility_in_the_directory_can_be_changed,
    sync_view::events_come_in_the_federation_format,
    sync_view::ignored_users_are_not_heard,
    sync_view::urls_are_found_up_to_the_limit,
    syncing::a_chain_of_syncs_is_the_room,
    syncing::a_first_sync_shows_state_and_timeline_once,
    syncing::a_gap_is_told_and_its_state_is_sent,
    syncing::a_join_brings_the_whole_room,
    syncing::a_stored_filter_is_used_by_its_id,
    syncing::a_sync_without_news_ends_with_its_timeout,
    syncing::a_waiting_sync_gets_what_happens,
    syncing::devices_of_one_user_sync_by_themselves,
    syncing::filters_choose_rooms_and_events,
    syncing::full_state_is_sent_when_asked_for,
    syncing::heroes_name_a_room_without_a_name,
    syncing::invitations_show_a_stripped_room,
    syncing::lazy_members_are_those_who_speak,
    syncing::leaving_shows_the_room_once_more,
    syncing::state_after_is_the_state_at_the_end,
    syncing::tokens_are_checked,
    timeline::a_repeated_transaction_is_the_same_event,
    timeline::context_shows_both_sides,
    timeline::events_are_seen_by_those_in_the_room,
    timeline::history_can_be_filtered,
    timeline::history_goes_on_from_where_a_sync_began,
    timeline::lazy_history_brings_the_senders,
    timeline::members_can_be_listed_and_filtered,
    timeline::pages_of_history_go_both_ways,
    timeline::relations_are_kept_as_sent,
    timeline::the_transaction_id_is_told_to_its_device_only,
    upgrades::a_moderator_replaces_a_room_and_stays_one,
    upgrades::a_room_takes_the_place_of_another,
    upgrades::creators_come_and_go_with_the_version,
    upgrades::levels_that_are_texts_become_numbers,
    upgrades::not_everybody_replaces_rooms,
    upgrades::tags_and_push_rules_and_direct_chats_go_with_the_room,
    visibility::a_sync_hides_what_history_hides,
    visibility::anybody_reads_the_state_of_world_readable_rooms,
    visibility::history_since_the_invitation,
    visibility::history_since_the_join,
    visibility::shared_history,
    visibility::state_and_members_stand_still_for_those_who_left,
    visibility::the_setting_of_the_time_counts,
    visibility::world_readable_history,
}

/// Runs the share of the scenarios that fleet `number` has; all of them if `CHATD_ALL_SCENARIOS` is
/// set. Where there is no presence, nothing is asked of it.
async fn live(example: &Arc<Example>, number: usize) {
    let all = std::env::var_os("CHATD_ALL_SCENARIOS").is_some();
    let shared = std::fs::read_to_string(example.folder().join("homeserver.yaml")).unwrap();
    let is_quiet = shared.contains("\"use_presence\": false");
    let share = SCENARIOS.iter().enumerate().filter(|(at, _)| all || at % FLEETS == number);
    for (at, (name, scenario)) in
        share.filter(|(_, (name, _))| !is_quiet || !name.contains("presence"))
    {
        say(name);
        scenario(Server::shared(example, at)).await;
    }
}

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

async fn check(folder: &str, instances: usize, number: usize) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("config-examples").join(folder);
    let example = Example::start(Path::new(BINARY), &source)
        .await
        .unwrap_or_else(|error| panic!("{folder} does not start: {error:?}"));
    try_out(example, instances, number).await;
}

async fn try_out(mut example: Example, instances: usize, number: usize) {
    assert_eq!(example.count(), instances);
    talk(&example).await;
    example.until_ready().await;
    live(&Arc::new(example), number).await;
}

#[tokio::test]
async fn a_small_fleet() {
    check("small-fleet", 4, 5).await;
}

#[tokio::test]
async fn twelve_containers() {
    check("twelve-containers", 13, 6).await;
}

#[tokio::test]
async fn the_edition_with_chat_app_names() {
    check("editions/chat-app", 13, 7).await;
}

#[tokio::test]
async fn the_edition_whose_workers_name_the_main_process() {
    check("editions/replication-host", 11, 8).await;
}

#[tokio::test]
async fn the_edition_with_main_in_the_instance_map() {
    check("editions/instance-map", 12, 9).await;
}

#[tokio::test]
async fn the_edition_with_sockets_and_a_narrow_way_out() {
    check("editions/outbound", 9, 10).await;
}

/// The guide with this number in the order of the names of their files.
async fn guide(number: usize, instances: usize) {
    let Some(folder) = std::env::var_os("CHATD_SEEDS_DIR") else {
        return chatd_kit::say("CHATD_SEEDS_DIR is not set: the fleets of guides are not started");
    };
    let guide = Guide::read_all(Path::new(&folder)).swap_remove(number);
    let what = guide.path.display().to_string();
    let example = Example::of_guide(Path::new(BINARY), guide)
        .await
        .unwrap_or_else(|error| panic!("the fleet of {what} does not start: {error:?}"));
    try_out(example, instances, number).await;
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
