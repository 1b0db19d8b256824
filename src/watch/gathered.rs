//! What one group has gathered in a pass over history, encoded, until it is sent.
//!
//! Small events lie behind each other in a buffer of the group's own. A large one is encoded once for all groups that are told
//! it alike, and each has a reference with the place where it comes: a value of a MiB that a thousand late ranges hold is
//! in memory once, also when it lies with a thousand streams that do not read.

use bytes::Bytes;

use super::message::Events;
use crate::types::Revision;

/// Revisions a response holds at most (etcd: `watchBatchMaxRevs`).
const REVISIONS_PER_RESPONSE: usize = 1_000;
/// A group that has gathered this much is flushed before the end of the pass. A stream that does not read holds one such
/// response, and perhaps nobody else does.
const GATHERED_BYTES_MAX: usize = 64 << 10;
/// Encoded events from this size on are shared: so few make a group full that their places are a short list.
pub(super) const LARGE_BYTES_MIN: usize = 16 << 10;

#[derive(Default)]
pub(super) struct Gathered {
    /// The small events.
    own: Vec<u8>,
    /// The large ones, each with its place: before so many bytes of the small ones come.
    large: Vec<(usize, Bytes)>,
    large_bytes: usize,
    starts: Vec<Start>,
    /// The pass knows that it is full.
    pub(super) listed: bool,
}

/// Where the events of a revision start, among the small ones and the large ones.
struct Start {
    revision: Revision,
    own: u32,
    large: u32,
}

impl Gathered {
    pub(super) fn is_full(&self) -> bool {
        self.starts.len() >= REVISIONS_PER_RESPONSE || self.own.len() + self.large_bytes >= GATHERED_BYTES_MAX
    }

    /// What it takes that is the group's alone.
    pub(super) fn own_bytes(&self) -> usize {
        self.own.len() + self.large.len() * size_of::<(usize, Bytes)>()
    }

    /// The buffer to append small events of this revision to.
    pub(super) fn small(&mut self, revision: Revision) -> &mut Vec<u8> {
        self.start(revision);
        &mut self.own
    }

    /// Appends a large event of this revision.
    pub(super) fn push_large(&mut self, revision: Revision, event: Bytes) {
        self.start(revision);
        self.large_bytes += event.len();
        self.large.push((self.own.len(), event));
    }

    fn start(&mut self, revision: Revision) {
        if self.starts.last().is_none_or(|start| start.revision < revision) {
            self.starts.push(Start { revision, own: self.own.len() as u32, large: self.large.len() as u32 });
        }
    }

    /// The first revision with events.
    pub(super) fn first(&self) -> Option<Revision> {
        self.starts.first().map(|start| start.revision)
    }

    /// Forgets what was gathered of this revision and later ones.
    pub(super) fn truncate(&mut self, end: Revision) {
        let at = self.starts.partition_point(|start| start.revision < end);
        if let Some(start) = self.starts.get(at) {
            self.own.truncate(start.own as usize);
            self.large.truncate(start.large as usize);
            self.large_bytes = self.large.iter().map(|(_, event)| event.len()).sum();
            self.starts.truncate(at);
        }
    }

    /// The small events, when they are enough to be shared by all streams that are told of them.
    pub(super) fn share(&mut self, bytes_min: usize) -> Option<Bytes> {
        (self.own.len() >= bytes_min).then(|| {
            // They may lie for long with a stream that does not read.
            self.own.shrink_to_fit();
            Bytes::from(std::mem::take(&mut self.own))
        })
    }

    /// The events from a revision on. `shared` is what [`share`](Self::share) has given.
    pub(super) fn since<'a>(&'a self, next: Revision, shared: Option<&'a Bytes>) -> Events<'a> {
        let at = self.starts.partition_point(|start| start.revision < next);
        let Some(start) = self.starts.get(at) else { return Events::NONE };
        let own = shared.map_or(&self.own[..], |shared| shared);
        let offset = start.own as usize;
        Events { bytes: &own[offset..], shared, offset, large: &self.large[start.large as usize..] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;
    use crate::watch::message::SHARED_BYTES_MIN;

    /// Events of random sizes, against one buffer in which they all lie.
    #[test]
    fn what_was_gathered_since_a_revision_comes_in_order_whatever_its_size() {
        for seed in 0..200 {
            let random = &mut Random::new(seed);
            let mut gathered = Gathered::default();
            let mut all: Vec<(i64, Vec<u8>)> = Vec::new();
            let mut revision = 1;
            for number in 0..random.below(12) as u8 {
                revision += random.below(3) as i64;
                let event = vec![number; 1 + random.below(2_000) as usize];
                if random.below(3) == 0 {
                    gathered.push_large(Revision(revision), Bytes::from(event.clone()));
                } else {
                    gathered.small(Revision(revision)).extend_from_slice(&event);
                }
                all.push((revision, event));
            }
            if random.below(3) == 0 {
                let end = random.below(revision as u64 + 2) as i64;
                gathered.truncate(Revision(end));
                all.retain(|(revision, _)| *revision < end);
            }
            assert_eq!(gathered.first(), all.first().map(|(revision, _)| Revision(*revision)), "seed {seed}");
            let shared = if random.below(2) == 0 { gathered.share(SHARED_BYTES_MIN) } else { None };
            for next in 0..revision + 2 {
                let since = all.iter().filter(|(revision, _)| *revision >= next);
                let expected: Vec<u8> = since.flat_map(|(_, event)| event.iter().copied()).collect();
                let events = gathered.since(Revision(next), shared.as_ref());
                assert_eq!((events.length(), events.is_empty()), (expected.len(), expected.is_empty()), "seed {seed}");
                let told: Vec<u8> = events.pieces().flat_map(|(bytes, _)| bytes.iter().copied()).collect();
                assert_eq!(told, expected, "seed {seed}, from {next}");
            }
        }
    }
}
