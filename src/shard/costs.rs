//! Holds the table of [`super::accounting`] true: what the core allocates for each thing, counted by an allocator that the
//! tests run on, against what the account says of it.
//!
//! Each thread counts for itself, so tests run beside each other.

#![allow(unsafe_code)]

mod allocations;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use bytes::Bytes;

use crate::heap;
use crate::store::Store;
use crate::store::command::{Put, PutLease, PutValue, Write};
use crate::types::{KeyRange, LeaseId, Revision, Time};
use crate::watch::hub::{Create, Hub, HubConfig, Request, StreamId};

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
    static PARTS: [Cell<u32>; heap::PARTS.len()] = const { [const { Cell::new(0) }; heap::PARTS.len()] };
}

/// What the server's allocator takes for an allocation: multiples of 16 bytes up to 128, then four sizes a doubling.
fn size_class(bytes: usize) -> usize {
    match bytes {
        0..=8 => 8,
        9..=128 => bytes.next_multiple_of(16),
        _ => bytes.next_multiple_of(bytes.next_power_of_two() / 8),
    }
}

struct Counting;

fn count(bytes: usize, sign: isize) {
    // A thread that ends has nothing to tell any more.
    let _ = HELD.try_with(|held| held.set(held.get() + sign * size_class(bytes) as isize));
    if sign > 0 {
        let _ = ALLOCATIONS.try_with(|allocations| allocations.set(allocations.get() + 1));
    }
}

// SAFETY: every call goes to the system's allocator as it came; the count beside it allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 1);
        if let Some(part) = heap::part_of(layout) {
            PARTS.with(|parts| parts[part].update(|count| count + 1));
        }
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        count(layout.size(), -1);
        // SAFETY: the memory is the system allocator's, since all of it comes from there.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(layout.size(), -1);
        count(size, 1);
        // SAFETY: as above.
        unsafe { System.realloc(memory, layout, size) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// What this thread holds, in size classes of the server's allocator.
pub fn held() -> isize {
    HELD.get()
}

/// How often this thread has allocated what the server's allocator keeps in the place of a connection.
pub fn parts_taken() -> [u32; heap::PARTS.len()] {
    PARTS.with(|parts| parts.each_ref().map(Cell::get))
}

/// How often this thread has allocated or grown something.
pub fn allocations() -> u64 {
    ALLOCATIONS.get()
}

/// The hub with its streams open and their watches answered; `key` names the range of a watch by stream and number.
fn hub(streams: usize, watches: usize, range: impl Fn(usize, usize) -> KeyRange) -> Hub {
    let mut hub = Hub::new(HubConfig::default(), Revision::FIRST);
    let streams: Vec<StreamId> = (0..streams).map(|stream| hub.open_stream(stream as u64)).collect();
    for watch in 0..watches {
        for (at, stream) in streams.iter().enumerate() {
            let range = range(at, watch);
            hub.request(*stream, Revision::FIRST, Request::Create(Create::plain(range)));
            while hub.take_output(*stream, usize::MAX).is_some() {}
        }
    }
    while hub.next_ready().is_some() {}
    hub
}

fn key(number: usize) -> Bytes {
    Bytes::from(format!("{number:032}"))
}

fn own_key(stream: usize, watch: usize) -> KeyRange {
    KeyRange::One(key(stream * 1_000 + watch))
}

/// What a hub holds as counted, and as it says itself.
fn costs(streams: usize, watches: usize, range: impl Fn(usize, usize) -> KeyRange) -> (f64, f64) {
    let before = held();
    let hub = hub(streams, watches, range);
    let counted = held() - before;
    assert_eq!(hub.counters().watches as usize, streams * watches);
    let bytes = hub.bytes();
    let said = bytes.streams + bytes.watchings + bytes.groups + bytes.apart + bytes.backlog;
    (counted as f64, said as f64)
}

fn check_near(what: &str, found: f64, expected: f64) {
    assert!((found / expected - 1.0).abs() < 0.10, "{what}: {found:.1} bytes instead of {expected:.1}");
}

#[test]
fn the_account_of_the_hub_lies_within_a_tenth_of_what_is_allocated() {
    let shared = |stream: usize, watch: usize| KeyRange::One(key((stream * 7 + watch * 13) % 400));
    let spans = |stream: usize, watch: usize| KeyRange::Span { start: key(stream * 50 + watch), end: key(999_999) };
    for (what, (counted, said)) in [
        ("idle streams", costs(20_000, 0, own_key)),
        ("one watch each", costs(20_000, 1, own_key)),
        ("many on keys of their own", costs(400, 100, own_key)),
        ("groups of 50", costs(200, 100, shared)),
        ("spans", costs(400, 50, spans)),
    ] {
        // What every hub has whatever it holds, 256 empty tables mostly, belongs to the base.
        check_near(what, said, counted - 30_000.0);
    }
}

#[test]
fn streams_watchings_groups_and_spans_cost_what_the_table_says() {
    let each = |(more, _): (f64, f64), (less, _): (f64, f64), things: usize| (more - less) / things as f64;
    let idle = costs(20_480, 0, own_key);
    check_near("a watch stream", each(idle, costs(0, 0, own_key), 20_480), 80.0);
    let one = costs(20_480, 1, own_key);
    check_near("its first watch, on a key of its own", each(one, idle, 20_480), 112.0);
    let many = costs(512, 100, own_key);
    check_near("one of a hundred on keys of their own", each(many, costs(512, 0, own_key), 51_200), 101.0);
    let (few, fifty) = (|_, watch| KeyRange::One(key(watch)), costs(50, 1_000, |_, watch| KeyRange::One(key(watch))));
    check_near("one in a group of fifty", each(fifty, costs(50, 0, few), 50_000), 16.4);
    let spans = |stream: usize, watch: usize| KeyRange::From(key(stream * 1_000 + watch));
    check_near("a span more than a key", each(costs(512, 100, spans), many, 51_200), 24.0);
    let own_span = |stream: usize, watch: usize| KeyRange::Span {
        start: key(stream * 1_000 + watch),
        end: key(stream * 1_000 + watch + 1),
    };
    let idle = costs(512, 0, own_key);
    check_near("one of a hundred on spans of their own", each(costs(512, 100, own_span), idle, 51_200), 173.0);
    let one_key = |_, _| KeyRange::One(key(7));
    check_near("one of a hundred, all on one key", each(costs(512, 100, one_key), idle, 51_200), 14.2);
}

#[test]
fn the_account_of_the_store_lies_within_a_quarter_of_what_is_allocated() {
    for (value_bytes, versions) in [(100, 1), (1_000, 1), (100, 5)] {
        let before = held();
        let mut store = Store::new();
        for version in 0..versions {
            for number in 0..5_000 {
                let value = PutValue::Set(Bytes::from(vec![version; value_bytes]));
                let put = Put { key: key(number), value, lease: PutLease::Set(LeaseId::NONE), prev_kv: false };
                let applied = store.apply(&Write::Put(put), Time(1));
                assert!(applied.answer.is_ok());
            }
        }
        let (counted, said) = ((held() - before) as f64, store.bytes().total() as f64);
        assert!((said / counted - 1.0).abs() < 0.25, "{versions} x {value_bytes}: {said} said, {counted} counted");
    }
}
