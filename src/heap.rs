//! The allocator: mimalloc, but for six things that h2 keeps for each connection.
//!
//! The largest piece of an idle connection was a page with next to nothing in it. h2 decodes the strings of header blocks into a
//! buffer of 4 KiB (`hpack::Decoder`), and all that an idle client has ever sent of them, with the table that outlives the
//! request (RFC 7541, section 2.3.2), fills some hundred bytes at its beginning. An allocator for all purposes gives that
//! beginning a page of its own. Here it shares the page with what else h2 allocates once for each connection, whatever the
//! number of its streams:
//!
//! ```text
//! 0         1,248    2,240    2,864      3,456      3,744         4,096                              8,192
//! | frames  | events | state  | table of | table of | strings of headers : their rest: untouched as long as |
//! | to send |        | of all | what we  | what the | that were decoded  : the client says little, so no    |
//! |         |        | streams| have sent| peer has |                    : memory                           |
//! ```
//!
//! Such a *place* takes two pages of addresses and one of memory. Measured over 2,000 connections, one with a silent stream fell from
//! 13.7 to 10.4 kB, one with ten from 21.2 to 18.0 kB. Where a client says more, both pages are in use: one with fifty
//! streams, whose paths it spells out for each, rose from 47.7 to 48.7 kB. Clients that keep paths in their table (Go's) stay
//! on the first page. A busy client's next buffer for strings is mimalloc's; after 600 calls on each of 2,000 connections they
//! took 0.9 kB more than without places, of 31.
//!
//! Which allocations are meant is told by their sizes, and only while h2 itself is at work ([`within_h2`]): its version is pinned, and a
//! test looks that each connection fills its place. One that another version sized otherwise would go to mimalloc and cost what
//! it did before. A place belongs to the thread that made it and needs no lock; when its last part is freed, its memory goes
//! back to the system at once.

#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout};
use std::cell::Cell;
use std::ptr::null_mut;
use std::sync::Once;
use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering};

use mimalloc::MiMalloc;
use rustix::mm::{Advice, MapFlags, ProtFlags};
use rustix::process::Resource;

/// One of the things that lie in a place.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part {
    start: usize,
    pub bytes: usize,
    pub align: usize,
}

/// As h2 0.4.20 sizes them on a machine of 64 bits: four frames to send, four events for streams, what its streams share, the
/// tables of the two header codecs at their first size, and the buffer of the decoder.
pub(crate) const PARTS: [Part; 6] = [
    Part { start: 0, bytes: 1_248, align: 8 },
    Part { start: 1_248, bytes: 992, align: 8 },
    Part { start: 2_240, bytes: 624, align: 8 },
    Part { start: 2_864, bytes: 592, align: 8 },
    Part { start: 3_456, bytes: 288, align: 8 },
    Part { start: 3_744, bytes: 4_096, align: 1 },
];
/// That of them which opens a place, since it is the first that a connection allocates, and whose rest lies on the second page.
const STRINGS: usize = 5;
const PLACE_BYTES: usize = 8_192;
const PAGE_BYTES: usize = 4_096;
/// 2 GiB of addresses. Whoever has more connections pays for them what they cost without this.
const PLACES: usize = 1 << 18;
const NONE: u32 = u32::MAX;

/// What is known of a place. It lies apart from it, so that one whose memory has gone back can be remembered.
struct Note {
    /// The number of its thread; 0 until it has one. Written once, before the place is handed out.
    owner: Cell<u32>,
    /// A bit for each part that is allocated.
    used: Cell<u32>,
    /// For each part that is free, its neighbours in the thread's list of those. In an empty place, the first `next` is that of the
    /// list of empty ones.
    next: [Cell<u32>; PARTS.len()],
    previous: [Cell<u32>; PARTS.len()],
}

/// The places, and behind them their notes; null until somebody needs one.
static REGION: AtomicPtr<u8> = AtomicPtr::new(null_mut());
static RESERVED: Once = Once::new();
/// Places that were ever handed to a thread.
static HANDED_OUT: AtomicU32 = AtomicU32::new(0);
static THREADS: AtomicU32 = AtomicU32::new(1);

thread_local! {
    static WORK: Cell<Work> = const { Cell::new(Work::None) };
    static THREAD: Cell<u32> = const { Cell::new(0) };
    /// By part, the first place in which it is free.
    static FREE: [Cell<u32>; PARTS.len()] = const { [const { Cell::new(NONE) }; PARTS.len()] };
    /// The first place of which nothing is in use.
    static EMPTY: Cell<u32> = const { Cell::new(NONE) };
}

/// What h2 is doing.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Work {
    /// Nothing: others run.
    None,
    /// It makes a connection.
    Making,
    /// Something for a connection that is there.
    Serving,
}

/// Runs something of h2's, so that what it allocates for a connection is known for what it is.
pub fn within_h2<T>(work: impl FnOnce() -> T) -> T {
    within(Work::Serving, work)
}

/// The same where h2 makes a connection: it gets a place. Only then is a buffer for strings the first of its connection.
/// Those that follow it are for the many words of a busy client, who fills them, so that they share a page with nothing.
pub fn within_h2_anew<T>(work: impl FnOnce() -> T) -> T {
    within(Work::Making, work)
}

fn within<T>(kind: Work, work: impl FnOnce() -> T) -> T {
    struct Leave;
    impl Drop for Leave {
        fn drop(&mut self) {
            WORK.set(Work::None);
        }
    }
    WORK.set(kind);
    let _leave = Leave;
    work()
}

/// Which part an allocation is.
pub(crate) fn part_of(layout: Layout) -> Option<usize> {
    let is_it = |part: &Part| part.bytes == layout.size() && part.align == layout.align();
    let part = PARTS.iter().position(is_it)?;
    let is_known = match WORK.get() {
        Work::None => false,
        Work::Making => true,
        Work::Serving => part != STRINGS,
    };
    is_known.then_some(part)
}

/// The program's allocator.
pub struct Heap;

// SAFETY: what is not in the region is mimalloc's, and goes to it as it came. What is in the region is a part of a place, as
// large and as aligned as was asked for, and nobody else's until it is freed: the bit of a part is set while it is in use.
unsafe impl GlobalAlloc for Heap {
    // Not inlined, any of them: a copy at each place that drops something made the program 0.7 MB larger, all of it resident.
    #[inline(never)]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if WORK.get() != Work::None
            && let Some(memory) = take(layout)
        {
            return memory;
        }
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { MiMalloc.alloc(layout) }
    }

    #[inline(never)]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        unsafe { MiMalloc.alloc_zeroed(layout) }
    }

    #[inline(never)]
    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        if is_in_region(memory) {
            return give_back(memory);
        }
        // SAFETY: it is none of ours, so mimalloc gave it.
        unsafe { MiMalloc.dealloc(memory, layout) }
    }

    #[inline(never)]
    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        if is_in_region(memory) {
            // SAFETY: the caller keeps the contract of `realloc`.
            return unsafe { move_out(memory, layout, bytes) };
        }
        // SAFETY: as above.
        unsafe { MiMalloc.realloc(memory, layout, bytes) }
    }
}

fn is_in_region(memory: *mut u8) -> bool {
    // Whoever has a pointer into the region got it from a thread that had seen the region.
    let region = REGION.load(Ordering::Relaxed);
    memory.addr().wrapping_sub(region.addr()) < PLACES * PLACE_BYTES && !region.is_null()
}

/// A part that becomes larger, or smaller, is none any more.
///
/// # Safety
/// `memory` is a part that was allocated with this layout; the rest is the contract of `GlobalAlloc::realloc`.
#[cold]
#[inline(never)]
unsafe fn move_out(memory: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
    // SAFETY: the caller has checked that `bytes`, rounded up to the alignment, is no more than `isize::MAX`, and it is not 0.
    let moved = unsafe { MiMalloc.alloc(Layout::from_size_align_unchecked(bytes, layout.align())) };
    if !moved.is_null() {
        // SAFETY: both are at least as long as what is copied, and different allocations.
        unsafe { moved.copy_from_nonoverlapping(memory, layout.size().min(bytes)) };
        give_back(memory);
    }
    moved
}

/// The region, reserved at the first call; null where that is refused.
fn region() -> *mut u8 {
    RESERVED.call_once(|| {
        // Addresses that are counted are not for us to spend.
        if rustix::process::getrlimit(Resource::As).current.is_some() {
            return;
        }
        let bytes = PLACES * (PLACE_BYTES + size_of::<Note>());
        let (access, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE | MapFlags::NORESERVE);
        // SAFETY: the kernel chooses where, so nothing that exists is mapped over.
        if let Ok(region) = unsafe { rustix::mm::mmap_anonymous(null_mut(), bytes, access, flags) } {
            REGION.store(region.cast(), Ordering::Release);
        }
    });
    REGION.load(Ordering::Acquire)
}

/// The place in which an address lies, and the part that begins there.
fn part_at(memory: *mut u8) -> (u32, usize) {
    let offset = memory.addr() - REGION.load(Ordering::Relaxed).addr();
    let part = PARTS.iter().position(|part| part.start == offset % PLACE_BYTES);
    ((offset / PLACE_BYTES) as u32, part.expect("only whole parts are handed out"))
}

fn memory_of(place: u32) -> *mut u8 {
    // SAFETY: places are handed out below `PLACES`, so this lies within the mapping.
    unsafe { REGION.load(Ordering::Relaxed).add(place as usize * PLACE_BYTES) }
}

fn note_of(place: u32) -> &'static Note {
    // SAFETY: the notes begin behind the places, aligned since those are whole pages; zeros are a valid note. The mapping is
    // never taken back. Other threads than the owner read `owner` alone, which does not change any more.
    unsafe {
        let notes = REGION.load(Ordering::Relaxed).add(PLACES * PLACE_BYTES).cast::<Note>();
        &*notes.add(place as usize)
    }
}

fn this_thread() -> u32 {
    if THREAD.get() == 0 {
        THREAD.set(THREADS.fetch_add(1, Ordering::Relaxed));
    }
    THREAD.get()
}

/// Allocates a part, in a place that has others in use if there is one. Nothing for a part other than strings that is free nowhere: its
/// connection has had its own, and a place for one of them alone would take more than it.
#[cold]
#[inline(never)]
fn take(layout: Layout) -> Option<*mut u8> {
    let part = part_of(layout)?;
    let free = FREE.with(|free| free[part].get());
    let place = match free {
        NONE if part == STRINGS => open_place()?,
        NONE => return None,
        free => free,
    };
    unlink(place, part);
    let note = note_of(place);
    note.used.set(note.used.get() | 1 << part);
    // SAFETY: the part lies within its place.
    Some(unsafe { memory_of(place).add(PARTS[part].start) })
}

/// An empty place with all its parts in the lists.
fn open_place() -> Option<u32> {
    let mut place = EMPTY.get();
    if place == NONE {
        if region().is_null() || HANDED_OUT.load(Ordering::Relaxed) as usize >= PLACES {
            return None;
        }
        place = HANDED_OUT.fetch_add(1, Ordering::Relaxed);
        if place as usize >= PLACES {
            return None;
        }
        note_of(place).owner.set(this_thread());
    } else {
        EMPTY.set(note_of(place).next[0].get());
    }
    (0..PARTS.len()).for_each(|part| link(place, part));
    Some(place)
}

#[cold]
#[inline(never)]
fn give_back(memory: *mut u8) {
    let (place, part) = part_at(memory);
    let note = note_of(place);
    if note.owner.get() != this_thread() {
        // A connection lives and dies on its thread. One that did not would leave its place unused, which harms nobody.
        return;
    }
    note.used.set(note.used.get() & !(1 << part));
    link(place, part);
    if note.used.get() == 0 {
        (0..PARTS.len()).for_each(|part| unlink(place, part));
        give_pages_back(place, 0);
        note.next[0].set(EMPTY.replace(place));
    } else if part == STRINGS {
        give_pages_back(place, PAGE_BYTES);
    }
}

/// The pages of a place from an offset on, in which nothing is in use.
fn give_pages_back(place: u32, from: usize) {
    // SAFETY: this lies within the place. A refusal (locked memory) leaves it resident.
    let _ =
        unsafe { rustix::mm::madvise(memory_of(place).add(from).cast(), PLACE_BYTES - from, Advice::LinuxDontNeed) };
}

fn link(place: u32, part: usize) {
    let first = FREE.with(|free| free[part].replace(place));
    let note = note_of(place);
    note.next[part].set(first);
    note.previous[part].set(NONE);
    if first != NONE {
        note_of(first).previous[part].set(place);
    }
}

fn unlink(place: u32, part: usize) {
    let note = note_of(place);
    let (next, previous) = (note.next[part].get(), note.previous[part].get());
    if next != NONE {
        note_of(next).previous[part].set(previous);
    }
    match previous {
        NONE => FREE.with(|free| free[part].set(next)),
        previous => note_of(previous).next[part].set(next),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    fn layout(part: usize) -> Layout {
        Layout::from_size_align(PARTS[part].bytes, PARTS[part].align).unwrap()
    }

    /// Bytes that are all the same, in memory that is freed when it is dropped.
    struct Filled(*mut u8, Layout, u8);

    impl Filled {
        fn new(layout: Layout, byte: u8) -> Filled {
            // SAFETY: of a size that is not 0.
            let memory = within_h2_anew(|| unsafe { Heap.alloc(layout) });
            assert!(!memory.is_null() && memory.addr().is_multiple_of(layout.align()));
            // SAFETY: it is as long as that.
            unsafe { memory.write_bytes(byte, layout.size()) };
            Filled(memory, layout, byte)
        }

        fn check(&self) {
            // SAFETY: it was filled.
            let bytes = unsafe { std::slice::from_raw_parts(self.0, self.1.size()) };
            assert!(bytes.iter().all(|&byte| byte == self.2), "somebody else has written here");
        }
    }

    impl Drop for Filled {
        fn drop(&mut self) {
            // SAFETY: it came from there, with this layout.
            unsafe { Heap.dealloc(self.0, self.1) };
        }
    }

    fn places_of_this_thread() -> usize {
        (0..HANDED_OUT.load(Ordering::Relaxed)).filter(|&place| note_of(place).owner.get() == this_thread()).count()
    }

    #[test]
    fn parts_lie_beside_each_other_and_leave_room_for_strings_on_the_first_page() {
        for (part, next) in PARTS.iter().zip(&PARTS[1..]) {
            assert_eq!(part.start + part.bytes, next.start);
        }
        // Ten calls of `/etcdserverpb.Watch/Watch`, and what a client says once.
        let strings = PARTS.last().unwrap();
        assert!(4_096 - strings.start >= 10 * 25 + 90 && strings.start + strings.bytes <= PLACE_BYTES);
    }

    #[test]
    fn connections_that_come_and_go_share_nothing_and_leave_nothing() {
        let seed = 7;
        println!("seed {seed}");
        let mut random = Random::new(seed);
        let mut held: Vec<Filled> = Vec::new();
        let mut in_places = [0; PARTS.len()];
        for round in 0..20_000 {
            let is_growing = (round / 1_000) % 2 == 0;
            if random.below(10) < if is_growing { 7 } else { 3 } {
                let part = random.below(PARTS.len() as u64) as usize;
                held.push(Filled::new(layout(part), round as u8));
                in_places[part] += usize::from(held.last().is_some_and(|filled| is_in_region(filled.0)));
            } else if !held.is_empty() {
                held.swap_remove(random.below(held.len() as u64) as usize).check();
            }
        }
        held.iter().for_each(Filled::check);
        assert!(in_places.iter().all(|&taken| taken > 500), "{in_places:?}");
        drop(held);
        assert!((0..PARTS.len()).all(|part| FREE.with(|free| free[part].get()) == NONE), "all are empty");
        // An empty place is used before a new one is.
        let places = places_of_this_thread();
        let all: Vec<Filled> = (0..places).map(|_| Filled::new(layout(STRINGS), 1)).collect();
        assert_eq!(places_of_this_thread(), places);
        drop(all);
    }

    #[test]
    fn a_place_gives_its_memory_back_and_what_lies_behind_the_strings_with_them() {
        let mut all: Vec<Filled> = (0..PARTS.len()).rev().map(|part| Filled::new(layout(part), 9)).collect();
        let place = part_at(all[0].0).0;
        assert!(all.iter().all(|filled| part_at(filled.0).0 == place), "a connection fills one place");
        let zeros_from = |from: usize| {
            // SAFETY: the region stays mapped, and no other thread is given this place.
            let bytes = unsafe { std::slice::from_raw_parts(memory_of(place), PLACE_BYTES) };
            bytes[from..].iter().all(|&byte| byte == 0)
        };
        assert!(!zeros_from(PAGE_BYTES));
        drop(all.remove(0));
        assert!(zeros_from(PAGE_BYTES) && !zeros_from(0));
        all.iter().for_each(Filled::check);
        drop(all);
        assert!(zeros_from(0));
    }

    #[test]
    fn what_grows_moves_with_its_content_and_what_another_thread_frees_is_not_used_again() {
        let _strings = Filled::new(layout(STRINGS), 1);
        let part = Filled::new(layout(3), 5);
        // SAFETY: it came from there, with this layout.
        let grown = unsafe { Heap.realloc(part.0, part.1, 1_184) };
        assert!(!is_in_region(grown));
        let (old, grown) = (part.0, Filled(grown, Layout::from_size_align(1_184, 8).unwrap(), 5));
        std::mem::forget(part);
        // SAFETY: as long as what was copied.
        assert!(unsafe { std::slice::from_raw_parts(grown.0, 592) }.iter().all(|&byte| byte == 5));
        let again = Filled::new(layout(3), 6);
        assert_eq!(again.0, old);
        let (address, size) = (again.0.expose_provenance(), again.1);
        std::mem::forget(again);
        // SAFETY: it came from there, with this layout, and is not used any more.
        let free = move || unsafe { Heap.dealloc(std::ptr::with_exposed_provenance_mut(address), size) };
        std::thread::spawn(free).join().unwrap();
        assert!(!is_in_region(Filled::new(layout(3), 7).0), "a part alone gets no place");
    }

    #[test]
    fn outside_of_h2_and_for_other_sizes_it_is_mimalloc() {
        // SAFETY: of sizes that are not 0, and freed with the layout that they have.
        unsafe {
            let outside = Heap.alloc(layout(STRINGS));
            let further = within_h2(|| Heap.alloc(layout(STRINGS)));
            assert!(!is_in_region(outside) && !is_in_region(further));
            Heap.dealloc(outside, layout(STRINGS));
            Heap.dealloc(further, layout(STRINGS));
            let other = Layout::from_size_align(4_096, 8).unwrap();
            let memory = within_h2_anew(|| Heap.alloc(other));
            assert!(!is_in_region(memory));
            Heap.dealloc(memory, other);
        }
    }
}
