//! Against servers that the tests make.

mod asking;
mod kit;
