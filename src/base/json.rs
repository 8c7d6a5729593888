//! Limits of JSON that comes from outside.

use serde_json::Value;

/// Deepest nesting of arrays and objects that a request body may have.
pub const MAX_DEPTH: usize = 100;

/// Whether `bytes` nest deeper than `limit`, found without parsing, so that no parser recurses
/// on hostile input.
pub fn deeper_than(bytes: &[u8], limit: usize) -> bool {
    let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
    for byte in bytes {
        match (in_string, byte) {
            (true, _) if escaped => escaped = false,
            (true, b'\\') => escaped = true,
            (true, b'"') => in_string = false,
            (true, _) => {}
            (false, b'"') => in_string = true,
            (false, b'{' | b'[') => {
                depth += 1;
                if depth > limit {
                    return true;
                }
            }
            (false, b'}' | b']') => depth = depth.saturating_sub(1),
            (false, _) => {}
        }
    }
    false
}

/// Largest integer that canonical JSON allows, 2^53 - 1.
pub const MAX_INTEGER: i64 = (1 << 53) - 1;

/// Whether every number in `value` is an integer that canonical JSON can carry.
pub fn has_canonical_numbers(value: &Value) -> bool {
    match value {
        Value::Number(number) => {
            number.as_i64().is_some_and(|n| (-MAX_INTEGER..=MAX_INTEGER).contains(&n))
        }
        Value::Array(items) => items.iter().all(has_canonical_numbers),
        Value::Object(members) => members.values().all(has_canonical_numbers),
        _ => true,
    }
}
