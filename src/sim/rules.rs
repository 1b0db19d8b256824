//! The promises of a watch, as checkers with names, and the observer that holds one watch stream to them.
//!
//! | rule | what it says |
//! | --- | --- |
//! | created first | the answer to a create comes once, before anything else of that watch |
//! | committed | nothing is told above the committed revision |
//! | ordered, unique | revisions only rise, over all messages of a watch |
//! | whole revisions | a message carries every matching event of each of its revisions, in the order they were made |
//! | nothing lost | between two told revisions the model has no matching event |
//! | filter kept | nothing outside the range, nothing that a filter drops |
//! | previous exact | `prev_kv` is the state before the revision, absent only when compacted away |
//! | progress true | behind a progress revision no event up to it follows, and none up to it is missing |
//! | compacted honestly | a compaction cancel comes only when the next revision needed lies below the one it names |
//! | silent after cancel | nothing of a watch follows its acknowledged cancel |
//! | resumable, live | a watch from the last told revision + 1 goes on, and once nothing fails every watch reaches the head |

use std::collections::{HashMap, VecDeque};

use prost::Message;

use crate::pb::etcdserverpb::WatchResponse;
use crate::pb::mvccpb::Event;
use crate::pb::mvccpb::event::EventType;
use crate::sim::model::{Model, Row, Told};
use crate::types::KeyRange;

/// What a client asked of a watch.
#[derive(Clone, Debug)]
pub struct Asked {
    pub range: KeyRange,
    pub start: i64,
    pub watch_id: i64,
    pub no_put: bool,
    pub no_delete: bool,
    pub prev_kv: bool,
    pub progress_notify: bool,
    pub fragment: bool,
}

/// One watch as its client sees it.
#[derive(Clone, Debug)]
pub struct Seen {
    pub asked: Asked,
    /// Everything below is told or was never asked for.
    pub next: i64,
}

/// What the observer knows of the server beside the stream.
pub struct Truth<'a> {
    pub model: &'a Model,
    pub committed: i64,
    pub compacted: i64,
}

/// One client with one watch stream.
#[derive(Default)]
pub struct Observer {
    buffer: Vec<u8>,
    /// Creates whose answer is still to come, in order.
    pub pending: VecDeque<Asked>,
    pub watches: HashMap<i64, Seen>,
    /// How often each id was asked to be canceled without an answer. Cancels of ids that nobody has stay in here, since
    /// etcd passes over them in silence.
    pub canceling: HashMap<i64, u32>,
    /// Fragments of one response, until the last one arrives.
    fragments: Vec<Event>,
    /// The highest revision a whole-stream progress notification told.
    told_progress: i64,
}

impl Observer {
    /// Takes bytes as the stream delivers them, cut anywhere.
    pub fn receive(&mut self, bytes: &[u8], truth: &Truth<'_>) {
        self.buffer.extend_from_slice(bytes);
        while self.buffer.len() >= 5 {
            assert_eq!(self.buffer[0], 0, "messages are never compressed");
            let length = u32::from_be_bytes([self.buffer[1], self.buffer[2], self.buffer[3], self.buffer[4]]) as usize;
            if self.buffer.len() < 5 + length {
                break;
            }
            let message: Vec<u8> = self.buffer.drain(..5 + length).skip(5).collect();
            let response = WatchResponse::decode(&message[..]).expect("the hub writes valid messages");
            self.response(response, truth);
        }
    }

    fn response(&mut self, response: WatchResponse, truth: &Truth<'_>) {
        let header = response.header.expect("every response has a header");
        assert!(header.revision <= truth.committed, "committed: {} is told above {}", header.revision, truth.committed);
        if response.created {
            return self.created(response.watch_id, response.canceled, header.revision, &response.cancel_reason, truth);
        }
        if response.watch_id == -1 {
            return self.stream_progress(header.revision, truth);
        }
        if response.canceled {
            return self.canceled(response.watch_id, response.compact_revision, truth);
        }
        let seen = self.watches.get_mut(&response.watch_id).expect("created first, silent after cancel");
        if response.events.is_empty() && self.fragments.is_empty() {
            assert!(seen.asked.progress_notify, "a progress notification nobody asked for");
            return progress(seen, header.revision, truth);
        }
        self.fragments.extend(response.events);
        if response.fragment {
            assert!(seen.asked.fragment, "fragments only where they were asked for");
            return;
        }
        let events = std::mem::take(&mut self.fragments);
        events_follow(seen, &events, header.revision, truth);
    }

    fn created(&mut self, id: i64, canceled: bool, revision: i64, reason: &str, truth: &Truth<'_>) {
        let asked = self.pending.pop_front().expect("created once for each create, in order");
        if canceled {
            assert_eq!(id, -1, "a failed create names no watch");
            return self.refused(&asked, reason);
        }
        let id_is_free = !self.watches.contains_key(&id);
        assert!(id_is_free && (asked.watch_id == 0 || asked.watch_id == id), "watch ids are unique and as chosen");
        assert!(asked.start >= 0 && !asked.range.is_empty(), "what etcd refuses was created");
        assert!(revision <= truth.committed, "created above the committed revision");
        let next = if asked.start == 0 { revision + 1 } else { asked.start };
        self.watches.insert(id, Seen { asked, next });
    }

    fn refused(&self, asked: &Asked, reason: &str) {
        let right = match reason {
            "etcdserver: mvcc: required revision has been compacted" => asked.start < 0,
            "mvcc: watcher range is empty" => asked.range.is_empty(),
            "mvcc: duplicate watch ID provided on the WatchStream" => self.watches.contains_key(&asked.watch_id),
            _ => false,
        };
        assert!(right, "refused with {reason:?}: {asked:?}");
    }

    fn stream_progress(&mut self, revision: i64, truth: &Truth<'_>) {
        assert!(!self.watches.is_empty(), "progress on a stream without watches");
        assert!(revision >= self.told_progress, "progress went back from {} to {revision}", self.told_progress);
        self.told_progress = revision;
        for seen in self.watches.values_mut() {
            progress(seen, revision, truth);
        }
    }

    fn canceled(&mut self, id: i64, compact_revision: i64, truth: &Truth<'_>) {
        let seen = self.watches.remove(&id).expect("only a live watch is canceled, and once");
        if compact_revision == 0 {
            let asked = self.canceling.get_mut(&id).expect("canceled without being asked");
            *asked = asked.checked_sub(1).expect("canceled more often than asked");
            return;
        }
        assert!(compact_revision <= truth.compacted, "a compaction that never was");
        assert!(seen.next < compact_revision, "compacted honestly: {} is still there", seen.next);
    }

    /// The watches that have not reached the head; empty once all is well.
    pub fn behind(&self, truth: &Truth<'_>) -> Vec<i64> {
        let missing = |seen: &Seen| !expected(seen, truth.committed, truth).is_empty();
        self.watches.iter().filter(|(_, seen)| missing(seen)).map(|(id, _)| *id).collect()
    }
}

fn progress(seen: &mut Seen, revision: i64, truth: &Truth<'_>) {
    // For a watch that starts in the future a notification below its start would be a promise about nothing.
    assert!(seen.asked.start <= revision, "progress {revision} before the start {}", seen.asked.start);
    let missing = expected(seen, revision, truth);
    assert!(missing.is_empty(), "progress true: {revision} was told, and before it {missing:?} was not");
    seen.next = seen.next.max(revision + 1);
}

/// What the watch must still be told, up to a revision.
fn expected<'a>(seen: &Seen, upto: i64, truth: &Truth<'a>) -> Vec<&'a Told> {
    let mut told = truth.model.told(&seen.asked.range, seen.next, upto);
    told.retain(|told| !if told.put.is_some() { seen.asked.no_put } else { seen.asked.no_delete });
    told
}

fn events_follow(seen: &mut Seen, events: &[Event], header: i64, truth: &Truth<'_>) {
    let revision = |event: &Event| event.kv.as_ref().expect("every event has its key").mod_revision;
    let last = revision(events.last().expect("a message without events is no event message"));
    assert!(revision(&events[0]) >= seen.next, "unique: {} again, {} was next", revision(&events[0]), seen.next);
    assert!(header >= last, "a header of {header} below its event of {last}");
    let expected = expected(seen, last, truth);
    for (event, told) in events.iter().zip(&expected) {
        compare(event, told, seen.asked.prev_kv, truth);
    }
    assert_eq!(events.len(), expected.len(), "nothing lost, whole revisions, ordered: {events:?} for {expected:?}");
    seen.next = last + 1;
}

fn compare(event: &Event, told: &Told, prev_kv: bool, truth: &Truth<'_>) {
    let kv = event.kv.as_ref().expect("every event has its key");
    assert_eq!((kv.mod_revision, &kv.key[..]), (told.revision, &told.key[..]), "nothing lost, ordered, filter kept");
    match &told.put {
        Some(row) => {
            assert_eq!(event.r#type(), EventType::Put);
            assert_eq!(&row_of(kv), row);
        }
        None => {
            assert_eq!(event.r#type(), EventType::Delete);
            assert_eq!(
                (kv.create_revision, kv.version, kv.value.len()),
                (0, 0, 0),
                "a delete has key and revision only"
            );
        }
    }
    let previous = event.prev_kv.as_ref().map(row_of);
    let compacted_away = told.revision - 1 < truth.compacted;
    let exact = previous == told.previous || (previous.is_none() && compacted_away);
    assert!(if prev_kv { exact } else { previous.is_none() }, "previous exact: {previous:?} for {told:?}");
}

pub fn row_of(kv: &crate::pb::mvccpb::KeyValue) -> Row {
    Row {
        key: kv.key.to_vec(),
        value: kv.value.to_vec(),
        create_revision: kv.create_revision,
        mod_revision: kv.mod_revision,
        version: kv.version,
        lease: kv.lease,
    }
}
