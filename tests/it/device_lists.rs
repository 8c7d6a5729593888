//! Whose devices a client must know, and whose it may forget: `device_lists` of `/sync`, and
//! `/keys/changes`.

use std::collections::BTreeSet;

use chatd_kit::{Synced, User, scenario};
use serde_json::{Value, json};

/// The users of one list of an object with `changed` and `left`.
fn users(lists: &Value, name: &str) -> BTreeSet<String> {
    let users = lists[name].as_array().into_iter().flatten();
    users.filter_map(Value::as_str).map(str::to_owned).collect()
}

fn set(users: &[&User]) -> BTreeSet<String> {
    users.iter().map(|user| user.id.clone()).collect()
}

/// A sync from `since` on without presence.
async fn sync(user: &User, since: &str, rooms: &Value) -> Synced {
    let filter = json!({"presence": {"types": []}, "room": rooms});
    user.sync().since(since).filter(&filter).await
}

/// Asserts what a sync and `/keys/changes` say of the interval from `since` until now, however
/// narrow the filter is; returns the next token. `changed` may name others who are met anyway, as
/// a client that asks for their keys once more takes no harm; it never names who has left. Where
/// several instances write, `left` may name once more who had left before: those in `gone`.
async fn told(
    user: &User,
    since: &str,
    changed: &[&User],
    left: &[&User],
    gone: &[&User],
) -> String {
    let left_is_right = |seen: BTreeSet<String>| {
        let (left, gone) = (set(left), set(gone));
        assert!(seen.is_superset(&left), "left {seen:?}, not {left:?}");
        assert!(
            seen.iter().all(|user| left.contains(user) || gone.contains(user)),
            "left {seen:?}"
        );
    };
    let mut next = String::new();
    for rooms in [json!({}), json!({"rooms": []})] {
        let synced = sync(user, since, &rooms).await;
        next = synced.next_batch();
        let lists = &synced.ok()["device_lists"];
        let mut seen = users(lists, "changed");
        seen.remove(&user.id);
        assert!(seen.is_superset(&set(changed)), "changed {seen:?}, {rooms}");
        assert!(seen.is_disjoint(&set(left)), "changed {seen:?}, {rooms}");
        left_is_right(users(lists, "left"));
    }
    let asked = user.get("/keys/changes").query("from", since).query("to", &next).await;
    let mut seen = users(asked.ok(), "changed");
    seen.remove(&user.id);
    assert!(seen.is_superset(&set(changed)), "changed {seen:?}");
    assert!(seen.is_disjoint(&set(left)), "changed {seen:?}");
    left_is_right(users(asked.ok(), "left"));
    next
}

scenario! {
    async fn devices_of_those_who_come_and_go_are_told(server: Server) {
        let (alice, bob, eve) =
            (server.user("alice").await, server.user("bob").await, server.user("eve").await);
        let one = alice.create_room().member(&bob).await;
        let since = alice.sync().await.next_batch();
        // Somebody comes.
        alice.invite(&one, &eve).await.ok();
        let since = told(&alice, &since, &[], &[], &[]).await;
        eve.join(&one).await.ok();
        let since = told(&alice, &since, &[&eve], &[], &[]).await;
        // A second room is no news, and a new name neither.
        let two = alice.create_room().member(&bob).await;
        let named = json!({"membership": "join", "displayname": "Bob"});
        bob.set_state(&one, "m.room.member", &bob.id, &named).await.ok();
        let since = told(&alice, &since, &[], &[], &[]).await;
        // Who leaves one of two shared rooms has not left; who leaves the last one has.
        bob.leave(&one).await.ok();
        eve.leave(&one).await.ok();
        let since = told(&alice, &since, &[], &[&eve], &[]).await;
        // The user itself leaves, and then comes back.
        alice.leave(&two).await.ok();
        let since = told(&alice, &since, &[], &[&bob], &[&eve]).await;
        bob.invite(&two, &alice).await.ok();
        alice.join(&two).await.ok();
        told(&alice, &since, &[&bob], &[], &[&eve]).await;
    }

    async fn device_lists_are_right_from_the_tables_too(server: Server) {
        let (alice, bob, eve) =
            (server.user("alice").await, server.user("bob").await, server.user("eve").await);
        let mallory = server.user("mallory").await;
        let one = alice.create_room().member(&bob).member(&mallory).await;
        let since = alice.sync().await.next_batch();
        alice.invite(&one, &eve).await.ok();
        eve.join(&one).await.ok();
        bob.leave(&one).await.ok();
        let named = json!({"membership": "join", "displayname": "M"});
        mallory.set_state(&one, "m.room.member", &mallory.id, &named).await.ok();
        assert!(server.sigterm().await.expect("it ends").success());
        server.restart().await.expect("it starts again");
        let since = told(&alice, &since, &[&eve], &[&bob], &[]).await;
        // Both leave the last room that they share while nobody looks.
        eve.leave(&one).await.ok();
        alice.leave(&one).await.ok();
        assert!(server.sigterm().await.expect("it ends").success());
        server.restart().await.expect("it starts again");
        told(&alice, &since, &[], &[&eve, &mallory], &[&bob]).await;
    }
}
