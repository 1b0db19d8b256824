//! Observe: who leads an election, what the leader proclaims, and who leads after him.
//!
//! Each put to the key of the leader is a message. With the deletion of that key the call looks who leads now, and what was
//! proclaimed before that look is not told. While nobody leads, the first key that is put below the name is the leader's.
//!
//! A peer that does not read makes its call pause with little queued: it goes on where it stopped, from the history. If a
//! compaction has passed that meanwhile, the call ends, since what was proclaimed can no longer be told.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use prost::Message;

use crate::backend::{Command, HistoryError, Identity, Reply};
use crate::grpc::status::Status;
use crate::net::Output;
use crate::pb::v3electionpb;
use crate::service::errors::{malformed_message, observe_closed_early};
use crate::service::kv::decode;
use crate::service::message::{framed, header};
use crate::store::command::{Answer, Outcome};
use crate::types::{Batch, Change, Key, KeyValue, Revision};

use super::awaited::Place;
use super::course::{Following, Next};
use super::{below, first_created, key_value, without_status};

/// What may be queued for a peer before its call pauses.
const QUEUED_BYTES_MAX: usize = 4 << 10;

#[derive(Debug)]
pub struct Observation {
    below: Key,
    /// At the key of the leader, or below the name while nobody leads.
    following: Following,
    is_paused: bool,
    queued: BytesMut,
    end: Option<Status>,
}

impl Observation {
    /// # Errors
    /// When it is no request.
    pub fn begin(message: Bytes) -> Result<(Observation, Command), Status> {
        // etcd answers it as a stream, for which grpc-go has other words.
        let v3electionpb::LeaderRequest { name } =
            v3electionpb::LeaderRequest::decode(message).map_err(|_| malformed_message())?;
        let below = below(&name);
        let following = Following { place: Place::Below(below.clone()), at: Revision::ZERO };
        let observation = Observation { below, following, is_paused: false, queued: BytesMut::new(), end: None };
        let command = observation.look()?;
        Ok((observation, command))
    }

    /// # Errors
    /// Never: the key that is asked for is not empty.
    fn look(&self) -> Result<Command, Status> {
        decode::checked_range(first_created(self.below.clone())).map_err(without_status)
    }

    pub fn reply(&mut self, reply: Reply, identity: Identity) -> Next {
        match reply {
            Reply::Answer(Ok(Answer { revision, result: Outcome::Range(found) })) => {
                self.following.at = revision;
                match found.rows.first() {
                    Some(kv) => self.tell(kv, revision, identity),
                    None => self.following.place = Place::Below(self.below.clone()),
                }
                self.go_on(true)
            }
            Reply::Answer(Err(error)) => self.end(without_status(error.into())),
            Reply::History(Ok(batches)) => self.catch_up(&batches, identity),
            Reply::History(Err(HistoryError::Compacted(_))) => self.end(observe_closed_early()),
            reply => unreachable!("leaders and history were asked for, and not {reply:?}"),
        }
    }

    fn catch_up(&mut self, batches: &[Arc<Batch>], identity: Identity) -> Next {
        for batch in batches {
            for change in &batch.changes {
                if self.is_end_of_leader(change, batch.revision, identity) {
                    return Next::ask(self.look());
                }
            }
            self.following.at = batch.revision;
            if !self.has_room() {
                break;
            }
        }
        self.go_on(true)
    }

    pub fn told(&mut self, batch: &Batch, index: usize, identity: Identity) -> Next {
        let is_leader_known = matches!(self.following.place, Place::Key(_));
        if self.is_end_of_leader(&batch.changes[index], batch.revision, identity) {
            return Next::ask(self.look());
        }
        self.following.at = batch.revision;
        self.go_on(!is_leader_known)
    }

    /// `has_moved`: it waits at another place than before, or at none.
    fn go_on(&mut self, has_moved: bool) -> Next {
        self.is_paused = !self.has_room();
        match has_moved {
            _ if self.is_paused => Next::Pause,
            true => Next::Follow,
            false => Next::Wait,
        }
    }

    /// Tells what a change is to this election. True: the leader is gone.
    fn is_end_of_leader(&mut self, change: &Change, revision: Revision, identity: Identity) -> bool {
        match (&self.following.place, change) {
            (Place::Key(leader), Change::Put { kv, .. }) if kv.key() == leader => {}
            (Place::Below(below), Change::Put { kv, .. }) if kv.key().starts_with(below) => {}
            (Place::Key(leader), Change::Delete { key, .. }) => return key == leader,
            _ => return false,
        }
        if let Change::Put { kv, .. } = change {
            self.tell(kv, revision, identity);
        }
        false
    }

    /// Queues a message about the leader, at whose key the call waits from here on.
    fn tell(&mut self, kv: &KeyValue, revision: Revision, identity: Identity) {
        if !matches!(&self.following.place, Place::Key(leader) if kv.key() == leader) {
            self.following.place = Place::Key(Key::copy_from_slice(kv.key()));
        }
        let header = header(identity, revision);
        let message = framed(&v3electionpb::LeaderResponse { header, kv: Some(key_value(kv)) });
        self.queued.extend_from_slice(&message);
    }

    /// The status leaves behind what is queued.
    fn end(&mut self, status: Status) -> Next {
        (self.end, self.is_paused) = (Some(status), false);
        Next::Pause
    }

    fn has_room(&self) -> bool {
        self.queued.len() < QUEUED_BYTES_MAX
    }

    pub fn following(&self) -> Option<&Following> {
        Some(&self.following)
    }

    pub fn has_output(&self) -> bool {
        !self.queued.is_empty() || self.end.is_some()
    }

    pub fn output(&mut self, bytes_max: usize) -> (Output, Next) {
        if self.queued.is_empty() {
            return (self.end.take().map_or(Output::Nothing, Output::End), Next::Wait);
        }
        let bytes = self.queued.split_to(bytes_max.min(self.queued.len())).freeze();
        if self.queued.is_empty() {
            // The room that is left would be kept for as long as nothing is proclaimed.
            self.queued = BytesMut::new();
        }
        let resumes = self.is_paused && self.has_room();
        (Output::Bytes(bytes), if resumes { self.go_on(true) } else { Next::Wait })
    }

    /// What it holds beside itself.
    pub fn bytes(&self) -> usize {
        let leader = if let Place::Key(leader) = &self.following.place { leader.len() } else { 0 };
        self.below.len() + leader + self.queued.len()
    }
}
