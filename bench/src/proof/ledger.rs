//! Who was told what: the writes that were sent, those that were answered, and the judge over what came back.
//!
//! A write that was answered must be there at its revision. One that was not may be there or not, but wholly. Nothing
//! else may be there, and no revision may be left out: so everything that comes back must be explained by one write.

use std::collections::{BTreeMap, HashMap};

use crate::proof::history::{History, Mark, Operation, Told, Write};

/// The events of each revision.
pub type Revisions = BTreeMap<i64, Vec<Told>>;

#[derive(Default)]
pub struct Ledger {
    marks: u64,
    sent: u64,
    /// Sent and not answered, by number of the write.
    open: HashMap<u64, Write>,
    /// By revision: the write and how many keys each of its deletes has found.
    answered: BTreeMap<i64, (Write, Vec<i64>)>,
    /// The highest revision that any answer has named.
    pub told_revision: i64,
}

/// What became of the writes of a round.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct Settled {
    pub answered: u64,
    /// Not answered, and there all the same.
    pub found: u64,
    /// Not answered, and not there.
    pub gone: u64,
}

impl Ledger {
    pub fn mark(&mut self, bytes: u32) -> Mark {
        self.marks += 1;
        Mark { number: self.marks, bytes: bytes.max(Mark::BYTES_MIN) }
    }

    pub fn send(&mut self, write: &Write) -> u64 {
        self.sent += 1;
        self.open.insert(self.sent, write.clone());
        self.sent
    }

    pub fn told(&mut self, revision: i64) {
        self.told_revision = self.told_revision.max(revision);
    }

    pub fn answer(&mut self, sent: u64, revision: i64, deleted: Vec<i64>) -> Result<(), String> {
        self.told(revision);
        let write = self.open.remove(&sent).ok_or("a write was answered twice")?;
        let has_put = write.iter().any(|operation| matches!(operation, Operation::Put(..)));
        if !has_put && deleted.iter().all(|&count| count == 0) {
            // It changed nothing, so the revision is another's.
            return Ok(());
        }
        match self.answered.insert(revision, (write, deleted)) {
            None => Ok(()),
            Some((other, _)) => Err(format!("revision {revision} was given to two writes; one is {other:?}")),
        }
    }

    /// Explains all revisions behind `history` up to `until`, and takes them into it. All writes must have ended.
    pub fn settle(&mut self, history: &mut History, revisions: &Revisions, until: i64) -> Result<Settled, String> {
        let mut settled = Settled::default();
        for revision in history.revision + 1..=until {
            let told = revisions.get(&revision).ok_or_else(|| format!("no event of revision {revision} has come"))?;
            match self.answered.remove(&revision) {
                Some((write, deleted)) => {
                    let expected = expected(&write, history);
                    if *told != expected.events || deleted != expected.deleted {
                        let text = format!("{write:?} was answered with deletes {deleted:?}; told is {told:?}");
                        return Err(format!("revision {revision}: {text}"));
                    }
                    settled.answered += 1;
                }
                None => {
                    self.explain(revision, told, history)?;
                    settled.found += 1;
                }
            }
            history.apply(told)?;
        }
        if let Some((revision, (write, _))) = self.answered.pop_first() {
            return Err(format!("lost: {write:?} was answered with revision {revision}, the store is at {until}"));
        }
        if let Some((revision, told)) = revisions.range(until + 1..).next() {
            return Err(format!("{told:?} was told at revision {revision}, the store is at {until}"));
        }
        settled.gone = self.open.len() as u64;
        self.open.clear();
        Ok(settled)
    }

    /// Finds the one unanswered write that is wholly what was told.
    fn explain(&mut self, revision: i64, told: &[Told], history: &History) -> Result<(), String> {
        let is_it = |write: &Write| told == expected(write, history).events;
        let found = self.open.iter().find(|(_, write)| is_it(write)).map(|(&sent, _)| sent);
        match found {
            Some(sent) => {
                self.open.remove(&sent);
                Ok(())
            }
            None => {
                let touched = |write: &&Write| shares_a_mark(write, told);
                let half = self.open.values().find(touched).map(|write| format!("; sent was {write:?}"));
                let half = half.unwrap_or_default();
                Err(format!("revision {revision} is not what any unanswered write would be: {told:?}{half}"))
            }
        }
    }
}

/// What a write does on top of `history`. A put's own revision and version are judged by the history.
struct Expected {
    events: Vec<Told>,
    deleted: Vec<i64>,
}

fn expected(write: &Write, history: &History) -> Expected {
    let mut expected = Expected { events: Vec::new(), deleted: Vec::new() };
    for &operation in write {
        match operation {
            Operation::Put(key, mark) => expected.events.push(history.put(key, mark)),
            Operation::Delete(key) => {
                expected.deleted.push(i64::from(history.lives(key)));
                if history.lives(key) {
                    expected.events.push(Told { key, put: None });
                }
            }
        }
    }
    expected
}

fn shares_a_mark(write: &Write, told: &[Told]) -> bool {
    write.iter().any(|operation| match operation {
        Operation::Put(_, mark) => told.iter().any(|told| told.put.is_some_and(|put| put.mark == *mark)),
        Operation::Delete(_) => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two puts in one answered write, one unanswered write of a put and a delete, and one that did not arrive.
    fn scene() -> (Ledger, History, Revisions) {
        let (mut ledger, mut history) = (Ledger::default(), History::new());
        let marks: Vec<Mark> = (0..4).map(|_| ledger.mark(8)).collect();
        let first = vec![Operation::Put(1, marks[0]), Operation::Put(2, marks[1])];
        let sent = ledger.send(&first);
        ledger.answer(sent, 2, vec![]).unwrap();
        let second = vec![Operation::Put(3, marks[2]), Operation::Delete(1)];
        ledger.send(&second);
        ledger.send(&vec![Operation::Put(4, marks[3])]);
        let mut revisions = Revisions::new();
        revisions.insert(2, expected(&first, &history).events);
        history.apply(&revisions[&2]).unwrap();
        revisions.insert(3, expected(&second, &history).events);
        (ledger, History::new(), revisions)
    }

    #[test]
    fn what_was_answered_is_there_and_the_rest_is_whole_or_gone() {
        let (mut ledger, mut history, revisions) = scene();
        let settled = ledger.settle(&mut history, &revisions, 3).unwrap();
        assert_eq!(settled, Settled { answered: 1, found: 1, gone: 1 });
        assert_eq!(history.revision, 3);
    }

    #[test]
    fn a_lost_answered_write_is_found() {
        let (mut ledger, mut history, _) = scene();
        let broken = ledger.settle(&mut history, &Revisions::new(), 1).unwrap_err();
        assert!(broken.starts_with("lost: "), "{broken}");
    }

    #[test]
    fn half_a_write_is_found_whether_or_not_it_was_answered() {
        for revision in [2, 3] {
            let (mut ledger, mut history, mut revisions) = scene();
            revisions.get_mut(&revision).unwrap().pop();
            assert!(ledger.settle(&mut history, &revisions, 3).unwrap_err().contains(&format!("revision {revision}")));
        }
    }

    #[test]
    fn a_gap_a_ghost_and_a_doubled_revision_are_found() {
        let (mut ledger, mut history, revisions) = scene();
        assert!(ledger.settle(&mut history, &revisions, 4).unwrap_err().contains("no event of revision 4"));
        let (mut ledger, mut history, mut revisions) = scene();
        revisions.insert(4, revisions[&2].clone());
        assert!(ledger.settle(&mut history, &revisions, 4).is_err());
        let (mut ledger, mut history, revisions) = scene();
        assert!(ledger.settle(&mut history, &revisions, 2).unwrap_err().contains("was told at revision 3"));
        let (mut ledger, _, _) = scene();
        let mark = ledger.mark(8);
        let sent = ledger.send(&vec![Operation::Put(1, mark)]);
        assert!(ledger.answer(sent, 2, vec![]).unwrap_err().contains("two writes"));
    }
}
