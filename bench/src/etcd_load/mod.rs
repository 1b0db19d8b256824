//! The loads of etcd's own `benchmark` tool, by its names, flags and defaults, so that a figure published with it can be
//! repeated here, against any server.
//!
//! What is not here is refused with its reason: TLS, users, `mvcc`, which measures etcd's storage from inside of its process,
//! and some flags that would change nothing. Two things differ on purpose: a call that was refused makes the run fail, after its
//! report; and every load runs on one thread of an event loop, so with very many clients look at its CPU before the server is
//! blamed.
//!
//! ```text
//! mod (arguments) ─┬─► calls    ───┬─► common (flags of all)  keys (bytes)  pace (tokens)  tally (the report)
//!                  │   └► upkeep   │
//!                  ├─► stm ─► lock ┤
//!                  └─► watches ────┴─► stream (one watch stream)
//! ```

mod calls;
mod common;
mod keys;
mod lock;
mod pace;
mod stm;
mod stream;
mod tally;
mod upkeep;
mod watches;

use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use tokio::net::TcpStream;

use common::{Common, WINDOWS};

use crate::fault::{Fault, Result};

/// The same keys in each run.
const SEED: u64 = 1;

#[derive(Args, Debug)]
pub struct EtcdLoadArgs {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    load: Load,
}

#[derive(Subcommand, Debug)]
enum Load {
    /// Put keys
    Put(PutArgs),
    /// Read a key or a range
    Range(RangeArgs),
    /// Put keys in transactions
    TxnPut(TxnPutArgs),
    /// Read all keys or put one, each in a transaction
    TxnMixed(TxnMixedArgs),
    /// Read keys and overwrite some of them, and try again when another client has changed them meanwhile
    Stm(StmArgs),
    /// Keep a lease alive for each client, with a stream for each call
    LeaseKeepalive(LeaseArgs),
    /// Create watches, then put what they watch
    Watch(WatchArgs),
    /// Put one key that all watch, and see how long after the put its events come
    WatchLatency(WatchLatencyArgs),
    /// Read while watches catch up with the past
    WatchGet(WatchGetArgs),
    #[command(hide = true)]
    Mvcc {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        _arguments: Vec<String>,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Consistency {
    #[value(name = "l")]
    Linearizable,
    #[value(name = "s")]
    Serializable,
}

fn key_bytes(text: &str) -> std::result::Result<usize, String> {
    match text.parse() {
        Ok(bytes) if bytes as u64 >= keys::KEY_BYTES_MIN => Ok(bytes),
        _ => Err(format!("a key has at least {} bytes", keys::KEY_BYTES_MIN)),
    }
}

/// What the loads that put have in common.
#[derive(Args, Debug)]
pub struct Writes {
    #[arg(long, default_value = "8", value_parser = key_bytes)]
    key_size: usize,
    #[arg(long, default_value_t = 8)]
    val_size: usize,
    /// Calls a second; 0 for as many as there can be
    #[arg(long, default_value_t = 0)]
    rate: u32,
    #[arg(long, default_value_t = 10_000)]
    total: u64,
    /// Keys to choose from
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    key_space_size: u32,
}

#[derive(Args, Debug)]
pub struct PutArgs {
    #[command(flatten)]
    writes: Writes,
    /// Keys one after the other, not by chance
    #[arg(long)]
    sequential_keys: bool,
    /// Stands before each key
    #[arg(long, default_value = "")]
    prefix: String,
    #[command(flatten)]
    upkeep: upkeep::Upkeep,
}

#[derive(Args, Debug)]
pub struct RangeArgs {
    key: String,
    #[arg(conflicts_with = "prefix")]
    end: Option<String>,
    #[arg(long, default_value_t = 0)]
    rate: u32,
    #[arg(long, default_value_t = 10_000)]
    total: u64,
    #[arg(long, value_enum, default_value_t = Consistency::Linearizable)]
    consistency: Consistency,
    #[arg(long, default_value_t = 0)]
    limit: i64,
    #[arg(long)]
    count_only: bool,
    #[arg(long)]
    keys_only: bool,
    /// Ask for the range as a stream of parts
    #[arg(long)]
    stream: bool,
    /// Ask for it in pages of 10,000 keys
    #[arg(long, conflicts_with_all = ["stream", "limit", "count_only"])]
    paginate: bool,
    /// All keys that begin with the key
    #[arg(long)]
    prefix: bool,
}

#[derive(Args, Debug)]
pub struct TxnPutArgs {
    #[command(flatten)]
    writes: Writes,
    /// Puts of a transaction; servers allow 128 by default
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    txn_ops: u32,
}

#[derive(Args, Debug)]
pub struct TxnMixedArgs {
    /// Taken and not used, as in etcd's tool: a read is of all keys
    #[arg(value_name = "KEY")]
    _key: Option<String>,
    /// Taken and not used, as in etcd's tool
    #[arg(long = "end-key", default_value = "", value_name = "KEY")]
    _end_key: String,
    #[command(flatten)]
    writes: Writes,
    /// Keys of a read at most
    #[arg(long, default_value_t = 1_000)]
    limit: i64,
    #[arg(long, value_enum, default_value_t = Consistency::Linearizable)]
    consistency: Consistency,
    /// Reads for each write
    #[arg(long, default_value_t = 1.0)]
    rw_ratio: f64,
}

/// What a transaction in memory may see of others.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Isolation {
    /// Whatever is committed; it never conflicts
    #[value(name = "c")]
    ReadCommitted,
    /// What was read is unchanged when it commits
    #[value(name = "r")]
    RepeatableReads,
    /// All that it reads is of one revision besides
    #[value(name = "s")]
    Serializable,
    /// Nobody has written what it writes since, besides
    #[value(name = "ss")]
    Snapshot,
}

/// What is held around each transaction.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Locker {
    /// Nothing
    Stm,
    /// A lock made of the client's own transactions and watches
    LockClient,
    /// A lock of the server's Lock service
    LockRpc,
}

#[derive(Args, Debug)]
pub struct StmArgs {
    #[arg(long, value_enum, default_value_t = Isolation::RepeatableReads)]
    isolation: Isolation,
    /// Keys there are
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    keys: u32,
    /// Transactions
    #[arg(long, default_value_t = 10_000)]
    total: u64,
    /// Keys of a transaction
    #[arg(long, default_value_t = 1)]
    keys_per_txn: u32,
    /// Per cent of its keys that a transaction overwrites; of one key, anything below 100 is none
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(..=100))]
    txn_wr_percent: u32,
    #[arg(long, value_enum, default_value_t = Locker::Stm)]
    stm_locker: Locker,
    #[arg(long, default_value_t = 8)]
    val_size: usize,
    /// Attempts a second; 0 for as many as there can be
    #[arg(long, default_value_t = 0)]
    rate: u32,
}

#[derive(Args, Debug)]
pub struct LeaseArgs {
    #[arg(long, default_value_t = 10_000)]
    total: u64,
}

#[derive(Args, Debug)]
pub struct WatchArgs {
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    streams: u32,
    #[arg(long, default_value_t = 100)]
    watch_per_stream: u32,
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    watched_key_total: u32,
    #[arg(long, default_value_t = 0)]
    put_rate: u32,
    /// 0 holds the watches until an interrupt
    #[arg(long, default_value_t = 1_000)]
    put_total: u64,
    #[arg(long, default_value = "32", value_parser = key_bytes)]
    key_size: usize,
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    key_space_size: u32,
    #[arg(long)]
    sequential_keys: bool,
}

#[derive(Args, Debug)]
pub struct WatchLatencyArgs {
    #[arg(long, default_value_t = 10)]
    streams: u32,
    #[arg(long, default_value_t = 10)]
    watchers_per_stream: u32,
    /// Have what a put replaced in its event
    #[arg(long)]
    prevkv: bool,
    #[arg(long, default_value_t = 1_000)]
    put_total: u64,
    #[arg(long, default_value_t = 100)]
    put_rate: u32,
    #[arg(long, default_value_t = 32)]
    key_size: usize,
    #[arg(long, default_value_t = 32)]
    val_size: usize,
}

#[derive(Args, Debug)]
pub struct WatchGetArgs {
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..))]
    watchers: u32,
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    streams: u32,
    #[arg(long, default_value_t = 8)]
    events: u64,
}

/// Runs it. Must be called inside a `LocalSet`.
pub async fn run(args: EtcdLoadArgs) -> Result<()> {
    let common = &args.common;
    let outcome = match args.load {
        Load::Put(args) => calls::put(common, args).await,
        Load::Range(args) => calls::range(common, args).await,
        Load::TxnPut(args) => calls::txn_put(common, args).await,
        Load::TxnMixed(args) => calls::txn_mixed(common, args).await,
        Load::Stm(args) => stm::stm(common, args).await,
        Load::LeaseKeepalive(args) => calls::lease_keepalive(common, args).await,
        Load::Watch(args) => watches::watch(common, args).await,
        Load::WatchLatency(args) => watches::watch_latency(common, args).await,
        Load::WatchGet(args) => watches::watch_get(common, args).await,
        Load::Mvcc { .. } => Err(Fault::Refused(
            "mvcc measures etcd's storage inside of its process, where no server is asked".to_owned(),
        )),
    };
    match outcome {
        Err(fault) => Err(explain(fault, &common.endpoints).await),
        Ok(()) => Ok(()),
    }
}

/// A broken connection, or that its server is gone, where that explains it.
async fn explain(fault: Fault, endpoints: &[Arc<str>]) -> Fault {
    if !matches!(fault, Fault::Http { .. } | Fault::Closed { .. } | Fault::Malformed { .. } | Fault::NoAnswer { .. }) {
        return fault;
    }
    for endpoint in endpoints {
        // A dying process closes its connections before its port.
        tokio::time::sleep(Duration::from_millis(200)).await;
        if let Err(cause) = TcpStream::connect(&**endpoint).await {
            return Fault::ServerDied(format!("the server at {endpoint} is gone ({cause}); before that: {fault}"));
        }
    }
    fault
}

/// What is printed of a run with a fault is marked.
fn mark_if_cut_short(outcome: &Result<()>) {
    if outcome.is_err() {
        mark_as_cut_short();
    }
}

fn mark_as_cut_short() {
    println!("\nThe run was cut short; so far:");
}
