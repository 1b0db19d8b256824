//! From shared history into the hub of one shard, and before the calls of it that wait for a key.
//!
//! Both are shown every batch once and in order, mostly the same one at the same time. Those who wait may need longer: ten
//! thousand observers of a leader who speaks often are ten thousand calls to be told of each batch. They then go on from
//! where they stand in the history with a reader of their own, and no watch waits for them.

use std::sync::Arc;

use crate::service::recipes::awaited::Awaited;
use crate::shard::history::{Committed, Reader};
use crate::types::Revision;
use crate::watch::hub::Hub;

/// Batches that may stand in the hub unhandled, and that who waits for keys is shown at once when behind. The rest waits in shared history, which the hub of a shard that lags shares
/// with the others.
const BATCHES_AHEAD_MAX: i64 = 256;

pub struct Intake {
    reader: Reader,
    committed: Arc<Committed>,
    compacted: Option<Revision>,
    received: Revision,
    late: Option<Late>,
}

/// Where those who wait for keys stand while they are behind the hub.
struct Late {
    reader: Reader,
    shown: Revision,
}

impl Intake {
    /// `at` is the revision that the reader stands behind. A compaction from before is told with the first feed.
    pub fn new(reader: Reader, committed: Arc<Committed>, at: Revision) -> Intake {
        Intake { reader, committed, compacted: None, received: at, late: None }
    }

    /// The revision up to which the hub has been handed everything.
    pub fn received(&self) -> Revision {
        self.received
    }

    /// The revision that a request arriving now is judged by.
    pub fn committed(&self) -> Revision {
        self.committed.revision()
    }

    /// What was last compacted, as far as it may be told.
    pub fn compacted(&self) -> Option<Revision> {
        self.committed.compacted()
    }

    /// Hands the hub what was published since, as far as it has room, and shows it to those who wait for keys, as far as they
    /// can take it. True when something is left.
    pub fn feed(&mut self, hub: &mut Hub, awaited: &mut Awaited) -> bool {
        self.catch_up(awaited);
        let committed = self.committed.revision();
        let upto = committed.min(Revision(hub.revision().0 + BATCHES_AHEAD_MAX));
        while self.received < upto {
            if self.late.is_none() && awaited.is_behind() {
                self.late = Some(Late { reader: self.reader.clone(), shown: self.received });
            }
            let batch = self.reader.next().expect("a batch hangs in the chain before its revision is committed");
            assert_eq!(batch.revision, self.received.next(), "every revision has a batch");
            self.received = batch.revision;
            if self.late.is_none() {
                awaited.batch(&batch);
            }
            hub.handle_batch(batch);
        }
        let compacted = self.committed.compacted();
        if compacted != self.compacted {
            self.compacted = compacted;
            hub.handle_compaction(compacted.expect("a compaction is never taken back"));
        }
        self.received < committed || self.late.is_some()
    }

    /// Shows those who wait for keys what the hub has been handed without them.
    fn catch_up(&mut self, awaited: &mut Awaited) {
        let Some(late) = &mut self.late else { return };
        for _ in 0..BATCHES_AHEAD_MAX {
            if awaited.is_behind() {
                return;
            }
            if late.shown == self.received {
                self.late = None;
                return;
            }
            let batch = late.reader.next().expect("the hub has been handed it");
            late.shown = batch.revision;
            awaited.batch(&batch);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::recipes::awaited::Place;
    use crate::shard::history::Appender;
    use crate::types::{Batch, Change, KeyRange, Time};
    use crate::watch::hub::{Create, HubConfig, Request};

    fn empty_batch(revision: i64) -> Arc<Batch> {
        Arc::new(Batch { revision: Revision(revision), time: Time(0), changes: Box::new([]) })
    }

    #[test]
    fn a_hub_that_starts_behind_a_compaction_cancels_who_asks_for_what_is_gone() {
        let appender = Appender::new(Revision(10), Some(Revision(9)));
        let mut hub = Hub::new(HubConfig::default(), Revision(10));
        let mut intake = Intake::new(appender.reader(), appender.committed(), Revision(10));
        intake.feed(&mut hub, &mut Awaited::new(Revision(10)));
        let stream = hub.open_stream(0);
        let create = Create { start: 8, ..Create::plain(KeyRange::One("a".into())) };
        hub.request(stream, intake.committed(), Request::Create(create));
        let mut told = 0;
        for _ in 0..5 {
            while hub.turn(100) {}
            if let Some(from) = hub.next_history_request() {
                assert_eq!(from, Revision(9), "what is gone is not asked for");
                hub.handle_history(Ok([9, 10].map(empty_batch).into()));
            }
            told += hub.take_output(stream, 1_000).map_or(0, |bytes| bytes.len());
        }
        // The acknowledgement alone takes 11 bytes; the cancel that names the compaction, as many.
        assert!(told == 22, "{told} bytes were told");
    }

    /// A hub is behind by no more than a turn, whatever becomes of those who wait: nobody is told here before the end.
    #[test]
    fn no_watch_waits_for_those_who_wait_for_keys() {
        let mut appender = Appender::new(Revision(1), None);
        let mut hub = Hub::new(HubConfig::default(), Revision(1));
        let mut intake = Intake::new(appender.reader(), appender.committed(), Revision(1));
        let mut awaited = Awaited::new(Revision(1));
        awaited.insert(7, Place::Key("leader".into()), Revision(1));
        let mut told: Vec<i64> = Vec::new();
        for revision in 2..=2_000 {
            let changes = Box::new([Change::Delete { key: "leader".into(), previous: None }]);
            let batch = Arc::new(Batch { revision: Revision(revision), time: Time(0), changes });
            appender.publish([batch].into_iter(), Revision(revision), None);
            let is_left = intake.feed(&mut hub, &mut awaited);
            while hub.turn(100) {}
            assert_eq!(hub.revision(), Revision(revision));
            assert_eq!(is_left, awaited.shown() < Revision(revision), "{revision}: somebody is still to be shown it");
            // They get on now and then, and fall behind again.
            if revision % 7 == 0 {
                told.extend((0..5).filter_map(|_| awaited.next_told()).map(|told| told.batch.revision.0));
            }
        }
        assert!(awaited.shown() < Revision(1_900), "they are behind at {:?}", awaited.shown());
        let mut turns = 0;
        while intake.feed(&mut hub, &mut awaited) || awaited.has_next() {
            told.extend(std::iter::from_fn(|| awaited.next_told()).map(|told| told.batch.revision.0));
            turns += 1;
        }
        assert!(told.iter().copied().eq(2..=2_000), "each is told once, and in order");
        assert!(turns < 20, "{turns} turns");
    }
}
