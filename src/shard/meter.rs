//! What a shard counts and measures beside its work, and the lines that it logs of what was slow or refused.
//!
//! Everything here is plain and of one thread. Times are read once a turn where they can be.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::config::WarnAfter;
use crate::metrics::histogram::{FINE, HANDLING};
use crate::metrics::{Histogram, Number, Numbers, Timing};
use crate::shard::board::Boards;
use crate::store::command::{Answer, Error, Outcome};
use crate::types::lines::LineBudget;
use crate::types::{Position, Revision};
use crate::watch::refusal::{Refusal, Why};

/// A unary call that has not been answered yet. Its handle is its place.
#[derive(Clone, Copy, Debug)]
struct OpenCall {
    begun: Instant,
    connection: u32,
    method: u8,
}

/// A write that is followed to the sockets of this shard.
#[derive(Clone, Copy, Debug)]
struct Followed {
    revision: Revision,
    came_at: Instant,
    /// Responses with events that the hub had sent before it.
    sent_before: u64,
    /// The hub has told everybody, and those who were told have been woken.
    is_told: bool,
}

pub struct Meter {
    warn_after: WarnAfter,
    is_extensive: bool,
    calls: Vec<Option<OpenCall>>,
    handling: Box<[Histogram]>,
    commits: Histogram,
    deliveries: Histogram,
    /// Groups that are sealed and not committed, with the moment at which they came.
    under_way: VecDeque<(Position, Instant)>,
    seen: Revision,
    followed: Option<Followed>,
    counts: Counts,
    slow_lines: LineBudget,
    refusal_lines: LineBudget,
}

#[derive(Clone, Copy, Default, Debug)]
struct Counts {
    puts: u64,
    deletes: u64,
    ranges: u64,
    txns: u64,
    failed: u64,
    without_space: u64,
    without_memory: u64,
    slow_applies: u64,
    healthy: u64,
    unhealthy: u64,
}

impl Meter {
    /// With `is_extensive`, the times of unary calls are kept by method.
    pub fn new(warn_after: WarnAfter, methods: usize, is_extensive: bool) -> Meter {
        let handling = if is_extensive { methods } else { 0 };
        Meter {
            warn_after,
            is_extensive,
            calls: Vec::new(),
            handling: (0..handling).map(|_| Histogram::new(HANDLING)).collect(),
            commits: Histogram::new(FINE),
            deliveries: Histogram::new(FINE),
            under_way: VecDeque::new(),
            seen: Revision::ZERO,
            followed: None,
            counts: Counts::default(),
            slow_lines: LineBudget::default(),
            refusal_lines: LineBudget::default(),
        }
    }

    pub fn is_extensive(&self) -> bool {
        self.is_extensive
    }

    /// Of the calls under way.
    pub fn bytes(&self) -> usize {
        self.calls.capacity() * size_of::<Option<OpenCall>>()
    }

    pub fn call_opened(&mut self, handle: u32, connection: u32, method: u8, begun: Instant) {
        let at = handle as usize;
        if at >= self.calls.len() {
            self.calls.resize(at + 1, None);
        }
        self.calls[at] = Some(OpenCall { begun, connection, method });
    }

    /// A unary call has its answer. Gives its connection and its method when the answer was late enough to be logged.
    pub fn call_answered(&mut self, handle: u32, now: Instant) -> Option<Slow> {
        let OpenCall { begun, connection, method } = self.calls.get_mut(handle as usize)?.take()?;
        let took = now.saturating_duration_since(begun);
        if let Some(histogram) = self.handling.get(usize::from(method)) {
            histogram.observe(took);
        }
        if took <= self.warn_after.apply.min(self.warn_after.unary) {
            return None;
        }
        self.counts.slow_applies += u64::from(took > self.warn_after.apply);
        let left_out = self.slow_lines.admit(now)?;
        Some(Slow { connection, method, took, left_out })
    }

    /// The peer has gone.
    pub fn call_closed(&mut self, handle: u32) {
        if let Some(call) = self.calls.get_mut(handle as usize) {
            *call = None;
        }
    }

    /// etcd's lines, its own words for each of the two thresholds; neither keys nor values.
    pub fn log_slow(&self, slow: &Slow, method: &str, peer: Option<SocketAddr>) {
        let peer = peer.map(|peer| peer.to_string()).unwrap_or_default();
        let took = format!("{:?}", slow.took);
        let left_out = slow.left_out;
        if slow.took > self.warn_after.apply {
            let expected = format!("{:?}", self.warn_after.apply);
            tracing::warn!(
                took,
                "expected-duration" = expected,
                request = method,
                remote = peer,
                left_out,
                "apply request took too long"
            );
        } else {
            tracing::warn!("time spent" = took, "response type" = method, remote = peer, left_out, "request stats");
        }
    }

    /// What the answer to a request did, in etcd's words.
    pub fn answered(&mut self, answer: &Result<Answer, Error>) {
        match answer {
            Ok(answer) => {
                let operations = self.count(&answer.result);
                self.counts.txns += u64::from(operations > 1);
            }
            Err(Error::LogRefused) => self.counts.failed += 1,
            Err(Error::NoSpace) => self.counts.without_space += 1,
            Err(Error::NoMemory) => self.counts.without_memory += 1,
            Err(_) => {}
        }
    }

    /// Counts operations, and says how many they were.
    fn count(&mut self, outcome: &Outcome) -> u64 {
        let counted = match outcome {
            Outcome::Range(_) => &mut self.counts.ranges,
            Outcome::Put { .. } => &mut self.counts.puts,
            Outcome::DeleteRange { .. } => &mut self.counts.deletes,
            Outcome::Txn(txn) => return txn.answers.iter().map(|answer| self.count(&answer.result)).sum(),
            Outcome::Compact | Outcome::Alarm(_) | Outcome::Hash(_) => return 0,
        };
        *counted += 1;
        1
    }

    pub fn health_checked(&mut self, is_well: bool) {
        let counted = if is_well { &mut self.counts.healthy } else { &mut self.counts.unhealthy };
        *counted += 1;
    }

    /// The turn of the writer that began at that time is over: what was sealed in it came then, and what is committed is
    /// behind it. The last revision that may be told is shown to all shards.
    pub fn writer_turned(
        &mut self,
        sealed: Position,
        committed: Position,
        told: Revision,
        begun: Instant,
        boards: &Boards,
    ) {
        if self.under_way.back().map_or(committed, |(position, _)| *position) < sealed {
            self.under_way.push_back((sealed, begun));
        }
        let mut came = None;
        while let Some((position, came_at)) = self.under_way.front().copied()
            && position <= committed
        {
            self.under_way.pop_front();
            self.commits.observe(begun.saturating_duration_since(came_at));
            came = Some(came_at);
        }
        if let Some(came_at) = came {
            boards.committed(told, came_at);
        }
    }

    /// Before the hub is handed what was committed.
    pub fn before_feed(&mut self, hub_revision: Revision, sent: u64, boards: &Boards, now: impl FnOnce() -> Instant) {
        if let Some(Followed { came_at, is_told: true, .. }) = self.followed {
            // Every connection that was woken has had its turn since, and a turn ends with a send.
            self.deliveries.observe(now().saturating_duration_since(came_at));
            self.followed = None;
        }
        let (revision, came_at) = boards.followed();
        if revision > self.seen {
            self.seen = revision;
            if self.followed.is_none() && hub_revision < revision {
                self.followed = Some(Followed { revision, came_at, sent_before: sent, is_told: false });
            }
        }
    }

    /// After the hub has told what it could and all who are told have been woken. True when a turn is wanted behind theirs.
    pub fn after_turn(&mut self, hub_revision: Revision, sent: u64) -> bool {
        let Some(followed) = &mut self.followed else { return false };
        if hub_revision < followed.revision {
            return false;
        }
        if sent == followed.sent_before {
            // Nobody here was to be told.
            self.followed = None;
            return false;
        }
        followed.is_told = true;
        true
    }

    /// One line for a watch that was refused or ended, unless there were many.
    pub fn log_refusal(&mut self, refusal: Refusal, peer: Option<SocketAddr>, now: Instant) {
        let Some(left_out) = self.refusal_lines.admit(now) else { return };
        let peer = peer.map(|peer| peer.to_string()).unwrap_or_default();
        let reason = refusal.why.text();
        match refusal.why {
            Why::Compacted(revision) => {
                tracing::warn!(remote = peer, reason, compact_revision = revision.0, left_out, "watch ended");
            }
            Why::Limit(_) | Why::Memory(_) | Why::Request(_) => {
                tracing::warn!(remote = peer, reason, left_out, "watch refused")
            }
        }
    }

    /// No call is open: after a crowd its places would be kept for ever.
    pub fn give_back(&mut self) {
        self.calls = Vec::new();
    }

    /// Tells how many lines were left out, when no line came to tell.
    pub fn keep_house(&mut self, now: Instant) {
        let budgets = [(&mut self.slow_lines, "slow requests"), (&mut self.refusal_lines, "refused and ended watches")];
        for (budget, of) in budgets {
            if let Some(left_out) = budget.untold(now) {
                tracing::warn!(left_out, of, "lines were left out");
            }
        }
    }

    pub fn fill_in(&self, numbers: &mut Numbers) {
        let counts = &self.counts;
        for (number, value) in [
            (Number::Puts, counts.puts),
            (Number::Deletes, counts.deletes),
            (Number::Ranges, counts.ranges),
            (Number::Txns, counts.txns),
            (Number::Failed, counts.failed),
            (Number::RefusedSpace, counts.without_space),
            (Number::RefusedRangeMemory, counts.without_memory),
            (Number::SlowApplies, counts.slow_applies),
            (Number::HealthSuccesses, counts.healthy),
            (Number::HealthFailures, counts.unhealthy),
        ] {
            numbers.set(number, value);
        }
        numbers.set_timing(Timing::Commit, &self.commits);
        numbers.set_timing(Timing::Delivery, &self.deliveries);
        for (method, histogram) in self.handling.iter().enumerate() {
            numbers.set_handling(method, histogram);
        }
    }
}

/// A call whose answer came late, and how many of them were not told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Slow {
    pub connection: u32,
    pub method: u8,
    pub took: Duration,
    pub left_out: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::numbers::totals;
    use crate::shard::clock;
    use crate::store::command::{Rows, TxnOutcome};

    const SLOW: WarnAfter = WarnAfter { apply: Duration::from_millis(100), unary: Duration::from_millis(300) };

    fn numbers(meter: &Meter) -> Numbers {
        let mut numbers = Numbers::new(4);
        meter.fill_in(&mut numbers);
        numbers
    }

    fn answer(result: Outcome) -> Result<Answer, Error> {
        Ok(Answer { revision: Revision(2), result })
    }

    #[test]
    fn operations_are_counted_also_inside_of_transactions() {
        let mut meter = Meter::new(SLOW, 4, false);
        let put = || Answer { revision: Revision(2), result: Outcome::Put { previous: None } };
        let range = || Answer { revision: Revision(2), result: Outcome::Range(Rows::default()) };
        let nested = Outcome::Txn(TxnOutcome { succeeded: true, answers: vec![range(), put()] });
        let nested = Answer { revision: Revision::ZERO, result: nested };
        meter.answered(&answer(Outcome::Txn(TxnOutcome { succeeded: true, answers: vec![put(), nested] })));
        meter.answered(&answer(Outcome::Txn(TxnOutcome { succeeded: false, answers: vec![put()] })));
        meter.answered(&answer(put().result));
        meter.answered(&answer(Outcome::DeleteRange { deleted: 5, previous: Vec::new() }));
        meter.answered(&Err(Error::KeyNotFound));
        meter.answered(&Err(Error::LogRefused));
        let numbers = numbers(&meter);
        let counted = [Number::Puts, Number::Ranges, Number::Deletes, Number::Txns, Number::Failed];
        assert_eq!(counted.map(|number| numbers.get(number)), [4, 1, 1, 1, 1], "a transaction of one put is a put");
    }

    #[test]
    fn a_group_is_measured_from_the_turn_that_took_it_to_the_one_that_told_of_it() {
        let start = clock::now();
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        let (mut meter, boards) = (Meter::new(SLOW, 4, false), Boards::new(1, 4, start));
        meter.writer_turned(Position(5), Position(5), Revision(9), at(1), &boards);
        assert_eq!(totals(numbers(&meter).timing(Timing::Commit)).0, 0, "nothing came");
        meter.writer_turned(Position(6), Position(5), Revision(9), at(20), &boards);
        meter.writer_turned(Position(7), Position(5), Revision(9), at(21), &boards);
        meter.writer_turned(Position(7), Position(6), Revision(10), at(24), &boards);
        assert_eq!(boards.followed(), (Revision(10), at(20)));
        meter.writer_turned(Position(7), Position(7), Revision(11), at(25), &boards);
        assert_eq!(totals(numbers(&meter).timing(Timing::Commit)), (2, 8_000_000));
        assert!(meter.under_way.is_empty());
    }

    #[test]
    fn a_write_is_followed_until_those_who_watch_it_had_their_turn() {
        let start = clock::now();
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        let (mut meter, boards) = (Meter::new(SLOW, 4, false), Boards::new(1, 4, start));
        let delivered = |meter: &Meter| totals(numbers(meter).timing(Timing::Delivery));
        boards.committed(Revision(7), at(10));
        meter.before_feed(Revision(6), 100, &boards, || at(11));
        assert!(!meter.after_turn(Revision(6), 100), "the hub is still at it");
        meter.before_feed(Revision(6), 100, &boards, || at(12));
        assert!(meter.after_turn(Revision(7), 103));
        meter.before_feed(Revision(7), 103, &boards, || at(15));
        assert_eq!(delivered(&meter), (1, 5_000_000));
        assert!(!meter.after_turn(Revision(7), 103), "it is measured once");
        boards.committed(Revision(8), at(30));
        meter.before_feed(Revision(7), 103, &boards, || at(31));
        assert!(!meter.after_turn(Revision(8), 103), "nobody watched it");
        boards.committed(Revision(9), at(50));
        meter.before_feed(Revision(9), 104, &boards, || at(51));
        assert!(!meter.after_turn(Revision(9), 104), "the hub was faster than the question");
        assert_eq!(delivered(&meter).0, 1);
    }

    #[test]
    fn slow_calls_are_counted_and_ten_of_them_told() {
        let start = clock::now();
        let mut meter = Meter::new(SLOW, 4, true);
        for _ in 0..30 {
            meter.call_opened(3, 77, 2, start);
            meter.call_opened(0, 77, 1, start);
            assert_eq!(meter.call_answered(0, start + SLOW.apply), None, "exactly at the threshold is not above it");
            let slow = meter.call_answered(3, start + Duration::from_millis(150));
            assert_eq!(meter.call_answered(3, start), None, "a call is answered once");
            if let Some(slow) = slow {
                assert_eq!((slow.connection, slow.method, slow.left_out), (77, 2, 0));
            }
        }
        meter.call_opened(9, 1, 1, start);
        meter.call_closed(9);
        assert_eq!(meter.call_answered(9, start + Duration::from_secs(9)), None, "a call that is gone is not slow");
        let numbers = numbers(&meter);
        assert_eq!(numbers.get(Number::SlowApplies), 30);
        assert_eq!((totals(numbers.handling(1)).0, totals(numbers.handling(2)).0), (30, 30));
        assert_eq!(meter.slow_lines.untold(start + Duration::from_secs(20)), Some(20));
    }
}
