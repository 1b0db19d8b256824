//! The watch hub of one shard: watches in, batches in, bytes out.
//!
//! The hub has a revision: everything up to it has been told to the synced watchers, or noted for those without room. It
//! moves by one batch at a time. Between two batches, and never inside one, requests are answered, watchers join, and what
//! is gone is swept; so a `created` stands in its stream behind everything the hub told for its header's revision and
//! before everything that follows. A request carries the committed revision of the moment it came, and waits until the hub
//! has handled that. All requests wait in one line, so those of a stream keep their order.
//!
//! Inputs are `request` and `handle_*`; [`Hub::turn`] does a bounded piece of work; outputs are drained with `next_*` and
//! [`Hub::take_output`]. There is no clock and no IO in here, and hash order reaches no output: one sequence of calls always
//! gives one sequence of bytes.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use hashbrown::HashMap;

use super::behind::CatchUp;
use super::fan_out::FanOut;
use super::foresight::{Foreseen, GROUPS_MIN};
use super::group::{Groups, Options};
use super::message::Header;
pub use super::message::HeaderIds;
use super::refusal::{Refusal, RefusalCounts, Refusals, Why};
use super::stream::Streams;
use crate::types::{Batch, KeyRange, Revision, Time, WatchLimits};

/// Shared events that are looked at each time, and this part of many.
const SHARED_LOOKS: usize = 1_000;
const SHARED_PART: usize = 32;
/// Bytes of a range that weigh as much as a request.
const WEIGHT_BYTES: usize = 4_096;
/// What a watch takes beside the bytes of its range, at most.
const WATCH_BYTES: usize = 128;

/// Requests, and apart from them pieces of other work, between two small batches. With 256 of each, beside a million watches
/// that came back, batches came faster than they were handled, 500 a second, and events were late by up to 0.18 s.
const WORK_MIN: usize = 16;

/// What a stream may have queued, and what may be gathered for all who are late, however little memory there is. With less each
/// event of a stream with a thousand watches would make the others fall behind, one after the other: a delete of 100,000 keys,
/// each watched, took 43 s in place of 0.4.
const BACKLOG_BYTES_MIN: usize = 1 << 10;
const GATHERED_BYTES_MIN: usize = 64 << 10;

/// A watch stream: the row of its state. Rows are used again.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct StreamId(pub u32);

/// What a client asks on a watch stream.
#[derive(Clone, Debug)]
pub enum Request {
    Create(Create),
    Cancel { watch_id: i64 },
    Progress,
}

#[derive(Clone, Debug)]
pub struct Create {
    /// An empty key has become the key of one zero byte.
    pub range: KeyRange,
    /// As sent: 0 is "from now on", below 0 is refused.
    pub start: i64,
    /// As sent: 0 asks for an automatic one.
    pub watch_id: i64,
    pub no_put: bool,
    pub no_delete: bool,
    pub prev_kv: bool,
    pub progress_notify: bool,
    pub fragment: bool,
}

impl Create {
    /// Asks for nothing special: from now on, under an id that the hub chooses.
    #[cfg(test)]
    pub fn plain(range: KeyRange) -> Create {
        Create {
            range,
            start: 0,
            watch_id: 0,
            no_put: false,
            no_delete: false,
            prev_kv: false,
            progress_notify: false,
            fragment: false,
        }
    }

    pub(super) fn options(&self) -> Options {
        Options::default()
            .with(Options::NO_PUT, self.no_put)
            .with(Options::NO_DELETE, self.no_delete)
            .with(Options::PREV_KV, self.prev_kv)
            .with(Options::PROGRESS, self.progress_notify)
            .with(Options::FRAGMENT, self.fragment)
    }
}

#[derive(Clone, Copy, Debug)]
pub struct HubConfig {
    pub identity: HeaderIds,
    /// Responses from this size on go in fragments, for watches that ask for it (etcd: the request limit + 512 KiB).
    pub fragment_bytes: usize,
    /// Unsent bytes of a stream beyond which it is not heard. Its watchers fall behind when it has left something due, from an
    /// eighth of that on; and when it had nothing due, from four times that on until its connection looks. One message may
    /// pass either.
    pub backlog_bytes_max: usize,
    /// Batches that the hub keeps for watchers that fall behind or start in the past. Older ones it asks for.
    pub history_bytes_max: usize,
    /// Events gathered for late watchers, over all groups, beyond which they are sent before the pass is at its end.
    pub gathered_bytes_max: usize,
    /// Requests that are answered, and apart from them the work on late watchers and removals, between two batches while
    /// more batches wait: as much as the batch before took, at least [`WORK_MIN`] and at most this. Without it a steady stream
    /// of writes would starve them; without a bound a million creates would keep an event back.
    pub work_between_batches: usize,
    pub watches: WatchLimits,
}

impl Default for HubConfig {
    fn default() -> HubConfig {
        HubConfig {
            identity: HeaderIds::default(),
            fragment_bytes: 2 << 20,
            // With the message that passes it, it lies in one buffer of 32 KiB.
            backlog_bytes_max: 28 << 10,
            history_bytes_max: 16 << 20,
            gathered_bytes_max: 32 << 20,
            work_between_batches: 256,
            watches: WatchLimits::default(),
        }
    }
}

/// Bugs that are switched on for a test, to show that it finds them.
#[cfg(test)]
#[derive(Clone, Copy, Default, Debug)]
pub struct Planted {
    /// Progress is told as soon as it is asked for, before events that the hub has yet to handle.
    pub progress_before_events: bool,
    /// A watch that resumes is replayed from an older revision than it asked for.
    pub resumes_too_early: bool,
    /// A watcher that fell behind is told an event again.
    pub tells_twice: bool,
    /// Events for a slow watcher are dropped.
    pub drops_when_slow: bool,
    /// A watch that starts in the future is told of the present.
    pub future_sees_present: bool,
    /// The events of one revision come in two responses.
    pub splits_transactions: bool,
    /// The fan-out moves on although a removal brought another member to its place.
    pub passes_swapped_by: bool,
}

impl Request {
    /// How many plain requests it weighs while it waits: a key may be as long as a message.
    fn weight(&self) -> u32 {
        let Request::Create(create) = self else { return 1 };
        1 + (create.range.bytes() / WEIGHT_BYTES) as u32
    }
}

/// A request that waits for the hub to handle the revision it was asked at.
struct Waiting {
    committed: Revision,
    stream: u32,
    request: Request,
}

/// What the hub holds, in bytes, by class. Kept as things come and go.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct HubBytes {
    pub streams: usize,
    /// Members of groups, and the lists of streams.
    pub watchings: usize,
    /// Groups with their keys, and the ways to find them.
    pub groups: usize,
    /// Watchers that are behind or start in the future, and waiting requests.
    pub apart: usize,
    /// What is queued for streams: the bytes that are theirs alone, and those that they share, once.
    pub backlog: usize,
    pub history: usize,
}

impl HubBytes {
    /// All but the history, whose batches the store holds as well.
    fn own(&self) -> usize {
        self.streams + self.watchings + self.groups + self.apart + self.backlog
    }
}

/// What the hub has and did.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct HubCounters {
    pub streams: u64,
    pub watches: u64,
    pub groups: u64,
    /// Watchers that are behind.
    pub behind: u64,
    /// Responses with events since the start.
    pub events_sent: u64,
    /// How often a watcher fell behind because its stream had no room.
    pub slow_events: u64,
    pub refused: RefusalCounts,
}

pub struct Hub {
    pub(super) config: HubConfig,
    pub(super) revision: Revision,
    /// Of `revision`: made once for all answers that carry it.
    pub(super) header: Header,
    pub(super) compacted: Revision,
    pub(super) streams: Streams,
    pub(super) groups: Groups,
    pub(super) fan_out: FanOut,
    pub(super) catch_up: CatchUp,
    /// Batches that are still to be told.
    intake: VecDeque<Arc<Batch>>,
    intake_bytes: usize,
    /// Batches that were told, the newest last, without a hole up to the hub's revision.
    pub(super) recent: VecDeque<Arc<Batch>>,
    recent_bytes: usize,
    waiting: VecDeque<Waiting>,
    waiting_weight: usize,
    /// As it was given; caches of `config` may be smaller than these.
    full_config: HubConfig,
    /// What the hub may hold before it refuses watches.
    bytes_max: usize,
    /// Watches that start above the hub's revision: start, stream, row.
    pub(super) future: BTreeMap<(Revision, u32, u32), u32>,
    /// Where a watch stands in `future`.
    pub(super) starts: HashMap<(u32, u32), Revision>,
    /// Closed streams whose rows are still to be looked at, and the next row of the first of them.
    pub(super) closing: VecDeque<u32>,
    pub(super) closing_row: usize,
    /// Groups with many dead members, and the next member of the first of them.
    pub(super) sweeps: VecDeque<u32>,
    pub(super) sweep_member: usize,
    /// Streams whose progress tick has come, and the next row of the first of them.
    pub(super) ticks: VecDeque<u32>,
    pub(super) tick_row: usize,
    /// Streams that got their first watch with notifications.
    pub(super) with_progress: VecDeque<u32>,
    /// The next batch is in turn, and those who start with it join.
    joining: bool,
    /// What the batch under way has taken so far.
    batch_work: usize,
    /// What may still be done between batches before the next one is in turn.
    work_left: usize,
    /// Requests that may still be answered before then: of their own, so that neither keeps the other waiting.
    answers_left: usize,
    pub(super) events_sent: u64,
    pub(super) slow_events: u64,
    pub(super) refusals: Refusals,
    #[cfg(test)]
    pub planted: Planted,
}

impl Hub {
    /// A hub that has told everything up to `at`.
    pub fn new(config: HubConfig, at: Revision) -> Hub {
        Hub {
            header: config.identity.header(at),
            config,
            revision: at,
            compacted: Revision::ZERO,
            streams: Streams::new(config.backlog_bytes_max, config.watches.per_connection.is_some()),
            groups: Groups::new(),
            fan_out: FanOut::default(),
            catch_up: CatchUp::default(),
            intake: VecDeque::new(),
            intake_bytes: 0,
            recent: VecDeque::new(),
            recent_bytes: 0,
            waiting: VecDeque::new(),
            waiting_weight: 0,
            full_config: config,
            bytes_max: usize::MAX,
            future: BTreeMap::new(),
            starts: HashMap::new(),
            closing: VecDeque::new(),
            closing_row: 0,
            sweeps: VecDeque::new(),
            sweep_member: 0,
            ticks: VecDeque::new(),
            tick_row: 0,
            with_progress: VecDeque::new(),
            joining: false,
            batch_work: 0,
            work_left: config.work_between_batches,
            answers_left: config.work_between_batches,
            events_sent: 0,
            slow_events: 0,
            refusals: Refusals::default(),
            #[cfg(test)]
            planted: Planted::default(),
        }
    }

    /// Everything up to here has been told to the synced watchers.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// A new watch stream. [`Hub::next_ready`] gives the token back; streams whose tokens share their upper half belong to
    /// one connection.
    pub fn open_stream(&mut self, token: u64) -> StreamId {
        StreamId(self.streams.open(token))
    }

    /// The client is gone, and its watches with it. The row is used again when nothing refers to it any more.
    pub fn close_stream(&mut self, stream: StreamId) {
        self.streams.close(stream.0);
        self.closing.push_back(stream.0);
    }

    /// Whether looking ahead is of use.
    pub fn gains_by_foresight(&self) -> bool {
        self.groups.len() >= GROUPS_MIN
    }

    /// Creates of these ranges are about to be requested. They need not be, and nothing changes.
    pub fn foresee(&self, ranges: &[Foreseen<'_>]) {
        self.groups.foresee(ranges);
    }

    /// A request, with the committed revision of the moment it came.
    pub fn request(&mut self, stream: StreamId, committed: Revision, request: Request) {
        #[cfg(test)]
        if self.planted.progress_before_events && matches!(request, Request::Progress) {
            return self.tell_progress_at(stream.0, committed);
        }
        if self.waiting.is_empty() && committed <= self.revision && self.is_between_batches() {
            self.answer(stream.0, request);
        } else {
            let weight = request.weight();
            self.streams.hold(stream.0, weight);
            self.waiting_weight += weight as usize;
            self.waiting.push_back(Waiting { committed, stream: stream.0, request });
        }
    }

    /// False while too much of the stream waits to be sent or answered. [`Hub::next_ready`] names it when that has changed.
    pub fn can_take_requests(&mut self, stream: StreamId) -> bool {
        self.streams.can_take_requests(stream.0)
    }

    /// The next batch, in the order of revisions.
    pub fn handle_batch(&mut self, batch: Arc<Batch>) {
        let last = self.intake.back().map_or(self.told_or_started(), |batch| batch.revision);
        assert_eq!(batch.revision, last.next(), "every revision has one batch, and they come in order");
        self.intake_bytes += batch.bytes();
        self.intake.push_back(batch);
    }

    fn told_or_started(&self) -> Revision {
        if self.fan_out.is_active() { self.revision.next() } else { self.revision }
    }

    /// What lies below this revision is forgotten.
    pub fn handle_compaction(&mut self, compacted: Revision) {
        self.compacted = self.compacted.max(compacted);
        self.catch_up.handle_compaction(self.compacted);
    }

    /// The revision from which on late watchers need history that the hub has no more. One request is under way at a time.
    pub fn next_history_request(&mut self) -> Option<Revision> {
        self.catch_up.next_history_request()
    }

    /// The answer to a history request: batches from that revision on, as many as were convenient, or the revision below
    /// which everything is forgotten. Watches are canceled for that only once [`Hub::handle_compaction`] has told it.
    pub fn handle_history(&mut self, reply: Result<Vec<Arc<Batch>>, Revision>) {
        match reply {
            Ok(batches) => self.catch_up.handle_history(batches),
            Err(compacted) => self.catch_up.history_refused(compacted, self.compacted),
        }
    }

    /// A piece of work of at most about `budget` changes, members or rows. True when there is more to do now.
    pub fn turn(&mut self, budget: usize) -> bool {
        let mut used = 0;
        while used < budget {
            let left = budget - used;
            let step = if self.fan_out.is_active() {
                let step = self.fan_out_step(left);
                self.batch_work += step;
                step
            } else {
                self.step_between_batches(left)
            };
            if step == 0 {
                break;
            }
            used += step;
        }
        self.has_work()
    }

    /// Whether a turn of the shard is due: something to do, or somebody to name. Taking output can make it so: there is room
    /// again for who fell behind, and for requests.
    pub fn is_due(&self) -> bool {
        self.has_work() || self.has_ready()
    }

    /// Whether [`Hub::turn`] has something to do.
    pub fn has_work(&self) -> bool {
        self.fan_out.is_active()
            || !self.intake.is_empty()
            || self.waiting.front().is_some_and(|waiting| waiting.committed <= self.revision)
            || !self.closing.is_empty()
            || !self.sweeps.is_empty()
            || !self.ticks.is_empty()
            || self.keeps_compacted()
            || self.catch_up.has_work()
    }

    /// From here on the hub may hold so much more, and its caches may have `caches` parts in `of` of their size: what is
    /// queued for a stream before its watchers fall behind, events gathered for late watchers, recent history.
    pub fn set_memory(&mut self, room: usize, caches: usize, of: usize) {
        self.bytes_max = self.bytes().own().saturating_add(room);
        let part = |bytes: usize| (bytes / of).saturating_mul(caches);
        let HubConfig { backlog_bytes_max, history_bytes_max, gathered_bytes_max, .. } = self.full_config;
        if caches == of {
            self.config = self.full_config;
        } else {
            self.config.history_bytes_max = part(history_bytes_max);
            self.config.gathered_bytes_max = part(gathered_bytes_max).max(GATHERED_BYTES_MIN.min(gathered_bytes_max));
            self.config.backlog_bytes_max = part(backlog_bytes_max).max(BACKLOG_BYTES_MIN.min(backlog_bytes_max));
        }
        self.streams.set_backlog_bytes_max(self.config.backlog_bytes_max);
        if caches < of {
            self.streams.drop_spares();
        }
    }

    /// Whether a watch of a range of so many bytes would pass what the hub may hold.
    pub(super) fn has_room_for(&self, range_bytes: usize) -> bool {
        self.bytes().own() + WATCH_BYTES + range_bytes <= self.bytes_max
    }

    /// Now and then: streams whose watches were refused for want of memory, and which have not been heard since, may ask
    /// again; and events that no stream holds any more are let go.
    pub fn keep_house(&mut self) {
        self.streams.resume_refused();
        let shared = &mut self.fan_out.shared;
        shared.look(SHARED_LOOKS.max(shared.len() / SHARED_PART));
    }

    fn is_between_batches(&self) -> bool {
        !self.fan_out.is_active() && !self.joining
    }

    /// Watches start with the next batch and are not among the synced yet.
    fn has_joiners(&self) -> bool {
        self.future.first_key_value().is_some_and(|((start, ..), _)| *start <= self.revision.next())
    }

    /// For a while, first who asked at this revision and then who is late or gone; then who starts with the next batch; then
    /// that batch. Whoever asked and has not been answered by then is answered at a later revision.
    fn step_between_batches(&mut self, budget: usize) -> usize {
        if self.joining {
            self.join_or_start();
            return 1;
        }
        let may_answer = self.intake.is_empty() || self.answers_left > 0;
        if may_answer && self.waiting.front().is_some_and(|waiting| waiting.committed <= self.revision) {
            self.answers_left = self.answers_left.saturating_sub(1);
            let Waiting { stream, request, .. } = self.waiting.pop_front().expect("looked at above");
            let weight = request.weight();
            self.waiting_weight -= weight as usize;
            if !self.streams.get(stream).is_closed() {
                self.answer(stream, request);
            }
            self.streams.unhold(stream, weight);
            return 1;
        }
        let share = if self.intake.is_empty() { budget } else { budget.min(self.work_left) };
        if share > 0 {
            let used = self.background_step(share);
            if used > 0 {
                self.work_left = self.work_left.saturating_sub(used);
                return used;
            }
        }
        if self.intake.is_empty() {
            return 0;
        }
        self.joining = true;
        1
    }

    /// From the first to join until the batch starts nobody is told of progress: at a revision below its start, a watch
    /// must not look synced (etcd).
    fn join_or_start(&mut self) {
        if self.has_joiners() {
            return self.join_from_future();
        }
        let batch = self.intake.pop_front().expect("joining begins when a batch is there");
        self.joining = false;
        self.intake_bytes -= batch.bytes();
        self.fan_out.start(batch);
        self.batch_work = 0;
    }

    fn background_step(&mut self, budget: usize) -> usize {
        // Ticks, removals and late watchers share: each gets its turn before another's second one.
        let mut used = self.ticks.front().copied().map_or(0, |stream| self.tick(stream, budget.div_ceil(2)));
        used += self.removal_step(budget.saturating_sub(used).div_ceil(2).max(1));
        used + self.catch_up_step(budget.saturating_sub(used).max(1))
    }

    fn removal_step(&mut self, budget: usize) -> usize {
        if let Some(stream) = self.closing.front().copied() {
            return self.empty_stream(stream, budget);
        }
        if let Some(group) = self.sweeps.front().copied() {
            return self.sweep(group, budget);
        }
        self.forget_compacted(budget)
    }

    fn keeps_compacted(&self) -> bool {
        let is_too_much = self.recent_bytes > self.config.history_bytes_max;
        // A watch may still start at the compacted revision itself. What it is told then it is told without the previous
        // versions, as the store keeps that batch from now on; here it would keep all values that were deleted with it.
        self.recent.front().is_some_and(|batch| is_too_much || batch.revision <= self.compacted)
    }

    /// Lets go of batches that nobody may ask for any more, or for which there is no memory. In turns: it may be all that
    /// is kept, and here may be the last to hold them.
    fn forget_compacted(&mut self, budget: usize) -> usize {
        let mut used = 0;
        while used < budget && self.keeps_compacted() {
            let oldest = self.recent.pop_front().expect("looked at above");
            self.recent_bytes -= oldest.bytes();
            used += 1;
        }
        used
    }

    /// The batch under way has been told to everyone.
    pub(super) fn handled(&mut self, batch: Arc<Batch>) {
        let work = self.batch_work.max(WORK_MIN).min(self.config.work_between_batches);
        (self.work_left, self.answers_left) = (work, work);
        self.revision = batch.revision;
        self.header = self.config.identity.header(batch.revision);
        self.recent_bytes += batch.bytes();
        self.recent.push_back(batch);
        while self.recent_bytes > self.config.history_bytes_max
            && let Some(oldest) = self.recent.pop_front()
        {
            self.recent_bytes -= oldest.bytes();
        }
    }

    /// A stream that got something to send, or can take requests again, with its token. It is named once, and again when
    /// there is more after all was taken ([`Hub::take_output`] has given `None`).
    pub fn next_ready(&mut self) -> Option<(StreamId, u64)> {
        let stream = self.streams.next_ready()?;
        Some((StreamId(stream), self.streams.get(stream).token))
    }

    /// Whether [`Hub::next_ready`] has a stream to name.
    pub fn has_ready(&self) -> bool {
        self.streams.has_ready()
    }

    /// The next bytes of length-prefixed messages, at most `bytes_max`, cut anywhere. `None`: nothing is left.
    pub fn take_output(&mut self, stream: StreamId, bytes_max: usize) -> Option<Bytes> {
        let (taken, drained) = self.streams.take(stream.0, bytes_max);
        if drained {
            self.catch_up.drained(stream.0);
        }
        taken
    }

    /// A stream that has its first watch with periodic notifications: its ticks are to begin. It may have been closed since.
    pub fn next_progress_stream(&mut self) -> Option<StreamId> {
        self.with_progress.pop_front().map(StreamId)
    }

    /// The periodic tick of a stream. False when it is gone or has no watch with notifications any more: its ticks can end, and
    /// [`Hub::next_progress_stream`] names it when they are to begin again.
    pub fn progress_due(&mut self, stream: StreamId) -> bool {
        if !self.streams.try_get(stream.0).is_some_and(|stream| !stream.is_closed() && stream.progress() > 0) {
            return false;
        }
        // One that comes before the last one is over tells nobody anything more.
        if self.streams.begin_tick(stream.0) {
            self.ticks.push_back(stream.0);
        }
        true
    }

    /// A watch that was refused or ended, for the log. Some are only counted.
    pub fn next_refusal(&mut self) -> Option<Refusal> {
        self.refusals.take_next()
    }

    /// Counts it, and keeps it for the log. Also for what was refused before it came here.
    pub fn refused(&mut self, stream: u32, why: Why) {
        let token = self.streams.get(stream).token;
        self.refusals.add(Refusal { token, why });
    }

    /// When the oldest change came that the hub has at hand for watchers that fall behind.
    pub fn oldest_at_hand(&self) -> Option<Time> {
        self.recent.front().map(|batch| batch.time)
    }

    pub fn bytes(&self) -> HubBytes {
        let future = (size_of::<(Revision, u32, u32)>() + size_of::<u32>()) * 2 * self.future.len();
        HubBytes {
            streams: self.streams.bytes(),
            watchings: self.groups.member_bytes() + self.streams.list_bytes(),
            groups: self.groups.bytes(),
            apart: self.catch_up.bytes() + future + self.waiting_bytes(),
            backlog: self.streams.own_backlog_bytes() + self.fan_out.bytes(),
            history: self.recent_bytes + self.intake_bytes + self.catch_up.fetched_bytes(),
        }
    }

    fn waiting_bytes(&self) -> usize {
        self.waiting.len() * size_of::<Waiting>() + (self.waiting_weight - self.waiting.len()) * WEIGHT_BYTES
    }

    pub fn counters(&self) -> HubCounters {
        HubCounters {
            streams: self.streams.open_count(),
            watches: self.streams.live_count(),
            groups: self.groups.len() as u64,
            behind: self.catch_up.len() as u64,
            events_sent: self.events_sent,
            slow_events: self.slow_events,
            refused: self.refusals.counts(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Change, KeyValue, LeaseId};

    /// A million clients come back at once, and somebody goes on writing: an event does not wait for all who ask.
    #[test]
    fn between_two_small_batches_a_few_are_answered_and_nobody_starves() {
        const BATCHES: i64 = 100;
        let mut hub = Hub::new(HubConfig::default(), Revision(1));
        let stream = hub.open_stream(0);
        let on = |key: &'static str| Request::Create(Create::plain(KeyRange::One(key.into())));
        hub.request(stream, Revision(1), on("k"));
        for revision in (2..).map(Revision).take(BATCHES as usize) {
            let kv = KeyValue::new(b"k", b"v", Revision(2), revision, 0, revision.0 - 1, LeaseId::NONE);
            let changes = Box::new([Change::Put { kv, previous: None }]);
            hub.handle_batch(Arc::new(Batch { revision, time: Time(0), changes }));
        }
        (0..10_000).for_each(|_| hub.request(stream, Revision(2), on("x")));
        let before = hub.counters().watches;
        while hub.revision() < Revision(1 + BATCHES) {
            hub.turn(10);
            while hub.take_output(stream, 1 << 20).is_some() {}
        }
        let answered = (hub.counters().watches - before) / BATCHES as u64;
        assert!((10..30).contains(&answered), "{answered} were answered between two batches");
    }
}
