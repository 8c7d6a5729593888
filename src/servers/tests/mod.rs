//! Against servers that the tests make.

mod asking;
mod finding;
mod kit;
mod names;
mod relaying;
