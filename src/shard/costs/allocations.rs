//! Tests only: how often an event and an idle watch make the server allocate.
//!
//! The path is the real one from the store to the bytes of a stream: the store applies a put, the batch is published, each
//! hub takes it in, tells its watchers, and each stream's output is taken and has left before the next event comes. What
//! sends it, h2 and the kernel, is no part.

use bytes::Bytes;

use crate::service::recipes::awaited::Awaited;
use crate::shard::costs::allocations;
use crate::shard::history::Appender;
use crate::shard::intake::Intake;
use crate::store::Store;
use crate::store::command::{Put, PutLease, PutValue, Write};
use crate::types::{Entry, KeyRange, LeaseId, Revision, Time};
use crate::watch::hub::{Create, Hub, HubConfig, Request, StreamId};

/// Members that the hub tells before the streams are sent what they have: as in a shard.
const HUB_WORK_PER_TURN: usize = 2_000;
/// Enough for every buffer to have the size it keeps.
const WARM_UP: usize = 600;
const PUTS: usize = 256;

struct Path {
    store: Store,
    appender: Appender,
    intake: Intake,
    hub: Hub,
    value: Bytes,
    told_bytes: usize,
}

impl Path {
    fn new(value_bytes: usize) -> Path {
        let appender = Appender::new(Revision::FIRST, None);
        let intake = Intake::new(appender.reader(), appender.committed(), Revision::FIRST);
        let hub = Hub::new(HubConfig::default(), Revision::FIRST);
        let value = vec![7; value_bytes].into();
        Path { store: Store::new(), appender, intake, hub, value, told_bytes: 0 }
    }

    fn watch(&mut self, stream: StreamId, key: String) {
        let create = Create::plain(KeyRange::One(key.into()));
        self.hub.request(stream, self.intake.committed(), Request::Create(create));
        while self.hub.take_output(stream, usize::MAX).is_some() {}
    }

    fn write(&mut self) {
        let value = PutValue::Set(self.value.clone());
        let put = Put { key: "key".into(), value, lease: PutLease::Set(LeaseId::NONE), prev_kv: false };
        let Some(Entry::Batch(batch)) = self.store.apply(&Write::Put(put), Time(1)).entry else {
            panic!("a put is a batch");
        };
        self.appender.publish([batch].into_iter(), self.store.revision(), None);
    }

    fn tell(&mut self) {
        self.intake.feed(&mut self.hub, &mut Awaited::new(self.intake.received()));
        loop {
            let told_before = self.told_bytes;
            let more = self.hub.turn(HUB_WORK_PER_TURN);
            while let Some((stream, _)) = self.hub.next_ready() {
                while let Some(bytes) = self.hub.take_output(stream, 16 << 10) {
                    self.told_bytes += bytes.len();
                }
            }
            // A stream that was full and has been emptied is told the rest.
            if !more && self.told_bytes == told_before {
                return;
            }
        }
    }
}

/// Allocations of the usual put, and of all that is told of it; and the latter summed over [`PUTS`], some of which let
/// a table or a queue grow by a step.
#[derive(Debug)]
struct Counted {
    write: u64,
    tell: u64,
    tell_sum: u64,
}

fn counted(streams: usize, watches: usize, idle: usize, value_bytes: usize) -> Counted {
    let mut path = Path::new(value_bytes);
    let streams: Vec<StreamId> = (0..streams).map(|token| path.hub.open_stream(token as u64)).collect();
    for stream in &streams {
        (0..watches).for_each(|_| path.watch(*stream, "key".to_owned()));
    }
    let quiet = path.hub.open_stream(u64::MAX);
    (0..idle).for_each(|number| path.watch(quiet, format!("idle/{number}")));
    while path.hub.next_ready().is_some() {}
    for _ in 0..WARM_UP {
        path.write();
        path.tell();
    }
    path.told_bytes = 0;
    let (mut writes, mut tells) = (Vec::new(), Vec::new());
    let events = path.hub.counters().events_sent;
    for _ in 0..PUTS {
        let start = allocations();
        path.write();
        let written = allocations();
        path.tell();
        writes.push(written - start);
        tells.push(allocations() - written);
    }
    let sent = path.hub.counters().events_sent - events;
    assert_eq!(sent as usize, PUTS * streams.len() * watches);
    assert!(path.told_bytes >= value_bytes * sent as usize, "each is told the value");
    let tell_sum = tells.iter().sum();
    writes.sort_unstable();
    tells.sort_unstable();
    Counted { write: writes[PUTS / 2], tell: tells[PUTS / 2], tell_sum }
}

#[test]
fn an_event_and_an_idle_watch_allocate_nothing() {
    let nobody = counted(0, 0, 0, 10);
    assert!(nobody.write <= 4, "a put allocates the version, the batch and its changes: {nobody:?}");
    for (streams, watches, idle) in
        [(0, 0, 100_000), (1, 1, 0), (1, 1_000, 0), (10, 100, 0), (100, 10, 0), (1_000, 1, 0)]
    {
        let counted = counted(streams, watches, idle, 10);
        let shape = format!("{streams} streams of {watches} watches beside {idle} idle: {counted:?}");
        assert_eq!((counted.write, counted.tell), (nobody.write, 0), "{shape}");
        assert!(counted.tell_sum <= nobody.tell_sum + 8, "{shape}");
    }
}

/// What one put tells this stream is several times its backlog: most of its watchers fall behind, and are brought forward.
#[test]
fn watchers_beyond_the_backlog_of_their_stream_allocate_once_for_many() {
    let counted = counted(1, 4_000, 0, 10);
    assert!(counted.tell <= 4_000 / 10, "{counted:?}");
}

/// Events so large that the streams share their bytes.
#[test]
fn a_large_event_allocates_as_often_for_a_hundred_streams_as_for_one() {
    let (one, hundred) = (counted(1, 1, 0, 4_000), counted(100, 1, 0, 4_000));
    assert_eq!((one.write, one.tell), (hundred.write, hundred.tell), "{one:?}, {hundred:?}");
    assert!(one.tell <= 5, "the encoded event grows by steps, and then belongs to the streams: {one:?}");
}
