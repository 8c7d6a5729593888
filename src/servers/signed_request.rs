//! Which server makes a request: its signature over method, path, body, origin and destination.

use std::{future::Future, pin::Pin};

use chatd_base::{AuthenticateServer, Refusal, Result, SignedRequest, json};
use ruma_common::{OwnedServerName, ServerName, SigningKeyAlgorithm};
use ruma_signatures::verify_canonical_json_bytes;
use serde_json::Value;

use crate::{Keyring, key_document::ServerKeys, keyring::Needs, x_matrix::XMatrix};

/// Headers of one request; a server signs with few keys (R8).
const MOST_HEADERS: usize = 8;

impl AuthenticateServer for Keyring {
    fn authenticate<'a>(
        &'a self,
        request: SignedRequest<'a>,
    ) -> Pin<Box<dyn Future<Output = Result<OwnedServerName>> + Send + 'a>> {
        Box::pin(self.check_request(request))
    }
}

impl Keyring {
    /// One signature is checked; there is no query if the keys are in memory.
    async fn check_request(&self, request: SignedRequest<'_>) -> Result<OwnedServerName> {
        let us = &self.inner.deps.config.server_name;
        let headers = read_headers(request.authorization, us)?;
        let origin = headers[0].origin.clone();
        if origin == *us {
            return Err(Refusal::unauthorized("this server makes no requests to itself").into());
        }
        if !self.inner.deps.config.federation.may_talk_to(&origin) {
            let message = format!("this server does not federate with {origin}");
            return Err(Refusal::forbidden(message).into());
        }
        let now_ms = self.inner.deps.clock.now_ms();
        let keys = headers.iter().map(|header| (header.key_id.clone(), now_ms)).collect();
        let found = self.inner.gather(&Needs::from([(origin.clone(), keys)])).await?;
        let Some(keys) = found.get(&origin) else {
            let message = format!("the keys of {origin} cannot be had at the moment");
            return Err(Refusal::unauthorized(message).into());
        };
        let signer = signer(&headers, keys, now_ms, &request, us)?;
        self.inner.renew(&origin, keys, &signer.key_id);
        self.inner.client.has_heard_from(&origin).await;
        Ok(origin)
    }
}

/// The header whose signature counts.
fn signer<'a>(
    headers: &'a [XMatrix],
    keys: &ServerKeys,
    now_ms: u64,
    request: &SignedRequest<'_>,
    us: &ServerName,
) -> Result<&'a XMatrix, Refusal> {
    let mut good = headers.iter().filter(|header| is_signed(header, keys, now_ms, request, us));
    good.next().ok_or_else(|| unsigned(headers, keys, now_ms))
}

/// Who has signed the request, with keys that are known.
#[cfg(test)]
pub(crate) fn verdict(
    request: &SignedRequest<'_>,
    us: &ServerName,
    keys: &ServerKeys,
    now_ms: u64,
) -> Result<OwnedServerName, Refusal> {
    let headers = read_headers(request.authorization, us)?;
    Ok(signer(&headers, keys, now_ms, request, us)?.origin.clone())
}

/// All headers of the request; they are of one server, and for this one.
fn read_headers(values: &[&[u8]], us: &ServerName) -> Result<Vec<XMatrix>, Refusal> {
    let headers: Vec<XMatrix> = values
        .iter()
        .filter_map(|value| XMatrix::parse(value))
        .take(MOST_HEADERS)
        .collect::<Result<_, _>>()?;
    let Some(first) = headers.first() else {
        return Err(Refusal::unauthorized("missing Authorization header of X-Matrix"));
    };
    if headers.iter().any(|header| header.origin != first.origin) {
        return Err(Refusal::unauthorized("the Authorization headers are of different servers"));
    }
    let other =
        headers.iter().find_map(|header| header.destination.as_ref().filter(|to| *to != us));
    match other {
        Some(other) => {
            Err(Refusal::unauthorized(format!("the request is for {other}, and this is {us}")))
        }
        None => Ok(headers),
    }
}

/// Why none of the signatures counts.
fn unsigned(headers: &[XMatrix], keys: &ServerKeys, now_ms: u64) -> Refusal {
    let origin = &headers[0].origin;
    let is_known = headers.iter().any(|header| keys.find(&header.key_id, now_ms).is_some());
    let ids: Vec<_> = headers.iter().map(|header| &*header.key_id).collect();
    let ids = ids.join(", ");
    Refusal::unauthorized(match is_known {
        true => format!("the signature of {origin} with {ids} is wrong"),
        false => format!("{origin} has no key {ids} that is good now"),
    })
}

fn is_signed(
    header: &XMatrix,
    keys: &ServerKeys,
    now_ms: u64,
    request: &SignedRequest<'_>,
    us: &ServerName,
) -> bool {
    let Some(known) = keys.find(&header.key_id, now_ms) else { return false };
    let good = |content: Option<&[u8]>| {
        let signed = signed_bytes(request, &header.origin, us, content);
        let algorithm = SigningKeyAlgorithm::Ed25519;
        verify_canonical_json_bytes(&algorithm, &known.key.0, &header.signature, &signed).is_ok()
    };
    let body = request.body.trim_ascii();
    if body.is_empty() {
        return good(None);
    }
    if !body.starts_with(b"{") {
        return false;
    }
    // Bodies are mostly sent as they were signed; the others are brought into canonical form.
    good(Some(body)) || canonical(body).is_some_and(|content| good(Some(&content)))
}

/// What the server has signed, as canonical JSON. `content` is that, too.
///
/// A body that is no JSON cannot pass for another request: what follows it are four strings, in
/// which there is no quotation mark that is not escaped.
fn signed_bytes(
    request: &SignedRequest<'_>,
    origin: &ServerName,
    destination: &ServerName,
    content: Option<&[u8]>,
) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(request.body.len() + request.uri.len() + 256);
    bytes.push(b'{');
    if let Some(content) = content {
        bytes.extend_from_slice(b"\"content\":");
        bytes.extend_from_slice(content);
        bytes.push(b',');
    }
    let rest = [
        ("destination", destination.as_str()),
        ("method", request.method),
        ("origin", origin.as_str()),
        ("uri", request.uri),
    ];
    for (number, (name, value)) in rest.into_iter().enumerate() {
        if number > 0 {
            bytes.push(b',');
        }
        bytes.extend_from_slice(format!("\"{name}\":{}", Value::from(value)).as_bytes());
    }
    bytes.push(b'}');
    bytes
}

/// JSON in the order of its keys and without spaces. Numbers stay as they are read: what is not
/// allowed in events may well be signed in a request.
fn canonical(body: &[u8]) -> Option<Vec<u8>> {
    if json::deeper_than(body, json::MAX_DEPTH) {
        return None;
    }
    let value: Value = serde_json::from_slice(body).ok()?;
    let mut bytes = Vec::with_capacity(body.len());
    write_sorted(&value, &mut bytes).ok()?;
    Some(bytes)
}

fn write_sorted(value: &Value, out: &mut Vec<u8>) -> serde_json::Result<()> {
    match value {
        Value::Object(members) => {
            let mut members: Vec<_> = members.iter().collect();
            members.sort_unstable_by_key(|(name, _)| *name);
            out.push(b'{');
            for (number, (name, value)) in members.into_iter().enumerate() {
                if number > 0 {
                    out.push(b',');
                }
                serde_json::to_writer(&mut *out, name)?;
                out.push(b':');
                write_sorted(value, out)?;
            }
            out.push(b'}');
        }
        Value::Array(items) => {
            out.push(b'[');
            for (number, item) in items.iter().enumerate() {
                if number > 0 {
                    out.push(b',');
                }
                write_sorted(item, out)?;
            }
            out.push(b']');
        }
        plain => serde_json::to_writer(out, plain)?,
    }
    Ok(())
}
