//! How often a peer may ask whether we live: gRPC's rule for servers, with etcd's settings.
//!
//! A ping is a *strike* when it comes sooner behind the one before than `--grpc-keepalive-min-time` says, or within two hours
//! while the peer has no call. The third strike ends the connection with the GOAWAY that clients of gRPC know: they come
//! back, and ask less often. Whatever we send takes the strikes back, for a peer that measures its link while data comes
//! does so by pings. gRPC counts headers and data alone; here it is every byte but those of the answers to the pings.

use std::time::{Duration, Instant};

/// Between pings of a peer that has no call (gRPC's `defaultPingTimeout`).
const WITHOUT_CALL: Duration = Duration::from_secs(2 * 3_600);
/// More than these end the connection (gRPC's `maxPingStrikes`).
const STRIKES_MAX: u8 = 2;
/// What an answer to a ping takes: the head of a frame and eight bytes.
const ANSWER_BYTES: u64 = 17;
/// What clients match on.
const TEXT: &[u8] = b"too_many_pings";

/// What a server holds its peers to.
#[derive(Clone, Copy, Debug)]
pub struct PingRule {
    pub now: fn() -> Instant,
    /// `None` holds them to nothing.
    pub interval_min: Option<Duration>,
}

/// What is known of one peer.
#[derive(Default)]
pub struct Pings {
    last: Option<Instant>,
    strikes: u8,
    /// Of all answers up to the last ping.
    answer_bytes: u64,
    /// What had been sent beside the answers at the last ping. Answers that are still due make it less than it was, never
    /// more.
    sent_bytes: u64,
}

impl Pings {
    /// A ping has come. True: it is one too many.
    pub fn is_one_too_many(&mut self, rule: PingRule, has_call: bool, bytes_out: u64) -> bool {
        let Some(interval_min) = rule.interval_min else { return false };
        let now = (rule.now)();
        let last = self.last.replace(now);
        let sent_bytes = bytes_out.saturating_sub(self.answer_bytes);
        self.answer_bytes += ANSWER_BYTES;
        if sent_bytes > self.sent_bytes {
            (self.sent_bytes, self.strikes) = (sent_bytes, 0);
            return false;
        }
        let interval_min = if has_call { interval_min } else { WITHOUT_CALL };
        if last.is_some_and(|last| now.duration_since(last) < interval_min) {
            self.strikes = self.strikes.saturating_add(1);
        }
        self.strikes > STRIKES_MAX
    }
}

/// The GOAWAY frame (RFC 9113, section 6.8) that says so: ENHANCE_YOUR_CALM, and that calls up to this stream may have been
/// served.
pub fn goaway(last_stream: u32) -> Vec<u8> {
    let [_, length @ ..] = (TEXT.len() as u32 + 8).to_be_bytes();
    [&length[..], &[7, 0, 0, 0, 0, 0], &last_stream.to_be_bytes(), &[0, 0, 0, 0xb], TEXT].concat()
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::sync::LazyLock;

    use super::*;

    thread_local! {
        static SECONDS: Cell<u64> = const { Cell::new(0) };
    }

    static START: LazyLock<Instant> = LazyLock::new(crate::shard::clock::now);

    fn now() -> Instant {
        *START + Duration::from_secs(SECONDS.get())
    }

    /// Pings after so many seconds each, with a call or without, and how many bytes had been sent by then. Which of them is
    /// one too many?
    fn first_too_many(pings: &[(u64, bool, u64)]) -> Option<usize> {
        SECONDS.set(0);
        let (rule, mut known) = (PingRule { now, interval_min: Some(Duration::from_secs(5)) }, Pings::default());
        pings.iter().position(|&(after, has_call, bytes_out)| {
            SECONDS.set(SECONDS.get() + after);
            known.is_one_too_many(rule, has_call, bytes_out)
        })
    }

    #[test]
    fn the_third_ping_that_comes_too_soon_is_one_too_many() {
        let steady = |after, has_call| first_too_many(&[0, 1, 2, 3, 4].map(|ping| (after, has_call, 17 * ping)));
        assert_eq!(steady(4, true), Some(3), "the first has none before it");
        assert_eq!(steady(5, true), None);
        assert_eq!(steady(7_199, false), Some(3));
        assert_eq!(steady(7_200, false), None);
    }

    #[test]
    fn whatever_is_sent_beside_the_answers_takes_the_strikes_back() {
        let pings = [(0, true, 0), (1, true, 17), (1, true, 34), (1, true, 60), (1, true, 77), (1, true, 94)];
        assert_eq!(first_too_many(&pings), None);
        let late = [(0, true, 0), (1, true, 0), (1, true, 34), (1, true, 34)];
        assert_eq!(first_too_many(&late), Some(3), "answers that leave late are still answers");
    }
}
