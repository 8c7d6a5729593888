//! Durations and sizes as Synapse writes them, and where a secret may stand.

use std::{fmt, time::Duration};

use serde::{Deserialize, Deserializer, de};

/// A secret value: shown as `***` by `Debug`, so that it cannot reach a log by accident.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl<'de> Deserialize<'de> for Secret {
    /// A password of digits may look like a number to YAML.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        text_or_number(deserializer).map(Self)
    }
}

impl Secret {
    /// Wraps a value.
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }

    /// The value itself.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Reads `30s`, `1w`, or a number of milliseconds.
pub fn parse_duration(text: &str) -> Option<Duration> {
    const UNITS: [(&str, u64); 7] = [
        ("ms", 1),
        ("s", 1_000),
        ("m", 60_000),
        ("h", 3_600_000),
        ("d", 86_400_000),
        ("w", 604_800_000),
        ("y", 31_536_000_000),
    ];
    parse_with_units(text, &UNITS).map(Duration::from_millis)
}

/// Reads `50M`, `87KiB`, or a number of bytes. `K` is 1024, as in Synapse.
pub fn parse_size(text: &str) -> Option<u64> {
    const UNITS: [(&str, u64); 12] = [
        ("KiB", 1 << 10),
        ("MiB", 1 << 20),
        ("GiB", 1 << 30),
        ("TiB", 1 << 40),
        ("KB", 1 << 10),
        ("MB", 1 << 20),
        ("GB", 1 << 30),
        ("K", 1 << 10),
        ("M", 1 << 20),
        ("G", 1 << 30),
        ("T", 1 << 40),
        ("B", 1),
    ];
    parse_with_units(text, &UNITS)
}

/// `<digits><unit>`; no unit means 1. `None` if it is anything else or overflows.
fn parse_with_units(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let text = text.trim();
    let digits_end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(digits_end);
    let number: u64 = digits.parse().ok()?;
    if unit.is_empty() {
        return Some(number);
    }
    let (_, factor) = units.iter().find(|(name, _)| *name == unit.trim())?;
    number.checked_mul(*factor)
}

struct UnitVisitor {
    expected: &'static str,
    parse: fn(&str) -> Option<u64>,
}

impl de::Visitor<'_> for UnitVisitor {
    type Value = u64;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expected)
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<u64, E> {
        Ok(value)
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<u64, E> {
        u64::try_from(value).map_err(|_| E::invalid_value(de::Unexpected::Signed(value), &self))
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<u64, E> {
        (self.parse)(value).ok_or_else(|| E::invalid_value(de::Unexpected::Str(value), &self))
    }
}

fn duration_ms<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    deserializer.deserialize_any(UnitVisitor {
        expected: "a duration such as 30s, 5m, 1h, 1w, or a number of milliseconds",
        parse: |text| parse_duration(text).and_then(|d| u64::try_from(d.as_millis()).ok()),
    })
}

/// For `#[serde(deserialize_with)]`: a [`Duration`].
pub fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    duration_ms(deserializer).map(Duration::from_millis)
}

/// For `#[serde(deserialize_with)]`: a [`Duration`], or `infinity`, which is `None`.
pub fn duration_or_infinity<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Duration>, D::Error> {
    let ms = deserializer.deserialize_any(UnitVisitor {
        expected: "a duration such as 30s, 5m, 1h, 1w, a number of milliseconds, or infinity",
        parse: |text| match text {
            "infinity" => Some(u64::MAX),
            text => parse_duration(text).and_then(|d| u64::try_from(d.as_millis()).ok()),
        },
    })?;
    Ok((ms != u64::MAX).then(|| Duration::from_millis(ms)))
}

/// For `#[serde(deserialize_with)]`: a number of bytes.
pub fn size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    deserializer.deserialize_any(UnitVisitor {
        expected: "a size such as 512K, 50M, 1GiB, or a number of bytes",
        parse: parse_size,
    })
}

/// For `#[serde(deserialize_with)]`: text that YAML may have read as a number (`dbid: 1`,
/// `default_room_version: 11`).
pub fn text_or_number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    struct Text;
    impl de::Visitor<'_> for Text {
        type Value = String;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("text")
        }

        fn visit_u64<E: de::Error>(self, value: u64) -> Result<String, E> {
            Ok(value.to_string())
        }

        fn visit_i64<E: de::Error>(self, value: i64) -> Result<String, E> {
            Ok(value.to_string())
        }

        fn visit_str<E: de::Error>(self, value: &str) -> Result<String, E> {
            Ok(value.to_owned())
        }
    }
    deserializer.deserialize_any(Text)
}

/// For `#[serde(deserialize_with)]`: one name or a list of names.
pub fn one_or_many<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    struct Names;
    impl<'de> de::Visitor<'de> for Names {
        type Value = Vec<String>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a name or a list of names")
        }

        fn visit_str<E: de::Error>(self, value: &str) -> Result<Vec<String>, E> {
            Ok(vec![value.to_owned()])
        }

        fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<String>, A::Error> {
            let mut names = Vec::new();
            while let Some(name) = seq.next_element::<String>()? {
                names.push(name);
            }
            Ok(names)
        }
    }
    deserializer.deserialize_any(Names)
}

/// As [`one_or_many`], but an empty list is refused: it would not say who.
pub fn at_least_one<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let names = one_or_many(deserializer)?;
    if names.is_empty() {
        let empty = de::Unexpected::Other("an empty list");
        return Err(de::Error::invalid_value(empty, &"a name or a list of names"));
    }
    Ok(names)
}

/// Reads a boolean or a word, as text (`true`, `false`, or the word).
pub(crate) fn bool_or_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    struct BoolOrText;
    impl de::Visitor<'_> for BoolOrText {
        type Value = String;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("true, false, or one of the key's words")
        }

        fn visit_bool<E: de::Error>(self, value: bool) -> Result<String, E> {
            Ok(value.to_string())
        }

        fn visit_str<E: de::Error>(self, value: &str) -> Result<String, E> {
            Ok(value.to_owned())
        }
    }
    deserializer.deserialize_any(BoolOrText)
}

/// [`text_or_number`] of a key that may be absent.
pub(crate) fn optional_text<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<String>, D::Error> {
    text_or_number(deserializer).map(Some)
}
