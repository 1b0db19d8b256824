//! What a store with watches is supposed to do, slow and obvious: one map, one log, no sharing, no turns.

use std::collections::BTreeMap;

use crate::types::KeyRange;

/// A key's state as a client sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Row {
    pub key: Vec<u8>,
    pub value: Vec<u8>,
    pub create_revision: i64,
    pub mod_revision: i64,
    pub version: i64,
    /// 0 is none.
    pub lease: i64,
}

/// A lease: its time to live in seconds, and when that is over, in milliseconds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Held {
    pub ttl: i64,
    pub deadline: u64,
}

/// What a watcher is told of one change.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Told {
    pub revision: i64,
    pub key: Vec<u8>,
    /// `None` is a delete.
    pub put: Option<Row>,
    /// The key's state before the whole revision.
    pub previous: Option<Row>,
}

#[derive(Clone, Debug)]
pub enum Op {
    Put { key: Vec<u8>, value: Vec<u8>, lease: i64 },
    Delete(KeyRange),
}

#[derive(Default)]
pub struct Model {
    /// State after each revision, from revision 1 on: `states[0]` is the empty store.
    states: Vec<BTreeMap<Vec<u8>, Row>>,
    log: Vec<Told>,
    /// By id.
    pub leases: BTreeMap<i64, Held>,
}

impl Model {
    pub fn new() -> Model {
        Model { states: vec![BTreeMap::new()], ..Model::default() }
    }

    pub fn revision(&self) -> i64 {
        self.states.len() as i64
    }

    /// Applies all operations at one new revision, or at none when nothing changes. Gives the revision of the answer.
    pub fn apply(&mut self, ops: &[Op]) -> i64 {
        let before = self.states[self.states.len() - 1].clone();
        let revision = self.revision() + 1;
        let mut state = before.clone();
        let logged = self.log.len();
        for op in ops {
            match op {
                Op::Put { key, value, lease } => {
                    let (create_revision, version) =
                        state.get(key).map_or((revision, 1), |row| (row.create_revision, row.version + 1));
                    let (key, value, lease) = (key.clone(), value.clone(), *lease);
                    let row = Row { key: key.clone(), value, create_revision, mod_revision: revision, version, lease };
                    state.insert(key.clone(), row.clone());
                    let previous = before.get(&key).filter(|_| create_revision < revision).cloned();
                    self.log.push(Told { revision, key, put: Some(row), previous });
                }
                Op::Delete(range) => {
                    let gone: Vec<Vec<u8>> = state.keys().filter(|key| range.contains(key)).cloned().collect();
                    for key in gone {
                        state.remove(&key);
                        let previous = before.get(&key).cloned();
                        self.log.push(Told { revision, key, put: None, previous });
                    }
                }
            }
        }
        if self.log.len() == logged {
            return self.revision();
        }
        self.states.push(state);
        revision
    }

    /// The keys whose newest version names a lease, in ascending order.
    pub fn keys_of(&self, lease: i64) -> Vec<Vec<u8>> {
        let state = &self.states[self.states.len() - 1];
        state.values().filter(|row| row.lease == lease).map(|row| row.key.clone()).collect()
    }

    /// Takes a lease away, and with it its keys at one revision. False: there is none.
    pub fn revoke(&mut self, lease: i64) -> bool {
        let was_there = self.leases.remove(&lease).is_some();
        if was_there {
            let delete = |key: Vec<u8>| Op::Delete(KeyRange::One(key.into()));
            self.apply(&self.keys_of(lease).into_iter().map(delete).collect::<Vec<_>>());
        }
        was_there
    }

    /// The rows of a range at a revision, by key.
    pub fn range(&self, range: &KeyRange, revision: i64) -> Vec<Row> {
        let state = &self.states[revision as usize - 1];
        state.values().filter(|row| range.contains(&row.key)).cloned().collect()
    }

    /// Everything told about a range from one revision to another, both inclusive.
    pub fn told(&self, range: &KeyRange, from: i64, upto: i64) -> Vec<&Told> {
        let within = |told: &&Told| (from..=upto).contains(&told.revision) && range.contains(&told.key);
        self.log.iter().filter(within).collect()
    }
}
