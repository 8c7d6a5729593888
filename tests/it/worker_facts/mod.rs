//! Failures that fleets of this design are known for, each as a test. Some are in other files:
//!
//! | failure | shown by |
//! | --- | --- |
//! | messages to devices are stored, never delivered, and deleted | `whispers::each_comes_once_while_the_bus_is_bad_and_readers_are_killed`; in one process `chatd_sync::inbox` (`each_message_is_taken_once`) |
//! | messages to devices are lost while their writer is down | `whispers::none_is_lost_while_their_writer_is_away`, `whispers::those_of_other_servers_wait_there_while_their_writer_is_away` |
//! | presence, or another stream, stands still after a request that was broken off | `broken_off` |
//! | a new writer makes positions jump | `faults::fleet::persisters_come_and_go_without_a_failed_request`, whose devices compare their tokens |
//! | positions go backwards after a restart | `tokens::no_position_goes_back_after_a_write_that_was_rolled_back`; each device of `faults` compares its tokens |
//! | a sync skips an event whose position it has passed | `chatd_sync::log` (`what_is_answered_is_complete`: any delay between index and position); `faults::fleet::nothing_is_lost_when_the_bus_loses_messages` |
//! | a change of state is missing after a token that is inside a batch | `tokens::state_changes_have_their_own_place_in_a_batch` |
//! | what was written at one worker cannot be read at another | `reads` |
//! | an initial sync tells of what its token does not cover, and the next one again | `reads::a_room_is_new_once_for_who_has_come_into_it` |
//! | what was read is unread again | `marks` |
//! | whoever asks many workers gets through a limit many times | `limits` |
//! | presence flaps | `presence::a_long_sync_is_one_presence`; `chatd_users::presence::relay` (`half_an_hour_of_syncs_is_one_presence`) |
//! | the writer of presence is drowned in calls | `presence::many_syncs_are_few_calls`; `chatd_users::presence::relay` (`ten_thousand_devices_are_a_few_calls`) |
//! | somebody types for ever | `typing` |
//! | an endpoint is not there at a worker | `roles` |

mod apart;
mod broken_off;
mod limits;
mod marks;
mod presence;
mod reads;
mod roles;
mod tokens;
mod typing;
mod whispers;

use std::{
    path::Path,
    time::{Duration, Instant},
};

use chatd_kit::{
    Answer, Database, Fleet, Request, Settings, Spread, User, fleet::public_socket, http::Http,
};

const BINARY: &str = env!("CARGO_BIN_EXE_chatd");

/// Longest time that a request may fail in a row.
const LIMIT: Duration = Duration::from_secs(60);

/// Repeats a request until the answer is not that it cannot be done now.
async fn insist(make: impl Fn() -> Request) -> Answer {
    let deadline = Instant::now() + LIMIT;
    loop {
        let failure = match make().unchecked().send().await {
            Ok(answer) if answer.status < 500 => return answer,
            Ok(answer) => answer.to_string(),
            Err(error) => format!("{error:?}"),
        };
        assert!(Instant::now() < deadline, "a request has failed for {LIMIT:?}: {failure}");
        tokio::time::sleep(Duration::from_millis(15)).await;
    }
}

/// The way to one instance, past the proxy.
fn at(folder: &Path, instance: &str) -> Http {
    Http::on_socket(&public_socket(folder, instance))
}

/// A fleet whose proxy sends each request to any instance.
async fn fleet(settings: &Settings) -> (Fleet, Database) {
    let database = Database::create(Path::new(BINARY)).await.unwrap();
    let started =
        Fleet::start(Path::new(BINARY), settings, &database.config(), Spread::Random).await;
    (started.unwrap(), database)
}

/// Users of a fleet, by way of its proxy.
async fn users<const N: usize>(fleet: &Fleet, names: [&str; N]) -> [User; N] {
    let http = Http::new(fleet.url());
    let users = names.map(|name| User::register(&http, name));
    let users = futures::future::join_all(users).await;
    users.try_into().unwrap_or_else(|_| unreachable!("as many as there are names"))
}
