//! What `stm` may hold around each transaction: nothing, or the lock `stmlock`, made by the client or by the server.
//!
//! A client's lock is the recipe of etcd's library: who holds it owns the oldest key under the name, bound to a lease; the
//! others wait for the key right before their own to be deleted. Unlike that library, each wait has a watch stream of its
//! own here, which ends with it.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use tarsier_proto::etcdserverpb as pb;
use tarsier_proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use tarsier_proto::etcdserverpb::range_request::{SortOrder, SortTarget};
use tokio::task::JoinSet;

use super::Locker;
use super::calls::{after_prefix, operation};
use super::stream::WatchStream;
use crate::caller::Caller;
use crate::fault::{Fault, Result};
use crate::wire;

const NAME: &str = "stmlock";
/// The lease of a session in etcd's library.
const SESSION_SECONDS: i64 = 60;
/// It is kept alive three times in its life.
const KEEP_ALIVE_PAUSE: Duration = Duration::from_secs(SESSION_SECONDS as u64 / 3);

/// The sessions of all workers.
#[derive(Clone)]
pub struct Locks {
    locker: Locker,
    sessions: Rc<[Session]>,
    /// Keep the leases alive until the last clone goes.
    _keepers: Rc<JoinSet<()>>,
}

struct Session {
    caller: Caller,
    lease: i64,
    /// What an unlock names, while the lock is held.
    held: RefCell<Bytes>,
}

impl Locks {
    /// A session with a lease for each worker, where the locker needs one.
    pub async fn open(locker: Locker, callers: &[Caller]) -> Result<Locks> {
        let (mut sessions, mut keepers) = (Vec::new(), JoinSet::new());
        if locker != Locker::Stm {
            for caller in callers {
                let lease = caller.grant(SESSION_SECONDS).await?;
                let keeper = caller.clone();
                keepers.spawn_local(async move {
                    loop {
                        tokio::time::sleep(KEEP_ALIVE_PAUSE).await;
                        // A lease that cannot be kept ends, and the lock that it guards says so.
                        if keeper.keep_alive(lease).await.is_err() {
                            break;
                        }
                    }
                });
                sessions.push(Session { caller: caller.clone(), lease, held: RefCell::default() });
            }
        }
        Ok(Locks { locker, sessions: sessions.into(), _keepers: Rc::new(keepers) })
    }

    pub async fn lock(&self, worker: usize) -> Result<()> {
        let outcome = match self.locker {
            Locker::Stm => Ok(()),
            Locker::LockClient => self.sessions[worker].lock().await,
            Locker::LockRpc => self.sessions[worker].ask_for_lock().await,
        };
        outcome.map_err(ends_the_run)
    }

    pub async fn unlock(&self, worker: usize) -> Result<()> {
        let outcome = match self.locker {
            Locker::Stm => Ok(()),
            Locker::LockClient => self.sessions[worker].unlock().await,
            Locker::LockRpc => self.sessions[worker].ask_for_unlock().await,
        };
        outcome.map_err(ends_the_run)
    }

    /// Ends the leases.
    pub async fn close(&self) -> Result<()> {
        for session in &self.sessions[..] {
            let request = pb::LeaseRevokeRequest { id: session.lease };
            session.caller.call_message(wire::PATH_LEASE_REVOKE, &request).await?;
        }
        Ok(())
    }
}

impl Session {
    async fn lock(&self) -> Result<()> {
        let prefix = format!("{NAME}/");
        let own = Bytes::from(format!("{prefix}{:x}", self.lease));
        let answer: pb::TxnResponse = self.caller.ask(wire::PATH_TXN, &enter(&prefix, &own, self.lease)).await?;
        let (own_revision, owner_revision) = place(&answer)?;
        if owner_revision.is_some_and(|owner| owner != own_revision) {
            self.wait_for_those_before(&prefix, own_revision).await?;
            let get = pb::RangeRequest { key: own.clone(), ..Default::default() };
            if self.caller.ask::<pb::RangeResponse>(wire::PATH_RANGE, &get).await?.kvs.is_empty() {
                return Err(Fault::Broken("a session ended while it waited for a lock".to_owned()));
            }
        }
        self.held.replace(own);
        Ok(())
    }

    /// Until no key that was created before ours is left.
    async fn wait_for_those_before(&self, prefix: &str, own_revision: i64) -> Result<()> {
        let newest = pb::RangeRequest {
            limit: 1,
            sort_order: SortOrder::Descend.into(),
            sort_target: SortTarget::Create.into(),
            max_create_revision: own_revision - 1,
            ..under(prefix)
        };
        loop {
            let answer: pb::RangeResponse = self.caller.ask(wire::PATH_RANGE, &newest).await?;
            // Each turn waits for one key that was there; those before ours only grow fewer.
            let Some(before) = answer.kvs.first() else { return Ok(()) };
            let start_revision = answer.header.map_or(0, |header| header.revision);
            let watch = pb::WatchCreateRequest { key: before.key.clone(), start_revision, ..Default::default() };
            self.wait_for_delete(watch).await?;
        }
    }

    async fn wait_for_delete(&self, watch: pb::WatchCreateRequest) -> Result<()> {
        let mut stream = WatchStream::open(&self.caller).await?;
        let is_deleted = Cell::new(false);
        let look = |reply: &wire::WatchReply<'_>| {
            for event in reply.events() {
                is_deleted.set(is_deleted.get() || event?.deleted);
            }
            Ok(())
        };
        stream.create(watch, look).await?;
        while !is_deleted.get() {
            stream.next(look).await?;
        }
        Ok(())
    }

    async fn unlock(&self) -> Result<()> {
        let request = pb::DeleteRangeRequest { key: self.held.take(), ..Default::default() };
        self.caller.call_message(wire::PATH_DELETE_RANGE, &request).await.map(drop)
    }

    async fn ask_for_lock(&self) -> Result<()> {
        self.held.replace(self.caller.lock(NAME, self.lease).await?);
        Ok(())
    }

    async fn ask_for_unlock(&self) -> Result<()> {
        self.caller.unlock(self.held.take()).await
    }
}

/// A transaction that was refused is counted and the next one tried; without its lock none is worth trying.
fn ends_the_run(fault: Fault) -> Fault {
    match fault {
        refusal @ Fault::Status { .. } => Fault::Refused(format!("no lock: {refusal}")),
        fault => fault,
    }
}

fn under(prefix: &str) -> pb::RangeRequest {
    let key = Bytes::copy_from_slice(prefix.as_bytes());
    pb::RangeRequest { range_end: after_prefix(&key), key, ..Default::default() }
}

/// Puts the session's key unless it stands there, and asks who is the oldest.
fn enter(prefix: &str, own: &Bytes, lease: i64) -> pb::TxnRequest {
    let is_new = pb::Compare {
        key: own.clone(),
        result: CompareResult::Equal.into(),
        target: CompareTarget::Create.into(),
        target_union: Some(TargetUnion::CreateRevision(0)),
        ..Default::default()
    };
    let get = |request| operation(pb::request_op::Request::RequestRange(request));
    let oldest = pb::RangeRequest {
        limit: 1,
        sort_order: SortOrder::Ascend.into(),
        sort_target: SortTarget::Create.into(),
        ..under(prefix)
    };
    let put = pb::PutRequest { key: own.clone(), lease, ..Default::default() };
    let stands = pb::RangeRequest { key: own.clone(), ..Default::default() };
    pb::TxnRequest {
        compare: vec![is_new],
        success: vec![operation(pb::request_op::Request::RequestPut(put)), get(oldest.clone())],
        failure: vec![get(stands), get(oldest)],
    }
}

/// When our key was created, and the oldest.
fn place(answer: &pb::TxnResponse) -> Result<(i64, Option<i64>)> {
    let created = |at: usize| match answer.responses.get(at).and_then(|response| response.response.as_ref()) {
        Some(pb::response_op::Response::ResponseRange(range)) => range.kvs.first().map(|found| found.create_revision),
        _ => None,
    };
    let own = if answer.succeeded { answer.header.as_ref().map(|header| header.revision) } else { created(0) };
    let own = own.ok_or_else(|| Fault::Broken("a lock's key that stands was not found".to_owned()))?;
    Ok((own, created(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(created: &[i64]) -> pb::ResponseOp {
        let kv = |&create_revision| tarsier_proto::mvccpb::KeyValue { create_revision, ..Default::default() };
        let range = pb::RangeResponse { kvs: created.iter().map(kv).collect(), ..Default::default() };
        pb::ResponseOp { response: Some(pb::response_op::Response::ResponseRange(range)) }
    }

    #[test]
    fn who_comes_in_knows_its_place() {
        let header = Some(pb::ResponseHeader { revision: 9, ..Default::default() });
        let mut answer = pb::TxnResponse { header, succeeded: true, responses: vec![range(&[]), range(&[4])] };
        assert_eq!(place(&answer).unwrap(), (9, Some(4)));
        answer.succeeded = false;
        assert!(place(&answer).is_err());
        answer.responses = vec![range(&[7]), range(&[7])];
        assert_eq!(place(&answer).unwrap(), (7, Some(7)), "the key stands from a lock before");
    }
}
