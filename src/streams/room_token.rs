//! Points in the timelines of rooms, as clients see them: the first field of a sync token and
//! the whole of a token of `/messages`. Positions below zero are of events from before this server
//! was in the room.

use std::{fmt, str::FromStr};

use chatd_base::Position;

use crate::{StreamToken, token::InvalidToken};

/// A point in the order of room events. It lies behind the events that it names.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum RoomToken {
    /// `s<pos>`, or `m<min>~<writer>.<pos>` where some writers are ahead: behind every event at
    /// or below the position.
    Stream(StreamToken),
    /// `t<depth>-<pos>`: behind the event of that depth and position. Pages of `/messages` use
    /// it for history that did not arrive in order.
    Topological { depth: i64, pos: Position },
}

impl RoomToken {
    /// `s<pos>`.
    pub fn at(position: Position) -> Self {
        Self::Stream(StreamToken::at(position))
    }

    /// The point in the order of arrival, whatever the form of the token.
    pub fn stream(&self) -> StreamToken {
        match self {
            Self::Stream(token) => token.clone(),
            Self::Topological { pos, .. } => StreamToken::at(*pos),
        }
    }

    /// The same point, written differently: some clients take a page that ends with the token with
    /// which it begins for the last one.
    pub fn rewritten(&self) -> Self {
        match self {
            Self::Stream(token) => Self::Topological { depth: 0, pos: token.min },
            Self::Topological { depth, pos } => {
                Self::Topological { depth: depth.wrapping_add(1).max(0), pos: *pos }
            }
        }
    }

    /// Reads the room's part of what a client shows to `/messages`: a token of its own, or a
    /// whole sync token, whose other fields do not matter there.
    pub fn from_pagination(text: &str) -> Result<Self, InvalidToken> {
        let (room, rest) = text.split_once('_').map_or((text, None), |(r, rest)| (r, Some(rest)));
        let well_formed =
            |rest: &str| rest.split('_').all(|field| field.parse::<StreamToken>().is_ok());
        if rest.is_some_and(|rest| !well_formed(rest)) {
            return Err(InvalidToken);
        }
        room.parse()
    }
}

impl fmt::Display for RoomToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stream(token) if token.ahead.is_empty() => write!(f, "s{token}"),
            Self::Stream(token) => token.fmt(f),
            Self::Topological { depth, pos } => write!(f, "t{depth}-{pos}"),
        }
    }
}

impl FromStr for RoomToken {
    type Err = InvalidToken;

    fn from_str(text: &str) -> Result<Self, InvalidToken> {
        if text.starts_with('m') {
            return Ok(Self::Stream(text.parse()?));
        }
        if let Some(digits) = text.strip_prefix('s') {
            return Ok(Self::at(number(digits)?));
        }
        let (depth, pos) =
            text.strip_prefix('t').and_then(|rest| rest.split_once('-')).ok_or(InvalidToken)?;
        Ok(Self::Topological { depth: number(depth)?.0, pos: number(pos)? })
    }
}

fn number(digits: &str) -> Result<Position, InvalidToken> {
    let bare = digits.strip_prefix('-').unwrap_or(digits);
    if bare.is_empty() || !bare.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(InvalidToken);
    }
    digits.parse().map(Position).map_err(|_| InvalidToken)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_survive_their_text() {
        for text in ["s0", "s120003", "s-4", "t7-120003", "t7--3", "m5~1.9~3.7"] {
            assert_eq!(text.parse::<RoomToken>().unwrap().to_string(), text);
        }
        for text in ["", "s", "5", "t5", "t-5", "t5-", "s-", "s--1", "s1~1.2", "x5", "s5 "] {
            assert!(text.parse::<RoomToken>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_point_can_be_written_differently() {
        for text in ["s0", "s120003", "s-4", "t7-120003", "t9223372036854775807-5", "m5~1.9~3.7"] {
            let token: RoomToken = text.parse().unwrap();
            let other = token.rewritten();
            assert_ne!(other.to_string(), text);
            assert_eq!(other.stream().min, token.stream().min);
            assert_eq!(other.to_string().parse(), Ok(other));
        }
    }

    #[test]
    fn a_sync_token_is_a_point_in_a_room() {
        let token = RoomToken::from_pagination("s72594_4483_1934").unwrap();
        assert_eq!(token, RoomToken::at(Position(72594)));
        assert!(RoomToken::from_pagination("s72594_4483_x").is_err());
        assert!(RoomToken::from_pagination("s72594_").is_err());
    }
}
