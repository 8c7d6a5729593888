//! Random rooms, with people who do whatever comes to them.

use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use serde_json::{Value, json};

use super::{
    lab::{ALICE, BOB, CAROL, Draft, Lab},
    vouched_tests::Vouching,
    *,
};

const DAVE: &str = "@dave:a.example";
const EVE: &str = "@eve:e.example";
/// Who has power is there more often.
const SENDERS: [&str; 8] = [ALICE, ALICE, ALICE, BOB, BOB, CAROL, DAVE, EVE];
pub(super) const USERS: [&str; 5] = [ALICE, BOB, CAROL, DAVE, EVE];
const RULES: [&str; 7] =
    ["public", "public", "invite", "knock", "restricted", "knock_restricted", "kit.unheard-of"];
const MEMBERSHIPS: [&str; 8] =
    ["join", "join", "join", "leave", "invite", "ban", "knock", "kit.unheard-of"];

/// The room that follows from `seed`.
pub(super) fn room(version: &str, seed: u64) -> Lab {
    let mut random = StdRng::seed_from_u64(seed);
    let (is_vouched, is_low) = (random.random_bool(0.3), random.random_bool(0.3));
    let mut play = Play {
        random: &mut random,
        lab: Lab::empty(version),
        tips: Vec::new(),
        vouching: Vouching::new(),
        is_vouched,
        is_low,
    };
    play.begin(version);
    for _ in 0..play.random.random_range(5..40) {
        play.act();
    }
    play.lab
}

/// A room in the making.
struct Play<'a> {
    random: &'a mut StdRng,
    lab: Lab,
    tips: Vec<EventNid>,
    vouching: Vouching,
    /// Whether many of its events are about people who are invited by an address.
    is_vouched: bool,
    /// Whether levels may be changed with less than the default of others, see [`Play::high_level`].
    is_low: bool,
}

impl Play<'_> {
    fn chance(&mut self, percent: u32) -> bool {
        self.random.random_range(0..100) < percent
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        *from.choose(self.random).unwrap()
    }

    fn begin(&mut self, version: &str) {
        let mut create = json!({"room_version": version});
        if !self.lab.rules.authorization.use_room_create_sender {
            create["creator"] = ALICE.into();
        }
        if self.chance(10) {
            create["m.federate"] = self.random.random_bool(0.5).into();
        }
        if version == "12" && self.chance(40) {
            create["additional_creators"] = json!([self.pick(&USERS)]);
        }
        let at = self.lab.add(&[], ALICE, "m.room.create", "", create);
        self.tips = vec![at];
        self.follow(ALICE, "m.room.member", Some(ALICE), json!({"membership": "join"}));
        if self.chance(90) {
            let levels = self.levels();
            self.follow(ALICE, "m.room.power_levels", Some(""), levels);
        }
        if self.chance(90) {
            let rule = self.rule();
            self.follow(ALICE, "m.room.join_rules", Some(""), rule);
        }
        for user in &USERS[1..] {
            if self.chance(60) {
                self.follow(user, "m.room.member", Some(user), json!({"membership": "join"}));
            }
        }
        let has_disputes = !self.is_low || version == "1";
        self.tips = vec![self.tips[0]; if has_disputes { 3 } else { 1 }];
    }

    /// Adds an event at the only tip there is.
    fn follow(&mut self, sender: &str, kind: &str, key: Option<&str>, content: Value) {
        let (prev, origin_ts) = ([self.tips[0]], self.time());
        let draft = Draft {
            prev: &prev,
            sender,
            kind,
            key,
            content,
            redacts: None,
            origin_ts,
            depth: None,
        };
        self.tips[0] = self.lab.add_draft(draft, |_, _| {});
    }

    /// Clocks differ, and are the same now and then.
    fn time(&mut self) -> i64 {
        self.random.random_range(0..60)
    }

    fn rule(&mut self) -> Value {
        let rule = self.pick(&RULES);
        if self.chance(3) { json!({}) } else { json!({"join_rule": rule}) }
    }

    /// A level, sometimes in a form that only some room versions know, or none. Before version 10 the
    /// form of levels is nowhere laid down but for users, and some servers look at it only when they
    /// need it: there it is always one that all know.
    fn level(&mut self) -> Value {
        let number: i64 = self.pick(&[-1, 0, 0, 25, 50, 50, 75, 100, 100, 101]);
        let is_strict = self.lab.rules.authorization.integer_power_levels;
        match self.random.random_range(0..100) {
            92 => json!(number.to_string()),
            93 => json!(format!(" {number} ")),
            94 => json!(format!("+{}", number.abs())),
            95 => json!(9_007_199_254_740_991_i64),
            96 if is_strict => json!("many"),
            97 if is_strict => json!(true),
            98 if is_strict => json!(null),
            99 if is_strict => json!([number]),
            _ => json!(number),
        }
    }

    /// What is needed to change levels. With less than the default of another level, ruma does not let
    /// anybody take that level in or out when it resolves a dispute, where Synapse does; so it is no
    /// less than any default in rooms of later versions that have disputes.
    fn high_level(&mut self) -> Value {
        let levels: &[i64] = if self.is_low { &[-1, 0, 25, 30, 40, 50] } else { &[50, 75, 100] };
        json!(self.pick(levels))
    }

    fn levels(&mut self) -> Value {
        let state = self.lab.after[&self.tips[0]].clone();
        let mut content = match self.lab.get(&state, "m.room.power_levels", "") {
            Some(now) if self.chance(85) => {
                serde_json::from_str(self.lab.events[&now].content.get()).unwrap()
            }
            _ => {
                let mut users = json!({BOB: 50, CAROL: self.level()});
                if !self.lab.rules.authorization.explicitly_privilege_room_creators {
                    users[ALICE] = 100.into();
                }
                if self.is_low {
                    (users[BOB], users[CAROL]) = (40.into(), 30.into());
                    let level = self.high_level();
                    json!({"users": users, "events": {"m.room.power_levels": level}})
                } else {
                    json!({ "users": users })
                }
            }
        };
        for _ in 0..self.random.random_range(1..3) {
            let level = self.level();
            let names = [
                "users_default",
                "events_default",
                "state_default",
                "ban",
                "kick",
                "invite",
                "redact",
            ];
            let (name, user) = (self.pick(&names), self.pick(&USERS));
            let kinds = ["m.room.name", "m.room.topic", "m.room.power_levels", "m.room.message"];
            let kind = self.pick(&kinds);
            match self.random.random_range(0..20) {
                0..10 => put(&mut content, "users", user, level),
                10..14 if kind == "m.room.power_levels" => {
                    let level = self.high_level();
                    put(&mut content, "events", kind, level);
                }
                10..14 => put(&mut content, "events", kind, level),
                14 => put(&mut content, "notifications", "room", level),
                15 => put(&mut content, "users", "nobody", level),
                16 => drop(content["users"].as_object_mut().map(|users| users.remove(user))),
                17 => drop(content.as_object_mut().map(|levels| levels.remove(name))),
                _ if name == "state_default" => content[name] = self.high_level(),
                _ => content[name] = level,
            }
        }
        match self.random.random_range(0..200) {
            0 => content["users"] = json!([]),
            1 if self.lab.rules.authorization.integer_power_levels => {
                content["events"] = json!("none");
            }
            2 => content = json!({}),
            _ => {}
        }
        content
    }

    fn member(&mut self, sender: &str) -> (String, Value) {
        let word = self.pick(&MEMBERSHIPS);
        let mut content = json!({"membership": word});
        let own = match word {
            "join" | "knock" => 95,
            "leave" => 40,
            _ => 10,
        };
        let user = if self.chance(own) { sender } else { self.pick(&USERS) };
        if word == "join" && self.chance(40) {
            content["join_authorised_via_users_server"] = self.pick(&USERS).into();
        }
        if self.chance(2) {
            content = json!({});
        }
        if word == "invite" && self.chance(20) {
            content["third_party_invite"] = self.vouching.invite(self.random, sender, user);
        }
        (user.to_owned(), content)
    }

    /// Somebody does something.
    fn act(&mut self) {
        let tip = self.random.random_range(0..self.tips.len());
        let mut prev = vec![self.tips[tip]];
        while prev.len() < self.tips.len() && self.chance(20) {
            let other = self.pick(&self.tips.clone());
            if !prev.contains(&other) {
                prev.push(other);
            }
        }
        self.tips.swap(0, tip);
        let sender = self.pick(&SENDERS);
        let number = self.random.random_range(0..9);
        let mut redacts = None;
        let is_about_them = self.is_vouched && self.chance(40);
        let act = match self.is_low && self.chance(30) {
            _ if is_about_them => 92,
            true => 30,
            false => self.random.random_range(0..100),
        };
        let (kind, key, content) = match act {
            92..94 if self.is_vouched && self.chance(70) => {
                let user = self.pick(&USERS);
                let signed = self.vouching.invite(self.random, sender, user);
                let content = json!({"membership": "invite", "third_party_invite": signed});
                ("m.room.member", Some(user.to_owned()), content)
            }
            92..94 => {
                let (token, content) = self.vouching.pending(self.random);
                ("m.room.third_party_invite", Some(token), content)
            }
            0..30 => {
                let (user, content) = self.member(sender);
                ("m.room.member", Some(user), content)
            }
            30..55 => ("m.room.power_levels", Some(String::new()), self.levels()),
            55..68 => ("m.room.join_rules", Some(String::new()), self.rule()),
            68..82 => ("m.room.topic", Some(String::new()), json!({"topic": number})),
            82..86 => ("m.room.name", Some(String::new()), json!({"name": number})),
            86..90 => {
                let keys = [sender, "", "@", BOB, "a.example", "plain"];
                ("kit.thing", Some(self.pick(&keys).to_owned()), json!({"number": number}))
            }
            90..92 => {
                let keys = ["a.example", "b.example", ""];
                ("m.room.aliases", Some(self.pick(&keys).to_owned()), json!({"aliases": []}))
            }
            // Where the room's id is the hash of its beginning, a second one is of another room.
            94 if !self.lab.rules.authorization.room_create_event_id_as_room_id => {
                ("m.room.create", Some(String::new()), json!({"creator": sender}))
            }
            95..97 => {
                let all: Vec<EventNid> = self.lab.events.keys().copied().collect();
                let mut all = all;
                all.sort();
                let target = self.pick(&all);
                redacts = Some(self.lab.events[&target].event_id.clone());
                let mut content = json!({});
                if self.lab.rules.redaction.content_field_redacts {
                    content["redacts"] = redacts.as_ref().unwrap().as_str().into();
                }
                ("m.room.redaction", None, content)
            }
            _ => ("m.room.message", None, json!({"body": "hello"})),
        };
        let origin_ts = self.time();
        let depth = self.chance(5).then(|| self.random.random_range(0..30));
        let seed: u64 = self.random.random();
        let is_odd = self.chance(8);
        let draft = Draft {
            prev: &prev,
            sender,
            kind,
            key: key.as_deref(),
            content,
            redacts,
            origin_ts,
            depth,
        };
        let next = self.lab.add_draft(draft, |lab, auth| {
            if is_odd {
                tamper(lab, auth, &mut StdRng::seed_from_u64(seed));
            }
        });
        self.tips[0] = next;
    }
}

fn put(content: &mut Value, map: &str, name: &str, level: Value) {
    if !content[map].is_object() {
        content[map] = json!({});
    }
    content[map][name] = level;
}

/// Events named that should not be, or not named that should.
fn tamper(lab: &Lab, auth: &mut Vec<EventNid>, random: &mut StdRng) {
    let mut all: Vec<EventNid> = lab.events.keys().copied().collect();
    all.sort();
    // Where the room's id is the hash of its beginning, nothing names that.
    let is_named = |event: &EventNid| {
        !lab.rules.authorization.room_create_event_id_as_room_id
            || lab.wire[event].json["type"] != "m.room.create"
    };
    let is_other = |event: &EventNid| !auth.contains(event) && is_named(event);
    let others: Vec<EventNid> = all.into_iter().filter(is_other).collect();
    let at = random.random_range(0..auth.len().max(1));
    if random.random_bool(0.5) && at < auth.len() {
        let gone = lab.events[&auth.remove(at)].clone();
        let same = |event: &&EventNid| lab.events[event].key == gone.key;
        // Another one of the same kind, if there is one.
        let older: Vec<EventNid> = others.iter().filter(same).copied().collect();
        auth.extend(older.choose(random));
    } else {
        auth.extend(others.choose(random));
    }
}
