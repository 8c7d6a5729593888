//! What proves that somebody who registers an account knows the shared secret.

use hmac::{Hmac, Mac};
use sha1::Sha1;

/// What the proof is about.
pub struct Claim<'a> {
    pub nonce: &'a str,
    pub username: &'a str,
    pub password: &'a str,
    pub admin: bool,
    pub user_type: Option<&'a str>,
}

/// Whether `mac`, in hexadecimal, was made from `claim` with `secret`. Takes the same time
/// wherever the two differ.
pub fn is_right(secret: &str, claim: &Claim<'_>, mac: &str) -> bool {
    let role = if claim.admin { "admin" } else { "notadmin" };
    let mut parts = vec![claim.nonce, claim.username, claim.password, role];
    parts.extend(claim.user_type);
    let mut expected =
        Hmac::<Sha1>::new_from_slice(secret.as_bytes()).expect("HMAC takes keys of every length");
    expected.update(parts.join("\0").as_bytes());
    from_hex(mac).is_some_and(|given| expected.verify_slice(&given).is_ok())
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes();
    let pairs = digits.chunks(2).map(|pair| {
        let pair = std::str::from_utf8(pair).ok().filter(|pair| pair.len() == 2)?;
        // `from_str_radix` takes a sign, too.
        pair.bytes().all(|d| d.is_ascii_hexdigit()).then(|| u8::from_str_radix(pair, 16).ok())?
    });
    pairs.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLAIM: Claim<'_> = Claim {
        nonce: "thisisanonce",
        username: "pepper_roni",
        password: "pizza",
        admin: true,
        user_type: None,
    };

    #[test]
    fn the_mac_is_that_of_openssl() {
        assert!(is_right("shared_secret", &CLAIM, "48715842ad67d5dc9a9ee938a3bda4fcfae8d7c7"));
        let bot = Claim { user_type: Some("bot"), admin: false, ..CLAIM };
        assert!(is_right("shared_secret", &bot, "b269635cb53e1adc15073ae7ffbd000b836b3105"));
    }

    #[test]
    fn anything_else_is_wrong() {
        for mac in ["", "00", "zz", "+1", "b269635cb53e1adc15073ae7ffbd000b836b3105", "é"] {
            assert!(!is_right("shared_secret", &CLAIM, mac), "{mac}");
        }
        assert!(!is_right("another_secret", &CLAIM, "48715842ad67d5dc9a9ee938a3bda4fcfae8d7c7"));
    }
}
