//! Against servers that the tests make.

mod asking;
mod finding;
mod keys;
mod kit;
mod names;
mod proxied;
mod relaying;
