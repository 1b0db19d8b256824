//! What one stream has to send.
//!
//! Small messages are copied behind each other, so that all messages of a turn leave in few pieces; long runs of events are
//! shared by reference between all streams that are told of them. An outbox exists only while something is in it.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

/// Room that the tail is given at first: some messages.
const TAIL_BYTES: usize = 256;
/// A spare outbox keeps places for so many pieces.
const SPARE_CHUNKS_MAX: usize = 64;

#[derive(Default)]
pub struct Outbox {
    /// Pieces before the tail.
    chunks: VecDeque<Chunk>,
    tail: BytesMut,
    /// The size of the buffer that the tail lies in: what is left of it behind what was taken says nothing of that.
    tail_bytes: usize,
    bytes: usize,
    /// The part of it that other streams hold as well.
    shared_bytes: usize,
    /// The connection has not looked at it since it began to fill.
    pub is_unseen: bool,
}

struct Chunk {
    bytes: Bytes,
    is_shared: bool,
}

impl Outbox {
    /// Bytes that are not yet taken.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The part of it that is this stream's alone.
    pub fn own_bytes(&self) -> usize {
        self.bytes - self.shared_bytes
    }

    /// The buffer to write `length` bytes to, no more and no fewer.
    pub fn tail(&mut self, length: usize) -> &mut BytesMut {
        if self.tail.capacity() - self.tail.len() < length {
            self.tail.reserve(length.max(TAIL_BYTES));
            self.tail_bytes = self.tail.capacity();
        }
        self.bytes += length;
        &mut self.tail
    }

    /// Appends bytes without copying them.
    pub fn share(&mut self, shared: Bytes) {
        self.bytes += shared.len();
        self.shared_bytes += shared.len();
        if !self.tail.is_empty() {
            self.chunks.push_back(Chunk { bytes: self.tail.split().freeze(), is_shared: false });
        }
        self.chunks.push_back(Chunk { bytes: shared, is_shared: true });
    }

    /// The next bytes, `bytes_max` at most.
    pub fn take(&mut self, bytes_max: usize) -> Option<Bytes> {
        if bytes_max == 0 || self.bytes == 0 {
            return None;
        }
        let (bytes, is_shared) = match self.chunks.front_mut() {
            Some(chunk) if chunk.bytes.len() > bytes_max => (chunk.bytes.split_to(bytes_max), chunk.is_shared),
            Some(_) => self.chunks.pop_front().map(|chunk| (chunk.bytes, chunk.is_shared))?,
            None => (self.tail.split_to(self.tail.len().min(bytes_max)).freeze(), false),
        };
        self.bytes -= bytes.len();
        self.shared_bytes -= if is_shared { bytes.len() } else { 0 };
        Some(bytes)
    }

    /// Whether it is worth keeping for the next stream that has something to send.
    pub fn is_spare(&self) -> bool {
        debug_assert_eq!(self.bytes, 0);
        self.chunks.capacity() <= SPARE_CHUNKS_MAX
    }

    /// What it takes while nothing is in it.
    pub fn spare_bytes(&self) -> usize {
        size_of::<Outbox>() + self.tail_bytes + self.chunks.capacity() * size_of::<Chunk>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::encode::Sink;
    use crate::watch::hub::HubConfig;

    #[test]
    fn bytes_leave_in_the_order_they_came_cut_anywhere() {
        let mut outbox = Outbox::default();
        outbox.tail(3).put(b"abc");
        outbox.share(Bytes::from("defgh"));
        outbox.share(Bytes::from("i"));
        outbox.tail(2).put(b"jk");
        assert_eq!(outbox.bytes(), 11);
        let mut taken = Vec::new();
        while let Some(bytes) = outbox.take(2) {
            assert!(bytes.len() <= 2);
            taken.extend_from_slice(&bytes);
        }
        assert_eq!((&taken[..], outbox.bytes()), (&b"abcdefghijk"[..], 0));
        outbox.tail(1).put(b"l");
        assert_eq!(outbox.take(9).unwrap(), "l");
    }

    #[test]
    fn a_whole_backlog_and_the_message_that_passes_it_lie_in_32_kib() {
        let message = [7; 67];
        let mut outbox = Outbox::default();
        while outbox.bytes() < HubConfig::default().backlog_bytes_max {
            outbox.tail(message.len()).put(&message);
        }
        outbox.tail(4_000).put(&[8; 4_000]);
        assert_eq!((outbox.tail_bytes, outbox.tail.capacity()), (32 << 10, 32 << 10));
    }
}
