//! Tests: what comes between two pieces of the hub's background work.

use std::sync::Arc;

use super::hub::{Create, Hub, HubConfig, Request, StreamId};
use crate::types::{Batch, Change, KeyRange, KeyValue, LeaseId, Revision, Time};

/// A hub that has told so many revisions of a key.
fn hub_after(revisions: i64, config: HubConfig) -> Hub {
    let mut hub = Hub::new(config, Revision(1));
    for _ in 0..revisions {
        put(&mut hub, b"m", 1);
    }
    hub
}

fn put(hub: &mut Hub, key: &[u8], bytes: usize) {
    let revision = hub.revision().next();
    let kv = KeyValue::new(key, &vec![b'v'; bytes], revision, revision, 0, 1, LeaseId::NONE);
    let changes = Box::new([Change::Put { kv, previous: None }]);
    hub.handle_batch(Arc::new(Batch { revision, time: Time(0), changes }));
    while hub.revision() < revision {
        hub.turn(100);
    }
}

fn create(hub: &mut Hub, stream: StreamId, range: KeyRange, start: i64) {
    hub.request(stream, hub.revision(), Request::Create(Create { start, ..Create::plain(range) }));
}

fn take_all(hub: &mut Hub, stream: StreamId) {
    while hub.take_output(stream, 1 << 20).is_some() {}
}

fn span(number: usize) -> KeyRange {
    KeyRange::Span { start: format!("a{number:05}").into(), end: "z".into() }
}

/// A pass stands amid its search over more spans than it asks one by one, and holds the last of them.
fn hub_amid_a_stab() -> (Hub, StreamId) {
    let mut hub = hub_after(200, HubConfig::default());
    let stream = hub.open_stream(0);
    (0..17).for_each(|number| create(&mut hub, stream, span(number), 2));
    loop {
        assert!(hub.turn(1));
        let last = hub.catch_up.groups.keys().next_back().copied();
        if last.is_some() && hub.catch_up.pass.as_ref().is_some_and(|pass| pass.stabbed == last) {
            return (hub, stream);
        }
    }
}

#[test]
fn a_compaction_and_a_close_amid_a_stab_let_go_of_the_span_that_is_held_once() {
    let (mut hub, stream) = hub_amid_a_stab();
    hub.close_stream(stream);
    hub.handle_compaction(Revision(150));
    while hub.turn(1) {}
    assert_eq!((hub.counters().behind, hub.counters().groups), (0, 0));
}

#[test]
fn a_compaction_and_cancels_amid_a_stab_let_go_of_the_span_that_is_held_once() {
    let (mut hub, stream) = hub_amid_a_stab();
    for watch_id in 0..17 {
        hub.request(stream, hub.revision(), Request::Cancel { watch_id });
    }
    hub.handle_compaction(Revision(150));
    while hub.turn(1) {}
    assert_eq!((hub.counters().behind, hub.counters().groups), (0, 0));
}

#[test]
fn late_watchers_to_whom_nothing_is_due_are_visited_once_however_much_is_written() {
    const WATCHES: usize = 20_000;
    let mut hub = hub_after(10, HubConfig::default());
    let stream = hub.open_stream(0);
    for _ in 0..WATCHES {
        create(&mut hub, stream, KeyRange::One("w".into()), 5);
        take_all(&mut hub, stream);
    }
    let mut turns = 0;
    while hub.counters().behind > 0 {
        hub.turn(10);
        turns += 1;
        if turns % 100 == 0 {
            let revision = hub.revision().next();
            let kv = KeyValue::new(b"m", b"v", revision, revision, 0, 1, LeaseId::NONE);
            let changes = Box::new([Change::Put { kv, previous: None }]);
            hub.handle_batch(Arc::new(Batch { revision, time: Time(0), changes }));
        }
        assert!(turns < 2 * WATCHES / 10, "{} are still behind", hub.counters().behind);
    }
}

#[test]
fn one_pass_serves_all_late_groups_whose_events_fit() {
    let mut hub = hub_after(0, HubConfig::default());
    (0..50).for_each(|_| put(&mut hub, b"m", 1_000));
    let streams: Vec<StreamId> = (0..1_000).map(|number| hub.open_stream(number)).collect();
    for (number, stream) in streams.iter().enumerate() {
        create(&mut hub, *stream, span(number), 2);
    }
    while hub.counters().behind > 0 {
        while hub.turn(100) {}
        while let Some((stream, _)) = hub.next_ready() {
            take_all(&mut hub, stream);
        }
    }
    assert_eq!(hub.catch_up.passes, 1);
}

#[test]
fn a_cancel_amid_a_sweep_leaves_no_dead_member() {
    let mut hub = Hub::new(HubConfig::default(), Revision(1));
    let streams: Vec<StreamId> = (0..72).map(|number| hub.open_stream(number)).collect();
    for stream in &streams {
        create(&mut hub, *stream, KeyRange::One("k".into()), 0);
        take_all(&mut hub, *stream);
    }
    let cancel = |hub: &mut Hub, number: usize| {
        hub.request(streams[number], Revision(1), Request::Cancel { watch_id: 0 });
    };
    let dead: Vec<usize> = (10..18).chain([63]).collect();
    dead.iter().for_each(|number| cancel(&mut hub, *number));
    let group = *hub.sweeps.front().expect("a sweep is due");
    while hub.groups.get(group).unwrap().members().len() > 64 {
        assert!(hub.turn(1));
    }
    // One that the sweep has passed: the last one, which is dead, takes its place.
    cancel(&mut hub, 0);
    while hub.turn(1) {}
    (1..72).filter(|number| !dead.contains(number)).for_each(|number| cancel(&mut hub, number));
    streams.iter().for_each(|stream| hub.close_stream(*stream));
    while hub.turn(1_000) {}
    assert_eq!((hub.counters().groups, hub.bytes().streams), (0, 0));
}
