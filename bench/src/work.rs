//! The calls that a load makes, and what makes an answer count.
//!
//! [`Load`](crate::load::Load) makes them in a closed loop, for throughput; [`open_loop`](crate::open_loop) on a schedule,
//! for latency.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tarsier_proto::etcdserverpb as pb;
use tarsier_proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};

use crate::bystander;
use crate::caller::Caller;
use crate::fault::{Fault, Result};
use crate::link::Windows;
use crate::random::Random;
use crate::wire;

/// Longer than any load.
const LEASE_SECONDS: i64 = 3_600;

/// What the clients do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Work {
    /// Puts to random keys among so many.
    Put { keys: u32, key_bytes: usize, value_bytes: usize },
    /// Linearizable reads of this one key, which must exist.
    Read { key: Vec<u8> },
    /// Linearizable reads of so many neighbours among the keys that [`bystander::load`] has put.
    Range { keys: u32, range_keys: u32 },
    /// Transactions that compare a random key among so many and, since the comparison holds, put it.
    Transaction { keys: u32, key_bytes: usize, value_bytes: usize },
    /// Keep-alives of a random one of these leases, each as a call of its own.
    KeepAlive { leases: Arc<[i64]> },
}

impl Work {
    /// Ranges over keys that it puts first.
    pub async fn ranges(endpoint: &Arc<str>, keys: u32, range_keys: u32, value: &'static [u8]) -> Result<Work> {
        bystander::load(endpoint, keys, value).await?;
        Ok(Work::Range { keys, range_keys })
    }

    /// Keep-alives of leases that it grants first.
    pub async fn keep_alives(endpoint: &Arc<str>, count: usize) -> Result<Work> {
        let (caller, mut leases) = (Caller::connect(endpoint, Windows::SMALL).await?, Vec::with_capacity(count));
        while leases.len() < count {
            leases.push(caller.grant(LEASE_SECONDS).await?);
        }
        Ok(Work::KeepAlive { leases: leases.into() })
    }

    pub fn path(&self) -> &'static str {
        match self {
            Work::Put { .. } => wire::PATH_PUT,
            Work::Read { .. } | Work::Range { .. } => wire::PATH_RANGE,
            Work::Transaction { .. } => wire::PATH_TXN,
            Work::KeepAlive { .. } => wire::PATH_LEASE_KEEP_ALIVE,
        }
    }

    pub fn request(&self, random: &mut Random) -> BytesMut {
        let mut out = BytesMut::new();
        match self {
            Work::Put { keys, key_bytes, value_bytes } => {
                let (key, value) = put_of(random, *keys, *key_bytes, *value_bytes);
                out.reserve(key.len() + value_bytes + 16);
                wire::put(&mut out, &key, &value);
            }
            Work::Read { key } => wire::range(&mut out, key, b""),
            Work::Range { keys, range_keys } => {
                let first = random.below(u64::from(keys - range_keys) + 1) as u32;
                wire::range(&mut out, &bystander::key(first), &bystander::key(first + range_keys));
            }
            Work::Transaction { keys, key_bytes, value_bytes } => {
                let (key, value) = put_of(random, *keys, *key_bytes, *value_bytes);
                wire::encode(&mut out, &compare_and_put(key, value));
            }
            Work::KeepAlive { leases } => {
                let id = leases[random.below(leases.len() as u64) as usize];
                wire::encode(&mut out, &pb::LeaseKeepAliveRequest { id });
            }
        }
        out
    }

    /// Whether its answer waits for the disk.
    pub fn syncs(&self) -> bool {
        matches!(self, Work::Put { .. } | Work::Transaction { .. })
    }

    /// An answer that says nothing was done is no unit of work.
    pub fn check(&self, body: &[u8]) -> Result<()> {
        let path = self.path();
        let malformed = |cause| Fault::Malformed { path, cause };
        let number = |field| wire::number(body, field).map_err(malformed);
        let nothing = |what: &str| Err(Fault::Refused(what.to_owned()));
        match self {
            Work::Put { .. } if wire::header_revision(body).map_err(malformed)? < 2 => {
                nothing("a put was answered without a revision")
            }
            Work::Read { .. } if wire::range_counts(body).map_err(malformed)? != (1, 1) => {
                nothing("a read of an existing key did not find it")
            }
            Work::Range { range_keys, .. } => match wire::range_counts(body).map_err(malformed)? {
                (shown, counted) if shown == counted && shown == u64::from(*range_keys) => Ok(()),
                (shown, _) => Err(Fault::Refused(format!("a range over {range_keys} keys showed {shown}"))),
            },
            // TxnResponse.succeeded
            Work::Transaction { .. } if number(2)? != 1 => nothing("a transaction whose comparison holds did not put"),
            // LeaseKeepAliveResponse.TTL: 0 for a lease that the server does not have.
            Work::KeepAlive { .. } if number(3)? == 0 => nothing("a lease ended while it was kept alive"),
            _ => Ok(()),
        }
    }
}

/// A random key and a value. Half of the value changes, so that nothing can profit from storing the same bytes again.
fn put_of(random: &mut Random, keys: u32, key_bytes: usize, value_bytes: usize) -> (Vec<u8>, Vec<u8>) {
    let index = random.below(u64::from(keys));
    let key = format!("put/{index:0width$}", width = key_bytes.saturating_sub(4));
    let mut value = vec![b'v'; value_bytes];
    for eight in value.chunks_exact_mut(16) {
        eight[..8].copy_from_slice(&random.next().to_le_bytes());
    }
    (key.into_bytes(), value)
}

/// Every version is above -1, so the comparison costs its look-up and always holds.
fn compare_and_put(key: Vec<u8>, value: Vec<u8>) -> pb::TxnRequest {
    let key = Bytes::from(key);
    let compare = pb::Compare {
        key: key.clone(),
        result: CompareResult::Greater.into(),
        target: CompareTarget::Version.into(),
        target_union: Some(TargetUnion::Version(-1)),
        ..Default::default()
    };
    let put = pb::PutRequest { key, value: value.into(), ..Default::default() };
    let put = wire::operation(pb::request_op::Request::RequestPut(put));
    pb::TxnRequest { compare: vec![compare], success: vec![put], ..Default::default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message;

    #[test]
    fn requests_have_the_lengths_that_were_asked_for() {
        let work = Work::Put { keys: 100_000, key_bytes: 32, value_bytes: 256 };
        let mut random = Random::new(3);
        let bytes = work.request(&mut random);
        let request = pb::PutRequest::decode(&bytes[wire::PREFIX_BYTES..]).unwrap();
        assert_eq!((request.key.len(), request.value.len()), (32, 256));
        let again = work.request(&mut random);
        assert_ne!(bytes, again, "each put differs");
    }

    #[test]
    fn an_answer_that_did_nothing_is_no_unit_of_work() {
        let read = Work::Read { key: b"k".to_vec() };
        let found = pb::RangeResponse { kvs: vec![Default::default()], count: 1, ..Default::default() };
        assert!(read.check(&found.encode_to_vec()).is_ok());
        assert!(read.check(&[]).is_err());
        let range = Work::Range { keys: 10, range_keys: 2 };
        assert!(range.check(&found.encode_to_vec()).unwrap_err().to_string().contains("showed 1"));
        let transaction = Work::Transaction { keys: 1, key_bytes: 16, value_bytes: 1 };
        assert!(transaction.check(&pb::TxnResponse { succeeded: true, ..Default::default() }.encode_to_vec()).is_ok());
        assert!(transaction.check(&pb::TxnResponse::default().encode_to_vec()).is_err());
        let keep_alive = Work::KeepAlive { leases: [7].into() };
        assert!(keep_alive.check(&pb::LeaseKeepAliveResponse { ttl: 9, id: 7, header: None }.encode_to_vec()).is_ok());
        assert!(keep_alive.check(&pb::LeaseKeepAliveResponse { ttl: 0, id: 7, header: None }.encode_to_vec()).is_err());
        let put = Work::Put { keys: 1, key_bytes: 16, value_bytes: 1 };
        assert!(put.check(&[]).is_err());
        let header = Some(pb::ResponseHeader { revision: 2, ..Default::default() });
        assert!(put.check(&pb::PutResponse { header, prev_kv: None }.encode_to_vec()).is_ok());
    }
}
