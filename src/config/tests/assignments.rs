//! `assignment()` over the deployments that admins have: each edition of Synapse's page about
//! workers, its fork with `chat.app` names, and a container guide with twelve processes.

use super::assign;
use crate::{RouterName, StreamName as S, TaskName as T};

const DATABASE: &str = "
server_name: example.org
database: { name: psycopg2, args: { host: /run/postgresql, database: chatd, user: chatd } }
";

/// Shared part of the edition whose workers name the main process themselves.
const REPLICATION_HOST: &str = "
listeners:
  - { port: 8008, type: http, x_forwarded: true, resources: [{ names: [client, federation] }] }
  - port: 9093
    bind_address: '127.0.0.1'
    type: http
    resources:
      - names: [replication]
worker_replication_secret: hush
redis:
  enabled: true
";

/// Shared part of the editions with an `instance_map`.
const INSTANCE_MAP: &str = "
listeners:
  - { port: 8008, type: http, resources: [{ names: [client, federation] }] }
  - { port: 9093, bind_address: '127.0.0.1', type: http, resources: [{ names: [replication] }] }
worker_replication_secret: hush
redis: { enabled: true }
instance_map:
  main: { host: localhost, port: 9093 }
";

const GENERIC_LISTENER: &str = "
worker_listeners:
  - { type: http, port: 8083, x_forwarded: true, resources: [{ names: [client, federation] }] }
";

const REPLICATION_LISTENER: &str = "
worker_listeners:
  - { type: http, port: 8034, resources: [{ names: [replication] }] }
";

const TO_MAIN: &str = "
worker_replication_host: 127.0.0.1
worker_replication_http_port: 9093
worker_log_config: /etc/matrix-synapse/worker-log.yaml
";

/// One instance of a deployment and what it must get.
struct Case {
    what: &'static str,
    shared: String,
    worker: String,
    role: &'static str,
    writers: Vec<S>,
    tasks: Vec<T>,
}

fn case(what: &'static str, shared: &[&str], worker: &[&str], role: &'static str) -> Case {
    Case {
        what,
        shared: [DATABASE].iter().chain(shared).copied().collect(),
        worker: worker.concat(),
        role,
        writers: vec![S::Caches],
        tasks: Vec::new(),
    }
}

impl Case {
    fn writes(mut self, streams: &[S]) -> Self {
        self.writers.extend(streams);
        self
    }

    fn runs(mut self, tasks: &[T]) -> Self {
        self.tasks.extend(tasks);
        self
    }
}

fn check(cases: Vec<Case>) {
    for case in cases {
        let got = assign(&case.shared, &case.worker)
            .unwrap_or_else(|error| panic!("{}: {error}", case.what));
        assert_eq!(got.role, case.role, "{}: role", case.what);
        assert_eq!(got.writers, case.writers.into_iter().collect(), "{}: writers", case.what);
        assert_eq!(got.tasks, case.tasks.into_iter().collect(), "{}: tasks", case.what);
    }
}

/// All streams but `without`.
fn streams_but(without: &[S]) -> Vec<S> {
    S::ALL.iter().copied().filter(|stream| !without.contains(stream)).collect()
}

/// All tasks but `without`.
fn tasks_but(without: &[T]) -> Vec<T> {
    T::ALL.iter().copied().filter(|task| !without.contains(task)).collect()
}

#[test]
fn a_monolith_has_everything() {
    let got = assign(DATABASE, "").unwrap();
    assert!(got.is_whole());
    assert_eq!(got.instance, "main");
    assert_eq!(got.routers.len(), RouterName::ALL.len());
    assert_eq!(got.writers.len(), S::ALL.len());
    assert_eq!(got.tasks.len(), T::ALL.len());
}

#[test]
fn the_edition_whose_workers_name_the_main_process() {
    let persister = "
instance_map: { event_persister1: { host: localhost, port: 8034 } }
stream_writers: { events: event_persister1 }
";
    let two_persisters = "
instance_map:
  event_persister1: { host: localhost, port: 8034 }
  event_persister2: { host: localhost, port: 8035 }
stream_writers:
  events:
    - event_persister1
    - event_persister2
";
    let shared = |more: &'static str| [REPLICATION_HOST, more];
    let generic = |name: &'static str| {
        ["worker_app: synapse.app.generic_worker\nworker_name: ", name, TO_MAIN]
    };
    check(vec![
        case("main", &shared(persister), &[], "main")
            .writes(&streams_but(&[S::Events]))
            .runs(T::ALL),
        case(
            "generic worker",
            &shared(persister),
            &[&generic("generic_worker1")[..], &[GENERIC_LISTENER]].concat(),
            "generic_worker",
        ),
        case(
            "one event persister",
            &shared(persister),
            &[&generic("event_persister1")[..], &[REPLICATION_LISTENER]].concat(),
            "generic_worker",
        )
        .writes(&[S::Events]),
        case(
            "second of two event persisters",
            &shared(two_persisters),
            &[&generic("event_persister2")[..], &[REPLICATION_LISTENER]].concat(),
            "generic_worker",
        )
        .writes(&[S::Events]),
        case(
            "background worker",
            &shared("run_background_tasks_on: background_worker"),
            &generic("background_worker"),
            "generic_worker",
        )
        .runs(&[T::Cleanup, T::BackgroundUpdates]),
        case(
            "main beside a background worker",
            &shared("run_background_tasks_on: background_worker"),
            &[],
            "main",
        )
        .writes(S::ALL)
        .runs(&tasks_but(&[T::Cleanup, T::BackgroundUpdates])),
        case(
            "user directory on a generic worker",
            &shared("update_user_directory_from_worker: dir1"),
            &generic("dir1"),
            "generic_worker",
        )
        .runs(&[T::UserDirectory]),
        case(
            "application services on a generic worker",
            &shared("notify_appservices_from_worker: as1"),
            &generic("as1"),
            "generic_worker",
        )
        .runs(&[T::AppserviceSender]),
        case(
            "pusher of its own role",
            &shared("pusher_instances: [pusher_worker1, pusher_worker2]"),
            &["worker_app: synapse.app.pusher\nworker_name: pusher_worker1", TO_MAIN],
            "pusher",
        )
        .runs(&[T::Pusher]),
        case(
            "pusher with the old boolean only",
            &shared("start_pushers: false"),
            &["worker_app: synapse.app.pusher\nworker_name: pusher_worker1", TO_MAIN],
            "pusher",
        )
        .runs(&[T::Pusher]),
        case(
            "pushing generic worker",
            &shared("pusher_instances: [pusher_worker1, pusher_worker2]"),
            &generic("pusher_worker2"),
            "generic_worker",
        )
        .runs(&[T::Pusher]),
        case(
            "application services of their own role",
            &shared("notify_appservices: false"),
            &["worker_app: synapse.app.appservice", TO_MAIN],
            "appservice",
        )
        .runs(&[T::AppserviceSender]),
        case(
            "federation sender",
            &shared("send_federation: false\nfederation_sender_instances: [federation_sender1, federation_sender2]"),
            &["worker_app: synapse.app.federation_sender\nworker_name: federation_sender1", TO_MAIN],
            "federation_sender",
        )
        .runs(&[T::FederationSender]),
        case(
            "media repository",
            &shared("enable_media_repo: false\nmedia_instance_running_background_jobs: media_worker"),
            &[
                "worker_app: synapse.app.media_repository\nworker_name: media_worker",
                TO_MAIN,
                "worker_listeners:\n  - { type: http, port: 8085, x_forwarded: true, resources: [{ names: [media] }] }",
            ],
            "media_repository",
        )
        .runs(&[T::MediaCleanup]),
        case(
            "user directory of its own role",
            &shared("update_user_directory: false"),
            &["worker_app: synapse.app.user_dir", TO_MAIN],
            "user_dir",
        )
        .runs(&[T::UserDirectory]),
    ]);
}

#[test]
fn the_editions_with_main_in_the_instance_map() {
    let writers = "
instance_map:
  main: { path: /run/synapse/main_replication.sock }
  event_persister1: { path: /run/synapse/persister1.sock }
  writer1: { host: localhost, port: 8040 }
  sender1: { host: localhost, port: 8041 }
stream_writers:
  events: event_persister1
  typing: writer1
  to_device: [writer1]
  account_data: writer1
  receipts: writer1
  presence: writer1
  push_rules: main
federation_sender_instances: [sender1]
outbound_federation_restricted_to: [sender1]
";
    let writer = [
        "worker_app: synapse.app.generic_worker\nworker_name: writer1\n",
        "worker_listeners:\n  - { type: http, port: 8040, resources: [{ names: [replication] }] }\n",
        "  - { type: http, path: /run/synapse/writer1.sock, resources: [{ names: [client] }] }\n",
        "worker_main_http_uri: http://127.0.0.1:8008\n",
    ];
    let written = [S::Typing, S::ToDevice, S::AccountData, S::Receipts, S::Presence];
    check(vec![
        case("main", &[INSTANCE_MAP, "stream_writers: {}"], &[], "main").writes(S::ALL).runs(T::ALL),
        case("writer of five streams", &[INSTANCE_MAP], &[writers, &writer.concat()], "generic_worker")
            .writes(&written),
        case("main beside the writers", &[INSTANCE_MAP], &[writers], "main")
            .writes(&[S::PushRules, S::DeviceLists, S::ThreadSubscriptions, S::QuarantinedMedia])
            .runs(&tasks_but(&[T::FederationSender])),
        case(
            "sender that all federation goes through",
            &[INSTANCE_MAP],
            &[
                writers,
                "worker_app: synapse.app.generic_worker\nworker_name: sender1\n",
                "worker_listeners:\n  - { type: http, port: 8041, resources: [{ names: [replication] }] }\n",
            ],
            "generic_worker",
        )
        .runs(&[T::FederationSender]),
    ]);
}

#[test]
fn the_edition_with_chat_app_names() {
    let to_main = "
worker_replication_host: 127.0.0.1
worker_replication_port: 9092
worker_replication_http_port: 9093
";
    let old_listener = "
listeners:
  - { port: 8008, type: http, resources: [{ names: [client] }] }
  - { port: 9092, bind_address: '127.0.0.1', type: replication }
  - { port: 9093, bind_address: '127.0.0.1', type: http, resources: [{ names: [replication] }] }
";
    let all_off = "
start_pushers: False
notify_appservices: False
send_federation: False
update_user_directory: False
enable_media_repo: False
use_presence: False
redis: { enabled: true }
";
    let app = |name: &'static str| ["worker_app: ", name, to_main];
    let shared = [old_listener, all_off];
    let moved =
        [T::Pusher, T::AppserviceSender, T::FederationSender, T::UserDirectory, T::MediaCleanup];
    check(vec![
        case("main", &shared, &[], "main").writes(S::ALL).runs(&tasks_but(&moved)),
        case("generic worker", &shared, &app("chat.app.generic_worker"), "generic_worker"),
        case("pusher", &shared, &app("chat.app.pusher"), "pusher").runs(&[T::Pusher]),
        case("appservice", &shared, &app("chat.app.appservice"), "appservice")
            .runs(&[T::AppserviceSender]),
        case("federation sender", &shared, &app("chat.app.federation_sender"), "federation_sender")
            .runs(&[T::FederationSender]),
        case("media", &shared, &app("chat.app.media_repository"), "media_repository")
            .runs(&[T::MediaCleanup]),
        case("user directory", &shared, &app("chat.app.user_dir"), "user_dir")
            .runs(&[T::UserDirectory]),
        case(
            "frontend proxy",
            &shared,
            &[
                &app("chat.app.frontend_proxy")[..],
                &["worker_main_http_uri: http://127.0.0.1:8080"],
            ]
            .concat(),
            "generic_worker",
        ),
        case("client reader", &shared, &app("synapse.app.client_reader"), "generic_worker"),
        case("event creator", &shared, &app("synapse.app.event_creator"), "generic_worker"),
        case("federation reader", &shared, &app("federation_reader"), "generic_worker"),
        case("synchrotron", &shared, &app("synchrotron"), "generic_worker"),
        case("main by its app name", &shared, &["worker_app: synapse.app.homeserver"], "main")
            .writes(S::ALL)
            .runs(&tasks_but(&moved)),
    ]);
}

/// Shared part of the container guide: twelve workers beside main, on unix sockets.
const CONTAINERS: &str = "
enable_media_repo: false
federation_sender_instances: [sender1, sender2, sender3, sender4]
media_instance_running_background_jobs: media1
notify_appservices_from_worker: tasks1
pusher_instances: [tasks1]
run_background_tasks_on: tasks1
start_pushers: false
stream_writers:
  account_data: [client_sync1]
  events: [tasks1]
  presence: [client_sync1]
  receipts: [client_sync1]
  to_device: [client_sync1]
  typing: [client_sync1]
update_user_directory_from_worker: client_sync1
redis: { enabled: true, host: redis }
listeners:
  - { path: /sockets/synapse_replication_main.sock, type: http, resources: [{ names: [replication] }] }
  - { path: /sockets/synapse_inbound_main.sock, type: http, resources: [{ names: [client, federation] }] }
  - { type: metrics, bind_address: '', port: 10000 }
instance_map:
  main: { path: /sockets/synapse_replication_main.sock }
  client_sync1: { path: /sockets/synapse_replication_client_sync1.sock }
  media1: { path: /sockets/synapse_replication_media1.sock }
  sender1: { path: /sockets/synapse_replication_sender1.sock }
  sender2: { path: /sockets/synapse_replication_sender2.sock }
  sender3: { path: /sockets/synapse_replication_sender3.sock }
  sender4: { path: /sockets/synapse_replication_sender4.sock }
  tasks1: { path: /sockets/synapse_replication_tasks1.sock }
";

/// The file of one container: its sockets as the guide names them.
fn container(app: &str, name: &str, sockets: &[(&str, &str)]) -> String {
    let mut text = format!(
        "worker_app: \"synapse.app.{app}\"\nworker_name: \"{name}\"\n\
         worker_log_config: \"/data/log.config/{name}.log.config\"\nworker_listeners:\n  \
         - {{ type: metrics, bind_address: '', port: 9000 }}\n"
    );
    for (kind, resources) in sockets {
        text += &format!(
            "  - {{ path: /sockets/synapse_{kind}_{name}.sock, type: http, \
             resources: [{{ names: [{resources}], compress: false }}] }}\n"
        );
    }
    text
}

#[test]
fn the_container_guide_with_twelve_workers() {
    const REPLICATION: (&str, &str) = ("replication", "replication");
    const INBOUND: (&str, &str) = ("inbound", "client, federation");
    let synced = [S::AccountData, S::Presence, S::Receipts, S::ToDevice, S::Typing];
    let worker = |name: &'static str, sockets: &[(&str, &str)]| {
        case(name, &[CONTAINERS], &[&container("generic_worker", name, sockets)], "generic_worker")
    };
    let mut cases = vec![
        case("main", &[CONTAINERS], &[], "main").writes(&[
            S::PushRules,
            S::DeviceLists,
            S::ThreadSubscriptions,
            S::QuarantinedMedia,
        ]),
        worker("client_sync1", &[REPLICATION, INBOUND]).writes(&synced).runs(&[T::UserDirectory]),
        worker("federation_reader1", &[INBOUND]),
        worker("tasks1", &[REPLICATION]).writes(&[S::Events]).runs(&[
            T::AppserviceSender,
            T::Pusher,
            T::Cleanup,
            T::BackgroundUpdates,
        ]),
        case(
            "media1",
            &[CONTAINERS],
            &[&container("media_repository", "media1", &[REPLICATION, ("inbound", "media")])],
            "media_repository",
        )
        .runs(&[T::MediaCleanup]),
    ];
    for name in ["rooms1", "rooms2", "rooms3", "rooms4"] {
        cases.push(worker(name, &[INBOUND]));
    }
    for name in ["sender1", "sender2", "sender3", "sender4"] {
        cases.push(worker(name, &[REPLICATION]).runs(&[T::FederationSender]));
    }
    assert_eq!(cases.len(), 13, "main and twelve workers");
    check(cases);
}
