//! What is written, and what a store must hold after it: pure values, no server.

use std::collections::BTreeMap;

use crate::random::{Random, mix};

/// Few keys, so that each has many versions and dies often.
pub const KEYS: u16 = 60;
const PREFIX: &str = "proof/";
/// Where the range of all keys ends.
pub const ALL_END: &[u8] = b"proof0";

pub fn key(index: u16) -> Vec<u8> {
    format!("{PREFIX}{index:03}").into_bytes()
}

pub fn index(key: &[u8]) -> Option<u16> {
    std::str::from_utf8(key).ok()?.strip_prefix(PREFIX)?.parse().ok()
}

/// A value, by the number that no other value has. Its bytes follow from it, so every byte of a value is checked and
/// none is kept.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Mark {
    pub number: u64,
    pub bytes: u32,
}

impl Mark {
    /// The number itself needs 8 bytes.
    pub const BYTES_MIN: u32 = 8;

    pub fn value(self) -> Vec<u8> {
        let mut value = self.number.to_le_bytes().to_vec();
        let mut filler = Random::new(mix(self.number));
        while value.len() < self.bytes as usize {
            value.extend_from_slice(&filler.next().to_le_bytes());
        }
        value.truncate(self.bytes as usize);
        value
    }

    /// The mark of a value; `None` if one of its bytes is not what was written.
    pub fn read(value: &[u8]) -> Option<Mark> {
        let number = u64::from_le_bytes(*value.first_chunk()?);
        let mark = Mark { number, bytes: u32::try_from(value.len()).ok()? };
        (mark.value() == value).then_some(mark)
    }
}

/// A part of a write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operation {
    Put(u16, Mark),
    Delete(u16),
}

/// Everything that one call changes, at one revision.
pub type Write = Vec<Operation>;

/// An event as a watch tells it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Told {
    pub key: u16,
    /// `None` is a delete.
    pub put: Option<Put>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Put {
    pub mark: Mark,
    pub create_revision: i64,
    pub version: i64,
}

/// A key as a read shows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Row {
    pub key: u16,
    pub mod_revision: i64,
    pub put: Put,
}

/// Every version of every key since the last compaction, as far as it is proven.
pub struct History {
    keys: BTreeMap<u16, Vec<(i64, Option<Put>)>>,
    /// The newest revision in it.
    pub revision: i64,
}

impl History {
    /// An empty store stands at revision 1.
    pub fn new() -> History {
        History { keys: BTreeMap::new(), revision: 1 }
    }

    fn newest(&self, key: u16) -> Option<Put> {
        self.keys.get(&key)?.last()?.1
    }

    pub fn lives(&self, key: u16) -> bool {
        self.newest(key).is_some()
    }

    /// What a put at the next revision is told as.
    pub fn put(&self, key: u16, mark: Mark) -> Told {
        let put = match self.newest(key) {
            None => Put { mark, create_revision: self.revision + 1, version: 1 },
            Some(before) => Put { mark, version: before.version + 1, ..before },
        };
        Told { key, put: Some(put) }
    }

    /// Takes the events of the next revision, if they follow from what was before.
    pub fn apply(&mut self, events: &[Told]) -> Result<(), String> {
        let revision = self.revision + 1;
        for told in events {
            let follows = match (told.put, self.newest(told.key)) {
                (None, before) => before.is_some(),
                (Some(put), None) => put.create_revision == revision && put.version == 1,
                (Some(put), Some(before)) => {
                    put.create_revision == before.create_revision && put.version == before.version + 1
                }
            };
            if !follows {
                let before = self.newest(told.key);
                return Err(format!("revision {revision}: {told:?} does not follow from {before:?}"));
            }
            self.keys.entry(told.key).or_default().push((revision, told.put));
        }
        self.revision = revision;
        Ok(())
    }

    /// What a read of everything at this revision must show.
    pub fn at(&self, revision: i64) -> Vec<Row> {
        let row = |(&key, versions): (&u16, &Vec<(i64, Option<Put>)>)| {
            let &(mod_revision, put) = versions.iter().rev().find(|(at, _)| *at <= revision)?;
            put.map(|put| Row { key, mod_revision, put })
        };
        self.keys.iter().filter_map(row).collect()
    }

    /// Drops what a compaction at this revision forgets: all versions but the one that was the newest then.
    pub fn forget_before(&mut self, revision: i64) {
        self.keys.retain(|_, versions| {
            let kept = versions.iter().rposition(|(at, _)| *at <= revision).unwrap_or(0);
            versions.drain(..kept);
            !matches!(versions[..], [(at, None)] if at <= revision)
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: u16, number: u64, create_revision: i64, version: i64) -> Told {
        Told { key, put: Some(Put { mark: Mark { number, bytes: 8 }, create_revision, version }) }
    }

    #[test]
    fn a_value_with_a_wrong_byte_or_length_has_no_mark() {
        let mark = Mark { number: 77, bytes: 300 };
        let mut value = mark.value();
        assert_eq!((value.len(), Mark::read(&value)), (300, Some(mark)));
        value[200] ^= 1;
        assert_eq!(Mark::read(&value), None);
        assert_eq!(Mark::read(&value[..7]), None);
        assert_eq!(index(&key(59)), Some(59));
    }

    #[test]
    fn history_is_read_at_each_revision_and_forgotten_before_one() {
        let mut history = History::new();
        history.apply(&[put(1, 10, 2, 1), put(2, 11, 2, 1)]).unwrap();
        history.apply(&[put(1, 12, 2, 2)]).unwrap();
        history.apply(&[Told { key: 2, put: None }]).unwrap();
        let shown = |history: &History, revision| {
            history.at(revision).iter().map(|row| (row.key, row.put.mark.number)).collect::<Vec<_>>()
        };
        assert_eq!(shown(&history, 2), [(1, 10), (2, 11)]);
        assert_eq!(shown(&history, 3), [(1, 12), (2, 11)]);
        assert_eq!(shown(&history, 4), [(1, 12)]);
        history.forget_before(4);
        assert_eq!(shown(&history, 4), [(1, 12)]);
        assert_eq!(history.keys.len(), 1);
    }

    #[test]
    fn an_event_that_does_not_follow_is_refused() {
        let mut history = History::new();
        assert!(history.apply(&[Told { key: 1, put: None }]).is_err());
        assert!(history.apply(&[put(1, 1, 2, 2)]).is_err());
        history.apply(&[put(1, 1, 2, 1)]).unwrap();
        assert!(history.apply(&[put(1, 2, 3, 1)]).is_err());
    }
}
