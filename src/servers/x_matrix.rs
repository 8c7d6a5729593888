//! `Authorization: X-Matrix …`: what a server proves with that it makes a request. Read in every
//! form that is sent: values with and without quotation marks, spaces around commas, names in any
//! case, no `destination`.

use chatd_base::Refusal;
use ruma_common::{
    OwnedServerName,
    serde::{Base64, base64::Standard},
};

/// One header of that kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct XMatrix {
    pub origin: OwnedServerName,
    /// Absent in requests of old servers.
    pub destination: Option<OwnedServerName>,
    /// `ed25519:<version>`.
    pub key_id: String,
    pub signature: Vec<u8>,
}

const SCHEME: &str = "x-matrix";

impl XMatrix {
    /// Reads a header's value; `None` if it is of another scheme.
    pub(crate) fn parse(value: &[u8]) -> Option<Result<Self, Refusal>> {
        let (scheme, rest) = value.split_at_checked(SCHEME.len())?;
        if !scheme.eq_ignore_ascii_case(SCHEME.as_bytes()) {
            return None;
        }
        Some(Self::parse_parameters(rest).map_err(|what| {
            Refusal::unauthorized(format!("malformed X-Matrix authorization: {what}"))
        }))
    }

    fn parse_parameters(rest: &[u8]) -> Result<Self, String> {
        let text = std::str::from_utf8(rest).map_err(|_| "it is not UTF-8")?;
        if !text.starts_with([' ', '\t']) {
            return Err("there is nothing after the scheme".to_owned());
        }
        let (mut origin, mut destination, mut key, mut signature) = (None, None, None, None);
        for parameter in Parameters(text) {
            let (name, value) = parameter?;
            let place = match name.to_ascii_lowercase().as_str() {
                "origin" => &mut origin,
                "destination" => &mut destination,
                "key" => &mut key,
                "sig" => &mut signature,
                _ => continue,
            };
            if place.replace(value).is_some() {
                return Err(format!("{name} is given twice"));
            }
        }
        let missing = |name: &str| format!("{name} is missing");
        let server = |name: &str, value: String| {
            OwnedServerName::try_from(value).map_err(|_| format!("{name} is not a server name"))
        };
        let key_id = key.ok_or_else(|| missing("key"))?;
        if !is_key_id(&key_id) {
            return Err("key is not the id of an ed25519 key".to_owned());
        }
        let signature = signature.ok_or_else(|| missing("sig"))?;
        Ok(Self {
            origin: server("origin", origin.ok_or_else(|| missing("origin"))?)?,
            destination: destination.map(|name| server("destination", name)).transpose()?,
            key_id,
            signature: Base64::<Standard>::parse(signature)
                .map_err(|_| "sig is not base64")?
                .into_inner(),
        })
    }
}

/// Whether it is the id of a key that can be checked.
pub(crate) fn is_key_id(id: &str) -> bool {
    const LONGEST: usize = 255;
    id.len() <= LONGEST && id.strip_prefix("ed25519:").is_some_and(|version| !version.is_empty())
}

/// `name=value` and `name="value"`, separated by commas.
struct Parameters<'a>(&'a str);

impl<'a> Iterator for Parameters<'a> {
    type Item = Result<(&'a str, String), String>;

    fn next(&mut self) -> Option<Self::Item> {
        let rest = self.0.trim_start_matches([' ', '\t', ',']);
        if rest.is_empty() {
            return None;
        }
        let Some((name, rest)) = rest.split_once('=') else {
            self.0 = "";
            return Some(Err("a parameter has no value".to_owned()));
        };
        let rest = rest.trim_start_matches([' ', '\t']);
        let read = match rest.strip_prefix('"') {
            Some(quoted) => read_quoted(quoted),
            None => {
                let (value, rest) = rest.split_once(',').unwrap_or((rest, ""));
                Ok((value.trim_end_matches([' ', '\t']).to_owned(), rest))
            }
        };
        Some(match read {
            Ok((value, rest)) => {
                self.0 = rest;
                Ok((name.trim_end_matches([' ', '\t']), value))
            }
            Err(what) => {
                self.0 = "";
                Err(what)
            }
        })
    }
}

/// A quoted string after its opening mark, and what follows its comma.
fn read_quoted(text: &str) -> Result<(String, &str), String> {
    let mut value = String::new();
    let mut letters = text.char_indices();
    while let Some((at, letter)) = letters.next() {
        match letter {
            '\\' => value.extend(letters.next().map(|(_, escaped)| escaped)),
            '"' => {
                let rest = text[at + 1..].trim_start_matches([' ', '\t']);
                return match rest.strip_prefix(',') {
                    Some(rest) => Ok((value, rest)),
                    None if rest.is_empty() => Ok((value, rest)),
                    None => Err("a value goes on after its quotation mark".to_owned()),
                };
            }
            letter => value.push(letter),
        }
    }
    Err("a quotation mark is not closed".to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Option<Result<XMatrix, Refusal>> {
        XMatrix::parse(text.as_bytes())
    }

    fn expected(destination: Option<&str>) -> XMatrix {
        XMatrix {
            origin: "origin.example:8448".try_into().unwrap(),
            destination: destination.map(|name| name.try_into().unwrap()),
            key_id: "ed25519:a_1".to_owned(),
            signature: b"signature".to_vec(),
        }
    }

    #[test]
    fn every_form_in_the_wild_is_read() {
        let table = [
            // The specification's example, and Synapse's.
            r#"X-Matrix origin="origin.example:8448",destination="d.example",key="ed25519:a_1",sig="c2lnbmF0dXJl""#,
            "X-Matrix origin=origin.example:8448,key=ed25519:a_1,sig=c2lnbmF0dXJl,destination=d.example",
            r#"x-matrix  Origin = "origin.example:8448" , DESTINATION="d.example",  Key="ed25519:a_1", sig="c2lnbmF0dXJl""#,
            r#"X-MATRIX key="ed25519:a_1",extra="a,b\"c",sig=c2lnbmF0dXJl ,origin="origin.example:\8448",destination=d.example,"#,
        ];
        for text in table {
            assert_eq!(parse(text), Some(Ok(expected(Some("d.example")))), "{text}");
        }
        let old = r#"X-Matrix origin=origin.example:8448,key="ed25519:a_1",sig="c2lnbmF0dXJl""#;
        assert_eq!(parse(old), Some(Ok(expected(None))));
        let padded = "X-Matrix origin=a,key=ed25519:1,sig=YQ==";
        assert_eq!(parse(padded).unwrap().unwrap().signature, b"a");
    }

    #[test]
    fn what_is_malformed_is_refused_and_other_schemes_are_not_looked_at() {
        let table = [
            "X-Matrix",
            "X-Matrix ",
            "X-Matrixorigin=a,key=ed25519:1,sig=YQ",
            "X-Matrix origin=a,key=ed25519:1",
            "X-Matrix origin=a,key=ed25519:1,sig=*",
            "X-Matrix origin=a b,key=ed25519:1,sig=YQ",
            "X-Matrix origin=a,key=rsa:1,sig=YQ",
            "X-Matrix origin=a,key=ed25519:,sig=YQ",
            "X-Matrix origin=a,origin=b,key=ed25519:1,sig=YQ",
            "X-Matrix origin=\"a,key=ed25519:1,sig=YQ",
            "X-Matrix origin=\"a\"b,key=ed25519:1,sig=YQ",
            "X-Matrix origin",
        ];
        for text in table {
            let refusal = parse(text).unwrap().unwrap_err();
            assert_eq!((refusal.status, &*refusal.errcode), (401, "M_UNAUTHORIZED"), "{text}");
        }
        assert_eq!(parse("Bearer abc"), None);
        assert_eq!(parse(""), None);
        assert!(XMatrix::parse(b"X-Matrix origin=\xff").unwrap().is_err());
    }

    proptest! {
        #[test]
        fn any_header_has_an_answer(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = XMatrix::parse(&bytes);
            let _ = XMatrix::parse(&[b"X-Matrix ", &bytes[..]].concat());
        }

        #[test]
        fn what_is_written_is_read(
            quoted in any::<[bool; 4]>(),
            space in "[ \t]{0,2}",
            version in "[a-zA-Z0-9_]{1,20}",
            signature in proptest::collection::vec(any::<u8>(), 0..80),
            is_upper in any::<bool>(),
        ) {
            let encoded = Base64::<Standard, _>::new(signature.clone()).encode();
            let key_id = format!("ed25519:{version}");
            let values =
                [("origin", "o.example"), ("destination", "[::1]:80"), ("key", &key_id), ("sig", &encoded)];
            let written = values.iter().zip(quoted).map(|((name, value), is_quoted)| {
                let name = if is_upper { name.to_uppercase() } else { (*name).to_owned() };
                if is_quoted { format!("{name}=\"{value}\"") } else { format!("{name}={value}") }
            });
            let text = written.collect::<Vec<_>>().join(&format!("{space},{space}"));
            let read = parse(&format!("X-Matrix {text}")).unwrap().unwrap();
            prop_assert_eq!(read.origin.as_str(), "o.example");
            prop_assert_eq!(read.destination, Some("[::1]:80".try_into().unwrap()));
            prop_assert_eq!((read.key_id, read.signature), (key_id, signature));
        }
    }
}
