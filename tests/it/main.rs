//! Scenarios over HTTP against the real binary and a real PostgreSQL. One file a subject; the
//! helpers are in `tests/kit`.

mod clients;
mod sessions;
