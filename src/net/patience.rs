//! What a connection keeps in mind about time: its silence, its buffers, its peers that take nothing.

use std::time::Instant;

use h2::PingPong;

use super::server::NetConfig;

/// Checks in the time after which a stream is stalled: it is found between once and once and a quarter of that time.
pub const STALL_CHECKS: u8 = 4;

/// What is next to be done about a silent peer, and when.
pub struct Liveness {
    pub at: Instant,
    pub step: LivenessStep,
    /// Bytes received when the step was taken. Whatever has come since proves that the peer lives.
    pub bytes_in: u64,
    pub pings: Option<PingPong>,
}

/// What is to be done about h2's buffers once nothing happens any more.
#[derive(Default)]
pub struct Quiet {
    /// When the next look at the traffic is due. It is set by the first traffic after a silence, and not moved by more.
    pub at: Option<Instant>,
    /// The traffic at that time.
    pub traffic: u64,
    /// The silence was long enough, and this turn is for the buffers.
    pub is_due: bool,
    pub have_given_back: bool,
}

/// What is known of peers that take nothing. A connection on which nobody waits has no check ahead of it.
#[derive(Default)]
pub struct Stall {
    pub at: Option<Instant>,
    /// Sends that had ended by the last check, and how many checks in a row have found the next one still in flight.
    pub sends: u64,
    pub stuck_checks: u8,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum LivenessStep {
    CutHandshake,
    Ask,
    CutUnlessAnswered,
    LookAtHttp1,
    EndLingering,
}

impl Stall {
    /// Somebody waits for the peer: if no check lies ahead, one does from here on.
    pub fn expect_progress(&mut self, config: &NetConfig) {
        if self.at.is_none()
            && let Some(timeout) = config.stalled_stream_timeout
        {
            self.at = (config.now)().checked_add(timeout / u32::from(STALL_CHECKS));
        }
    }
}
