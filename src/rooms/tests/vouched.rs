//! Invites of people by an address, right and wrong ones: an identity server has signed who they are.

use chatd_kit::other::Key;
use rand::{Rng, rngs::StdRng, seq::IndexedRandom};
use serde_json::{Value, json};

const SERVER: &str = "id.example";
const TOKENS: [&str; 3] = ["t0", "t1", "t2"];

/// What signs, always the same.
pub(super) struct Vouching {
    keys: [Key; 2],
}

impl Vouching {
    pub(super) fn new() -> Self {
        Self { keys: [Key::of_seed("0", [1; 32]), Key::of_seed("1", [2; 32])] }
    }

    /// The token of somebody who has not come yet, and the content of the event that says so.
    ///
    /// Of keys of a form that cannot be, there are none beside others: Synapse drops an invite when it
    /// meets one before a key that fits, which the specification does not say.
    pub(super) fn pending(&self, random: &mut StdRng) -> (String, Value) {
        let [one, other] = [0, 1].map(|at| self.keys[at].public());
        let url = format!("https://{SERVER}/valid");
        let content = match random.random_range(0..16) {
            0..5 => json!({"display_name": "c...", "public_key": one, "key_validity_url": url}),
            5..7 => json!({"public_keys": [{"public_key": one, "key_validity_url": url}]}),
            7 => json!({"public_keys": [{"public_key": other}, {"public_key": one}]}),
            8 => json!({"public_key": other, "public_keys": [{"public_key": one}]}),
            9 => json!({"public_key": one, "public_keys": []}),
            10 => json!({"public_key": other}),
            11 => json!({"public_key": one.replace('+', "-").replace('/', "_")}),
            12 => json!({"public_keys": []}),
            13 => json!({}),
            14 => json!({"public_key": "x"}),
            _ => json!({"public_key": null}),
        };
        (pick(random, &TOKENS).to_owned(), content)
    }

    /// `third_party_invite` of an invite of `user`.
    ///
    /// Nobody has signed twice: Synapse looks at the first of several signatures only, in an order that
    /// servers do not pass on.
    pub(super) fn invite(&self, random: &mut StdRng, sender: &str, user: &str) -> Value {
        let mut told = json!({"mxid": user, "token": pick(random, &TOKENS)});
        match random.random_range(0..40) {
            0..14 => told["sender"] = sender.into(),
            14 => told["token"] = "unheard-of".into(),
            15 => told["token"] = 5.into(),
            16 => drop(told.as_object_mut().map(|told| told.remove("token"))),
            17 => told["mxid"] = pick(random, &super::play::USERS).into(),
            18 => drop(told.as_object_mut().map(|told| told.remove("mxid"))),
            19 => told["mxid"] = 5.into(),
            _ => {}
        }
        let key = &self.keys[usize::from(random.random_bool(0.15))];
        let mut signed = key.sign(SERVER, told);
        let signature = signed["signatures"][SERVER][key.id()].clone();
        match random.random_range(0..40) {
            0 => signed["mxid"] = "@dave:a.example".into(),
            1 => signed["more"] = true.into(),
            2 => signed["unsigned"] = json!({"age": 5}),
            3 => signed["signatures"] = json!({}),
            4 => signed["signatures"] = json!({SERVER: {}}),
            5 => signed["signatures"] = json!({SERVER: "x"}),
            6 => signed["signatures"] = json!({SERVER: {"ed25519:0": "x"}}),
            7 => signed["signatures"] = json!({SERVER: {"ed25519:0": null}}),
            8 => signed["signatures"] = json!({SERVER: {"curve25519:0": signature}}),
            9 => signed["signatures"] = json!({SERVER: {"ed25519:another": signature}}),
            10 => signed["signatures"] = json!({"another.example": {"ed25519:0": signature}}),
            11 => signed["signatures"] = json!({SERVER: {"ed25519:": signature}}),
            12 => signed["signatures"] = json!({SERVER: {"ed25519": signature}}),
            13 => signed["signatures"] = json!([]),
            14 => signed["signatures"] = json!(null),
            15 => drop(signed.as_object_mut().map(|signed| signed.remove("signatures"))),
            _ => {}
        }
        match random.random_range(0..60) {
            0 => json!({}),
            1 => json!(null),
            2 => json!("signed"),
            3 => json!({"signed": null}),
            4 => json!({"signed": []}),
            _ => json!({"display_name": "c...", "signed": signed}),
        }
    }
}

fn pick<'a>(random: &mut StdRng, from: &[&'a str]) -> &'a str {
    from.choose(random).unwrap()
}
