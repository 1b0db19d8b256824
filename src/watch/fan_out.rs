//! One batch to all synced watchers that it concerns.
//!
//! First every change is held against the groups; then each group that was hit has its events encoded once, and each of
//! its members is sent them behind a head of its own. Both go in bounded pieces, at a cursor. While a batch is under way no
//! watch is created and none canceled (requests wait), so the only one to take members out of a group is the cursor itself:
//! the last member comes to the cursor's place, and the cursor stays there, or it would pass that member by.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;

use super::group::{Groups, Member, Options};
use super::hub::Hub;
use super::message::{EVENTS, Events, Head, Header, SHARED_BYTES_MIN};
use crate::types::encode::{Sink, event_len, put_event};
use crate::types::{Batch, Change, Revision};

/// Shared events that are looked at when others are added: more than come, or they would never end.
const SHARED_LOOKS: usize = 4;

/// The batch under way. Its buffers are kept for the next one.
#[derive(Default)]
pub(super) struct FanOut {
    batch: Option<Arc<Batch>>,
    /// The next change to hold against the groups.
    change: usize,
    /// Which change concerns which group; sorted by group before the first delivery.
    hits: Vec<(u32, u32)>,
    /// The first hit of the group in turn.
    at: usize,
    run: Option<Run>,
    encoded: Vec<u8>,
    /// Events of earlier runs that some stream still has to send.
    shared: VecDeque<Bytes>,
    shared_bytes: usize,
}

/// A group in delivery.
struct Run {
    group: u32,
    /// The hit behind its last one.
    end: usize,
    /// The next member.
    member: usize,
    options: Options,
    header: Header,
    shared: Option<Bytes>,
}

impl FanOut {
    pub(super) fn is_active(&self) -> bool {
        self.batch.is_some()
    }

    /// Events that several streams share are counted once, for as long as one of them holds some.
    fn keep_count(&mut self, shared: Bytes) {
        self.shared_bytes += shared.len();
        self.shared.push_back(shared);
        self.look_at_shared(SHARED_LOOKS);
    }

    /// Looks at some of the shared events, and lets go of those that no stream holds any more.
    pub(super) fn look_at_shared(&mut self, looks: usize) {
        for _ in 0..looks.min(self.shared.len()) {
            let Some(oldest) = self.shared.pop_front() else { return };
            if oldest.is_unique() {
                self.shared_bytes -= oldest.len();
            } else {
                self.shared.push_back(oldest);
            }
        }
    }

    pub(super) fn shared_bytes(&self) -> usize {
        self.shared_bytes
    }

    pub(super) fn start(&mut self, batch: Arc<Batch>) {
        assert!(self.batch.is_none(), "one batch at a time");
        self.batch = Some(batch);
        self.change = 0;
        self.at = 0;
        self.hits.clear();
    }
}

/// Appends an event with its tag, so that it can stand behind any head.
pub(super) fn put_tagged(out: &mut Vec<u8>, revision: Revision, change: &Change, with_previous: bool) {
    out.put_byte(EVENTS);
    out.put_varint(event_len(revision, change, with_previous) as u64);
    put_event(out, revision, change, with_previous);
}

/// Whether what was there before the revision may still be told (etcd reads it at the revision before).
pub(super) fn previous_is_kept(revision: Revision, compacted: Revision) -> bool {
    revision.previous() >= compacted
}

impl Hub {
    /// A piece of the batch under way, of at most about `budget` changes or members. Gives how much it was.
    pub(super) fn fan_out_step(&mut self, budget: usize) -> usize {
        let batch = Arc::clone(self.fan_out.batch.as_ref().expect("asked only while a batch is under way"));
        if self.fan_out.change < batch.changes.len() {
            return self.hold_against_groups(&batch, budget);
        }
        let mut used = 0;
        while used < budget {
            used += 1;
            match self.fan_out.run.take() {
                Some(run) => used += self.deliver(&batch, run, (budget - used).max(1)),
                None if self.fan_out.at < self.fan_out.hits.len() => self.start_run(&batch),
                None => {
                    self.fan_out.batch = None;
                    self.fan_out.hits.clear();
                    self.fan_out.hits.shrink_to(4_096);
                    self.handled(batch);
                    break;
                }
            }
        }
        used
    }

    fn hold_against_groups(&mut self, batch: &Batch, budget: usize) -> usize {
        let FanOut { change: at, hits, .. } = &mut self.fan_out;
        let before = hits.len();
        let first = *at;
        while *at < batch.changes.len() && (*at - first) + (hits.len() - before) < budget {
            let change = &batch.changes[*at];
            self.groups.stab(change.key(), &mut |group, options| {
                if options.let_through(change) {
                    hits.push((group, *at as u32));
                }
            });
            *at += 1;
        }
        let used = (*at - first) + (hits.len() - before);
        if *at == batch.changes.len() {
            // By group, then in the order of the changes: neither the tree's order nor the table's reaches a client.
            hits.sort_unstable();
        }
        used
    }

    /// Encodes the events of the next group that was hit.
    fn start_run(&mut self, batch: &Batch) {
        let FanOut { hits, at, encoded, .. } = &mut self.fan_out;
        let group = hits[*at].0;
        let end = *at + hits[*at..].iter().take_while(|hit| hit.0 == group).count();
        let options = self.groups.get(group).expect("groups stay while a batch is under way").options();
        let with_previous = options.has(Options::PREV_KV) && previous_is_kept(batch.revision, self.compacted);
        encoded.clear();
        encoded.shrink_to(64 * 1024);
        for (_, change) in &hits[*at..end] {
            put_tagged(encoded, batch.revision, &batch.changes[*change as usize], with_previous);
        }
        let shared = (encoded.len() >= SHARED_BYTES_MIN).then(|| Bytes::from(std::mem::take(encoded)));
        let header = self.config.identity.header(batch.revision);
        self.fan_out.run = Some(Run { group, end, member: 0, options, header, shared });
    }

    /// Sends the events of a group to its members from the cursor on.
    fn deliver(&mut self, batch: &Batch, mut run: Run, budget: usize) -> usize {
        let mut used = 0;
        while let Some(member) = member_at(&self.groups, run.group, run.member) {
            if used >= budget {
                self.fan_out.run = Some(run);
                return used;
            }
            used += 1;
            // The list of the stream is looked into only where some member is dead: it is one cache line more an event.
            let some_dead = self.groups.get(run.group).is_some_and(|group| group.dead() > 0);
            let stream = self.streams.get(member.stream);
            if stream.is_closed() || (some_dead && stream.is_stale(member.row)) {
                self.remove_stale_member(run.group, run.member);
            } else if self.streams.refuses(member.stream) {
                self.fall_behind(&mut run, member, batch.revision);
            } else {
                self.deliver_to(&run, member);
                run.member += 1;
            }
        }
        self.fan_out.at = run.end;
        if let Some(shared) = run.shared {
            // Taken back for the next run, unless a stream still holds a piece of it.
            match shared.try_into_mut() {
                Ok(encoded) => self.fan_out.encoded = encoded.into(),
                Err(shared) => self.fan_out.keep_count(shared),
            }
        }
        self.groups.release(run.group);
        used
    }

    fn deliver_to(&mut self, run: &Run, member: Member) {
        let shared = run.shared.as_ref();
        let bytes = shared.map_or(&self.fan_out.encoded[..], |shared| shared);
        let watch_id = self.streams.get(member.stream).id_of(member.row);
        let events = Events { bytes, shared };
        self.events_sent += 1;
        #[cfg(test)]
        if self.planted.splits_transactions
            && let Some(first) = super::message::first_of_several(bytes)
        {
            let head = Head { watch_id, ..Head::default() };
            self.streams.send(member.stream, &run.header, &head, Events { bytes: &bytes[..first], shared });
            self.streams.send(member.stream, &run.header, &head, Events { bytes: &bytes[first..], shared });
            return;
        }
        if run.options.has(Options::FRAGMENT) {
            let bytes_max = self.config.fragment_bytes;
            self.streams.send_fragments(member.stream, &run.header, watch_id, events, bytes_max);
        } else {
            let head = Head { watch_id, ..Head::default() };
            self.streams.send(member.stream, &run.header, &head, events);
        }
        if run.options.has(Options::PROGRESS) {
            self.streams.set_told(member.stream, member.row);
        }
    }

    /// The stream has no room: the watcher remembers the revision instead of the events, and leaves the synced.
    fn fall_behind(&mut self, run: &mut Run, member: Member, revision: Revision) {
        self.slow_events += 1;
        #[cfg(test)]
        if self.planted.drops_when_slow {
            run.member += 1;
            return;
        }
        #[cfg(test)]
        let revision = if self.planted.tells_twice { revision.previous() } else { revision };
        self.groups.swap_remove(run.group, run.member);
        self.groups.set_apart(run.group);
        self.streams.set_apart(member.stream, member.row, true);
        self.catch_up.park(member, run.group, revision);
        #[cfg(test)]
        if self.planted.passes_swapped_by {
            run.member += 1;
        }
    }

    /// Takes out a member whose watch or stream is gone, on the way.
    pub(super) fn remove_stale_member(&mut self, group: u32, at: usize) {
        let member = self.groups.swap_remove(group, at);
        if self.streams.drop_entry(member.stream, member.row) {
            self.groups.exhume(group);
        }
    }
}

fn member_at(groups: &Groups, group: u32, at: usize) -> Option<Member> {
    groups.get(group).expect("groups stay while a batch is under way").members().get(at)
}
