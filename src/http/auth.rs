//! From access token to requester.

use std::{net::IpAddr, sync::Arc};

use chatd_base::{Authenticate, Refusal, Requester, Result};
use http::{HeaderMap, HeaderValue, Uri, header};
use percent_encoding::percent_decode_str;

use crate::Auth;

/// Finds out who calls, as far as the endpoint wants to know.
pub(crate) async fn requester(
    auth: Auth,
    users: &dyn Authenticate,
    headers: &HeaderMap,
    uri: &Uri,
    address: Option<IpAddr>,
) -> Result<Option<Arc<Requester>>> {
    if matches!(auth, Auth::None | Auth::Peer) || auth.is_server() {
        return Ok(None);
    }
    let Some(token) = access_token(headers, uri)? else {
        if auth == Auth::Optional {
            return Ok(None);
        }
        return Err(Refusal::missing_token("missing access token").into());
    };
    let user_agent = headers.get(header::USER_AGENT).and_then(|value| value.to_str().ok());
    let requester = users.authenticate(&token, address, user_agent).await?;
    if requester.is_guest && auth == Auth::Token {
        let refusal = Refusal::new(403, "M_GUEST_ACCESS_FORBIDDEN", "guests may not do this");
        return Err(refusal.into());
    }
    Ok(Some(requester))
}

/// Whether a header is there with which a server can prove itself. Looked at before the body is
/// read, for which there would be no use.
pub(crate) fn claims_a_server(headers: &HeaderMap) -> bool {
    const SCHEME: &[u8] = b"x-matrix";
    let is_scheme = |value: &HeaderValue| {
        value.as_bytes().get(..SCHEME.len()).is_some_and(|start| start.eq_ignore_ascii_case(SCHEME))
    };
    headers.get_all(header::AUTHORIZATION).iter().any(is_scheme)
}

/// The token in the header or in the query. Both at once, or a header of another kind, is no
/// token at all.
fn access_token(headers: &HeaderMap, uri: &Uri) -> Result<Option<String>> {
    let mut in_headers = headers.get_all(header::AUTHORIZATION).iter();
    let in_query = query_token(uri.query().unwrap_or(""));
    let Some(value) = in_headers.next() else { return Ok(in_query) };
    if in_headers.next().is_some() || in_query.is_some() {
        return Err(Refusal::missing_token("more than one access token").into());
    }
    // A token with bytes that no token has is one that is not known.
    let text = String::from_utf8_lossy(value.as_bytes());
    match text.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") && !token.contains(' ') => {
            Ok(Some(token.to_owned()))
        }
        _ => Err(Refusal::missing_token("the Authorization header is not a bearer token").into()),
    }
}

fn query_token(query: &str) -> Option<String> {
    query
        .split('&')
        .find_map(|pair| pair.strip_prefix("access_token="))
        .map(|raw| percent_decode_str(raw).decode_utf8_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn token(authorization: &[&'static str], uri: &'static str) -> Result<Option<String>, String> {
        let mut headers = HeaderMap::new();
        for value in authorization {
            headers.append(header::AUTHORIZATION, HeaderValue::from_static(value));
        }
        access_token(&headers, &Uri::from_static(uri))
            .map_err(|error| error.errcode().unwrap_or("internal").to_owned())
    }

    #[test]
    fn a_token_is_in_the_header_or_in_the_query() {
        let is = |text: &str| Ok(Some(text.to_owned()));
        assert_eq!(token(&["Bearer abc"], "/x"), is("abc"));
        assert_eq!(token(&["bearer abc"], "/x?a=b"), is("abc"));
        assert_eq!(token(&[], "/x?a=b&access_token=a%5Fb"), is("a_b"));
        assert_eq!(token(&[], "/x?my_access_token=no"), Ok(None));
        assert_eq!(token(&[], "/x"), Ok(None));
    }

    #[test]
    fn an_unclear_token_is_none() {
        let missing = || Err("M_MISSING_TOKEN".to_owned());
        assert_eq!(token(&["Bearer abc"], "/x?access_token=abc"), missing());
        assert_eq!(token(&["Bearer a", "Bearer b"], "/x"), missing());
        assert_eq!(token(&["Basic abc"], "/x"), missing());
        assert_eq!(token(&["Bearer"], "/x"), missing());
        assert_eq!(token(&["Bearer a b"], "/x"), missing());
    }
}
