//! What stands on the bus: a line that says whose rows these are, and the frame.
//!
//! An instance that does not know the version of a line ignores it and finds the rows in the
//! tables, so that adjacent releases can run side by side.

/// The first word of every message.
const VERSION: &str = "chatd1";

/// A message that carries `frame`.
pub(super) fn message(stream: &str, instance: &str, frame: &[u8]) -> Vec<u8> {
    let head = format!("{VERSION} {stream} {instance}\n");
    let mut message = Vec::with_capacity(head.len() + frame.len());
    message.extend_from_slice(head.as_bytes());
    message.extend_from_slice(frame);
    message
}

/// What a message says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Parsed<'a> {
    pub stream: &'a str,
    /// The instance that published it.
    pub instance: &'a str,
    pub frame: &'a [u8],
}

/// Reads a message; `None` if it is of another version or no message at all.
pub(super) fn parse(message: &[u8]) -> Option<Parsed<'_>> {
    let end = message.iter().position(|byte| *byte == b'\n')?;
    let mut words = std::str::from_utf8(&message[..end]).ok()?.split(' ');
    if words.next() != Some(VERSION) {
        return None;
    }
    Some(Parsed { stream: words.next()?, instance: words.next()?, frame: &message[end + 1..] })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_says_what_was_put_in() {
        let text = message("events", "worker_1", b"[1,\n2]");
        let parsed = parse(&text).unwrap();
        assert_eq!(parsed, Parsed { stream: "events", instance: "worker_1", frame: b"[1,\n2]" });
    }

    #[test]
    fn what_is_no_message_is_ignored() {
        for text in ["", "\n", "chatd1 events", "chatd2 events a\n[]", "RDATA events a 1 []"] {
            assert_eq!(parse(text.as_bytes()), None, "{text:?}");
        }
        assert_eq!(parse(b"chatd1 \xff a\n[]"), None);
    }
}
