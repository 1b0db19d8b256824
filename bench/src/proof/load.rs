//! The load of a trial: writers that note what they send and what is answered, and a compactor behind them.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

use crate::caller::Caller;
use crate::fault::{Fault, Result};
use crate::link::Windows;
use crate::proof::Compaction;
use crate::proof::calls::{self, PATIENCE, is_lost};
use crate::proof::history::{KEYS, Operation, Write};
use crate::proof::ledger::Ledger;
use crate::proof::watches::AllSeen;
use crate::random::Random;
use crate::tasks;

const WRITERS: u32 = 8;
const COMPACTIONS_EVERY: Duration = Duration::from_millis(25);

/// Tasks that go on until the server is stopped.
pub struct Load {
    tasks: JoinSet<Result<()>>,
    /// For the compactor, which may have nothing to ask of the server when that goes.
    is_over: Rc<Cell<bool>>,
}

impl Load {
    pub fn start(
        endpoint: &Arc<str>,
        random: &mut Random,
        ledger: &Rc<RefCell<Ledger>>,
        seen: &AllSeen,
        compaction: &Rc<RefCell<Compaction>>,
    ) -> Load {
        let mut tasks = JoinSet::new();
        for _ in 0..WRITERS {
            let random = Random::new(random.next());
            tasks.spawn_local(until_lost(write(endpoint.clone(), random, ledger.clone())));
        }
        let is_over = Rc::new(Cell::new(false));
        let compactor = Compactor {
            random: Random::new(random.next()),
            seen: seen.clone(),
            ledger: ledger.clone(),
            compaction: compaction.clone(),
            is_over: is_over.clone(),
        };
        tasks.spawn_local(until_lost(compactor.run(endpoint.clone())));
        Load { tasks, is_over }
    }

    /// Waits for the tasks to notice that the server is gone.
    pub async fn ended(mut self) -> Result<()> {
        self.is_over.set(true);
        let late = |_| Fault::Stalled { waiting_for: "the end of the writers".to_owned(), seconds: PATIENCE.as_secs() };
        tokio::time::timeout(PATIENCE, tasks::all(&mut self.tasks)).await.map_err(late)?.map(drop)
    }
}

/// The only good end of a task is the loss of its server.
async fn until_lost(work: impl Future<Output = Result<()>>) -> Result<()> {
    match work.await {
        Err(fault) if is_lost(&fault) => Ok(()),
        outcome => outcome,
    }
}

/// Writes without pause. What is not answered stays open in the ledger.
async fn write(endpoint: Arc<str>, mut random: Random, ledger: Rc<RefCell<Ledger>>) -> Result<()> {
    let caller = Caller::connect(&endpoint, Windows::SMALL).await?;
    loop {
        let write = compose(&mut random, &mut ledger.borrow_mut());
        let sent = ledger.borrow_mut().send(&write);
        let (revision, deleted) = calls::write(&caller, &write).await?;
        ledger.borrow_mut().answer(sent, revision, deleted).map_err(Fault::Broken)?;
    }
}

/// Mostly small puts; deletes; transactions of several keys, now and then one of more than a megabyte.
fn compose(random: &mut Random, ledger: &mut Ledger) -> Write {
    let small = 8 + random.below(300) as u32;
    match random.below(300) {
        0 => distinct(random, 3).into_iter().map(|key| Operation::Put(key, ledger.mark(400_000))).collect(),
        1..=3 => vec![Operation::Put(random.below(u64::from(KEYS)) as u16, ledger.mark(60_000))],
        4..=39 => vec![Operation::Delete(random.below(u64::from(KEYS)) as u16)],
        40..=149 => {
            let count = 2 + random.below(4) as usize;
            let mut keys = distinct(random, count);
            // The first is always a put: a transaction that changes nothing would be a read.
            let first = keys.pop().map(|key| Operation::Put(key, ledger.mark(small)));
            let rest = keys.into_iter().map(|key| match random.below(3) {
                0 => Operation::Delete(key),
                _ => Operation::Put(key, ledger.mark(small)),
            });
            first.into_iter().chain(rest).collect()
        }
        _ => vec![Operation::Put(random.below(u64::from(KEYS)) as u16, ledger.mark(small))],
    }
}

/// A transaction may touch a key once.
fn distinct(random: &mut Random, count: usize) -> Vec<u16> {
    let mut keys = Vec::with_capacity(count);
    while keys.len() < count {
        let key = random.below(u64::from(KEYS)) as u16;
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    keys
}

/// Compacts up to what every watch has seen, so that each of them can be opened again.
struct Compactor {
    random: Random,
    seen: AllSeen,
    ledger: Rc<RefCell<Ledger>>,
    compaction: Rc<RefCell<Compaction>>,
    is_over: Rc<Cell<bool>>,
}

impl Compactor {
    async fn run(mut self, endpoint: Arc<str>) -> Result<()> {
        let caller = Caller::connect(&endpoint, Windows::SMALL).await?;
        while !self.is_over.get() {
            tokio::time::sleep(COMPACTIONS_EVERY).await;
            let ceiling = self.seen.borrow().iter().map(|seen| seen.last).min().unwrap_or(0);
            let room = ceiling - self.compaction.borrow().sent;
            if room < 1 {
                continue;
            }
            let revision = ceiling - self.random.below(room as u64) as i64;
            self.compaction.borrow_mut().sent = revision;
            let told = calls::compact(&caller, revision, self.random.below(2) == 0).await?;
            self.ledger.borrow_mut().told(told);
            let mut compaction = self.compaction.borrow_mut();
            compaction.answered = revision;
            compaction.count += 1;
        }
        Ok(())
    }
}
