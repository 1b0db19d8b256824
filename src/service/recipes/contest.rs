//! Lock and Campaign: a key below the name is made, and the call is answered once no older one is there.
//!
//! The key belongs to a lease, which is granted for this if none is named. The call reads which key is the youngest of those
//! in front of its own, waits for its deletion, and looks again: whoever is in the middle may go first. So at most one call
//! is woken by whoever leaves, and each holds no more than the key in front of it.
//!
//! Like etcd's, a Lock that has waited makes sure that its own key is still there, and a Campaign does not ask. A key of the
//! same name that was made since does not count: etcd takes it for its own, and then two hold the lock.
//!
//! A peer that goes while its call waits takes its key along. If it goes while the key is being made, the call goes on until
//! it would wait. Has it won by then, the key stays, as in etcd: a client that asks again with the same lease may have been
//! told so already.

use std::sync::Arc;

use bytes::Bytes;

use crate::backend::{Command, HistoryError, LeaseAnswer, LeaseOutcome, Reply};
use crate::grpc::status::Status;
use crate::pb::etcdserverpb::range_request::{SortOrder, SortTarget};
use crate::pb::etcdserverpb::request_op::Request;
use crate::pb::etcdserverpb::{DeleteRangeRequest, PutRequest, RangeRequest, TxnRequest};
use crate::pb::{v3electionpb, v3lockpb};
use crate::service::errors::{not_leader, session_expired};
use crate::service::kv::decode::{self, Limits};
use crate::service::message::{framed, header, parse};
use crate::store::command::{Answer, Outcome, Rows, TxnOutcome};
use crate::types::{Batch, Change, Key, KeyValue, LeaseId, Revision};

use super::awaited::Place;
use super::course::{Around, Following, Gone, Next};
use super::{behind, below, created_at, first_created, grant, if_created_at, key_of, operation, without_status};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Lock,
    Campaign,
}

#[derive(Debug)]
enum Stage {
    /// A lease was asked for.
    Granting,
    /// Its key is being made, unless the lease has one here.
    Entering,
    /// The key was there, with another value.
    Proclaiming,
    /// Who is in front?
    Looking,
    Waiting(Following),
    /// Is the key still there?
    Checking,
    /// The key is taken away, and then the call ends with this.
    Leaving(Status),
}

#[derive(Debug)]
pub struct Contest {
    kind: Kind,
    stage: Stage,
    lease: LeaseId,
    /// The lease was granted to this call, so nobody else knows of it.
    is_lease_its_own: bool,
    /// The key was made by this call, and not by an earlier one of the lease.
    is_key_its_own: bool,
    name: Bytes,
    key: Key,
    /// What the key is to say, until it does.
    value: Bytes,
    created: Revision,
    /// What a campaign is answered at: the revision of its own transaction.
    entered: Revision,
}

impl Contest {
    /// # Errors
    /// When it is no request, or one that etcd refuses whatever the store holds.
    pub fn lock(message: Bytes, limits: &Limits) -> Result<(Contest, Command), Status> {
        let v3lockpb::LockRequest { name, lease } = parse(message)?;
        Contest::begin(Kind::Lock, &name, Bytes::new(), LeaseId(lease), limits)
    }

    /// # Errors
    /// As for [`Contest::lock`].
    pub fn campaign(message: Bytes, limits: &Limits) -> Result<(Contest, Command), Status> {
        let v3electionpb::CampaignRequest { name, lease, value } = parse(message)?;
        Contest::begin(Kind::Campaign, &name, value, LeaseId(lease), limits)
    }

    fn begin(
        kind: Kind,
        name: &[u8],
        value: Bytes,
        lease: LeaseId,
        limits: &Limits,
    ) -> Result<(Contest, Command), Status> {
        let mut contest = Contest {
            kind,
            stage: Stage::Granting,
            lease,
            is_lease_its_own: lease == LeaseId::NONE,
            is_key_its_own: false,
            // Not a piece of the request: a call that waits would keep the buffer that the request came in.
            name: Bytes::copy_from_slice(name),
            key: Key::new(),
            value,
            created: Revision::ZERO,
            entered: Revision::ZERO,
        };
        let command = if contest.is_lease_its_own { grant() } else { contest.enter(lease, limits)? };
        Ok((contest, command))
    }

    fn enter(&mut self, lease: LeaseId, limits: &Limits) -> Result<Command, Status> {
        (self.lease, self.key) = (lease, key_of(&self.name, lease));
        self.stage = Stage::Entering;
        let key = self.key.clone();
        let put = PutRequest { key: key.clone(), value: self.value.clone(), lease: lease.0, ..Default::default() };
        let get = RangeRequest { key: key.clone(), ..Default::default() };
        let mut success = vec![operation(Request::RequestPut(put))];
        let mut failure = vec![operation(Request::RequestRange(get))];
        if self.kind == Kind::Lock {
            // Whoever is alone need not ask again.
            let first = operation(Request::RequestRange(first_created(below(&self.name))));
            success.push(first.clone());
            failure.push(first);
        }
        let request = TxnRequest { compare: vec![created_at(key, 0)], success, failure };
        decode::checked_txn(request, limits).map_err(without_status)
    }

    pub fn reply(&mut self, reply: Reply, around: Around<'_>) -> Next {
        match (&self.stage, reply) {
            (Stage::Leaving(status), _) => Next::Refuse(status.clone()),
            (_, Reply::Answer(Err(error))) => self.refused(without_status(error.into()), around.limits),
            (Stage::Granting, Reply::Lease(LeaseAnswer { outcome: LeaseOutcome::Granted(lease), .. })) => {
                Next::ask(self.enter(lease.id, around.limits))
            }
            (Stage::Entering, Reply::Answer(Ok(Answer { revision, result: Outcome::Txn(outcome) }))) => {
                self.entered(revision, outcome, around)
            }
            (Stage::Proclaiming, Reply::Answer(Ok(Answer { result: Outcome::Txn(outcome), .. }))) => {
                if outcome.succeeded { self.look() } else { Next::Refuse(not_leader()) }
            }
            (Stage::Looking, Reply::Answer(Ok(Answer { revision, result: Outcome::Range(found) }))) => {
                match (found.rows.first(), self.kind) {
                    (Some(in_front), _) => self.wait_for(in_front, revision),
                    (None, Kind::Lock) => self.check(),
                    (None, Kind::Campaign) => self.won(self.entered, around),
                }
            }
            (Stage::Waiting(_), Reply::History(history)) => self.caught_up(history),
            (Stage::Checking, Reply::Answer(Ok(Answer { revision, result: Outcome::Range(found) }))) => {
                let is_own = found.rows.first().is_some_and(|own| own.create_revision() == self.created);
                if is_own { self.won(revision, around) } else { Next::Refuse(session_expired()) }
            }
            (stage, reply) => unreachable!("{stage:?} does not ask for {reply:?}"),
        }
    }

    fn entered(&mut self, revision: Revision, outcome: TxnOutcome, around: Around<'_>) -> Next {
        self.is_key_its_own = outcome.succeeded;
        (self.created, self.entered) = (revision, revision);
        let value = std::mem::take(&mut self.value);
        let mut answers = outcome.answers.into_iter().map(|answer| answer.result);
        match answers.next() {
            Some(Outcome::Range(found)) => {
                let own = found.rows.first().expect("the key is there, since it was not made");
                self.created = own.create_revision();
                if self.kind == Kind::Campaign && own.value() != &value[..] {
                    return self.proclaim(value, around.limits);
                }
            }
            Some(Outcome::Put { .. }) => {}
            other => unreachable!("a key is made or read, and this is {other:?}"),
        }
        match answers.next() {
            Some(Outcome::Range(Rows { rows, .. })) => {
                let is_first = rows.first().is_none_or(|first| first.create_revision() == self.created);
                if is_first { self.won(revision, around) } else { self.look() }
            }
            _ => self.look(),
        }
    }

    fn proclaim(&mut self, value: Bytes, limits: &Limits) -> Next {
        self.stage = Stage::Proclaiming;
        let put = PutRequest { key: self.key.clone(), value, lease: self.lease.0, ..Default::default() };
        Next::ask(if_created_at(self.key.clone(), self.created.0, Request::RequestPut(put), limits))
    }

    fn look(&mut self) -> Next {
        self.stage = Stage::Looking;
        let below = below(&self.name);
        Next::ask(
            decode::checked_range(RangeRequest {
                range_end: behind(&below),
                key: below,
                limit: 1,
                sort_order: SortOrder::Descend.into(),
                sort_target: SortTarget::Create.into(),
                max_create_revision: self.created.previous().0,
                ..Default::default()
            })
            .map_err(without_status),
        )
    }

    fn wait_for(&mut self, in_front: &KeyValue, at: Revision) -> Next {
        let place = Place::Key(Key::copy_from_slice(in_front.key()));
        self.stage = Stage::Waiting(Following { place, at });
        Next::Follow
    }

    /// What was written between its look and the batches that are shown to its shard. What is forgotten by now may have been
    /// the deletion.
    fn caught_up(&mut self, history: Result<Vec<Arc<Batch>>, HistoryError>) -> Next {
        let Stage::Waiting(Following { place: Place::Key(key), at }) = &mut self.stage else {
            unreachable!("only who waits asks for history")
        };
        let Ok(batches) = history else { return self.look() };
        let mut changes = batches.iter().flat_map(|batch| batch.changes.iter());
        if changes.any(|change| matches!(change, Change::Delete { key: deleted, .. } if deleted == key)) {
            return self.look();
        }
        *at = batches.last().map_or(*at, |batch| batch.revision);
        Next::Follow
    }

    pub fn told(&mut self, change: &Change) -> Next {
        if matches!(change, Change::Delete { .. }) { self.look() } else { Next::Wait }
    }

    fn check(&mut self) -> Next {
        self.stage = Stage::Checking;
        let own = RangeRequest { key: self.key.clone(), ..Default::default() };
        Next::ask(decode::checked_range(own).map_err(without_status))
    }

    fn won(&self, revision: Revision, around: Around<'_>) -> Next {
        let header = header(around.identity, revision);
        Next::Answer(match self.kind {
            Kind::Lock => framed(&v3lockpb::LockResponse { header, key: self.key.clone() }),
            Kind::Campaign => {
                let (name, key) = (self.name.clone(), self.key.clone());
                let leader = v3electionpb::LeaderKey { name, key, rev: self.created.0, lease: self.lease.0 };
                framed(&v3electionpb::CampaignResponse { header, leader: Some(leader) })
            }
        })
    }

    /// Whoever is refused in the middle does not go on standing in line.
    fn refused(&mut self, status: Status, limits: &Limits) -> Next {
        if matches!(self.stage, Stage::Granting | Stage::Entering) {
            return Next::Refuse(status);
        }
        self.stage = Stage::Leaving(status);
        Next::ask(self.leave(limits))
    }

    /// Takes its key away, and no later one that has the same name.
    fn leave(&self, limits: &Limits) -> Result<Command, Status> {
        let delete = DeleteRangeRequest { key: self.key.clone(), ..Default::default() };
        if_created_at(self.key.clone(), self.created.0, Request::RequestDeleteRange(delete), limits)
    }

    pub fn following(&self) -> Option<&Following> {
        if let Stage::Waiting(following) = &self.stage { Some(following) } else { None }
    }

    pub fn gone(&self, limits: &Limits) -> Gone {
        match self.stage {
            Stage::Granting | Stage::Leaving(_) => Gone::Nothing,
            Stage::Entering => Gone::AfterReply(None),
            Stage::Proclaiming | Stage::Looking | Stage::Waiting(_) | Stage::Checking => {
                // A key that could be made can be deleted: the request is smaller.
                self.leave(limits).map_or(Gone::Nothing, Gone::Leave)
            }
        }
    }

    /// Goes on until it would wait or has won.
    pub fn left(&mut self, reply: Reply, around: Around<'_>) -> Gone {
        match self.reply(reply, around) {
            Next::Ask(command) => Gone::AfterReply(Some(command)),
            Next::Follow if self.is_key_its_own => self.leave(around.limits).map_or(Gone::Nothing, Gone::Leave),
            // Nobody else could name the lease and let go of the lock.
            Next::Answer(_) if self.is_lease_its_own => self.leave(around.limits).map_or(Gone::Nothing, Gone::Leave),
            _ => Gone::Nothing,
        }
    }

    /// What it holds beside itself.
    pub fn bytes(&self) -> usize {
        let place = self.following().map_or(0, |following| match &following.place {
            Place::Key(key) | Place::Below(key) => key.len(),
        });
        self.name.len() + self.key.len() + self.value.len() + place
    }
}
