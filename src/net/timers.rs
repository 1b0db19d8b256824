//! When each connection wants to look at the time: one sleeping task a shard, instead of a timer in every connection.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::future::{Future, poll_fn};
use std::task::{Poll, Waker};
use std::time::Instant;

#[derive(Default)]
pub struct Timers {
    due: RefCell<BTreeSet<(Instant, u32)>>,
    sleeper: RefCell<Option<Waker>>,
}

impl Timers {
    pub fn add(&self, at: Instant, connection: u32) {
        let mut due = self.due.borrow_mut();
        let is_first = due.first().is_none_or(|&(first, _)| at < first);
        due.insert((at, connection));
        if is_first && let Some(sleeper) = self.sleeper.take() {
            sleeper.wake();
        }
    }

    pub fn remove(&self, at: Instant, connection: u32) {
        self.due.borrow_mut().remove(&(at, connection));
    }

    fn first(&self) -> Option<Instant> {
        self.due.borrow().first().map(|&(at, _)| at)
    }

    fn take_due(&self, time: Instant) -> Option<u32> {
        let mut due = self.due.borrow_mut();
        if due.first()?.0 > time {
            return None;
        }
        due.pop_first().map(|(_, connection)| connection)
    }

    /// Calls `wake` with each connection at its time, forever. Entries are taken as they fall due.
    pub async fn run(&self, now: fn() -> Instant, mut wake: impl FnMut(u32)) {
        loop {
            let time = now();
            while let Some(connection) = self.take_due(time) {
                wake(connection);
            }
            self.until_due_or_changed().await;
        }
    }

    async fn until_due_or_changed(&self) {
        let first = self.first();
        let mut sleep = first.map(|at| Box::pin(tokio::time::sleep_until(at.into())));
        poll_fn(|context| {
            if self.first() != first {
                return Poll::Ready(());
            }
            self.sleeper.replace(Some(context.waker().clone()));
            match &mut sleep {
                Some(sleep) => sleep.as_mut().poll(context),
                None => Poll::Pending,
            }
        })
        .await;
    }
}
