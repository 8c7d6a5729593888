//! The token of a sync: how far each stream was when an answer was made.
//!
//! It has Synapse's shape, because deployments see tokens in logs and clients come back with old
//! ones: 13 fields joined by `_`. The first is a point in the timelines of rooms, the others are
//! presence, typing, receipts, account data, push rules, to-device, device lists, groups,
//! un-partial-stated rooms, thread subscriptions, sticky events and quarantined media. Older
//! tokens are shorter; what they lack is 0.

use std::{fmt, str::FromStr};

use chatd_base::Refusal;
use chatd_streams::{InvalidToken, RoomToken, StreamToken};

/// One vector of positions, at which an answer is or was made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SyncToken {
    pub room: StreamToken,
    pub presence: StreamToken,
    pub typing: StreamToken,
    pub receipts: StreamToken,
    pub account_data: StreamToken,
    pub push_rules: StreamToken,
    pub to_device: StreamToken,
    pub device_lists: StreamToken,
    /// Fields that nothing here moves yet, kept as they came.
    pub others: [StreamToken; 5],
}

const FIELDS: usize = 13;

impl SyncToken {
    /// Reads what a client shows as `since`. Refuses what has not the shape of a token.
    pub fn from_client(text: &str) -> Result<Self, Refusal> {
        text.parse().map_err(|_| Refusal::unknown("Invalid stream token"))
    }

    fn fields(&self) -> [&StreamToken; FIELDS - 1] {
        let [groups, un_partial, threads, sticky, quarantined] = &self.others;
        [
            &self.presence,
            &self.typing,
            &self.receipts,
            &self.account_data,
            &self.push_rules,
            &self.to_device,
            &self.device_lists,
            groups,
            un_partial,
            threads,
            sticky,
            quarantined,
        ]
    }

    /// Whether an answer made now can continue one that was made at `other`. Typing does not
    /// count: its positions may go backwards when the server restarts.
    pub fn is_at_least(&self, other: &Self) -> bool {
        self.room.is_at_least(&other.room)
            && self.presence.is_at_least(&other.presence)
            && self.receipts.is_at_least(&other.receipts)
            && self.account_data.is_at_least(&other.account_data)
            && self.push_rules.is_at_least(&other.push_rules)
            && self.to_device.is_at_least(&other.to_device)
            && self.device_lists.is_at_least(&other.device_lists)
    }
}

impl fmt::Display for SyncToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        RoomToken::Stream(self.room.clone()).fmt(f)?;
        self.fields().iter().try_for_each(|field| write!(f, "_{field}"))
    }
}

impl FromStr for SyncToken {
    type Err = InvalidToken;

    fn from_str(text: &str) -> Result<Self, InvalidToken> {
        let mut fields = text.split('_');
        let room = fields.next().ok_or(InvalidToken)?.parse::<RoomToken>()?.stream();
        let mut rest: [StreamToken; FIELDS - 1] = Default::default();
        for (index, field) in fields.enumerate() {
            *rest.get_mut(index).ok_or(InvalidToken)? = field.parse()?;
        }
        let [
            presence,
            typing,
            receipts,
            account_data,
            push_rules,
            to_device,
            device_lists,
            others @ ..,
        ] = rest;
        Ok(Self {
            room,
            presence,
            typing,
            receipts,
            account_data,
            push_rules,
            to_device,
            device_lists,
            others,
        })
    }
}

#[cfg(test)]
mod tests {
    use chatd_base::{Position, WriterId};
    use proptest::prelude::*;

    use super::*;

    fn stream_token() -> impl Strategy<Value = StreamToken> {
        let ahead = proptest::collection::btree_map(1_i16..50, 1_i64..1000, 0..3);
        (0_i64..i64::MAX / 2, ahead).prop_map(|(min, ahead)| StreamToken {
            min: Position(min),
            ahead: ahead.into_iter().map(|(w, by)| (WriterId(w), Position(min + by))).collect(),
        })
    }

    proptest! {
        #[test]
        fn a_token_survives_its_text(fields in proptest::collection::vec(stream_token(), 13)) {
            let mut fields = fields.into_iter();
            let mut next = || fields.next().unwrap();
            let token = SyncToken {
                room: next(),
                presence: next(),
                typing: next(),
                receipts: next(),
                account_data: next(),
                push_rules: next(),
                to_device: next(),
                device_lists: next(),
                others: [next(), next(), next(), next(), next()],
            };
            prop_assert_eq!(token.to_string().parse::<SyncToken>().unwrap(), token);
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in "[sm0-9_~.t-]{0,40}") {
            let _ = text.parse::<SyncToken>();
        }
    }

    #[test]
    fn older_tokens_are_padded_and_others_refused() {
        let token = SyncToken::from_client("s12_3_4").unwrap();
        assert_eq!(token.to_string(), "s12_3_4_0_0_0_0_0_0_0_0_0_0");
        assert_eq!(SyncToken::from_client("t7-12_3").unwrap().room, StreamToken::at(Position(12)));
        let long = format!("s1{}", "_0".repeat(13));
        for text in ["", "12_3", "s12__3", "s12_x", "s12_3_", "sABC", long.as_str()] {
            let refusal = SyncToken::from_client(text).unwrap_err();
            assert_eq!((refusal.status, &*refusal.errcode), (400, "M_UNKNOWN"), "{text:?}");
        }
    }
}
