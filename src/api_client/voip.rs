//! `/voip/turnServer`: credentials for the TURN server, made for each user and good for a while.

use std::sync::Arc;

use base64::{Engine, engine::general_purpose::STANDARD};
use chatd_base::{Refusal, Result};
use chatd_config::RouterName;
use chatd_http::{Auth, Reply, Request, Routes, v3};
use hmac::{Hmac, Mac};
use serde_json::json;
use sha1::Sha1;

use crate::App;

pub fn routes() -> Routes<App> {
    Routes::of(RouterName::ClientVoip).get(v3("/voip/turnServer"), Auth::Guest, turn_server)
}

async fn turn_server(app: Arc<App>, request: Request) -> Result<Reply> {
    let who = request.who()?;
    let voip = &app.config.voip;
    if who.is_guest && !voip.allow_guests {
        let refusal = Refusal::new(403, "M_GUEST_ACCESS_FORBIDDEN", "guests may not call");
        return Err(refusal.into());
    }
    let ttl = voip.user_lifetime.as_secs();
    let (username, password) = match (&voip.shared_secret, &voip.username, &voip.password) {
        (Some(secret), _, _) => {
            let expires = app.clock.now_ms() / 1000 + ttl;
            let username = format!("{expires}:{}", who.user_id);
            let password = credential(secret.expose(), &username);
            (username, password)
        }
        (None, Some(username), Some(password)) => (username.clone(), password.expose().to_owned()),
        _ => return Ok(Reply::empty()),
    };
    if voip.uris.is_empty() {
        return Ok(Reply::empty());
    }
    Reply::json(&json!({
        "username": username, "password": password, "ttl": ttl, "uris": voip.uris,
    }))
}

/// The password that a TURN server with the same secret works out from the name.
fn credential(secret: &str, username: &str) -> String {
    let mut mac = Hmac::<Sha1>::new_from_slice(secret.as_bytes()).expect("HMAC takes any key");
    mac.update(username.as_bytes());
    STANDARD.encode(mac.finalize().into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As `printf 1500000000:@alice:example.org | openssl dgst -sha1 -hmac north -binary | base64`.
    #[test]
    fn a_credential_is_the_hmac_of_the_name() {
        assert_eq!(
            credential("north", "1500000000:@alice:example.org"),
            "3ADLJ56fJ+WgF7XepwBeWhIVBCo="
        );
    }
}
