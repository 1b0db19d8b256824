//! What the main thread tells a shard: seldom, and through a queue like everything else between threads.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::sync::mpsc::Sender;
use std::task::{Poll, Waker};

use rtrb::{Consumer, Producer, RingBuffer};

use crate::shard::accounting::Account;

/// Orders a shard may have unread. People give them, one at a time.
const ORDERS_MAX: usize = 64;

#[derive(Clone)]
pub enum Order {
    /// Count what you hold and send it here.
    Account(Sender<Account>),
    /// Finish what is under way; a shard that others do not need ends then.
    Drain,
    /// The writer's shard is needed no more: all others have ended.
    End,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Serving,
    Draining,
    Ended,
}

/// The shard's end.
pub struct Control {
    orders: RefCell<Consumer<Order>>,
    stage: Cell<Stage>,
    /// The one task that waits for the next stage.
    waiter: RefCell<Option<Waker>>,
}

/// The main thread's end, and the shard's.
pub fn pair() -> (Producer<Order>, Control) {
    let (sender, orders) = RingBuffer::new(ORDERS_MAX);
    let control =
        Control { orders: RefCell::new(orders), stage: Cell::new(Stage::Serving), waiter: RefCell::default() };
    (sender, control)
}

impl Control {
    /// The next account that is asked for. On the way it takes note of the orders to drain and to end.
    pub fn next_account(&self) -> Option<Sender<Account>> {
        loop {
            match self.orders.borrow_mut().pop().ok()? {
                Order::Account(sender) => return Some(sender),
                Order::Drain => self.reach(Stage::Draining),
                Order::End => self.reach(Stage::Ended),
            }
        }
    }

    fn reach(&self, stage: Stage) {
        self.stage.set(stage);
        if let Some(waker) = self.waiter.take() {
            waker.wake();
        }
    }

    /// Until the shard has been told to drain.
    pub async fn drained(&self) {
        self.until(Stage::Draining).await;
    }

    /// Until the shard has been told that nobody needs it any more.
    pub async fn ended(&self) {
        self.until(Stage::Ended).await;
    }

    async fn until(&self, stage: Stage) {
        poll_fn(|context| {
            if self.stage.get() >= stage {
                return Poll::Ready(());
            }
            self.waiter.replace(Some(context.waker().clone()));
            Poll::Pending
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn accounts_are_asked_for_one_by_one_and_a_drain_is_noted_on_the_way() {
        let (mut sender, control) = pair();
        let (account, _accounts) = mpsc::channel();
        for order in [Order::Account(account.clone()), Order::Drain, Order::Account(account)] {
            assert!(sender.push(order).is_ok());
        }
        assert!(control.next_account().is_some() && control.stage.get() == Stage::Serving);
        assert!(control.next_account().is_some() && control.stage.get() == Stage::Draining);
        assert!(control.next_account().is_none());
    }
}
