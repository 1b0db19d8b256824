//! The system's allocator, but for the buffer that h2 writes from: it begins with a page, so that
//! [`transport`](crate::transport) can give the first one back, which is the one that is in use.
//!
//! The system's allocator begins it anywhere. What it holds then lies in a page that it shares with its neighbour and that
//! nobody may give back: of 5,000 idle connections 1 MB of 105 went back so. mimalloc has it on a page too, but asks for
//! huge ones, and 5,000 connections that are being opened took 202 MB of it in place of 106.

#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};

/// What h2 0.4.20 asks for. Its version is pinned; another's buffer would stay where the system's allocator puts it.
const BUFFER_BYTES: usize = 16 * 1_024;
const PAGE_BYTES: usize = 4_096;

pub struct Heap;

/// The same on a page, if it has the size of the buffer. It says the same whenever it is asked of one layout.
fn placed(layout: Layout) -> Layout {
    if layout.size() != BUFFER_BYTES {
        return layout;
    }
    layout.align_to(PAGE_BYTES).unwrap_or(layout)
}

// SAFETY: what was allocated as `placed` is freed as `placed`, and that is at least what was asked for. A global allocator
// cannot be had without unsafe code.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: its size is that of the layout, which the caller vouches for.
        unsafe { System.alloc(placed(layout)) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(placed(layout)) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: `alloc` has allocated it with this very layout.
        unsafe { System.dealloc(memory, placed(layout)) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller vouches that the size, rounded up to the alignment, does not overflow.
        let new = unsafe { Layout::from_size_align_unchecked(size, layout.align()) };
        if placed(layout) == layout && placed(new) == new {
            // SAFETY: neither is more than was asked for.
            return unsafe { System.realloc(memory, layout, size) };
        }
        // SAFETY: `new` is a layout, and not empty since `size` is not.
        let moved = unsafe { self.alloc(new) };
        if !moved.is_null() {
            // SAFETY: both are that long, and one is not part of the other.
            unsafe { std::ptr::copy_nonoverlapping(memory, moved, layout.size().min(size)) };
            // SAFETY: the caller gives it away.
            unsafe { self.dealloc(memory, layout) };
        }
        moved
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_the_size_of_the_buffer_begins_with_a_page_and_keeps_its_bytes_when_it_grows() {
        let is_on_page = |bytes: &[u8]| bytes.as_ptr().addr().is_multiple_of(PAGE_BYTES);
        for _ in 0..20 {
            let mut buffer = vec![7_u8; BUFFER_BYTES - 1];
            for grown in [BUFFER_BYTES, BUFFER_BYTES + 1] {
                buffer.reserve_exact(1);
                assert_eq!(buffer.capacity(), grown);
                assert!(grown != BUFFER_BYTES || is_on_page(&buffer));
                buffer.push(7);
                assert!(buffer.iter().all(|byte| *byte == 7));
            }
            buffer.truncate(BUFFER_BYTES);
            buffer.shrink_to_fit();
            assert!(is_on_page(&buffer) && buffer.iter().all(|byte| *byte == 7));
            assert!(is_on_page(&vec![0; BUFFER_BYTES]), "what begins as zeros");
        }
    }
}
