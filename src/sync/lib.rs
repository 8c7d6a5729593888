mod log;
pub mod token;
