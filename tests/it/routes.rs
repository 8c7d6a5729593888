//! Every endpoint of the route tables, which stand beside the specification (`CHATD_SPEC_DIR`):
//! what is built answers under all its names, and what is not says `M_UNRECOGNIZED`.

use std::path::PathBuf;

use chatd_kit::{Answer, Server, Settings, path, scenario};
use serde_json::json;

/// Endpoints for clients and other servers that are not built. Whoever builds one takes its line
/// out.
const NOT_BUILT: &[&str] = &[
    "/.well-known/matrix/policy_server",
    "/.well-known/matrix/support",
    "/_matrix/client/r0/login/cas/",
    "/_matrix/client/r0/presence/list/",
    "/_matrix/client/r0/tokenrefresh",
    "/_matrix/client/v1/admin/",
    "/_matrix/client/v1/appservice/",
    "/_matrix/client/v1/auth_metadata",
    "/_matrix/client/v1/media/",
    "/_matrix/client/v1/mutual_rooms",
    "/_matrix/client/v3/account/3pid",
    "/_matrix/client/v3/account/password/email/",
    "/_matrix/client/v3/account/password/msisdn/",
    "/_matrix/client/v3/admin/",
    "/_matrix/client/v3/directory/list/appservice/",
    "/_matrix/client/v3/events",
    "/_matrix/client/v3/initialSync",
    "/_matrix/client/v3/login/sso/",
    "/_matrix/client/v3/notifications",
    "/_matrix/client/v3/pushers",
    "/_matrix/client/v3/register/email/",
    "/_matrix/client/v3/register/msisdn/",
    "/_matrix/client/v3/rooms/{roomId}/initialSync",
    "/_matrix/client/v3/rooms/{roomId}/report",
    "/_matrix/client/v3/search",
    "/_matrix/client/v3/thirdparty/",
    "/_matrix/client/v3/user_directory/",
    "/_matrix/client/v3/users/{userId}/report",
    "/_matrix/federation/v1/media/",
    "/_matrix/federation/v1/query/{queryType}",
    "/_matrix/federation/v1/query_auth/",
    "/_matrix/media/",
    "/_matrix/policy/",
];

/// Endpoints of other APIs, and of Synapse's own, that are built; the rest of them is not.
const BUILT_ELSEWHERE: &[&str] =
    &["/.well-known/matrix/server", "/_synapse/admin/v1/register", "/health"];

/// The names of version 3 of the client API.
const VERSIONS: &[&str] = &["v3", "r0", "unstable", "v2_alpha", "api/v1"];

/// One line of a table.
pub struct Row {
    pub method: String,
    pub path: String,
    is_built: bool,
}

/// The lines of one table; nothing, said aloud, if the tables are not at hand.
pub fn rows(file: &str) -> Vec<Row> {
    let spec = std::env::var_os("CHATD_SPEC_DIR").filter(|folder| !folder.is_empty());
    let file = spec.map(|spec| PathBuf::from(spec).join("../routes").join(file));
    let Some(file) = file.filter(|file| file.is_file()) else {
        chatd_kit::say("there are no route tables beside CHATD_SPEC_DIR: routes are not checked");
        return Vec::new();
    };
    let text = std::fs::read_to_string(&file).expect("a table can be read");
    let mut lines = text.lines().map(|line| line.split('\t').collect::<Vec<_>>());
    let header = lines.next().expect("a table has a header");
    let column = |name: &str| header.iter().position(|found| *found == name);
    let (method, path) = (column("method"), column("path"));
    let (method, path) = (method.expect("a method"), path.expect("a path"));
    let api = column("api");
    lines
        .filter(|cells| !cells[path].ends_with("..."))
        .map(|cells| Row {
            method: cells[method].to_owned(),
            path: cells[path].to_owned(),
            is_built: match api.map(|api| cells[api]) {
                Some("cs" | "ss") => !NOT_BUILT.iter().any(|prefix| is_below(cells[path], prefix)),
                _ => BUILT_ELSEWHERE.contains(&cells[path]),
            },
        })
        .collect()
}

/// Whether `path` is `prefix` or goes on from it, at the end of a segment.
fn is_below(path: &str, prefix: &str) -> bool {
    path.strip_prefix(prefix).is_some_and(|rest| {
        // One event by its id is built, the stream of events is not.
        (prefix.ends_with('/') || rest.is_empty() || rest.starts_with('/'))
            && path != "/_matrix/client/v3/events/{eventId}"
    })
}

/// The path with something in the place of its arguments.
pub fn filled(pattern: &str) -> String {
    let segments = pattern.split('/').map(|segment| match segment {
        "{userId}" => path("{}", &["@alice:test.local"]),
        "{roomId}" => path("{}", &["!x:test.local"]),
        "{roomIdOrAlias}" | "{roomAlias}" => path("{}", &["#x:test.local"]),
        "{eventId}" => path("{}", &["$x"]),
        "{kind}" => "content".to_owned(),
        "{scope}" => "global".to_owned(),
        other if other.starts_with('{') => "x".to_owned(),
        other => other.to_owned(),
    });
    segments.collect::<Vec<_>>().join("/")
}

/// All names of an endpoint.
fn names(path: &str) -> Vec<String> {
    let rest = path
        .strip_prefix("/_matrix/client/v3/")
        .or_else(|| path.strip_prefix("/_matrix/client/r0/"));
    let mut names: Vec<String> = match rest {
        Some(rest) => VERSIONS.iter().map(|v| format!("/_matrix/client/{v}/{rest}")).collect(),
        None => vec![path.to_owned()],
    };
    if let Some(rest) = path.strip_prefix("/_matrix/client/v1/rooms/{roomId}/relations/") {
        names.push(format!("/_matrix/client/unstable/rooms/{{roomId}}/relations/{rest}"));
    }
    let synonyms: Vec<String> = names
        .iter()
        .filter_map(|name| {
            let matrix = name.strip_prefix("/_matrix/").map(|rest| format!("/chat/{rest}"));
            matrix.or_else(|| name.strip_prefix("/_synapse/").map(|rest| format!("/_chat/{rest}")))
        })
        .collect();
    names.extend(synonyms);
    names
}

/// Asks without a token, so that nothing is done.
async fn ask(server: &Server, method: &str, path: &str) -> Answer {
    server.request(method, path).unchecked().await
}

#[track_caller]
fn has_cors(answer: &Answer) {
    assert_eq!(answer.header("access-control-allow-origin"), Some("*"), "{answer}");
    let methods = answer.header("access-control-allow-methods").unwrap_or_default();
    assert!(methods.contains("PUT") && methods.contains("DELETE"), "{answer}: {methods}");
    let headers = answer.header("access-control-allow-headers").unwrap_or_default();
    assert!(headers.to_ascii_lowercase().contains("authorization"), "{answer}: {headers}");
}

async fn check(server: &Server, row: &Row) {
    for name in names(&filled(&row.path)) {
        let answer = ask(server, &row.method, &name).await;
        has_cors(&answer);
        if row.is_built {
            assert_ne!(answer.errcode(), "M_UNRECOGNIZED", "{answer}");
            // 502: what it asks for is at a server that there is not.
            assert!(answer.status < 500 || answer.status == 502, "{answer}");
            ask(server, "PATCH", &name).await.refused(405, "M_UNRECOGNIZED");
        } else {
            // Another method of the same path may be built.
            assert!([404, 405].contains(&answer.status), "{answer}");
            assert_eq!(answer.errcode(), "M_UNRECOGNIZED", "{answer}");
        }
        let preflight = ask(server, "OPTIONS", &name).await;
        assert!([200, 204].contains(&preflight.status), "{preflight}");
        has_cors(&preflight);
    }
}

fn settings() -> Settings {
    Settings::federating().with("login_via_existing_session", json!({"enabled": true}))
}

scenario! {
    async fn the_client_api_is_there_as_far_as_it_is_built(server: Server) with (settings()) {
        for file in ["spec-endpoints.tsv", "spec-removed-endpoints.tsv"] {
            for row in rows(file) {
                check(&server, &row).await;
            }
        }
    }

    /// The proxy of a `fleet` hands on no `/health`.
    async fn other_apis_are_there_as_far_as_they_are_built(server: Server)
        in (monolith, random) with (settings())
    {
        for file in ["synapse-admin.tsv", "synapse-client.tsv"] {
            for row in rows(file) {
                check(&server, &row).await;
            }
        }
    }

    async fn the_server_says_what_it_can(server: Server) with (settings()) {
        let alice = server.user("alice").await;
        let versions = alice.get("/_matrix/client/versions").await;
        let versions = versions.ok();
        for version in ["r0.6.1", "v1.1", "v1.11"] {
            let list = versions["versions"].as_array().expect("a list of versions");
            assert!(list.contains(&json!(version)), "{version}");
        }
        for (feature, value) in versions["unstable_features"].as_object().expect("features") {
            assert!(value.is_boolean(), "{feature}");
        }
        let told = alice.get("/capabilities").await;
        let told = &told.ok()["capabilities"];
        assert_eq!(told["m.room_versions"]["default"], "12");
        let available = told["m.room_versions"]["available"].as_object().expect("versions");
        assert_eq!(available.len(), 12);
        for version in available.keys() {
            let room = alice.create_room().with("room_version", version.as_str()).await;
            let create = alice.get_state(&room, "m.room.create", "").await;
            assert_eq!(create.string("room_version"), *version);
        }
        for (name, enabled) in [
            ("m.change_password", true),
            ("m.set_displayname", true),
            ("m.set_avatar_url", true),
            ("m.profile_fields", true),
            ("m.3pid_changes", false),
            ("m.get_login_token", true),
        ] {
            assert_eq!(told[name]["enabled"], enabled, "{name}");
        }
    }

    async fn what_is_switched_off_is_said(server: Server) with (Settings::new()
        .with("password_config", json!({"enabled": false}))
        .with("enable_set_displayname", false)
        .with("enable_set_avatar_url", false)
        .with("default_room_version", "9"))
    {
        let alice = server.user("alice").await;
        let told = alice.get("/capabilities").await;
        let told = &told.ok()["capabilities"];
        assert_eq!(told["m.room_versions"]["default"], "9");
        for name in
            ["m.change_password", "m.set_displayname", "m.set_avatar_url", "m.get_login_token"]
        {
            assert_eq!(told[name]["enabled"], false, "{name}");
        }
        for (field, value) in [("displayname", "A"), ("avatar_url", "mxc://test.local/a")] {
            let url = path("/profile/{}/", &[&alice.id]) + field;
            alice.put(url, &json!({field: value})).await.refused(403, "M_FORBIDDEN");
        }
        let flows = server.request("GET", "/login").await;
        assert_eq!(flows.ok()["flows"], json!([]));
        alice.post("/login/get_token", &json!({})).await.refused(404, "M_UNRECOGNIZED");
        let url = "/_matrix/client/v1/login/get_token";
        alice.post(url, &json!({})).await.refused(404, "M_UNRECOGNIZED");
    }
}
