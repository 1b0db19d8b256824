//! The real binary among clients that are wrong, broken, greedy, silent or gone.
//!
//! Each test starts a server, puts bystanders on it, attacks, and then looks: the bystanders were answered and told
//! everything, and the server holds nothing of the attack any more. See `scene`.
//!
//! ```text
//! cargo test -p tarsier-bench --test hostile
//! ```

mod client;
mod floods;
mod frames;
mod http1;
mod limits;
mod messages;
#[path = "../../src/random.rs"]
#[allow(dead_code, reason = "the load generator uses the rest")]
mod random;
mod readers;
mod scene;
#[path = "../server/mod.rs"]
mod server;
mod watches;
