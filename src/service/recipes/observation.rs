//! Observe: who leads an election, what the leader proclaims, and who leads after him.
//!
//! Each put to the key of the leader is a message. With the deletion of that key the call looks who leads now, and what was
//! proclaimed before that look is not told. While nobody leads, the first key that is put below the name is the leader's.
//!
//! A peer that does not read makes its call pause with little queued: it goes on where it stopped, from the history. If a
//! compaction has passed that meanwhile, the call ends, since what was proclaimed can no longer be told.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;

use crate::backend::{Command, HistoryError, Reply};
use crate::grpc::status::Status;
use crate::net::Output;
use crate::pb::v3electionpb;
use crate::service::errors::{malformed_message, observe_closed_early};
use crate::service::kv::decode;
use crate::store::command::{Answer, Outcome};
use crate::types::{Batch, Change, Key, KeyValue, Revision};

use super::announcement::Announcement;
use super::awaited::Place;
use super::course::{Around, Following, Next};
use super::{below, first_created, without_status};

/// What may be queued for a peer before its call pauses.
const QUEUED_BYTES_MAX: usize = 4 << 10;

#[derive(Debug)]
pub struct Observation {
    below: Key,
    /// At the key of the leader, or below the name while nobody leads.
    following: Following,
    is_paused: bool,
    queued: VecDeque<Announcement>,
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
        let observation = Observation { below, following, is_paused: false, queued: VecDeque::new(), end: None };
        let command = observation.look()?;
        Ok((observation, command))
    }

    /// # Errors
    /// Never: the key that is asked for is not empty.
    fn look(&self) -> Result<Command, Status> {
        decode::checked_range(first_created(self.below.clone())).map_err(without_status)
    }

    pub fn reply(&mut self, reply: Reply, around: Around<'_>) -> Next {
        match reply {
            Reply::Answer(Ok(Answer { revision, result: Outcome::Range(found) })) => {
                self.following.at = revision;
                match found.rows.first() {
                    Some(kv) => self.tell(kv, revision, around),
                    None => self.following.place = Place::Below(self.below.clone()),
                }
                self.go_on(true)
            }
            Reply::Answer(Err(error)) => self.end(without_status(error.into())),
            Reply::History(Ok(batches)) => self.catch_up(&batches, around),
            Reply::History(Err(HistoryError::Compacted(_))) => self.end(observe_closed_early()),
            reply => unreachable!("leaders and history were asked for, and not {reply:?}"),
        }
    }

    fn catch_up(&mut self, batches: &[Arc<Batch>], around: Around<'_>) -> Next {
        for batch in batches {
            for change in &batch.changes {
                if self.is_end_of_leader(change, batch.revision, around) {
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

    pub fn told(&mut self, batch: &Batch, index: usize, around: Around<'_>) -> Next {
        let is_leader_known = matches!(self.following.place, Place::Key(_));
        if self.is_end_of_leader(&batch.changes[index], batch.revision, around) {
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
    fn is_end_of_leader(&mut self, change: &Change, revision: Revision, around: Around<'_>) -> bool {
        match (&self.following.place, change) {
            (Place::Key(leader), Change::Put { kv, .. }) if kv.key() == leader => {}
            (Place::Below(below), Change::Put { kv, .. }) if kv.key().starts_with(below) => {}
            (Place::Key(leader), Change::Delete { key, .. }) => return key == leader,
            _ => return false,
        }
        if let Change::Put { kv, .. } = change {
            self.tell(kv, revision, around);
        }
        false
    }

    /// Queues a message about the leader, at whose key the call waits from here on.
    fn tell(&mut self, kv: &KeyValue, revision: Revision, around: Around<'_>) {
        if !matches!(&self.following.place, Place::Key(leader) if kv.key() == leader) {
            self.following.place = Place::Key(Key::copy_from_slice(kv.key()));
        }
        self.queued.push_back(around.announcer.announce(kv, revision, around.identity));
    }

    /// The status leaves behind what is queued.
    fn end(&mut self, status: Status) -> Next {
        (self.end, self.is_paused) = (Some(status), false);
        Next::Pause
    }

    fn has_room(&self) -> bool {
        self.queued_bytes() < QUEUED_BYTES_MAX
    }

    fn queued_bytes(&self) -> usize {
        self.queued.iter().map(|queued| size_of::<Announcement>() + queued.bytes.len()).sum()
    }

    pub fn following(&self) -> Option<&Following> {
        Some(&self.following)
    }

    pub fn has_output(&self) -> bool {
        !self.queued.is_empty() || self.end.is_some()
    }

    pub fn output(&mut self, bytes_max: usize) -> (Output, Next) {
        let Some(first) = self.queued.front_mut() else {
            return (self.end.take().map_or(Output::Nothing, Output::End), Next::Wait);
        };
        let bytes = first.bytes.split_to(bytes_max.min(first.bytes.len()));
        if first.bytes.is_empty() {
            self.queued.pop_front();
        }
        if self.queued.is_empty() {
            // The room that is left would be kept for as long as nothing is proclaimed.
            self.queued = VecDeque::new();
        }
        let resumes = self.is_paused && self.has_room();
        (Output::Bytes(bytes), if resumes { self.go_on(true) } else { Next::Wait })
    }

    /// What it holds beside itself, and beside the messages: these are counted once for all who are told the same.
    pub fn bytes(&self) -> usize {
        let leader = if let Place::Key(leader) = &self.following.place { leader.len() } else { 0 };
        self.below.len() + leader + self.queued.capacity() * size_of::<Announcement>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Identity;
    use crate::net::CallId;
    use crate::service::recipes::{Recipe, Telling};
    use crate::service::{Limits, Member, Method, Services};
    use crate::store::command::{Rows, Show};
    use crate::types::{LeaseId, Time};

    const IDENTITY: Identity = Identity { cluster_id: 3, member_id: 7, raft_term: 2 };
    const OBSERVERS: u32 = 100;
    const VALUE_BYTES: usize = 1 << 20;

    fn leader(revision: i64) -> KeyValue {
        let value = vec![revision as u8; VALUE_BYTES];
        KeyValue::new(b"e/7", &value, Revision(2), Revision(revision), 0, revision - 1, LeaseId(7))
    }

    fn tell_all(services: &mut Services) -> usize {
        std::iter::from_fn(|| matches!(services.tell_next(), Telling::Call(_)).then_some(())).count()
    }

    fn read(services: &mut Services, handle: u32) -> Vec<u8> {
        let pieces = std::iter::from_fn(|| match services.output(handle, 16 << 10) {
            Output::Bytes(bytes) => Some(bytes),
            _ => None,
        });
        pieces.collect::<Vec<_>>().concat()
    }

    #[test]
    fn what_a_hundred_observers_are_told_is_held_once() {
        let member = Member { name: String::new(), peer_urls: Vec::new(), client_urls: Vec::new() };
        let mut services = Services::new(IDENTITY, Arc::new(member), Limits::default(), Revision(2));
        let handles: Vec<u32> = (0..OBSERVERS)
            .map(|stream| services.open(CallId { connection: 1, stream }, Method::Recipe(Recipe::Observe)))
            .collect();
        let held = |services: &Services| services.bytes().1 + services.scratch_bytes();
        for handle in &handles {
            let request = v3electionpb::LeaderRequest { name: "e".into() }.encode_to_vec();
            assert!(services.request(*handle, request.into()).is_some());
            let rows = Rows { rows: vec![leader(2)], show: Show::All, more: false, count: 1 };
            services.reply(*handle, Reply::Answer(Ok(Answer { revision: Revision(2), result: Outcome::Range(rows) })));
        }
        assert_eq!(tell_all(&mut services), 0);
        let looked = held(&services);
        assert!((VALUE_BYTES..2 * VALUE_BYTES).contains(&looked), "{looked} bytes for whom they found");
        let messages: Vec<Vec<u8>> = handles.iter().map(|handle| read(&mut services, *handle)).collect();
        assert!(messages.iter().all(|message| message.len() > VALUE_BYTES && *message == messages[0]));
        assert!(held(&services) < VALUE_BYTES, "what was read is let go");

        let changes = Box::new([Change::Put { kv: leader(3), previous: Some(leader(2)) }]);
        services.awaited().batch(&Arc::new(Batch { revision: Revision(3), time: Time(0), changes }));
        assert_eq!(tell_all(&mut services), OBSERVERS as usize);
        let told = held(&services);
        assert!((VALUE_BYTES..2 * VALUE_BYTES).contains(&told), "{told} bytes for what was proclaimed");
        handles.iter().for_each(|handle| services.closed(*handle));
        assert_eq!((services.scratch_bytes(), services.bytes().0), (0, 0));
    }
}
