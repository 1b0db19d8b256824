//! Events that several streams hold, encoded: counted once for all, for as long as one of them holds some.
//!
//! Large ones of history can be found again. Late watchers come one by one, each with a pass of its own perhaps, and each reads
//! the same event: 1,500 of them that did not read further held 220 copies of 1.4 MB.

use std::collections::VecDeque;

use bytes::Bytes;
use hashbrown::HashMap;

use crate::types::Revision;

/// Events that are looked at when others are added: more than come, or they would never end.
const LOOKS: usize = 4;

/// A change of a revision, with what was there before or without.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Large {
    pub(super) revision: Revision,
    pub(super) change: u32,
    pub(super) with_previous: bool,
}

enum Held {
    Events(Bytes),
    Large(Large),
}

#[derive(Default)]
pub(super) struct Shared {
    held: VecDeque<Held>,
    large: HashMap<Large, Bytes>,
    bytes: usize,
}

impl Shared {
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn len(&self) -> usize {
        self.held.len()
    }

    pub(super) fn keep(&mut self, events: Bytes) {
        self.bytes += events.len();
        self.held.push_back(Held::Events(events));
        self.look(LOOKS);
    }

    /// A large event, which is encoded when nobody holds it.
    pub(super) fn large(&mut self, large: Large, encode: impl FnOnce() -> Bytes) -> Bytes {
        if let Some(event) = self.large.get(&large) {
            return event.clone();
        }
        let event = encode();
        self.bytes += event.len();
        self.held.push_back(Held::Large(large));
        self.large.insert(large, event.clone());
        self.look(LOOKS);
        event
    }

    /// Looks at some of them, and lets go of those that no stream holds any more.
    pub(super) fn look(&mut self, looks: usize) {
        for _ in 0..looks.min(self.held.len()) {
            let Some(oldest) = self.held.pop_front() else { return };
            let events = match &oldest {
                Held::Events(events) => events,
                Held::Large(large) => &self.large[large],
            };
            if !events.is_unique() {
                self.held.push_back(oldest);
                continue;
            }
            self.bytes -= events.len();
            if let Held::Large(large) = oldest {
                self.large.remove(&large);
            }
        }
        if self.large.is_empty() {
            self.large.shrink_to_fit();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_is_counted_once_and_found_again_and_let_go_when_nobody_holds_it() {
        let mut shared = Shared::default();
        let large = |change| Large { revision: Revision(5), change, with_previous: false };
        let first = shared.large(large(0), || Bytes::from(vec![1; 1_000]));
        let again = shared.large(large(0), || unreachable!("it is held"));
        assert_eq!((first.as_ptr(), shared.bytes()), (again.as_ptr(), 1_000));
        let other = shared.large(large(1), || Bytes::from(vec![2; 100]));
        let events = Bytes::from(vec![3; 10]);
        shared.keep(events.clone());
        drop((first, other));
        shared.look(10);
        assert_eq!(shared.bytes(), 1_010, "one of two who held it holds it still");
        drop((again, events));
        shared.look(10);
        assert_eq!((shared.bytes(), shared.held.len(), shared.large.len()), (0, 0, 0));
        assert_eq!(shared.large(large(0), || Bytes::from(vec![4; 7])).len(), 7);
    }
}
