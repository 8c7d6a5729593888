//! Whom rows concern: what a frame says of itself beside its rows, so that an instance where nobody
//! is concerned need not read them.

use std::{collections::BTreeSet, fmt, str::FromStr};

use chatd_base::{RoomNid, ShardId, UserNid};

/// Keys that one frame may name; a frame with more concerns everybody (R8).
const MOST_KEYS: usize = 256;

/// What an instance may have an interest in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    Shard(ShardId),
    Room(RoomNid),
    User(UserNid),
}

/// Whom rows concern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Concerns {
    /// Every instance has to see them.
    Everybody,
    /// Instances that have an interest in one of these; views elsewhere need only know which rooms
    /// and users have got something.
    Only(BTreeSet<Key>),
}

impl Concerns {
    /// Rows that concern nobody but those who have an interest in one of `keys`.
    pub fn only(keys: impl IntoIterator<Item = Key>) -> Self {
        Self::Only(keys.into_iter().collect())
    }

    /// Whom several rows concern together.
    pub(crate) fn of_all(rows: impl Iterator<Item = Self>) -> Self {
        let mut keys = BTreeSet::new();
        for row in rows {
            match row {
                Self::Only(more) => keys.extend(more),
                Self::Everybody => return Self::Everybody,
            }
            if keys.len() > MOST_KEYS {
                return Self::Everybody;
            }
        }
        Self::Only(keys)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shard(shard) => write!(f, "s{shard}"),
            Self::Room(room) => write!(f, "r{room}"),
            Self::User(user) => write!(f, "u{user}"),
        }
    }
}

impl fmt::Display for Concerns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Everybody => f.write_str("*"),
            Self::Only(keys) if keys.is_empty() => f.write_str("-"),
            Self::Only(keys) => {
                let mut comma = "";
                for key in keys {
                    write!(f, "{comma}{key}")?;
                    comma = ",";
                }
                Ok(())
            }
        }
    }
}

/// What is no list of keys.
#[derive(Debug, PartialEq, Eq)]
pub struct NoKeys;

impl FromStr for Key {
    type Err = NoKeys;

    fn from_str(text: &str) -> Result<Self, NoKeys> {
        fn number<T: FromStr>(text: &str) -> Result<T, NoKeys> {
            text.parse().map_err(|_| NoKeys)
        }
        let (letter, rest) = text.split_at_checked(1).ok_or(NoKeys)?;
        match letter {
            "s" => Ok(Self::Shard(ShardId(number(rest)?))),
            "r" => Ok(Self::Room(RoomNid(number(rest)?))),
            "u" => Ok(Self::User(UserNid(number(rest)?))),
            _ => Err(NoKeys),
        }
    }
}

impl FromStr for Concerns {
    type Err = NoKeys;

    /// A key of a kind that is not known concerns everybody: a later release has added it.
    fn from_str(text: &str) -> Result<Self, NoKeys> {
        match text {
            "" => Err(NoKeys),
            "-" => Ok(Self::only([])),
            _ => {
                let keys: Result<BTreeSet<Key>, NoKeys> = text.split(',').map(str::parse).collect();
                Ok(keys.map_or(Self::Everybody, Self::Only))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key() -> impl Strategy<Value = Key> {
        prop_oneof![
            (0_i16..64).prop_map(|shard| Key::Shard(ShardId(shard))),
            (1_i32..500).prop_map(|room| Key::Room(RoomNid(room))),
            (1_i32..500).prop_map(|user| Key::User(UserNid(user))),
        ]
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(keys in proptest::collection::btree_set(key(), 0..300)) {
            let concerns = Concerns::of_all(keys.iter().map(|key| Concerns::only([*key])));
            prop_assert_eq!(concerns.to_string().parse(), Ok(concerns.clone()));
            if keys.len() > MOST_KEYS {
                prop_assert_eq!(concerns, Concerns::Everybody);
            } else {
                prop_assert_eq!(concerns, Concerns::Only(keys));
            }
        }

        #[test]
        fn what_is_not_understood_concerns_everybody(text in "[a-z0-9,*]{1,12}") {
            let parsed: Concerns = text.parse().unwrap();
            let is_understood = text.split(',').all(|word| word.parse::<Key>().is_ok());
            prop_assert_eq!(matches!(parsed, Concerns::Only(_)), is_understood);
        }
    }

    #[test]
    fn one_row_for_everybody_is_enough() {
        let rows = [Concerns::only([Key::Room(RoomNid(1))]), Concerns::Everybody];
        assert_eq!(Concerns::of_all(rows.into_iter()), Concerns::Everybody);
        assert_eq!(Concerns::of_all(std::iter::empty()), Concerns::only([]));
        assert_eq!("".parse::<Concerns>(), Err(NoKeys));
    }
}
