//! Tests only: examples of what a client sees, and what things cost.

use std::sync::Arc;

use bytes::Bytes;
use prost::Message;

use super::hub::{Create, Hub, HubConfig, Request, StreamId};
use super::members::looks;
use crate::pb::etcdserverpb::WatchResponse;
use crate::types::{Batch, Change, KeyRange, KeyValue, LeaseId, Revision, Time, WatchLimits};

/// A hub with one stream, and the batches it was handed.
struct Shard {
    hub: Hub,
    stream: StreamId,
    batches: Vec<Arc<Batch>>,
}

impl Shard {
    fn at(revision: i64) -> Shard {
        Shard::with(HubConfig::default(), revision)
    }

    fn with(config: HubConfig, revision: i64) -> Shard {
        let mut hub = Hub::new(config, Revision::FIRST);
        let stream = hub.open_stream(9);
        let mut shard = Shard { hub, stream, batches: Vec::new() };
        while shard.head().0 < revision {
            shard.put(&["zzz"]);
        }
        shard.run();
        shard
    }

    fn head(&self) -> Revision {
        Revision(self.batches.len() as i64 + 1)
    }

    /// One revision that puts these keys.
    fn put(&mut self, keys: &[&str]) {
        self.put_value(keys, b"v");
    }

    fn put_value(&mut self, keys: &[&str], value: &[u8]) {
        let revision = self.head().next();
        let kv = |key: &&str| KeyValue::new(key.as_bytes(), value, revision, revision, 0, 1, LeaseId::NONE);
        let changes = keys.iter().map(|key| Change::Put { kv: kv(key), previous: None }).collect();
        let batch = Arc::new(Batch { revision, time: Time(0), changes });
        self.batches.push(Arc::clone(&batch));
        self.hub.handle_batch(batch);
    }

    fn create(&mut self, key: &str, start: i64) {
        self.ask(Request::Create(create(key, start)));
    }

    fn ask(&mut self, request: Request) {
        self.hub.request(self.stream, self.head(), request);
    }

    fn run(&mut self) {
        while self.hub.turn(1_000) {}
        while let Some(from) = self.hub.next_history_request() {
            self.hub.handle_history(Ok(self.batches[from.0 as usize - 2..].to_vec()));
            while self.hub.turn(1_000) {}
        }
    }

    fn responses(&mut self) -> Vec<WatchResponse> {
        self.run();
        let mut bytes = Vec::new();
        while let Some(taken) = self.hub.take_output(self.stream, 1 << 20) {
            bytes.extend_from_slice(&taken);
        }
        let mut responses = Vec::new();
        let mut rest = &bytes[..];
        while let Some((prefix, after)) = rest.split_at_checked(5) {
            let (message, after) = after.split_at(u32::from_be_bytes(prefix[1..].try_into().unwrap()) as usize);
            responses.push(WatchResponse::decode(message).unwrap());
            rest = after;
        }
        responses
    }

    /// What the client was sent, in short.
    fn told(&mut self) -> Vec<String> {
        self.responses().iter().map(short).collect()
    }
}

fn create(key: &str, start: i64) -> Create {
    Create { start, ..Create::plain(KeyRange::One(Bytes::copy_from_slice(key.as_bytes()))) }
}

fn short(response: &WatchResponse) -> String {
    let mut text = format!("h{} id{}", response.header.as_ref().unwrap().revision, response.watch_id);
    for (said, word) in [(response.created, " created"), (response.canceled, " canceled"), (response.fragment, " more")]
    {
        text += if said { word } else { "" };
    }
    if response.compact_revision != 0 {
        text += &format!(" compacted {}", response.compact_revision);
    }
    if !response.cancel_reason.is_empty() {
        text += &format!(" {:?}", response.cancel_reason);
    }
    for event in &response.events {
        let kv = event.kv.as_ref().unwrap();
        text += &format!(" {}@{}", String::from_utf8_lossy(&kv.key), kv.mod_revision);
    }
    text
}

#[test]
fn a_watch_from_now_on_is_told_what_comes() {
    let mut shard = Shard::at(7);
    shard.create("a", 0);
    shard.put(&["a"]);
    assert_eq!(shard.told(), ["h7 id0 created", "h8 id0 a@8"]);
}

#[test]
fn a_watch_that_starts_before_the_compacted_revision_is_created_and_canceled() {
    let mut shard = Shard::at(7);
    shard.hub.handle_compaction(Revision(5));
    shard.create("a", 3);
    shard.create("a", 5);
    assert_eq!(shard.told(), ["h7 id0 created", "h7 id1 created", "h0 id0 canceled compacted 5"]);
    shard.ask(Request::Cancel { watch_id: 0 });
    shard.ask(Request::Progress);
    assert_eq!(shard.told(), ["h7 id-1"], "the id is free, and the other watch is synced");
}

#[test]
fn two_watches_of_a_key_are_both_told_and_a_transaction_is_one_message() {
    let mut shard = Shard::at(7);
    shard.create("a", 0);
    shard.create("a", 0);
    let range = KeyRange::From(Bytes::from("\0"));
    shard.ask(Request::Create(Create { range, ..create("", 0) }));
    shard.put(&["a", "b"]);
    let told = shard.told();
    assert_eq!(told[..3], ["h7 id0 created", "h7 id1 created", "h7 id2 created"]);
    assert_eq!(told[3..], ["h8 id0 a@8", "h8 id1 a@8", "h8 id2 a@8 b@8"]);
}

#[test]
fn a_watch_from_the_future_is_told_nothing_before() {
    let mut shard = Shard::at(7);
    shard.create("a", 10);
    shard.create("a", 8);
    shard.ask(Request::Progress);
    assert_eq!(shard.told(), ["h7 id0 created", "h7 id1 created"], "neither is synced yet");
    shard.put(&["a"]);
    shard.put(&["a"]);
    shard.ask(Request::Progress);
    shard.put(&["a"]);
    shard.ask(Request::Progress);
    assert_eq!(shard.told(), ["h8 id1 a@8", "h9 id1 a@9", "h10 id1 a@10", "h10 id0 a@10", "h10 id-1"]);
}

#[test]
fn a_cancel_is_answered_once_and_progress_once_for_all() {
    let mut shard = Shard::at(7);
    shard.ask(Request::Progress);
    shard.create("a", 0);
    shard.create("b", 0);
    shard.ask(Request::Progress);
    shard.ask(Request::Cancel { watch_id: 0 });
    shard.ask(Request::Cancel { watch_id: 0 });
    assert_eq!(shard.told(), ["h7 id0 created", "h7 id1 created", "h7 id-1", "h7 id0 canceled"]);
}

#[test]
fn what_cannot_be_created_is_refused_in_etcds_words() {
    let mut shard = Shard::at(7);
    shard.ask(Request::Create(Create { watch_id: 5, ..create("a", 0) }));
    shard.ask(Request::Create(Create { watch_id: 5, ..create("a", 0) }));
    shard.create("a", -1);
    let range = KeyRange::Span { start: Bytes::from("b"), end: Bytes::from("a") };
    shard.ask(Request::Create(Create { range, ..create("", 0) }));
    let told = shard.told();
    assert_eq!(told[0], "h7 id5 created");
    let refused = |why: &str| format!("h7 id-1 created canceled {why:?}");
    assert_eq!(told[1], refused("mvcc: duplicate watch ID provided on the WatchStream"));
    assert_eq!(told[2], refused("etcdserver: mvcc: required revision has been compacted"));
    assert_eq!(told[3], refused("mvcc: watcher range is empty"));
}

#[test]
fn a_stream_has_no_more_watches_than_it_may_and_a_cancel_makes_room() {
    let watches = WatchLimits { per_stream: Some(2), per_connection: None };
    let mut shard = Shard::with(HubConfig { watches, ..HubConfig::default() }, 7);
    shard.create("a", 0);
    shard.create("b", 100);
    shard.create("c", 0);
    // What is wrong with a request of its own is told first.
    shard.create("c", -1);
    shard.ask(Request::Cancel { watch_id: 1 });
    shard.create("c", 3);
    shard.create("d", 0);
    let refused = "h7 id-1 created canceled \"tarsier: too many watches on this stream\"";
    let told = shard.told();
    assert_eq!(told[..3], ["h7 id0 created", "h7 id1 created", refused]);
    assert_eq!(told[4..], ["h7 id1 canceled", "h7 id2 created", refused]);
}

#[test]
fn the_streams_of_a_connection_share_what_it_may_have() {
    let watches = WatchLimits { per_stream: None, per_connection: Some(2) };
    let mut shard = Shard::with(HubConfig { watches, ..HubConfig::default() }, 7);
    let (beside, elsewhere) = (shard.hub.open_stream(1), shard.hub.open_stream(1 << 32));
    let first = shard.stream;
    let refused = "h7 id-1 created canceled \"tarsier: too many watches on this connection\"";
    for (stream, told) in [
        (first, "h7 id0 created"),
        (beside, "h7 id0 created"),
        (first, refused),
        (elsewhere, "h7 id0 created"),
        (elsewhere, "h7 id1 created"),
        (elsewhere, refused),
    ] {
        shard.stream = stream;
        shard.create("a", 0);
        assert_eq!(shard.told(), [told]);
    }
    // A stream that ends makes room at once, before its watches are swept.
    shard.hub.close_stream(beside);
    shard.stream = first;
    shard.create("a", 0);
    shard.create("a", 0);
    assert_eq!(shard.told(), ["h7 id1 created", refused]);
    shard.hub.close_stream(first);
    shard.hub.close_stream(elsewhere);
    shard.run();
    assert_eq!((shard.hub.counters().watches, shard.hub.counters().streams), (0, 0));
}

#[test]
fn a_watch_for_which_there_is_no_memory_is_refused_and_its_stream_is_not_heard_until_the_shard_looks_again() {
    let mut shard = Shard::at(7);
    shard.create("a", 0);
    shard.hub.set_memory(0, 0, 4);
    shard.create("b", 0);
    let refused = "h7 id-1 created canceled \"tarsier: no memory for a further watch\"";
    assert_eq!(shard.told(), ["h7 id0 created", refused]);
    for _ in 0..3 {
        assert!(!shard.hub.can_take_requests(shard.stream), "or it would ask again as fast as it can");
        // What is held goes on: caches without room still let one message through at a time.
        shard.put(&["a"]);
        assert_eq!(shard.told().len(), 1);
    }
    while shard.hub.next_ready().is_some() {}
    shard.hub.keep_house();
    assert_eq!(shard.hub.next_ready().map(|(stream, _)| stream), Some(shard.stream));
    assert!(shard.hub.can_take_requests(shard.stream));
    shard.ask(Request::Cancel { watch_id: 0 });
    shard.hub.set_memory(1_000, 4, 4);
    shard.create("b", 0);
    // A key may be longer than there is room for.
    let long = KeyRange::One(vec![b'k'; 2_000].into());
    shard.ask(Request::Create(Create { range: long, ..create("", 0) }));
    let told = shard.told();
    assert_eq!((&told[0][4..], &told[1][4..], &told[2][4..]), ("id0 canceled", "id1 created", &refused[3..]));
}

#[test]
fn a_request_waits_until_the_hub_has_handled_what_it_was_asked_at() {
    let mut shard = Shard::at(7);
    shard.create("a", 0);
    shard.put(&["a"]);
    shard.create("a", 0);
    shard.ask(Request::Progress);
    assert_eq!(shard.told(), ["h7 id0 created", "h8 id0 a@8", "h8 id1 created", "h8 id-1"]);
}

#[test]
fn a_late_watch_is_told_at_most_a_thousand_revisions_in_a_message_all_with_the_current_one() {
    let config = HubConfig { history_bytes_max: 0, ..HubConfig::default() };
    let mut shard = Shard::with(config, 1);
    for _ in 0..1_001 {
        shard.put(&["a"]);
    }
    shard.run();
    shard.create("a", 2);
    let responses = shard.responses();
    let shape: Vec<_> = responses.iter().map(|one| (one.header.as_ref().unwrap().revision, one.events.len())).collect();
    assert_eq!(shape, [(1_002, 0), (1_002, 1_000), (1_002, 1)]);
}

#[test]
fn a_large_response_goes_in_fragments_where_they_were_asked_for() {
    let config = HubConfig { backlog_bytes_max: 64 << 20, ..HubConfig::default() };
    let mut shard = Shard::with(config, 1);
    shard.create("a", 0);
    shard.ask(Request::Create(Create { fragment: true, ..create("a", 0) }));
    let range = KeyRange::From(Bytes::from("a"));
    shard.ask(Request::Create(Create { fragment: true, range, ..create("", 0) }));
    shard.put_value(&["a", "b", "c", "d"], &vec![b'v'; 1 << 20]);
    let told = shard.told();
    assert_eq!(told[3..5], ["h2 id0 a@2", "h2 id1 a@2"], "one event is one message, however large");
    assert_eq!(told[5..], ["h2 id2 more a@2", "h2 id2 more b@2", "h2 id2 more c@2", "h2 id2 d@2"]);
}

#[test]
fn a_tick_tells_quiet_synced_watches_that_asked_for_it() {
    let mut shard = Shard::at(7);
    shard.create("a", 0);
    assert!(!shard.hub.progress_due(shard.stream));
    assert_eq!(shard.hub.next_progress_stream(), None);
    for start in [0, 20] {
        shard.ask(Request::Create(Create { progress_notify: true, ..create("a", start) }));
    }
    assert_eq!(shard.hub.next_progress_stream(), Some(shard.stream));
    assert_eq!(shard.hub.next_progress_stream(), None, "named once");
    shard.told();
    assert!(shard.hub.progress_due(shard.stream));
    assert_eq!(shard.told(), ["h7 id1"]);
    shard.put(&["a"]);
    shard.told();
    shard.hub.progress_due(shard.stream);
    assert_eq!(shard.told(), [""; 0], "an event since the last tick");
    shard.hub.progress_due(shard.stream);
    assert_eq!(shard.told(), ["h8 id1"]);
}

#[test]
fn a_slow_stream_holds_a_revision_and_nothing_else_and_delays_nobody() {
    let config = HubConfig { backlog_bytes_max: 1_000, ..HubConfig::default() };
    let mut shard = Shard::with(config, 1);
    shard.create("a", 0);
    let other = shard.hub.open_stream(1);
    shard.hub.request(other, shard.head(), Request::Create(create("a", 0)));
    let mut received = 0;
    for _ in 0..1_000 {
        shard.put(&["a"]);
        shard.run();
        while shard.hub.next_ready().is_some() {}
        while let Some(bytes) = shard.hub.take_output(other, 10_000) {
            received += bytes.len();
        }
        assert!(shard.hub.bytes().backlog < 200, "{}", shard.hub.bytes().backlog);
    }
    assert!(received > 20_000, "the other stream has everything");
    assert_eq!(shard.hub.counters().behind, 1);
    let mut events = Vec::new();
    loop {
        let responses = shard.responses();
        if responses.is_empty() {
            break;
        }
        let told = responses.into_iter().flat_map(|response| response.events);
        events.extend(told.map(|event| event.kv.unwrap().mod_revision));
    }
    assert_eq!(events, (2..=1_001).collect::<Vec<_>>());
    assert_eq!(shard.hub.counters().behind, 0);
}

#[test]
fn a_pass_ends_when_nobody_takes_part_any_more_and_the_late_need_not_wait_for_its_end() {
    let mut shard = Shard::at(30_000);
    shard.create("zzz", 2);
    shard.hub.turn(3_000);
    let (stuck, late) = (shard.stream, shard.hub.open_stream(1));
    shard.hub.request(late, shard.head(), Request::Create(create("zzz", 2)));
    shard.hub.turn(1);
    assert!(shard.hub.take_output(late, 1_000).is_some(), "the answer");
    let mut turns = 0;
    // Six responses fill a stream that nobody looks at.
    while shard.hub.counters().events_sent < 8 {
        shard.hub.turn(1_000);
        turns += 1;
        assert!(turns < 20, "{:?}", shard.hub.counters());
    }
    for stream in [late, stuck] {
        shard.stream = stream;
        let mut next = 2;
        loop {
            let responses = shard.responses();
            if responses.is_empty() {
                break;
            }
            for event in responses.into_iter().flat_map(|response| response.events) {
                assert_eq!(event.kv.unwrap().mod_revision, next);
                next += 1;
            }
        }
        assert_eq!(next, 30_001);
    }
}

#[test]
fn a_pass_goes_on_for_the_group_that_takes_part_when_the_last_of_another_has_left_it() {
    let mut shard = Shard::at(1);
    (0..20_000).for_each(|_| shard.put(&["a", "b"]));
    shard.run();
    shard.create("a", 2);
    let reads = shard.hub.open_stream(1);
    shard.hub.request(reads, shard.head(), Request::Create(create("b", 2)));
    loop {
        let more = shard.hub.turn(1_000);
        let taken = std::iter::from_fn(|| shard.hub.take_output(reads, 1 << 20)).count();
        if !more && taken == 0 {
            break;
        }
    }
    assert_eq!((shard.hub.catch_up.passes, shard.hub.counters().behind), (1, 1), "the stuck one alone is left");
}

/// Each stands still until its client has read, and they come to stand far apart.
#[test]
fn readers_of_a_long_history_cost_together_what_each_costs_alone() {
    let turns_of = |keys: &[&str]| {
        let mut shard = Shard::at(1);
        (0..20_000).for_each(|_| shard.put(&["a", "b", "c", "d"]));
        shard.run();
        let mut streams: Vec<StreamId> = keys.iter().map(|_| shard.hub.open_stream(1)).collect();
        for (stream, key) in streams.iter().zip(keys) {
            shard.hub.request(*stream, shard.head(), Request::Create(create(key, 2)));
        }
        let mut turns = 0;
        while shard.hub.counters().behind > 0 || turns == 0 {
            while shard.hub.turn(100) {
                turns += 1;
            }
            turns += 1;
            // One reads, and then the next one.
            streams.rotate_left(1);
            while shard.hub.take_output(streams[0], 1 << 20).is_some() {}
        }
        turns
    };
    let alone = turns_of(&["a"]);
    let together = turns_of(&["a", "b", "c", "d"]);
    assert!(together < 8 * alone, "{together} turns for four, {alone} for one");
}

#[test]
fn a_compaction_within_the_last_flush_of_a_pass_cancels_whoever_could_not_join() {
    let mut shard = Shard::at(7);
    shard.put(&["a"]);
    let streams: Vec<StreamId> = (0..1_000).map(|token| shard.hub.open_stream(token)).collect();
    for stream in &streams {
        shard.hub.request(*stream, shard.head(), Request::Create(create("a", 8)));
    }
    let flush = |hub: &Hub| hub.catch_up.flush.as_ref().map(|flush| (flush.visit, flush.left, flush.at, flush.group));
    while !flush(&shard.hub).is_some_and(|(visit, ..)| visit) {
        assert!(shard.hub.turn(1));
    }
    shard.put(&["b"]);
    shard.put(&["b"]);
    let (at, group) = loop {
        assert!(shard.hub.turn(1));
        if let Some((_, true, at, group)) = flush(&shard.hub) {
            break (at, group);
        }
    };
    shard.hub.handle_compaction(Revision(10));
    let members = shard.hub.catch_up.groups[&group].members[at..].iter();
    let gone: Vec<u32> = members.map(|behind| behind.member.stream).collect();
    assert!(gone.len() > 100);
    gone.into_iter().for_each(|stream| shard.hub.close_stream(StreamId(stream)));
    shard.run();
    let counters = shard.hub.counters();
    assert_eq!((counters.behind, counters.refused.compacted), (0, at as u64), "who needed revision 9 is told so");
}

#[test]
fn a_pass_that_everybody_has_left_is_over() {
    let mut shard = Shard::at(7);
    shard.create("zzz", 7);
    assert_eq!(shard.told(), ["h7 id0 created", "h7 id0 zzz@7"]);
    for _ in 0..1_000 {
        shard.put(&["zzz"]);
        shard.run();
    }
    let passes = shard.hub.catch_up.passes;
    shard.create("b", 1_007);
    let mut turns = 0;
    while shard.hub.turn(1) {
        turns += 1;
    }
    assert_eq!(shard.hub.catch_up.passes, passes + 1);
    assert!(turns < 10, "{turns} turns for one revision");
}

#[test]
fn a_stream_that_takes_no_answers_is_not_heard_until_it_has_taken_half_of_them() {
    let config = HubConfig { backlog_bytes_max: 1_000, ..HubConfig::default() };
    let mut shard = Shard::with(config, 1);
    let mut asked = 0;
    while shard.hub.can_take_requests(shard.stream) {
        shard.create("a", 0);
        shard.run();
        asked += 1;
    }
    while shard.hub.next_ready().is_some() {}
    let backlog = shard.hub.bytes().backlog;
    assert!((1_000..1_100).contains(&backlog), "{backlog} bytes of {asked} answers");
    shard.hub.take_output(shard.stream, backlog - 501);
    assert!(shard.hub.next_ready().is_none() && !shard.hub.is_due());
    shard.hub.take_output(shard.stream, 1);
    assert!(shard.hub.is_due(), "else nobody would ask who is to be heard again");
    assert_eq!(shard.hub.next_ready().map(|(stream, _)| stream), Some(shard.stream));
    assert!(shard.hub.can_take_requests(shard.stream));
}

/// What the counted bytes say of each of many watches, streams aside.
fn bytes_a_watch(watches: usize, streams: usize, key: impl Fn(usize) -> String) -> f64 {
    let mut hub = Hub::new(HubConfig::default(), Revision::FIRST);
    let streams: Vec<StreamId> = (0..streams).map(|token| hub.open_stream(token as u64)).collect();
    for number in 0..watches {
        let stream = streams[number % streams.len()];
        hub.request(stream, Revision::FIRST, Request::Create(create(&key(number), 0)));
        if number % 64 == 0 {
            while hub.take_output(stream, 1 << 20).is_some() {}
        }
    }
    let bytes = hub.bytes();
    assert_eq!(hub.counters().watches, watches as u64);
    (bytes.watchings + bytes.groups) as f64 / watches as f64
}

#[test]
fn a_watching_takes_16_bytes_and_112_with_a_key_of_its_own() {
    for watches in [60_000, 100_000, 130_000, 400_000] {
        let pooled = bytes_a_watch(watches, 1_000, |number| format!("{:032}", number * 7_919 % 1_000));
        assert!(pooled <= 16.5, "{pooled} bytes for each of {watches}, groups included");
        let own = bytes_a_watch(watches, 1_000, |number| format!("{number:032}"));
        assert!(own <= 112.5, "{own} bytes for each of {watches}");
    }
}

#[test]
fn a_revision_of_many_changes_is_told_in_bounded_turns_and_takes_little_for_many_ranges() {
    let mut shard = Shard::at(1);
    for number in 0..100 {
        let range = KeyRange::Span { start: Bytes::from(format!("k{number:04}")), end: Bytes::from("l") };
        shard.ask(Request::Create(Create::plain(range)));
    }
    shard.create("k1999", 0);
    shard.told();
    let keys: Vec<String> = (0..2_000).map(|number| format!("k{number:04}")).collect();
    let mut put: Vec<&str> = keys.iter().map(String::as_str).collect();
    // It concerns nobody, and what concerns the spans goes on behind it; the last one is the single key again.
    put.insert(1_000, "a");
    put.push("k1999");
    shard.put(&put);
    let (mut turns, mut most) = (0, 0);
    while shard.hub.counters().events_sent == 0 {
        assert!(shard.hub.turn(1));
        turns += 1;
        most = most.max(shard.hub.bytes().backlog);
    }
    // Each change is held against the groups, and each event of the first one encoded.
    assert!(turns > 4_000, "{turns} turns");
    assert!(most < 150_000, "{most} bytes before anybody is told, which is 200,000 times a change and a range");
    put.remove(1_000);
    for (number, response) in shard.responses().iter().enumerate() {
        let told: Vec<&[u8]> = response.events.iter().map(|event| &event.kv.as_ref().unwrap().key[..]).collect();
        let expected: Vec<&[u8]> = match response.watch_id {
            100 => vec![b"k1999"; 2],
            first => put[first as usize..].iter().map(|key| key.as_bytes()).collect(),
        };
        assert!(told == expected, "response {number}, of watch {}", response.watch_id);
    }
}

#[test]
fn a_chosen_id_takes_39_to_78_bytes_more_and_goes_with_its_stream() {
    let bytes = |watches: i64, first_id: i64| {
        let mut shard = Shard::at(1);
        for number in 0..watches {
            let watch_id = if first_id == 0 { 0 } else { first_id + number };
            shard.ask(Request::Create(Create { watch_id, ..create("a", 0) }));
            while shard.hub.take_output(shard.stream, 1 << 20).is_some() {}
        }
        let bytes = shard.hub.bytes().watchings;
        shard.hub.close_stream(shard.stream);
        while shard.hub.turn(1_000) {}
        assert_eq!(shard.hub.bytes().watchings, 0);
        bytes as f64 / watches as f64
    };
    // What a table of 32,768 places holds before it doubles, and one more.
    for (watches, least, most) in [(28_672, 38.0, 39.5), (28_673, 77.0, 78.5)] {
        let more = bytes(watches, 1_000_000) - bytes(watches, 0);
        assert!((least..most).contains(&more), "{more} bytes more for each of {watches}");
    }
}

#[test]
fn what_late_watchers_have_to_send_is_counted_and_bounded() {
    let mut shard = Shard::at(1);
    for _ in 0..400 {
        shard.put_value(&["a"], &[b'v'; 1_000]);
    }
    shard.run();
    for token in 0..50 {
        let stream = shard.hub.open_stream(token);
        shard.hub.request(stream, shard.head(), Request::Create(create("a", 2)));
        shard.run();
    }
    // Two responses each, as long as no connection has looked.
    let backlog = shard.hub.bytes().backlog;
    assert!((50 * 130_000..50 * 135_000).contains(&backlog), "{backlog} bytes for 50 streams");
}

#[test]
fn a_life_of_creates_and_cancels_takes_no_more_room() {
    let mut shard = Shard::at(1);
    let mut high = 0;
    for round in 0..60_000i64 {
        shard.create(&format!("{}", round % 100), 0);
        if round >= 200 {
            shard.ask(Request::Cancel { watch_id: round - 200 });
        }
        if round % 100 == 0 {
            shard.run();
            while shard.hub.take_output(shard.stream, 1 << 20).is_some() {}
        }
        let bytes = shard.hub.bytes();
        let held = bytes.watchings + bytes.groups + bytes.apart;
        if round < 2_000 {
            high = high.max(held);
        }
        assert!(held <= high, "{held} bytes after {round}, {high} before");
    }
}

#[test]
fn a_mass_exit_goes_in_bounded_turns_and_leaves_nothing() {
    let mut hub = Hub::new(HubConfig::default(), Revision::FIRST);
    let streams: Vec<StreamId> = (0..100).map(|token| hub.open_stream(token)).collect();
    for _ in 0..1_000 {
        for stream in &streams {
            hub.request(*stream, Revision::FIRST, Request::Create(create("a", 0)));
            while hub.take_output(*stream, 1 << 20).is_some() {}
        }
    }
    for stream in streams {
        hub.close_stream(stream);
    }
    let mut turns = 0;
    while hub.turn(1_000) {
        turns += 1;
    }
    assert!((100..1_000).contains(&turns), "{turns} turns");
    let bytes = hub.bytes();
    assert_eq!((bytes.streams, bytes.watchings, bytes.apart, bytes.backlog), (0, 0, 0, 0));
    assert_eq!(hub.counters().groups, 0);
}

/// Members looked at to cancel `canceled` of the watches of one group, spread over it.
fn looks_at_cancel(members: usize, canceled: usize) -> u64 {
    let mut shard = Shard::at(1);
    for _ in 0..members {
        shard.create("a", 0);
        while shard.hub.take_output(shard.stream, 1 << 20).is_some() {}
    }
    looks::take();
    for number in 0..canceled {
        shard.ask(Request::Cancel { watch_id: (number * (members / canceled)) as i64 });
        shard.run();
        while shard.hub.take_output(shard.stream, 1 << 20).is_some() {}
    }
    assert_eq!(shard.hub.counters().watches as usize, members - canceled);
    looks::take()
}

#[test]
fn a_cancel_looks_at_no_more_members_in_a_group_of_a_million_than_in_a_small_one() {
    let cases = [(64, 64), (1_000, 1_000), (1_000_000, 1_000), (1_000_000, 125_000), (300_000, 300_000)];
    for (members, canceled) in cases {
        let looks = looks_at_cancel(members, canceled);
        assert!(looks <= 20 * canceled as u64, "{looks} looks for {canceled} of {members}");
    }
}

#[test]
fn a_compaction_of_everything_leaves_no_history_in_the_hub_and_a_watch_may_still_start_there() {
    let mut shard = Shard::at(5);
    assert!(shard.hub.bytes().history > 0);
    shard.hub.handle_compaction(Revision(5));
    shard.run();
    assert_eq!(shard.hub.bytes().history, 0);
    shard.create("zzz", 5);
    assert_eq!(shard.told(), ["h5 id0 created", "h5 id0 zzz@5"]);
}
