//! The services: wire types to core types and back.

pub mod errors;
pub mod kv;
pub mod watch_request;

mod wire;

#[cfg(test)]
mod random;
