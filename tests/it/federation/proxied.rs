//! `https_proxy`: a server all of whose requests to others go through a proxy, or not at all.

use chatd_kit::{
    ForwardProxy, Other, Server, Settings, Spread, eventually, other::ACCESS_TOKEN, path,
    tls::Authority,
};
use serde_json::json;

use super::acts::{comes, same_state, says, until_event};

const BINARY: &str = env!("CARGO_BIN_EXE_chatd");

/// A proxy that is spoken to over TLS, and the settings of a server that uses it.
async fn proxied() -> (ForwardProxy, Settings) {
    let authority = Authority::shared().expect("an authority of the test kit");
    let certificate = authority.loopback().acceptor().expect("a certificate");
    let proxy = ForwardProxy::start(Some(certificate)).await;
    let settings = Settings::federating().with("https_proxy", proxy.url());
    (proxy, settings)
}

/// What people of `here` and another server do with each other goes through the proxy.
async fn is_among_others(here: Server, proxy: ForwardProxy) {
    let far = Server::start(BINARY, Settings::federating()).await;
    let identity = Other::start().await;
    let vouching = identity.identify(&[]);
    let (alice, bob) = (here.user("alice").await, far.user("bob").await);
    for (host, guest) in [(&alice, &bob), (&bob, &alice)] {
        let room = host.create_room().version("11").await;
        comes(host, guest, &room).await;
        says(host, &[guest], &room, "come in").await;
        says(guest, &[host], &room, "I am in").await;
        same_state(&[host, guest], &room).await;
    }
    assert!(proxy.asked().iter().all(|place| *place == far.name()), "{:?}", proxy.asked());

    let room = alice.create_room().member(&bob).await;
    let invite = json!({
        "id_server": identity.name(), "id_access_token": ACCESS_TOKEN,
        "medium": "email", "address": "carol@example.org",
    });
    alice.post(path("/rooms/{}/invite", &[&room]), &invite).await.ok();
    assert_eq!(vouching.taken().len(), 1);
    assert!(proxy.asked().contains(&identity.name()), "{:?}", proxy.asked());

    // There is no other way.
    proxy.shut();
    let alias = |number: usize| format!("#n{number}:{}", far.name());
    for number in 0..2 {
        let body = json!({"room_id": bob.create_room().await});
        bob.put(path("/directory/room/{}", &[&alias(number)]), &body).await.ok();
    }
    let ask = |number| alice.get(path("/directory/room/{}", &[&alias(number)]));
    assert!(ask(0).await.status >= 400);
    let waiting = alice.send(&room, "nobody hears this yet").await;
    assert_eq!(bob.event(&room, &waiting).await.status, 404);
    proxy.open();
    until_event(&bob, &room, &waiting).await;
    eventually("the far server is asked again", || async {
        match ask(1).await.status {
            200 => Ok(()),
            status => Err(status.to_string()),
        }
    })
    .await;
    assert_eq!(proxy.strangers(), 0);
}

#[tokio::test]
async fn one_process_asks_others_through_a_proxy() {
    let (proxy, settings) = proxied().await;
    is_among_others(Server::start(BINARY, settings).await, proxy).await;
}

#[tokio::test]
async fn all_instances_of_a_fleet_do() {
    let (proxy, settings) = proxied().await;
    is_among_others(Server::fleet(BINARY, settings, Spread::Random).await, proxy).await;
}
