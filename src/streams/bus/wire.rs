//! What stands on the bus: a line with the stream, the instance that publishes, the writer, its
//! positions before and after, and whom the rows concern; then the rows.
//!
//! An instance that does not know the version of a line ignores it and finds the rows in the
//! tables, so that adjacent releases can run side by side.

use std::str::FromStr;

use chatd_base::{Position, WriterId};

use crate::Head;

/// The first word of every message.
const VERSION: &str = "chatd2";

/// A message that carries `rows`.
pub(super) fn message(stream: &str, instance: &str, head: &Head, rows: &[u8]) -> Vec<u8> {
    let Head { writer, previous, position, concerns } = head;
    let line = format!("{VERSION} {stream} {instance} {writer} {previous} {position} {concerns}\n");
    let mut message = Vec::with_capacity(line.len() + rows.len());
    message.extend_from_slice(line.as_bytes());
    message.extend_from_slice(rows);
    message
}

/// What a message says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Parsed<'a> {
    pub stream: &'a str,
    /// The instance that published it.
    pub instance: &'a str,
    pub head: Head,
    pub rows: &'a [u8],
}

/// Reads a message; `None` if it is of another version or no message at all.
pub(super) fn parse(message: &[u8]) -> Option<Parsed<'_>> {
    fn next<'a, T: FromStr>(words: &mut impl Iterator<Item = &'a str>) -> Option<T> {
        words.next()?.parse().ok()
    }
    let end = message.iter().position(|byte| *byte == b'\n')?;
    let mut words = std::str::from_utf8(&message[..end]).ok()?.split(' ');
    if words.next() != Some(VERSION) {
        return None;
    }
    let (stream, instance) = (words.next()?, words.next()?);
    let head = Head {
        writer: WriterId(next(&mut words)?),
        previous: Position(next(&mut words)?),
        position: Position(next(&mut words)?),
        concerns: next(&mut words)?,
    };
    Some(Parsed { stream, instance, head, rows: &message[end + 1..] })
}

#[cfg(test)]
mod tests {
    use chatd_base::RoomNid;

    use super::*;
    use crate::{Concerns, Key};

    #[test]
    fn a_message_says_what_was_put_in() {
        let head = Head {
            writer: WriterId(3),
            previous: Position(10_000),
            position: Position(20_001),
            concerns: Concerns::only([Key::Room(RoomNid(7))]),
        };
        let text = message("events", "worker_1", &head, b"[1,\n2]");
        assert!(text.starts_with(b"chatd2 events worker_1 3 10000 20001 r7\n"));
        let parsed = parse(&text).unwrap();
        assert_eq!(
            parsed,
            Parsed { stream: "events", instance: "worker_1", head, rows: b"[1,\n2]" }
        );
    }

    #[test]
    fn what_is_no_message_is_ignored() {
        let whole = "chatd2 events a 1 2 3 *\n[]";
        assert!(parse(whole.as_bytes()).is_some());
        for end in 0..whole.len() - 4 {
            assert_eq!(parse(&whole.as_bytes()[..end]), None, "{:?}", &whole[..end]);
        }
        for text in ["chatd1 events a\n[]", "chatd2 events a b 2 3 *\n[]", "RDATA events a 1 []\n"]
        {
            assert_eq!(parse(text.as_bytes()), None, "{text:?}");
        }
        assert_eq!(parse(b"chatd2 \xff a 1 2 3 *\n[]"), None);
    }
}
