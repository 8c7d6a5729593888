//! Random strings: access tokens, session ids, media ids.

use base64::{Engine, engine::general_purpose::STANDARD_NO_PAD};
use rand::Rng;

const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// `length` random ASCII letters from the operating system's generator (5.7 bits each).
pub fn random_letters(length: usize) -> String {
    let mut rng = rand::rng();
    (0..length).map(|_| char::from(LETTERS[rng.random_range(0..LETTERS.len())])).collect()
}

/// `syt_<unpadded base64 of the local part>_<20 letters>_<checksum>`: the form that reverse
/// proxies balance on. The checksum is the CRC-32 of what stands before it, in base 62.
pub fn access_token(localpart: &str) -> String {
    with_checksum(format!("syt_{}_{}", STANDARD_NO_PAD.encode(localpart), random_letters(20)))
}

/// `syr_<local part>_<random>_<checksum>`: a refresh token.
pub fn refresh_token(localpart: &str) -> String {
    with_checksum(format!("syr_{}_{}", STANDARD_NO_PAD.encode(localpart), random_letters(20)))
}

/// `syo_<random>_<checksum>`: a token that says whose it is, and does nothing else.
pub fn openid_token() -> String {
    with_checksum(format!("syo_{}", random_letters(32)))
}

fn with_checksum(base: String) -> String {
    let crc = crc32(base.as_bytes());
    format!("{base}_{}", base62(crc))
}

/// Whether the checksum of a token of ours is right, so that garbage costs no look-up.
pub fn has_valid_checksum(token: &str) -> bool {
    token.rsplit_once('_').is_some_and(|(base, sum)| base62(crc32(base.as_bytes())) == sum)
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0_u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |c, _| {
            if c & 1 == 1 { (c >> 1) ^ 0xEDB8_8320 } else { c >> 1 }
        })
    })
}

fn base62(mut number: u32) -> String {
    const DIGITS: &[u8] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let mut out = [b'0'; 6];
    for place in out.iter_mut().rev() {
        *place = DIGITS[(number % 62) as usize];
        number /= 62;
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn crc_matches_the_published_check_value() {
        assert_eq!(crc32(b"123456789"), 0xCBF4_3926);
    }

    #[test]
    fn an_access_token_carries_its_local_part_and_checksum() {
        let token = access_token("alice");
        let parts: Vec<_> = token.split('_').collect();
        assert_eq!((parts[0], parts[1], parts[2].len(), parts[3].len()), ("syt", "YWxpY2U", 20, 6));
        assert!(has_valid_checksum(&token));
        assert!(!has_valid_checksum(&format!("{token}x")));
    }

    proptest! {
        /// Proxies find the local part in the second of four parts, whatever is in it.
        #[test]
        fn every_access_token_has_its_form(localpart in "\\PC{0,60}") {
            let token = access_token(&localpart);
            let parts: Vec<_> = token.split('_').collect();
            prop_assert_eq!((parts.len(), parts[0]), (4, "syt"));
            let decoded = STANDARD_NO_PAD.decode(parts[1]).unwrap();
            prop_assert_eq!(decoded, localpart.as_bytes());
            prop_assert!(parts[2].len() == 20 && parts[2].bytes().all(|b| b.is_ascii_alphabetic()));
            prop_assert!(parts[3].len() == 6 && parts[3].bytes().all(|b| b.is_ascii_alphanumeric()));
            prop_assert!(has_valid_checksum(&token));
        }

        /// A slip in any place is found without a look into the database.
        #[test]
        fn a_changed_token_is_known_as_such(at in 0_usize..35, other in "[A-Za-z0-9]") {
            let token = access_token("alice");
            let mut changed = token.clone();
            changed.replace_range(at..=at, &other);
            prop_assert_eq!(has_valid_checksum(&changed), changed == token);
        }

        #[test]
        fn no_text_is_a_token_by_chance(text in "\\PC{0,80}") {
            prop_assert!(!has_valid_checksum(&text));
        }
    }
}
