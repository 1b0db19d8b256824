//! From shared history into the hub of one shard.

use std::sync::Arc;

use crate::shard::history::{Committed, Reader};
use crate::types::Revision;
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
    /// `at` is the revision that the reader stands behind.
    pub fn new(reader: Reader, committed: Arc<Committed>, at: Revision) -> Intake {
        let compacted = committed.compacted();
        Intake { reader, committed, compacted, received: at }
    }

    /// The revision that a request arriving now is judged by.
    pub fn committed(&self) -> Revision {
        self.committed.revision()
    }

    /// Hands the hub what was published since, as far as it has room. True when something is left.
    pub fn feed(&mut self, hub: &mut Hub) -> bool {
        let committed = self.committed.revision();
        let upto = committed.min(Revision(hub.revision().0 + BATCHES_AHEAD_MAX));
        while self.received < upto {
            let batch = self.reader.next().expect("a batch hangs in the chain before its revision is committed");
            assert_eq!(batch.revision, self.received.next(), "every revision has a batch");
            self.received = batch.revision;
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
