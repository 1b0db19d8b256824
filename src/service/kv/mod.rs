//! The KV service: Range, RangeStream, Put, DeleteRange, Txn and Compact, from bytes to commands and from answers to bytes.
//!
//! Everything here is a pure function of its arguments: no IO, no clock, no waiting. A request passes three files:
//! `scan` looks at a transaction's bytes before anything is built from them, `decode` builds the command and refuses
//! what etcd refuses whatever the state of the store, `overlap` finds keys that a transaction writes twice. What
//! depends on the state is the store's to judge, and who may ask is the caller's. The way back is `encode`: a
//! [`encode::Response`] gives its message away in pieces, so that a range of a million rows is work for many short
//! turns. `range_stream` keeps the place of a range that is told in parts.

pub mod decode;
pub mod encode;
pub mod range_stream;

mod overlap;
mod scan;
