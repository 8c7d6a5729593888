//! How far the writers of one stream have got, as one value that fits into a sync token.

use std::{collections::BTreeMap, fmt, str::FromStr};

use chatd_base::{Position, WriterId};
use smallvec::SmallVec;

/// A vector of positions: `min` for every writer, and more for those in `ahead`.
/// Written as `123`, or `m123~1.456~2.130` when some writers are ahead.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct StreamToken {
    pub min: Position,
    /// Sorted by writer; each position is above `min`.
    pub ahead: SmallVec<[(WriterId, Position); 2]>,
}

impl StreamToken {
    /// The same position for every writer.
    pub fn at(position: Position) -> Self {
        Self { min: position, ahead: SmallVec::new() }
    }

    /// The smallest form of a map of positions.
    pub fn from_writers(writers: &BTreeMap<WriterId, Position>) -> Self {
        let min = writers.values().min().copied().unwrap_or_default();
        let ahead = writers.iter().filter(|(_, p)| **p > min).map(|(w, p)| (*w, *p)).collect();
        Self { min, ahead }
    }

    /// How far `writer` has got.
    pub fn of(&self, writer: WriterId) -> Position {
        self.ahead.iter().find(|(w, _)| *w == writer).map_or(self.min, |(_, position)| *position)
    }

    /// The same token with `writer` at `position`, if it is not further already.
    pub fn raised(&self, writer: WriterId, position: Position) -> Self {
        let mut raised = self.clone();
        if position <= self.of(writer) {
            return raised;
        }
        match raised.ahead.iter_mut().find(|(w, _)| *w == writer) {
            Some(entry) => entry.1 = position,
            None => {
                raised.ahead.push((writer, position));
                raised.ahead.sort_unstable_by_key(|(writer, _)| *writer);
            }
        }
        raised
    }

    /// The furthest position of any writer.
    pub fn max(&self) -> Position {
        self.ahead.iter().map(|(_, position)| *position).max().unwrap_or(self.min)
    }

    /// Whether a row of `writer` at `position` is at or below this token.
    pub fn covers(&self, writer: WriterId, position: Position) -> bool {
        position <= self.of(writer)
    }

    /// Whether every row that `other` covers is covered by this token.
    pub fn is_at_least(&self, other: &Self) -> bool {
        self.min >= other.min && other.ahead.iter().all(|(writer, p)| self.of(*writer) >= *p)
    }
}

impl fmt::Display for StreamToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.ahead.is_empty() {
            return self.min.fmt(f);
        }
        write!(f, "m{}", self.min)?;
        for (writer, position) in &self.ahead {
            write!(f, "~{writer}.{position}")?;
        }
        Ok(())
    }
}

/// The text is not a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidToken;

impl FromStr for StreamToken {
    type Err = InvalidToken;

    fn from_str(text: &str) -> Result<Self, InvalidToken> {
        let number = |digits: &str| -> Result<i64, InvalidToken> {
            if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
                return Err(InvalidToken);
            }
            digits.parse().map_err(|_| InvalidToken)
        };
        let Some(vector) = text.strip_prefix('m') else {
            return Ok(Self::at(Position(number(text)?)));
        };
        let mut parts = vector.split('~');
        let min = Position(number(parts.next().ok_or(InvalidToken)?)?);
        let mut ahead = BTreeMap::new();
        for part in parts {
            let (writer, position) = part.split_once('.').ok_or(InvalidToken)?;
            let writer = i16::try_from(number(writer)?).map_err(|_| InvalidToken)?;
            let position = Position(number(position)?);
            if position > min {
                ahead.insert(WriterId(writer), position);
            }
        }
        Ok(Self { min, ahead: ahead.into_iter().collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_survive_their_text() {
        for text in ["0", "120003", "m5~1.9~3.7"] {
            assert_eq!(text.parse::<StreamToken>().unwrap().to_string(), text);
        }
        for text in ["", "m", "-1", "m5~", "m5~1", "m5~1.x", "99999999999999999999", "5 "] {
            assert!(text.parse::<StreamToken>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn one_writer_can_be_raised() {
        let token: StreamToken = "m5~3.7".parse().unwrap();
        let raised = token.raised(WriterId(1), Position(9)).raised(WriterId(3), Position(8));
        assert_eq!(raised.to_string(), "m5~1.9~3.8");
        assert_eq!(raised.raised(WriterId(3), Position(6)), raised);
    }

    #[test]
    fn a_vector_covers_what_its_writers_have_written() {
        let token: StreamToken = "m5~1.9".parse().unwrap();
        assert!(token.covers(WriterId(1), Position(9)));
        assert!(!token.covers(WriterId(2), Position(6)));
        assert!(token.is_at_least(&"5".parse().unwrap()));
        assert!(!token.is_at_least(&"m5~2.6".parse().unwrap()));
        assert!(!StreamToken::at(Position(8)).is_at_least(&token));
    }
}
