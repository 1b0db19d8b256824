//! Which streams are due, and the wakers that say so.
//!
//! One task drives a connection and all its streams. So that a wake touches one stream and not all of them, every stream
//! has a waker of its own, which is no more than a number: shard, slot of the connection, slot of the stream. Cloning and
//! dropping it do nothing; waking pushes the stream onto its connection's queue and wakes the connection's task. Slots are
//! reused, and a wake that comes late names whoever lives there now: harmless, since all it does is have a look taken.
//!
//! h2 wakes while it holds its own lock, so nothing here calls back into it. A wake on another thread finds another queue
//! or none, and does nothing.

#![allow(unsafe_code)]

use std::cell::RefCell;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::{RawWaker, RawWakerVTable, Waker};

use slab::Slab;

use super::CallId;

/// Announces calls of this thread's connections: more requests can be taken, or there is something to send.
#[derive(Clone)]
pub struct Ready(Rc<Queue>);

struct Queue {
    shard: u8,
    slots: RefCell<Slab<Slot>>,
}

/// Names the connection itself in place of one of its streams.
const CONNECTION: u32 = u32::MAX;
/// As many as fit beside shard and stream.
const CONNECTIONS_MAX: usize = 1 << 24;
/// A queue that grew beyond this in a burst is given back once it is empty.
const IDLE_QUEUE_MAX: usize = 64;

struct Slot {
    peer: SocketAddr,
    task: Option<Waker>,
    /// The task runs: what is queued meanwhile needs no wake.
    is_polled: bool,
    /// The connection itself was woken.
    is_due: bool,
    /// The stream that is being served. What h2 wakes it for meanwhile is what it is being served.
    served: Option<u32>,
    queue: VecDeque<u32>,
    /// By stream: whether it is queued, and whether the handler announced it.
    marks: Vec<u8>,
}

impl Slot {
    fn new(peer: SocketAddr) -> Slot {
        Slot {
            peer,
            task: None,
            is_polled: false,
            is_due: false,
            served: None,
            queue: VecDeque::new(),
            marks: Vec::new(),
        }
    }
}

const QUEUED: u8 = 1;
const ANNOUNCED: u8 = 2;

/// A stream that is due.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Due {
    pub stream: u32,
    /// The handler named it, and not only h2.
    pub announced: bool,
}

thread_local! {
    static QUEUE: RefCell<Option<Rc<Queue>>> = const { RefCell::new(None) };
}

impl Ready {
    /// The queue of this thread's shard; wakers find it through the thread.
    pub fn new(shard: u8) -> Ready {
        let queue = Rc::new(Queue { shard, slots: RefCell::default() });
        QUEUE.set(Some(queue.clone()));
        Ready(queue)
    }

    /// Looks at the call soon: reads on if it was paused, and asks for output. Never calls the handler from inside.
    pub fn ready(&self, call: CallId) {
        self.0.push(call.connection, call.stream, ANNOUNCED);
    }

    /// The peer of a connection, if it is still there.
    pub fn peer(&self, connection: u32) -> Option<SocketAddr> {
        self.0.with(connection, |slot| slot.peer)
    }

    /// A slot for a connection; `None` when there are too many.
    pub(super) fn add(&self, peer: SocketAddr) -> Option<u32> {
        let mut slots = self.0.slots.borrow_mut();
        if slots.len() >= CONNECTIONS_MAX {
            return None;
        }
        u32::try_from(slots.insert(Slot::new(peer))).ok()
    }

    pub(super) fn remove(&self, connection: u32) {
        // Dropped outside of the borrow: a task's waker may be the last share of its task.
        let slot = self.0.slots.borrow_mut().try_remove(connection as usize);
        drop(slot);
    }

    /// The task of a connection begins to run.
    pub(super) fn enter(&self, connection: u32, task: &Waker) {
        self.0.with(connection, |slot| {
            slot.is_polled = true;
            if !slot.task.as_ref().is_some_and(|known| known.will_wake(task)) {
                slot.task = Some(task.clone());
            }
        });
    }

    /// The task has looked at everything; what becomes due from here on wakes it.
    pub(super) fn leave(&self, connection: u32) {
        self.0.with(connection, |slot| {
            slot.is_polled = false;
            if slot.queue.is_empty() && slot.queue.capacity() > IDLE_QUEUE_MAX {
                slot.queue = VecDeque::new();
            }
        });
    }

    pub(super) fn next(&self, connection: u32) -> Option<Due> {
        self.0.with(connection, |slot| {
            let stream = slot.queue.pop_front()?;
            let marks = std::mem::take(&mut slot.marks[stream as usize]);
            Some(Due { stream, announced: marks & ANNOUNCED != 0 })
        })?
    }

    pub(super) fn has_due(&self, connection: u32) -> bool {
        self.0.with(connection, |slot| !slot.queue.is_empty()).unwrap_or(false)
    }

    /// Whether the connection itself was woken since it was last asked.
    pub(super) fn take_woken(&self, connection: u32) -> bool {
        self.0.with(connection, |slot| std::mem::take(&mut slot.is_due)).unwrap_or(false)
    }

    /// Streams of the connection are served until told otherwise.
    pub(super) fn serve(&self, connection: u32, stream: Option<u32>) {
        self.0.with(connection, |slot| slot.served = stream);
    }

    pub(super) fn wake_connection(&self, connection: u32) {
        self.0.push(connection, CONNECTION, 0);
    }

    pub(super) fn wake_all(&self) {
        let connections: Vec<usize> = self.0.slots.borrow().iter().map(|(connection, _)| connection).collect();
        for connection in connections {
            self.wake_connection(connection as u32);
        }
    }

    pub(super) fn connection_waker(&self, connection: u32) -> Waker {
        waker(pack(self.0.shard, connection, CONNECTION))
    }

    pub(super) fn stream_waker(&self, connection: u32, stream: u32) -> Waker {
        waker(pack(self.0.shard, connection, stream))
    }
}

impl Queue {
    fn with<T>(&self, connection: u32, act: impl FnOnce(&mut Slot) -> T) -> Option<T> {
        self.slots.borrow_mut().get_mut(connection as usize).map(act)
    }

    fn push(&self, connection: u32, stream: u32, reason: u8) {
        let mut slots = self.slots.borrow_mut();
        let Some(slot) = slots.get_mut(connection as usize) else { return };
        if stream == CONNECTION {
            slot.is_due = true;
        } else if reason != ANNOUNCED && slot.served == Some(stream) {
            return;
        } else {
            let index = stream as usize;
            if index >= slot.marks.len() {
                slot.marks.resize(index + 1, 0);
            }
            let queued = slot.marks[index] & QUEUED != 0;
            slot.marks[index] |= QUEUED | reason;
            if queued {
                return;
            }
            slot.queue.push_back(stream);
        }
        if !slot.is_polled
            && let Some(task) = &slot.task
        {
            // The runtime only queues the task; it runs no code of ours from here.
            task.wake_by_ref();
        }
    }
}

fn pack(shard: u8, connection: u32, stream: u32) -> u64 {
    u64::from(shard) << 56 | u64::from(connection) << 32 | u64::from(stream)
}

fn waker(word: u64) -> Waker {
    // A pointer of 64 bits carries the whole word.
    const { assert!(size_of::<*const ()>() == 8, "the word of a waker needs a pointer of 64 bits") };
    // SAFETY: the table's functions treat the pointer as a number, own nothing, and may be called on any thread. Safe code
    // (`Wake` over an `Arc`) would cost an allocation of 40 bytes for each of millions of streams.
    unsafe { Waker::from_raw(RawWaker::new(std::ptr::without_provenance(word as usize), &TABLE)) }
}

static TABLE: RawWakerVTable = RawWakerVTable::new(
    |data| RawWaker::new(data, &TABLE),
    |data| wake(data.addr() as u64),
    |data| wake(data.addr() as u64),
    |_| {},
);

fn wake(word: u64) {
    let (shard, connection, stream) = ((word >> 56) as u8, (word >> 32) as u32 & 0xff_ffff, word as u32);
    // A thread that is ending has no queue any more.
    let queue = QUEUE.try_with(|queue| queue.borrow().clone()).ok().flatten();
    if let Some(queue) = queue.filter(|queue| queue.shard == shard) {
        queue.push(connection, stream, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 7);

    #[test]
    fn a_wake_queues_its_stream_once_and_only_on_its_own_thread() {
        let ready = Ready::new(7);
        let connection = ready.add(PEER).unwrap();
        let waker = ready.stream_waker(connection, 3);
        waker.wake_by_ref();
        drop(waker.clone());
        waker.wake_by_ref();
        ready.ready(CallId { connection, stream: 3 });
        assert_eq!(ready.next(connection), Some(Due { stream: 3, announced: true }));
        assert_eq!(ready.next(connection), None);
        let far = waker.clone();
        std::thread::spawn(move || far.wake()).join().unwrap();
        assert!(!ready.has_due(connection));
        ready.serve(connection, Some(3));
        waker.wake_by_ref();
        assert!(!ready.has_due(connection));
        ready.remove(connection);
        waker.wake();
    }

    #[test]
    fn the_connections_own_waker_marks_the_connection() {
        let ready = Ready::new(255);
        let connection = ready.add(PEER).unwrap();
        ready.connection_waker(connection).wake();
        assert!(ready.take_woken(connection) && !ready.take_woken(connection));
        assert!(!ready.has_due(connection));
    }
}
