//! tarsier: a watch server with the etcd v3 API.

pub mod backend;
pub mod config;
pub mod grpc;
pub mod log;
pub mod net;
pub mod pb;
pub mod service;
pub mod shard;
pub mod store;
pub mod types;
pub mod watch;

#[cfg(test)]
mod random;
#[cfg(test)]
mod sim;
#[cfg(test)]
mod tidy;
