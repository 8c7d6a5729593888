//! Where a request comes from: the peer's address, or what a trusted proxy says about it.

use std::net::{IpAddr, SocketAddr};

use http::HeaderMap;

/// The client's address. With `x_forwarded` it is the leftmost entry of `X-Forwarded-For`, which
/// the proxy in front must therefore set itself and not pass on.
pub(crate) fn address(
    peer: Option<IpAddr>,
    headers: &HeaderMap,
    x_forwarded: bool,
) -> Option<IpAddr> {
    let forwarded = || {
        let first = headers.get("x-forwarded-for")?.to_str().ok()?.split(',').next()?.trim();
        let bare = first.trim_start_matches('[').trim_end_matches(']');
        bare.parse().ok().or_else(|| Some(first.parse::<SocketAddr>().ok()?.ip()))
    };
    let address: Option<IpAddr> = if x_forwarded { forwarded().or(peer) } else { peer };
    address.map(|ip| ip.to_canonical())
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn the_leftmost_forwarded_address_counts_where_the_proxy_is_trusted() {
        let peer = "127.0.0.1".parse().ok();
        let table = [
            ("203.0.113.7, 10.0.0.1", "203.0.113.7"),
            ("203.0.113.7:4711", "203.0.113.7"),
            ("[2001:db8::1]", "2001:db8::1"),
            ("[2001:db8::1]:80", "2001:db8::1"),
            ("::ffff:203.0.113.7", "203.0.113.7"),
            ("unknown", "127.0.0.1"),
        ];
        for (header, expected) in table {
            let mut headers = HeaderMap::new();
            headers.insert("x-forwarded-for", HeaderValue::from_static(header));
            assert_eq!(address(peer, &headers, true), expected.parse().ok(), "{header}");
            assert_eq!(address(peer, &headers, false), peer);
        }
    }
}
