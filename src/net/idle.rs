//! Gives the memory of h2's two buffers back while a connection is silent: the one place that touches memory of h2's.
//!
//! h2 reads into a buffer of 8 KiB and writes from one of 16 KiB, and a connection that has spoken once keeps the pages
//! that were used. Both hold nothing while a connection waits: 8 KB of the 14 KB that an idle one would keep resident. The
//! adapter under h2 is handed their addresses with each call, and only two ranges are known to be dead:
//!
//! - The *spare room* of the last `poll_read` that had nothing for h2. It lies behind everything h2 has read, so it holds
//!   nothing, whoever shares the part in front of it (payloads and header values are slices of that part).
//! - The *write buffer*, once h2 has called `poll_flush`: it does so only when all of it was taken, and it has emptied the
//!   buffer by then. Its address is that of the first slice of each write that begins a cycle, since every frame begins
//!   with a head in the buffer. The slices behind the first are payloads that others share, and none of our business.
//!
//! Both are forgotten when the connection's turn begins, and again when h2's half is dropped; they are used only at the end
//! of a turn, by the same task. So no code of h2's runs between the last word about a range and its use.
//!
//! What h2 has read since its buffer was new lies in front of the spare room, in the page that is in use. [`pad`] gets that
//! page as well: it ends the buffer with a frame that h2 ignores (RFC 9113, section 4.1: unknown types are discarded), whereupon
//! h2 takes a new buffer and drops its share of the old one.

#![allow(unsafe_code)]

use std::io::IoSlice;

use rustix::mm::{Advice, madvise};
use tokio::io::ReadBuf;

const PAGE_BYTES: usize = 4_096;
/// What h2 0.4.20 allocates for writing and never shrinks (`DEFAULT_BUFFER_CAPACITY`). Its version is pinned, and the
/// tests look up what was allocated.
const WRITE_BUFFER_BYTES: usize = 16 * 1_024;
const FRAME_HEAD_BYTES: usize = 9;
/// The largest payload that h2 accepts here (SETTINGS_MAX_FRAME_SIZE, left at its default).
const FRAME_BYTES_MAX: usize = 16_384;
/// No frame type that anybody has assigned.
const UNKNOWN_TYPE: u8 = 0xfe;

/// What becomes of h2's buffers while a connection is silent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IdleBuffers {
    /// Their pages go back to the system after some seconds.
    GiveBack,
    /// They stay.
    Keep,
    /// They are overwritten at the end of each turn: whoever relies on what they hold is found.
    #[cfg(test)]
    Poison,
}

/// A range of memory by its addresses: nothing is read through it.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
struct Range {
    start: usize,
    bytes: usize,
}

impl Range {
    fn of(bytes: &[u8]) -> Range {
        Range { start: bytes.as_ptr().expose_provenance(), bytes: bytes.len() }
    }

    fn whole_pages(self) -> Range {
        let start = self.start.next_multiple_of(PAGE_BYTES);
        let end = (self.start + self.bytes) / PAGE_BYTES * PAGE_BYTES;
        Range { start, bytes: end.saturating_sub(start) }
    }
}

/// What is known of the buffers of one connection.
#[derive(Default)]
pub struct Buffers {
    spare: Range,
    write_start: WriteStart,
    /// Of the last write: what was not taken of it comes again, first slice or not.
    write_left: usize,
    is_flushed: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Default)]
enum WriteStart {
    #[default]
    Unknown,
    At(usize),
    /// It was seen at two addresses: a large block of headers made it grow. It is left alone from then on.
    Moved,
}

impl Buffers {
    /// h2 is about to run, or is gone.
    pub fn forget(&mut self) {
        self.spare = Range::default();
        self.is_flushed = false;
    }

    /// `poll_read` has nothing for h2, which has put all that it has read behind itself.
    pub fn read_waits(&mut self, into: &ReadBuf<'_>) {
        let filled = into.filled();
        self.spare = Range { start: filled.as_ptr_range().end.expose_provenance(), bytes: into.remaining() };
    }

    /// `poll_read` has something for h2.
    pub fn read_goes_on(&mut self) {
        self.spare = Range::default();
    }

    /// `poll_write` is about to look at what h2 has, and may take none of it.
    pub fn write_begins(&mut self) {
        self.is_flushed = false;
    }

    /// `poll_write` has taken the first bytes of these.
    pub fn wrote(&mut self, slices: &[IoSlice<'_>], taken: usize) {
        let begins_a_cycle = self.write_left == 0;
        self.write_left = slices.iter().map(|slice| slice.len()).sum::<usize>() - taken;
        if !begins_a_cycle {
            return;
        }
        let start = slices.first().map_or(0, |slice| Range::of(slice).start);
        self.write_start = match self.write_start {
            WriteStart::Unknown => WriteStart::At(start),
            WriteStart::At(known) if known == start => WriteStart::At(known),
            WriteStart::At(_) | WriteStart::Moved => WriteStart::Moved,
        };
    }

    /// h2 flushes, so its write buffer is empty.
    pub fn flushed(&mut self) {
        self.is_flushed = self.write_left == 0;
    }

    fn ranges(&self) -> [Range; 2] {
        let write = match self.write_start {
            WriteStart::At(start) if self.is_flushed => Range { start, bytes: WRITE_BUFFER_BYTES },
            _ => Range::default(),
        };
        [self.spare, write]
    }

    /// Gives the whole pages inside of both buffers back; they read as zeros from then on. `false` when there is none.
    pub fn give_back(&self) -> bool {
        let pages = self.ranges().map(Range::whole_pages);
        for pages in pages.iter().filter(|pages| pages.bytes > 0) {
            // SAFETY: the page of this module says why nobody holds anything in these ranges. They lie within allocations
            // that are alive, since the turn that named them has not ended. No safe code does it: 8 KB of each idle
            // connection. A refusal (locked memory) leaves the pages as they are.
            let _ = unsafe { madvise(address(*pages), pages.bytes, Advice::LinuxDontNeed) };
        }
        pages.iter().any(|pages| pages.bytes > 0)
    }

    /// Overwrites both buffers, parts of pages too.
    #[cfg(test)]
    pub fn poison(&self) {
        if let (WriteStart::At(start), true) = (self.write_start, self.is_flushed) {
            // SAFETY: h2's buffer begins there and is an allocation of the system's allocator, on which the tests run.
            let bytes = unsafe { malloc_usable_size(std::ptr::with_exposed_provenance(start)) };
            assert!(
                (WRITE_BUFFER_BYTES..2 * WRITE_BUFFER_BYTES).contains(&bytes),
                "h2's write buffer has {bytes} bytes"
            );
        }
        for range in self.ranges().iter().filter(|range| range.bytes > 0) {
            // SAFETY: as above.
            unsafe { std::ptr::write_bytes(address(*range).cast::<u8>(), 0xaa, range.bytes) };
        }
    }
}

#[cfg(test)]
unsafe extern "C" {
    fn malloc_usable_size(memory: *const std::ffi::c_void) -> usize;
}

fn address(range: Range) -> *mut std::ffi::c_void {
    std::ptr::with_exposed_provenance_mut(range.start)
}

/// Fills what h2 has left of its read buffer with one frame that it ignores. Call it where a frame may begin. `false`, and
/// nothing done, when no such frame fits.
pub fn pad(into: &mut ReadBuf<'_>) -> bool {
    let payload = into.remaining().wrapping_sub(FRAME_HEAD_BYTES);
    if payload > FRAME_BYTES_MAX {
        return false;
    }
    let [_, length @ ..] = (payload as u32).to_be_bytes();
    into.put_slice(&length);
    into.put_slice(&[UNKNOWN_TYPE, 0, 0, 0, 0, 0]);
    // SAFETY: nothing is made uninitialized below.
    let rest = unsafe { into.unfilled_mut() };
    let range = Range { start: rest.as_mut_ptr().expose_provenance(), bytes: payload };
    let pages = range.whole_pages();
    // SAFETY: the slice is ours to write while it is borrowed, and the pages lie inside of it. Writing 8 KB instead would
    // make a second page resident that stays so when somebody shares the first.
    let dropped = pages.bytes > 0 && unsafe { madvise(address(pages), pages.bytes, Advice::LinuxDontNeed) }.is_ok();
    let zeroed = if dropped { pages.start - range.start..pages.start - range.start + pages.bytes } else { 0..0 };
    rest[..zeroed.start].fill(std::mem::MaybeUninit::new(0));
    rest[zeroed.end..].fill(std::mem::MaybeUninit::new(0));
    // SAFETY: all of it was set to zero, by the kernel in the pages that it took and by the two lines above.
    unsafe { into.assume_init(payload) };
    into.advance(payload);
    true
}
