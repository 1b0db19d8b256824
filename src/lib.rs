//! tarsier: a watch server with the etcd v3 API, built to hold tens of millions of watches in very little memory.
//!
//! A module imports what lies downstream of it, never upstream; `types` lies below everything (`tidy` holds this):
//!
//! ```text
//! main ─► shard ─┬─► net                              the kernel's edge: io_uring, sockets, HTTP/2
//!                ├─► wal                              the disk's edge: log, checkpoint, recovery
//!                └─► service ─┬─► grpc                frames and status
//!                             └─► backend ─► store  watch ─► types       the core: no IO, no clock
//! ```
//!
//! One thread, one ring, one shard: each owns its connections and its watch hub, and nothing is locked. Shard 0 is also the
//! writer. A write goes along the first line; the events it causes come back along the second:
//!
//! ```text
//! listener ► connection ► grpc frame ► service/kv ► mesh ► writer ► store.apply + wal ► batch
//! client ◄ connection ◄ outbox ◄ watcher ◄ group ◄ interval map ◄ hub of every shard ◄ history ◄ batch
//! ```
//!
//! The committed revision is the one point of linearization: nothing above it is told to anybody, and whoever has been told
//! of a revision makes every later reader see at least that one. A revision is committed once its group is in the log on
//! disk; the checkpoint follows behind and keeps the log short, and a start reads both back. `sim` runs all of it in one
//! thread, driven by a seed, over a disk that fails.

pub mod backend;
pub mod config;
pub mod grpc;
pub mod heap;
pub mod lease;
pub mod log;
pub mod metrics;
pub mod net;
pub mod pb;
pub mod service;
pub mod shard;
pub mod store;
pub mod types;
pub mod wal;
pub mod watch;

#[cfg(test)]
mod random;
#[cfg(test)]
mod sim;
#[cfg(test)]
mod tidy;
