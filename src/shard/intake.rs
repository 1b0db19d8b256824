//! From shared history into the hub of one shard.

use std::sync::Arc;

use crate::shard::history::{Committed, Reader};
use crate::types::{Batch, Revision};
use crate::watch::hub::Hub;

/// Batches that may stand in the hub unhandled. The rest waits in shared history, which the hub of a shard that lags shares
/// with the others.
const BATCHES_AHEAD_MAX: i64 = 256;

pub struct Intake {
    reader: Reader,
    committed: Arc<Committed>,
    compacted: Option<Revision>,
    received: Revision,
}

impl Intake {
    /// `at` is the revision that the reader stands behind. A compaction from before is told with the first feed.
    pub fn new(reader: Reader, committed: Arc<Committed>, at: Revision) -> Intake {
        Intake { reader, committed, compacted: None, received: at }
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

    /// Hands the hub what was published since, as far as it has room, and shows it to `also`. True when something is left.
    pub fn feed(&mut self, hub: &mut Hub, mut also: impl FnMut(&Arc<Batch>)) -> bool {
        let committed = self.committed.revision();
        let upto = committed.min(Revision(hub.revision().0 + BATCHES_AHEAD_MAX));
        while self.received < upto {
            let batch = self.reader.next().expect("a batch hangs in the chain before its revision is committed");
            assert_eq!(batch.revision, self.received.next(), "every revision has a batch");
            self.received = batch.revision;
            also(&batch);
            hub.handle_batch(batch);
        }
        let compacted = self.committed.compacted();
        if compacted != self.compacted {
            self.compacted = compacted;
            hub.handle_compaction(compacted.expect("a compaction is never taken back"));
        }
        self.received < committed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::history::Appender;
    use crate::types::{KeyRange, Time};
    use crate::watch::hub::{Create, HubConfig, Request};

    fn empty_batch(revision: i64) -> Arc<Batch> {
        Arc::new(Batch { revision: Revision(revision), time: Time(0), changes: Box::new([]) })
    }

    #[test]
    fn a_hub_that_starts_behind_a_compaction_cancels_who_asks_for_what_is_gone() {
        let appender = Appender::new(Revision(10), Some(Revision(9)));
        let mut hub = Hub::new(HubConfig::default(), Revision(10));
        let mut intake = Intake::new(appender.reader(), appender.committed(), Revision(10));
        intake.feed(&mut hub, |_| ());
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
}
