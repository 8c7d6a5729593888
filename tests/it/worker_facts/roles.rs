//! Every app of `roles/` as a worker with a listener for clients, where its role may have one:
//! each endpoint answers there what it answers at the main process.

use std::{collections::BTreeMap, path::Path};

use chatd_kit::{Answer, User, eventually, example::Example, http::Http};
use serde_json::{Value, json};

use super::BINARY;
use crate::routes::{Row, filled, rows};

/// Apps whose instances take requests of clients.
const WITH_CLIENTS: &[&str] = &[
    "generic_worker",
    "client_reader",
    "event_creator",
    "federation_reader",
    "frontend_proxy",
    "synchrotron",
    "media_repository",
    "user_dir",
];
/// The one of them that takes none of other servers.
const WITHOUT_FEDERATION: &str = "user_dir";
/// Apps whose instances take those of other instances only.
const WITHOUT: &[&str] = &["pusher", "federation_sender", "appservice"];
/// These would end the session with which the others are asked.
const ENDS_THE_SESSION: &[&str] = &["/_matrix/client/v3/logout", "/_matrix/client/v3/logout/all"];

/// A name in the place of the folder, which the kit fills in.
fn socket(name: &str) -> String {
    format!("/run/chatd/{name}.sock")
}

fn listener(name: &str, resources: &[&str]) -> Value {
    json!({"type": "http", "path": socket(name), "resources": [{"names": resources}]})
}

async fn start() -> Example {
    let mut workers = BTreeMap::new();
    let main = "main-replication";
    for (apps, takes_clients) in [(WITH_CLIENTS, true), (WITHOUT, false)] {
        for app in apps {
            let name = app.replace('_', "-");
            let resources: &[&str] = match takes_clients {
                true if *app == WITHOUT_FEDERATION => &["client"],
                true => &["client", "federation"],
                false => &["replication"],
            };
            let file = json!({
                "worker_app": format!("synapse.app.{app}"),
                "worker_name": name,
                "worker_listeners": [listener(&name, resources)],
            });
            workers.insert(name, file);
        }
    }
    let shared = json!({
        "server_name": "test.local",
        "worker_replication_secret": "the secret of the roles",
        "instance_map": {"main": {"path": socket(main)}},
        "listeners": [listener("main", &["client", "federation"]), listener(main, &["replication"])],
        "notify_appservices_from_worker": "appservice",
        "update_user_directory_from_worker": "user-dir",
        "federation_sender_instances": ["federation-sender"],
        "pusher_instances": ["pusher"],
        "enable_media_repo": false,
        "media_instance_running_background_jobs": "media-repository",
        "login_via_existing_session": {"enabled": true},
    });
    let example = Example::of(Path::new(BINARY), shared, workers).await;
    example.unwrap_or_else(|error| panic!("the fleet does not start: {error:?}"))
}

/// Reads are made; of what writes, nothing is done, since the body is no JSON. Who asks all roles has
/// asked often enough for some limits, which are those of the fleet.
async fn ask(user: &User, row: &Row) -> Answer {
    eventually("it is not too often", || async {
        let request = user.request(&row.method, filled(&row.path)).unchecked();
        let answer = if row.method == "GET" { request.await } else { request.body("{").await };
        if answer.status == 429 { Err(answer.to_string()) } else { Ok(answer) }
    })
    .await
}

#[tokio::test]
async fn each_endpoint_answers_at_each_role() {
    let example = start().await;
    let at = |name: &str| Http::on_socket(&example.folder().join(format!("{name}.sock")));
    let alice = User::register(&at("main"), "alice").await;
    for app in WITHOUT {
        let answer = at(&app.replace('_', "-")).request("GET", "/health").await;
        assert_eq!(answer.text, "OK", "{app}");
    }
    let files = ["spec-endpoints.tsv", "spec-removed-endpoints.tsv", "synapse-admin.tsv"];
    for row in files.into_iter().flat_map(rows) {
        if ENDS_THE_SESSION.iter().any(|path| row.path.ends_with(path)) {
            continue;
        }
        let expected = ask(&alice, &row).await;
        let is_federation = ["/_matrix/federation/", "/_matrix/key/"]
            .iter()
            .any(|prefix| row.path.starts_with(prefix));
        for app in WITH_CLIENTS {
            if is_federation && *app == WITHOUT_FEDERATION {
                continue;
            }
            let answer = ask(&alice.at(&at(&app.replace('_', "-"))), &row).await;
            let what = format!("{app}: {answer}, and main: {expected}");
            assert_eq!(answer.status, expected.status, "{what}");
            assert_eq!(answer.errcode(), expected.errcode(), "{what}");
        }
    }
}
