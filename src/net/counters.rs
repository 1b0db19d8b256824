//! What a shard's connections count: plain cells, summed over the shards when somebody asks.

use std::cell::Cell;

use crate::grpc::status::Code;
use crate::metrics::CODES;

/// A number that only this thread writes.
#[derive(Default, Debug)]
pub struct Count(Cell<u64>);

impl Count {
    pub fn add(&self, more: u64) {
        self.0.set(self.0.get() + more);
    }

    pub fn subtract(&self, less: u64) {
        self.0.set(self.0.get() - less);
    }

    pub fn get(&self) -> u64 {
        self.0.get()
    }
}

/// More methods than the API has.
pub const METHODS_MAX: usize = 64;

/// The calls of one method: those that began, and those that ended, by the number of their code.
#[derive(Default, Debug)]
pub struct MethodCounts {
    pub started: Count,
    pub handled: [Count; CODES.len()],
}

/// By the number that the handler gives a method.
#[derive(Debug)]
pub struct Methods(Box<[MethodCounts]>);

impl Default for Methods {
    fn default() -> Methods {
        Methods((0..METHODS_MAX).map(|_| MethodCounts::default()).collect())
    }
}

impl Methods {
    /// A method without a number is not counted.
    pub fn started(&self, method: u8) {
        if let Some(counts) = self.0.get(usize::from(method)) {
            counts.started.add(1);
        }
    }

    pub fn handled(&self, method: u8, code: Code) {
        if let Some(counts) = self.0.get(usize::from(method)) {
            counts.handled[code as usize].add(1);
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = &MethodCounts> {
        self.0.iter()
    }
}

/// Frame types of RFC 9113; the last counts all others.
pub const FRAME_TYPES: usize = 11;

#[derive(Default, Debug)]
pub struct Counters {
    pub connections_open: Count,
    pub connections_accepted: Count,
    /// Clients that could not be accepted, for want of descriptors mostly.
    pub connections_refused: Count,
    /// Clients turned away because the process or their address has as many connections as it may.
    pub connections_over_limit: Count,
    /// Clients turned away for want of memory.
    pub connections_without_memory: Count,
    /// Peers that spoke neither HTTP/2 nor HTTP/1.1, or broke their rules.
    pub connections_broken: Count,
    /// Open connections whose idle buffers were given back.
    pub idle_connections: Count,
    pub streams_open: Count,
    pub calls_opened: Count,
    /// Calls that ended without a word of ours: reset by the peer, or gone with it.
    pub calls_reset: Count,
    pub calls_past_deadline: Count,
    /// Streams, and whole connections, that were ended because their peer took nothing of what was due to it.
    pub streams_stalled: Count,
    pub connections_stalled: Count,
    /// Connections that were ended because their peer pinged too often.
    pub connections_pinging: Count,
    pub bytes_in: Count,
    pub bytes_out: Count,
    /// The same of connections that speak HTTP/1.1.
    pub http1_bytes_in: Count,
    pub http1_bytes_out: Count,
    pub sends: Count,
    pub methods: Methods,
    /// Requests of HTTP/1.1.
    pub pages: Count,
    pub frames: [Count; FRAME_TYPES],
    /// Held for requests that have not arrived whole, in bytes.
    pub partial_bytes: Count,
    /// Gathered for the peers, or in a send that has not ended, in bytes.
    pub output_bytes: Count,
    /// Open connections whose peer takes less than is due to it: what the kernel holds for them is at its cap.
    pub slow_connections: Count,
    /// Received, but not read by h2 yet, since its peer does not read what it is owed, in bytes.
    pub unread_bytes: Count,
    /// Connections that have held as many streams at once as they may.
    pub at_stream_limit: Count,
    /// The most streams that each open connection has had at once, summed: h2 keeps memory for that many.
    pub stream_slots: Count,
}

impl Counters {
    pub fn frame(&self, kind: u8) {
        self.frames[usize::from(kind).min(FRAME_TYPES - 1)].add(1);
    }
}
