//! `/capabilities`: what the server lets a user do.

use std::sync::Arc;

use chatd_base::Result;
use chatd_config::RouterName;
use chatd_http::{Auth, Reply, Request, Routes, v3};
use serde_json::{Map, Value, json};

use crate::App;

/// Room versions that rooms can be made in; all of them are stable.
const ROOM_VERSIONS: [&str; 12] = ["1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12"];

pub fn routes() -> Routes<App> {
    Routes::of(RouterName::ClientVersions).get(v3("/capabilities"), Auth::Guest, capabilities)
}

async fn capabilities(app: Arc<App>, _: Request) -> Result<Reply> {
    let config = &app.config;
    let available: Map<String, Value> =
        ROOM_VERSIONS.iter().map(|version| ((*version).to_owned(), json!("stable"))).collect();
    Reply::json(&json!({
        "capabilities": {
            "m.room_versions": {"default": config.rooms.default_version, "available": available},
            "m.change_password": {"enabled": config.passwords.login.may_reauthenticate()},
            "m.set_displayname": {"enabled": config.profiles.may_set_displayname},
            "m.set_avatar_url": {"enabled": config.profiles.may_set_avatar_url},
            "m.3pid_changes": {"enabled": false},
            "m.profile_fields": {"enabled": true},
            "m.get_login_token": {"enabled": config.sessions.login_via_existing_session.enabled},
        },
    }))
}
