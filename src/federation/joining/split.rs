//! The answer to a join, taken apart while it arrives: bytes go in as they come, and each event
//! comes out when its last byte is there. Nothing is held but the value that is not complete yet.
//!
//! What comes out has not been parsed. It is a value as far as its brackets and quotes go, and
//! whoever reads it finds out whether it is more than that.

use std::mem;

/// Largest event, as it is written: 65 536 bytes, every one of which may be escaped.
const MOST_OF_EVENT: usize = 512 << 10;
/// Largest value beside the events, which may be a list of all servers.
const MOST_OF_VALUE: usize = 8 << 20;
const MOST_OF_NAME: usize = 256;
/// Brackets inside brackets.
const MOST_DEPTH: usize = 1_000;

/// Where in the answer a value stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// An entry of `state`, or of `pdus`, as that is called where only the state is told.
    State,
    /// An entry of `auth_chain`.
    AuthChain,
    Event,
    MembersOmitted,
    Servers,
}

/// A value, as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub place: Place,
    pub json: Vec<u8>,
}

/// What comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// The answer.
    Start,
    /// The status, which the first version of the endpoint puts in front.
    Status,
    CommaAfterStatus,
    /// The object that tells of the room.
    Object,
    /// A name, or, before the first one, the end.
    Name {
        may_end: bool,
    },
    Colon,
    /// A value of the object: one that is not known, if there is no place for it.
    Value(Option<Place>),
    /// The list of events.
    List(Place),
    /// An entry, or, before the first one, the end.
    Entry {
        of: Place,
        may_end: bool,
    },
    AfterEntry(Place),
    AfterValue,
    /// The end of the list that begins with a status.
    LastBracket,
    /// Nothing but space.
    End,
}

/// How far a value has come.
#[derive(Debug, Default)]
struct Scan {
    depth: usize,
    in_string: bool,
    is_escaped: bool,
    has_begun: bool,
}

/// What a byte is to a value.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    Within,
    /// Its last byte.
    Last,
    /// The first byte that does not belong to it.
    Past,
}

impl Scan {
    fn step(&mut self, byte: u8) -> Result<Step, String> {
        let first = !mem::replace(&mut self.has_begun, true);
        if self.in_string {
            return Ok(self.step_in_string(byte));
        }
        match byte {
            b'"' if first || self.depth > 0 => self.in_string = true,
            b'{' | b'[' if first || self.depth > 0 => {
                self.depth += 1;
                if self.depth > MOST_DEPTH {
                    return Err(format!("it is more than {MOST_DEPTH} brackets deep"));
                }
            }
            b'}' | b']' if self.depth > 0 => {
                self.depth -= 1;
                return Ok(if self.depth == 0 { Step::Last } else { Step::Within });
            }
            b'"' | b'{' | b'[' | b'}' | b']' | b',' | b':' if self.depth == 0 => {
                return if first { Err(unexpected(byte)) } else { Ok(Step::Past) };
            }
            _ if self.depth == 0 && is_space(byte) => return Ok(Step::Past),
            _ => {}
        }
        Ok(Step::Within)
    }

    fn step_in_string(&mut self, byte: u8) -> Step {
        match byte {
            _ if self.is_escaped => self.is_escaped = false,
            b'\\' => self.is_escaped = true,
            b'"' => {
                self.in_string = false;
                return if self.depth == 0 { Step::Last } else { Step::Within };
            }
            _ => {}
        }
        Step::Within
    }
}

/// Takes an answer apart.
#[derive(Debug)]
pub(super) struct Splitter {
    at: At,
    has_status: bool,
    scan: Scan,
    /// What has come of the value that is not complete, if anybody wants it.
    held: Vec<u8>,
    name: String,
    /// Places that have been told.
    seen: Vec<Place>,
}

impl Splitter {
    pub(super) fn new() -> Self {
        Self {
            at: At::Start,
            has_status: false,
            scan: Scan::default(),
            held: Vec::new(),
            name: String::new(),
            seen: Vec::new(),
        }
    }

    /// Takes the next bytes; values that end in them are added to `found`. After an error the rest
    /// is of no use.
    pub(super) fn push(&mut self, bytes: &[u8], found: &mut Vec<Piece>) -> Result<(), String> {
        let mut rest = bytes;
        while let Some(&byte) = rest.first() {
            if !self.scan.has_begun && is_space(byte) {
                rest = &rest[1..];
                continue;
            }
            rest = match self.at {
                At::Status | At::Name { .. } | At::Value(_) | At::Entry { .. } => {
                    self.value(rest, found)?
                }
                _ => {
                    self.sign(byte)?;
                    &rest[1..]
                }
            };
        }
        Ok(())
    }

    /// Refuses an answer that is not complete, or does not tell of a room.
    pub(super) fn finish(&self) -> Result<(), String> {
        if self.at != At::End {
            return Err("it is not complete".to_owned());
        }
        let missing = [(Place::State, "state"), (Place::AuthChain, "auth_chain")];
        match missing.iter().find(|(place, _)| !self.seen.contains(place)) {
            Some((_, name)) => Err(format!("it has no `{name}`")),
            None => Ok(()),
        }
    }

    /// A byte between values.
    fn sign(&mut self, byte: u8) -> Result<(), String> {
        self.at = match (self.at, byte) {
            (At::Start, b'[') => {
                self.has_status = true;
                At::Status
            }
            (At::Start | At::Object, b'{') => At::Name { may_end: true },
            (At::CommaAfterStatus, b',') => At::Object,
            (At::Colon, b':') => {
                let place = self.place_of_name()?;
                match place {
                    Some(list @ (Place::State | Place::AuthChain)) => At::List(list),
                    other => At::Value(other),
                }
            }
            (At::List(of), b'[') => At::Entry { of, may_end: true },
            (At::AfterEntry(of), b',') => At::Entry { of, may_end: false },
            (At::AfterEntry(_), b']') => At::AfterValue,
            (At::AfterValue, b',') => At::Name { may_end: false },
            (At::AfterValue, b'}') => self.after_object(),
            (At::LastBracket, b']') => At::End,
            _ => return Err(unexpected(byte)),
        };
        Ok(())
    }

    fn after_object(&self) -> At {
        if self.has_status { At::LastBracket } else { At::End }
    }

    /// The place that the name of a value says; refuses one that has been told.
    fn place_of_name(&mut self) -> Result<Option<Place>, String> {
        let place = match self.name.as_str() {
            "state" | "pdus" => Place::State,
            "auth_chain" => Place::AuthChain,
            "event" => Place::Event,
            "members_omitted" => Place::MembersOmitted,
            "servers_in_room" => Place::Servers,
            _ => return Ok(None),
        };
        if self.seen.contains(&place) {
            return Err(format!("`{}` is there twice", self.name));
        }
        self.seen.push(place);
        Ok(Some(place))
    }

    /// The beginning of `bytes` belongs to a value, or ends it; what comes after that.
    fn value<'a>(&mut self, bytes: &'a [u8], found: &mut Vec<Piece>) -> Result<&'a [u8], String> {
        if !self.scan.has_begun {
            match (self.at, bytes[0]) {
                (At::Name { may_end: true }, b'}') => {
                    self.at = self.after_object();
                    return Ok(&bytes[1..]);
                }
                (At::Entry { may_end: true, .. }, b']') => {
                    self.at = At::AfterValue;
                    return Ok(&bytes[1..]);
                }
                (At::Name { .. }, byte) if byte != b'"' => return Err(unexpected(byte)),
                _ => {}
            }
        }
        let mut taken = bytes.len();
        let mut is_complete = false;
        for (index, byte) in bytes.iter().enumerate() {
            match self.scan.step(*byte)? {
                Step::Within => continue,
                Step::Last => taken = index + 1,
                Step::Past => taken = index,
            }
            is_complete = true;
            break;
        }
        let (own, rest) = bytes.split_at(taken);
        self.hold(own)?;
        if is_complete {
            self.complete(found)?;
        }
        Ok(rest)
    }

    fn hold(&mut self, bytes: &[u8]) -> Result<(), String> {
        let most = match self.at {
            // Nobody wants it.
            At::Value(None) => return Ok(()),
            At::Name { .. } | At::Status => MOST_OF_NAME,
            At::Entry { .. } | At::Value(Some(Place::Event)) => MOST_OF_EVENT,
            _ => MOST_OF_VALUE,
        };
        if self.held.len() + bytes.len() > most {
            return Err(format!("a value in it has more than {most} bytes"));
        }
        self.held.extend_from_slice(bytes);
        Ok(())
    }

    fn complete(&mut self, found: &mut Vec<Piece>) -> Result<(), String> {
        self.scan = Scan::default();
        let json = mem::take(&mut self.held);
        self.at = match self.at {
            At::Status => At::CommaAfterStatus,
            At::Name { .. } => {
                self.name = serde_json::from_slice(&json).map_err(|error| error.to_string())?;
                At::Colon
            }
            At::Entry { of, .. } => {
                found.push(Piece { place: of, json });
                At::AfterEntry(of)
            }
            At::Value(Some(place)) => {
                found.push(Piece { place, json });
                At::AfterValue
            }
            _ => At::AfterValue,
        };
        Ok(())
    }
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}

fn unexpected(byte: u8) -> String {
    format!("`{}` is where it cannot be", byte.escape_ascii())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn split(bytes: &[u8], sizes: &[usize]) -> Result<Vec<Piece>, String> {
        let (mut splitter, mut found) = (Splitter::new(), Vec::new());
        let mut sizes = sizes.iter().copied().cycle();
        let mut rest = bytes;
        while !rest.is_empty() {
            let (chunk, after) = rest.split_at(sizes.next().unwrap_or(rest.len()).min(rest.len()));
            splitter.push(chunk, &mut found)?;
            rest = after;
        }
        splitter.finish().map(|()| found)
    }

    fn values(pieces: &[Piece], place: Place) -> Vec<Value> {
        let of_place = pieces.iter().filter(|piece| piece.place == place);
        of_place.map(|piece| serde_json::from_slice(&piece.json).unwrap()).collect()
    }

    #[test]
    fn both_versions_of_the_answer_are_taken_apart() {
        let body = r#" { "origin": {"state": [1]}, "state": [{"a": "]}\\\""}, {}] , "x": 12,
            "event":null,"auth_chain" : [ ] , "members_omitted":true, "s\u0065rvers_in_room": ["a"]}"#;
        for body in [body.to_owned(), format!("[200, {body}]\n"), format!("[200,{body} ]")] {
            let pieces = split(body.as_bytes(), &[7]).unwrap();
            assert_eq!(values(&pieces, Place::State), [json!({"a": "]}\\\""}), json!({})]);
            assert_eq!(values(&pieces, Place::AuthChain), [] as [Value; 0]);
            assert_eq!(values(&pieces, Place::Event), [Value::Null]);
            assert_eq!(values(&pieces, Place::MembersOmitted), [json!(true)]);
            assert_eq!(values(&pieces, Place::Servers), [json!(["a"])]);
        }
    }

    #[test]
    fn what_is_no_answer_is_refused() {
        let wrong = [
            "",
            "{}",
            "[200]",
            "[200, {\"state\": [], \"auth_chain\": []}",
            "{\"state\": [], \"auth_chain\": []",
            "{\"state\": []}",
            "{\"state\": [], \"auth_chain\": 1}",
            "{\"state\": null, \"auth_chain\": []}",
            "{\"state\": [,], \"auth_chain\": []}",
            "{\"state\": [{},], \"auth_chain\": [] ,}",
            "{\"state\": [{} {}], \"auth_chain\": []}",
            "{\"state\": [], \"auth_chain\": [], \"state\": []}",
            "{\"state\": [], \"auth_chain\": []} {}",
            "{\"state\" [], \"auth_chain\": []}",
            "{state: [], \"auth_chain\": []}",
            "\u{0}",
        ];
        for body in wrong {
            assert!(split(body.as_bytes(), &[3]).is_err(), "{body}");
        }
    }

    #[test]
    fn what_is_too_deep_or_too_large_is_refused_before_it_ends() {
        let deep = format!("{{\"state\": [{}", "[".repeat(MOST_DEPTH + 1));
        let deep_elsewhere = format!("{{\"x\": {}", "{\"a\":".repeat(MOST_DEPTH + 1));
        let large = format!("{{\"state\": [\"{}", "x".repeat(MOST_OF_EVENT));
        let long = format!("{{\"{}", "x".repeat(MOST_OF_NAME));
        for body in [deep, deep_elsewhere, large, long] {
            let refused = Splitter::new().push(body.as_bytes(), &mut Vec::new());
            assert!(refused.is_err(), "{}", &body[..20]);
        }
    }

    #[test]
    fn what_nobody_wants_is_not_held() {
        let mut splitter = Splitter::new();
        splitter.push(b"{\"x\": \"", &mut Vec::new()).unwrap();
        for _ in 0..1_000 {
            splitter.push(&[b'x'; 4_096], &mut Vec::new()).unwrap();
        }
        assert_eq!(splitter.held.capacity(), 0);
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            ".*".prop_map(Value::from),
            "[\\[\\]{}\",:\\\\ ]*".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                prop::collection::btree_map(".{0,4}", inner, 0..5)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn any_pieces_of_an_answer_come_to_the_same(
            state in prop::collection::vec(any_json(), 0..6),
            chain in prop::collection::vec(any_json(), 0..6),
            other in any_json(),
            sizes in prop::collection::vec(1_usize..40, 1..8),
            has_status: bool,
            is_pretty: bool,
        ) {
            let body = json!({"auth_chain": chain, "origin": other, "state": state});
            let body = if has_status { json!([200, body]) } else { body };
            let text = if is_pretty {
                serde_json::to_string_pretty(&body).unwrap()
            } else {
                body.to_string()
            };
            let whole = split(text.as_bytes(), &[text.len()]).unwrap();
            prop_assert_eq!(&split(text.as_bytes(), &sizes).unwrap(), &whole);
            prop_assert_eq!(values(&whole, Place::State), state);
            prop_assert_eq!(values(&whole, Place::AuthChain), chain);
        }

        #[test]
        fn no_bytes_are_taken_differently_in_pieces(
            bytes in "[\\[\\]{}\":, a\\\\0]{0,60}",
            sizes in prop::collection::vec(1_usize..5, 1..8),
        ) {
            let begun = format!("{{\"state\":[{bytes}");
            let whole = split(begun.as_bytes(), &[begun.len()]);
            prop_assert_eq!(split(begun.as_bytes(), &sizes), whole);
        }
    }
}
