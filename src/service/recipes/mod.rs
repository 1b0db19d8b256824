//! Lock and Election: recipes on keys, played by the server for clients that do not bring them along.
//!
//! Whoever waits or leads has a key below the name, and the one that was created first holds the lock or leads. etcd runs
//! the recipes of its Go client inside of the server, and so does this: each step is the KV request which that client
//! sends, and what happens in between is told by the batches that the shard reads anyway.
//!
//! - [`single`]: the calls that come down to one request.
//! - [`course`]: the others, of several steps. [`contest`] (Lock and Campaign) waits until nobody is in front,
//!   [`observation`] tells who leads, [`proclamation`] asks for a lease before it speaks.
//! - [`awaited`]: who waits for which key. [`announcement`]: what observers are told, once for all of them.
//! - [`waiting`]: how [`Services`](super::Services) leads the courses through their steps.
//!
//! An error loses its status on etcd's way: it keeps its words, and its code becomes UNKNOWN.

pub mod announcement;
pub mod awaited;
pub mod course;
pub mod single;

mod contest;
mod observation;
mod proclamation;
mod waiting;
#[cfg(test)]
mod world;

use bytes::{BufMut, Bytes, BytesMut};

use crate::backend::{Command, LeaseCommand};
use crate::grpc::status::{Code, Status};
use crate::net::CallKind;
use crate::pb::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use crate::pb::etcdserverpb::range_request::{SortOrder, SortTarget};
use crate::pb::etcdserverpb::request_op::Request;
use crate::pb::etcdserverpb::{Compare, RangeRequest, RequestOp, TxnRequest};
use crate::pb::mvccpb;
use crate::service::errors::Refusal;
use crate::service::kv::decode::{self, Limits};
use crate::types::{Key, KeyValue, LeaseId};

pub use waiting::Telling;

/// Between the name of a lock or an election and what tells its keys apart.
const SEPARATOR: u8 = b'/';
/// What etcd grants to whoever names no lease. Nobody keeps it alive: the session behind it ends at once.
const TTL_SECONDS: i64 = 60;

/// The calls of both services.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Recipe {
    Lock,
    Unlock,
    Campaign,
    Proclaim,
    Leader,
    Observe,
    Resign,
}

impl Recipe {
    pub fn of_lock(name: &str) -> Option<Recipe> {
        Some(match name {
            "Lock" => Recipe::Lock,
            "Unlock" => Recipe::Unlock,
            _ => return None,
        })
    }

    pub fn of_election(name: &str) -> Option<Recipe> {
        Some(match name {
            "Campaign" => Recipe::Campaign,
            "Proclaim" => Recipe::Proclaim,
            "Leader" => Recipe::Leader,
            "Observe" => Recipe::Observe,
            "Resign" => Recipe::Resign,
            _ => return None,
        })
    }

    pub fn kind(self) -> CallKind {
        match self {
            Recipe::Lock | Recipe::Campaign | Recipe::Observe => CallKind::LongAnswer,
            Recipe::Unlock | Recipe::Proclaim | Recipe::Leader | Recipe::Resign => CallKind::OneRequest,
        }
    }
}

/// The key of a lease below a name, as etcd's clients write it: the id in hexadecimal digits, with its sign.
fn key_of(name: &[u8], lease: LeaseId) -> Key {
    let sign = if lease.0 < 0 { "-" } else { "" };
    let id = format!("{sign}{:x}", lease.0.unsigned_abs());
    [name, &[SEPARATOR], id.as_bytes()].concat().into()
}

/// What the keys of a name begin with.
fn below(name: &[u8]) -> Key {
    [name, &[SEPARATOR]].concat().into()
}

/// The first key behind all that begin so.
fn behind(below: &[u8]) -> Key {
    let (_, name) = below.split_last().expect("it ends with the separator");
    let mut end = BytesMut::with_capacity(below.len());
    end.put_slice(name);
    end.put_u8(SEPARATOR + 1);
    end.freeze()
}

/// Asks for the key below a name that was created first.
fn first_created(below: Key) -> RangeRequest {
    RangeRequest {
        range_end: behind(&below),
        key: below,
        limit: 1,
        sort_order: SortOrder::Ascend.into(),
        sort_target: SortTarget::Create.into(),
        ..Default::default()
    }
}

fn grant() -> Command {
    Command::Lease(LeaseCommand::Grant { id: LeaseId::NONE, ttl: TTL_SECONDS })
}

/// That a key was created at a revision; 0 is a key that is not there.
fn created_at(key: Key, revision: i64) -> Compare {
    Compare {
        result: CompareResult::Equal.into(),
        target: CompareTarget::Create.into(),
        key,
        target_union: Some(TargetUnion::CreateRevision(revision)),
        ..Default::default()
    }
}

fn operation(request: Request) -> RequestOp {
    RequestOp { request: Some(request) }
}

/// What is done if a key is still the one that was created at this revision.
fn if_created_at(key: Key, revision: i64, request: Request, limits: &Limits) -> Result<Command, Status> {
    let request =
        TxnRequest { compare: vec![created_at(key, revision)], success: vec![operation(request)], failure: Vec::new() };
    decode::checked_txn(request, limits).map_err(without_status)
}

fn key_value(kv: &KeyValue) -> mvccpb::KeyValue {
    mvccpb::KeyValue {
        key: Bytes::copy_from_slice(kv.key()),
        create_revision: kv.create_revision().0,
        mod_revision: kv.mod_revision().0,
        version: kv.version(),
        value: Bytes::copy_from_slice(kv.value()),
        lease: kv.lease().0,
    }
}

/// etcd's client knows etcd's errors by their words, and hands them on as plain ones. What it does not know passes as it is.
fn without_status(refusal: Refusal) -> Status {
    match refusal {
        Refusal::LogRefused | Refusal::NoMemory => refusal.into(),
        etcds => Status::new(Code::Unknown, etcds.row().1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_ends_with_the_lease_as_etcds_clients_write_it() {
        let key = |name: &str, lease| key_of(name.as_bytes(), LeaseId(lease));
        assert_eq!(key("n", 0x4707_a212_b33b_8d2d), "n/4707a212b33b8d2d");
        assert_eq!((key("", 255), key("a/b", 16)), ("/ff".into(), "a/b/10".into()));
        assert_eq!((key("n", -31), key("n", i64::MIN)), ("n/-1f".into(), "n/-8000000000000000".into()));
        assert_eq!(behind(&below(b"n")), "n0");
    }
}
