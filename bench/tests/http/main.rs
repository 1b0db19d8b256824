//! The pages of plain HTTP on the real binary: what probes, tools and people see of them.
//!
//! A real etcd may stand in for the server (`TARSIER_BIN`), to check the tests themselves.
//!
//! ```text
//! cargo test -p tarsier-bench --test http
//! ```

mod client;
#[path = "../hostile/client.rs"]
#[allow(dead_code, reason = "the hostile clients use the rest")]
mod grpc;
mod health;
mod metrics;
mod pages;
#[path = "../server/mod.rs"]
mod server;
