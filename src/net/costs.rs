//! What connections and their sockets cost, from what the shard counts and constants that were measured.

use super::counters::Counters;
use super::listener;

/// What a connection holds, h2's buffers and tables included. Measured as resident memory, huge pages off, over 2,000 connections:
/// 18 kB beside what its streams hold, and 21.6 once fifty calls have filled the first page of its place in the heap.
const CONNECTION_BYTES: u64 = 18_000;
/// What of it is given back in silence: a page of h2's read buffer, a page of its write buffer. Measured as above: 8.1 kB
/// over 1,000 connections, with one stream and with 16, and 8.3 kB over 5,000.
const IDLE_BYTES: u64 = 8_200;
/// What the kernel holds for a connection that has nothing on its way: measured in a cgroup, over 5,000 connections.
const SOCKET_BYTES: u64 = 3_500;
/// What each stream slot holds: our row of 88 bytes and its mark, and h2's slots with the room they doubled to.
const STREAM_SLOT_BYTES: u64 = 640;

/// What the connections hold in memory, in bytes.
pub fn bytes(counters: &Counters) -> u64 {
    counters.connections_open.get() * CONNECTION_BYTES - counters.idle_connections.get() * IDLE_BYTES
        + counters.stream_slots.get() * STREAM_SLOT_BYTES
        + counters.partial_bytes.get()
        + counters.unread_bytes.get()
        + counters.output_bytes.get()
}

/// What the kernel holds for their sockets, in bytes: at its cap for each connection whose peer takes less than is due to it,
/// and a measured constant for the others.
pub fn socket_bytes(counters: &Counters, send_buffer_bytes: usize) -> u64 {
    let slow = counters.slow_connections.get() * listener::send_buffer_bytes_max(send_buffer_bytes) as u64;
    counters.connections_open.get() * SOCKET_BYTES + slow
}
