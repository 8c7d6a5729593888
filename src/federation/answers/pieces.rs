//! Long answers: lists of events that are read while they are sent, so many at a time.

use bytes::Bytes;
use chatd_base::{EventNid, Result};
use futures::{Stream, stream};

use super::{Pdu, add_all};

/// Events that are in memory at a time (R8).
const AT_A_TIME: usize = 100;

/// A part of an answer: some events of a list, with what stands before and after them.
struct Piece {
    head: String,
    events: Vec<EventNid>,
    tail: &'static str,
}

/// The JSON object of these lists; `read` gives those of the events that exist.
pub(super) fn object<F>(
    lists: [(&'static str, Vec<EventNid>); 2],
    read: impl Fn(Vec<EventNid>) -> F + Send + 'static,
) -> impl Stream<Item = Result<Bytes>> + Send
where
    F: Future<Output = Result<Vec<Pdu>>> + Send,
{
    let [(first, some), (second, more)] = lists;
    let all = pieces(format!("{{\"{first}\":["), some, "]");
    let all = all.chain(pieces(format!(",\"{second}\":["), more, "]}"));
    // Whether the list that is being written has something in it.
    let start = (all, false, read);
    stream::try_unfold(start, async |(mut all, mut has_some, read)| {
        let Some(Piece { head, events, tail }) = all.next() else { return Ok(None) };
        has_some &= head.is_empty();
        let pdus = if events.is_empty() { Vec::new() } else { read(events).await? };
        let length: usize = pdus.iter().map(|pdu| pdu.len() + 1).sum();
        let mut json = Vec::with_capacity(head.len() + length + tail.len());
        json.extend_from_slice(head.as_bytes());
        has_some = add_all(&mut json, &pdus, has_some);
        json.extend_from_slice(tail.as_bytes());
        Ok(Some((Bytes::from(json), (all, has_some, read))))
    })
}

/// At least one, with `head` before the first and `tail` after the last.
fn pieces(
    mut head: String,
    events: Vec<EventNid>,
    tail: &'static str,
) -> impl Iterator<Item = Piece> + Send {
    let last = events.len().div_ceil(AT_A_TIME).max(1) - 1;
    (0..=last).map(move |number| {
        let from = number * AT_A_TIME;
        let some = &events[from..events.len().min(from + AT_A_TIME)];
        let tail = if number == last { tail } else { "" };
        Piece { head: std::mem::take(&mut head), events: some.to_vec(), tail }
    })
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    use futures::{StreamExt, TryStreamExt};
    use serde_json::{Value, json};

    use super::{super::splice, *};

    fn pdu(event: EventNid) -> Pdu {
        json!({ "nid": event.0, "content": "x".repeat(1_000) }).to_string().into_bytes()
    }

    /// Those with even numbers are there.
    async fn read(events: Vec<EventNid>) -> Result<Vec<Pdu>> {
        Ok(events.into_iter().filter(|event| event.0 % 2 == 0).map(pdu).collect())
    }

    fn events(range: std::ops::Range<i64>) -> Vec<EventNid> {
        range.map(EventNid).collect()
    }

    #[tokio::test]
    async fn pieces_are_the_same_json_as_the_whole() {
        let odd = || events(0..500).into_iter().filter(|event| event.0 % 2 == 1);
        let edge = i64::try_from(AT_A_TIME).unwrap();
        for chain in [vec![], vec![EventNid(2)], events(0..edge), events(0..edge + 1)] {
            for state in
                [vec![], events(2..1_000), odd().collect(), odd().chain([EventNid(8)]).collect()]
            {
                let lists = [("auth_chain", chain.clone()), ("pdus", state.clone())];
                let pieces: Vec<Bytes> = object(lists, read).try_collect().await.unwrap();
                let mut whole = b"{".to_vec();
                splice(&mut whole, "auth_chain", &read(chain.clone()).await.unwrap());
                whole.push(b',');
                splice(&mut whole, "pdus", &read(state).await.unwrap());
                whole.push(b'}');
                assert_eq!(pieces.concat(), whole);
                serde_json::from_slice::<Value>(&whole).expect("it is JSON");
            }
        }
    }

    #[tokio::test]
    async fn no_more_is_read_than_is_sent() {
        let asked = Arc::new(AtomicUsize::new(0));
        let counted = asked.clone();
        let lists = [("auth_chain", events(0..10)), ("pdus", events(0..50_000))];
        let answer = object(lists, move |events| {
            assert!(events.len() <= AT_A_TIME);
            counted.fetch_add(events.len(), Ordering::Relaxed);
            read(events)
        });
        let mut answer = std::pin::pin!(answer);
        let mut sent = 0;
        while let Some(piece) = answer.next().await.transpose().unwrap() {
            sent += 1;
            assert!(piece.len() < AT_A_TIME * 1_100, "{} bytes at once", piece.len());
            assert!(asked.load(Ordering::Relaxed) <= sent * AT_A_TIME);
        }
        assert_eq!(asked.load(Ordering::Relaxed), 50_010);
    }

    #[tokio::test]
    async fn what_cannot_be_read_breaks_the_answer_off() {
        let lists = [("auth_chain", events(0..10)), ("pdus", events(0..1_000))];
        let answer = object(lists, |events| async move {
            if events.contains(&EventNid(300)) {
                return Err(chatd_base::Error::internal("away"));
            }
            read(events).await
        });
        let pieces: Vec<Result<Bytes>> = answer.collect().await;
        assert!(pieces.last().unwrap().is_err());
        assert_eq!(pieces.iter().filter(|piece| piece.is_err()).count(), 1);
    }
}
