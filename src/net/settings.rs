//! The settings of h2, each with its reason.

use bytes::Bytes;
use h2::server::{Builder, Handshake};

use super::plain::Plain;
use crate::heap;

/// What a connection may send ahead of us, over all of its streams (RFC 9113, 6.9.2: the initial value).
pub const CONNECTION_WINDOW: u32 = 65_535;

/// Begins HTTP/2 with a peer.
pub fn handshake(concurrent_streams_max: u32, plain: Plain) -> Handshake<Plain, Bytes> {
    let mut builder = Builder::new();
    builder
        .max_concurrent_streams(concurrent_streams_max)
        // Metadata is a token and a few flags. This also shrinks h2's allowance of CONTINUATION frames.
        .max_header_list_size(16 * 1_024)
        // The default ends a client that pipelines some 150 small requests. This is a whole window of the smallest
        // legal messages.
        .data_frame_budget(4 << 20)
        // Counted over the connection's whole life; the default ends clients that live for weeks.
        .max_local_error_reset_streams(Some(16_384))
        // Each stream may queue this much; what is beyond stays with the handler.
        .max_send_buffer_size(32 * 1_024);
    heap::within_h2_anew(|| builder.handshake(plain))
}
