//! The proof of durability from outside: a server is stopped under load, again and again, and after each start everything
//! that it has told anybody must be there.
//!
//! ```text
//! mod (a trial: load, stop, start, verify) ─► load (writers, a compactor)   watches (live through restarts)
//!                                          ─► ledger (who was told what: the judge) ─► history (what a store must hold)
//!                                          ─► calls                                    image (a disk to cut the power of)
//! ```
//!
//! The events of a watch over all keys are the account: each revision must come once, and must be one write that was
//! sent, whole. Reads, the other watches and the answers are then compared with this account.

pub mod calls;
pub mod history;
pub mod image;
pub mod ledger;
mod load;
pub mod watches;

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use crate::caller::Caller;
use crate::fault::{Fault, Result};
use crate::link::Windows;
use crate::proof::history::{History, KEYS, Operation, Write};
use crate::proof::ledger::{Ledger, Revisions};
use crate::proof::load::Load;
use crate::proof::watches::{AllSeen, Scope, Watches};
use crate::random::Random;
use crate::server::{Program, Server};

/// The watches of a trial.
const SCOPES: [Scope; 4] = [Scope::All, Scope::One(0), Scope::Span(10, 20), Scope::Deletes];
/// Old revisions that are read after each start.
const READS: u32 = 3;

/// What a trial has done so far.
#[derive(Clone, Copy, Default, Debug)]
pub struct Figures {
    pub stops: u64,
    /// Of the stops, those that hit a server which had not yet answered anything.
    pub stops_while_starting: u64,
    pub answered: u64,
    pub found: u64,
    pub gone: u64,
    pub compactions: u64,
    pub revision: i64,
    pub longest_start: Duration,
}

impl std::fmt::Display for Figures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Figures { stops, stops_while_starting, answered, found, gone, compactions, revision, .. } = self;
        write!(
            f,
            "{stops} stops, {stops_while_starting} of them while starting; {answered} writes answered and there, {found} \
             unanswered there whole, {gone} not there at all; {compactions} compactions; at revision {revision}; longest \
             start {:.2} s",
            self.longest_start.as_secs_f64()
        )
    }
}

/// A server with everything that it has told.
pub struct Trial {
    pub server: Server,
    pub figures: Figures,
    random: Random,
    ledger: Rc<RefCell<Ledger>>,
    history: History,
    seen: AllSeen,
    watches: Watches,
    identity: (u64, u64),
    term: u64,
    compaction: Rc<RefCell<Compaction>>,
}

/// What is known of compactions.
#[derive(Clone, Copy, Default, Debug)]
pub struct Compaction {
    /// The highest that was answered.
    pub answered: i64,
    /// The highest that was sent.
    pub sent: i64,
    pub count: u64,
}

impl Trial {
    /// Starts a server on an empty directory.
    pub async fn begin(program: &Program, seed: u64) -> Result<Trial> {
        let mut server = program.start().await?;
        let header = calls::header(&server.caller().await?).await.map_err(|fault| server.explain(fault))?;
        let seen = watches::seen(&SCOPES, header.revision);
        let watches = Watches::open(&server.endpoint, &seen).await?;
        Ok(Trial {
            server,
            figures: Figures::default(),
            random: Random::new(seed),
            ledger: Rc::default(),
            history: History::new(),
            seen,
            watches,
            identity: (header.cluster_id, header.member_id),
            term: header.raft_term,
            compaction: Rc::default(),
        })
    }

    /// Writes and compacts for so long, then stops the server by `stop` in the middle of it.
    pub async fn load_and_stop(
        &mut self,
        length: Duration,
        stop: impl AsyncFnOnce(&mut Server) -> Result<()>,
    ) -> Result<()> {
        let load = Load::start(&self.server.endpoint, &mut self.random, &self.ledger, &self.seen, &self.compaction);
        tokio::time::sleep(length).await;
        self.server.check_alive()?;
        stop(&mut self.server).await?;
        load.ended().await?;
        self.watches.ended().await?;
        self.figures.stops += 1;
        Ok(())
    }

    /// The same with a crash of the process.
    pub async fn load_and_kill(&mut self, length: Duration) -> Result<()> {
        let kill = async |server: &mut Server| {
            server.kill();
            Ok(())
        };
        self.load_and_stop(length, kill).await
    }

    /// A start that is cut off before the server has answered anything, or soon after.
    pub async fn start_and_kill(&mut self, length: Duration) -> Result<()> {
        self.server.spawn_again()?;
        tokio::time::sleep(length).await;
        self.server.check_alive()?;
        self.server.kill();
        self.figures.stops += 1;
        self.figures.stops_while_starting += 1;
        Ok(())
    }

    /// Starts the server again and checks everything.
    pub async fn start_and_verify(&mut self) -> Result<()> {
        self.server.spawn_again()?;
        let ready = self.server.wait_until_ready().await?;
        self.figures.longest_start = self.figures.longest_start.max(ready);
        match self.verify().await {
            // What the server did is said by the server, where it has ended.
            Err(fault) if calls::is_lost(&fault) => Err(self.server.explain(fault)),
            outcome => outcome,
        }
    }

    async fn verify(&mut self) -> Result<()> {
        let caller = Caller::connect(&self.server.endpoint, Windows::WIDE).await?;
        let revision = self.check_header(&caller).await?;
        self.watches = Watches::open(&self.server.endpoint, &self.seen).await?;
        // Two more writes reach every watch, so each of them is known to have seen all that was before.
        let key = KEYS - 1;
        let [zero, ten, last] = [0, 10, key].map(|key| Operation::Put(key, self.ledger.borrow_mut().mark(20)));
        self.write_next(&caller, vec![zero, ten, last], revision + 1).await?;
        self.write_next(&caller, vec![Operation::Delete(key)], revision + 2).await?;
        let until = revision + 2;
        self.watches.wait(&self.seen, &[until, until - 1, until - 1, until]).await?;
        self.settle(until)?;
        self.check_compaction(&caller).await?;
        self.check_reads(&caller, until).await
    }

    /// Identity stays, the term grows, and the revision has not fallen behind anything that was told.
    async fn check_header(&mut self, caller: &Caller) -> Result<i64> {
        let header = calls::header(caller).await?;
        let identity = (header.cluster_id, header.member_id);
        if identity != self.identity {
            return Err(Fault::Broken(format!("the ids were {:x?} and are {identity:x?}", self.identity)));
        }
        if header.raft_term <= self.term {
            return Err(Fault::Broken(format!("the term was {} and is {}", self.term, header.raft_term)));
        }
        self.term = header.raft_term;
        let seen = self.seen.borrow().iter().map(|seen| seen.last).max().unwrap_or(0);
        let told = self.ledger.borrow().told_revision.max(seen);
        if header.revision < told {
            return Err(Fault::Broken(format!("revision {told} was told, the store is back at {}", header.revision)));
        }
        Ok(header.revision)
    }

    async fn write_next(&mut self, caller: &Caller, write: Write, due: i64) -> Result<()> {
        let sent = self.ledger.borrow_mut().send(&write);
        let (revision, deleted) = calls::write(caller, &write).await?;
        if revision != due {
            return Err(Fault::Broken(format!("a write was given revision {revision} where {due} is next")));
        }
        self.ledger.borrow_mut().answer(sent, revision, deleted).map_err(Fault::Broken)
    }

    fn settle(&mut self, until: i64) -> Result<()> {
        let fresh: Vec<Revisions> =
            self.seen.borrow_mut().iter_mut().map(|seen| std::mem::take(&mut seen.fresh)).collect();
        for (scope, found) in SCOPES.iter().zip(&fresh) {
            let expected = scope.part(&fresh[0]);
            if let Some(revision) = expected.keys().chain(found.keys()).find(|at| expected.get(at) != found.get(at)) {
                let (due, told) = (expected.get(revision), found.get(revision));
                let text = format!("the watch of {scope:?} was told {told:?} of revision {revision}; due is {due:?}");
                return Err(Fault::Broken(text));
            }
        }
        let mut ledger = self.ledger.borrow_mut();
        let settled = ledger.settle(&mut self.history, &fresh[0], until).map_err(Fault::Broken)?;
        self.figures.answered += settled.answered;
        self.figures.found += settled.found;
        self.figures.gone += settled.gone;
        self.figures.revision = until;
        Ok(())
    }

    /// An answered compaction has happened; the one that was under way has happened or not.
    async fn check_compaction(&mut self, caller: &Caller) -> Result<()> {
        let mut compaction = self.compaction.borrow().to_owned();
        if compaction.sent > compaction.answered {
            let happened = calls::rows(caller, compaction.sent - 1).await?.is_none();
            compaction.answered = if happened { compaction.sent } else { compaction.answered };
            compaction.sent = compaction.answered;
        }
        if compaction.answered > 1 && calls::rows(caller, compaction.answered - 1).await?.is_some() {
            let text = format!("revision {} was compacted and is read again", compaction.answered - 1);
            return Err(Fault::Broken(text));
        }
        self.figures.compactions = compaction.count;
        *self.compaction.borrow_mut() = compaction;
        self.history.forget_before(compaction.answered);
        Ok(())
    }

    async fn check_reads(&mut self, caller: &Caller, until: i64) -> Result<()> {
        let first = self.compaction.borrow().answered.max(1);
        let mut revisions = vec![0, first, until - 2];
        revisions.extend((0..READS).map(|_| first + self.random.below((until - first) as u64 + 1) as i64));
        for revision in revisions {
            let found = calls::rows(caller, revision).await?;
            let expected = self.history.at(if revision == 0 { until } else { revision });
            if found.as_ref() != Some(&expected) {
                let differs =
                    |found: &Vec<_>| found.iter().zip(&expected).find(|(a, b)| a != b).map(|d| format!("{d:?}"));
                let first = found.as_ref().and_then(differs);
                let rows = found.as_ref().map(Vec::len);
                let text = format!("a read at {revision}: {rows:?} rows where {} are due; {first:?}", expected.len());
                return Err(Fault::Broken(text));
            }
        }
        Ok(())
    }

    /// A random time from the first to before the second, in milliseconds.
    pub fn milliseconds(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from + self.random.below(to - from))
    }

    /// True once in so many times.
    pub fn once_in(&mut self, times: u64) -> bool {
        self.random.below(times) == 0
    }
}
