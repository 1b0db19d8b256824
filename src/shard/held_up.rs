//! Writes that wait for room in the log, because room is coming: what is under way goes to the checkpoint and gives it back.
//!
//! etcd's clients take a refusal for final, so a write is not refused for want of what will be there in a moment. How many wait,
//! for how long and with how many bytes is bounded: behind those bounds a write is judged by the room that there is.

use std::collections::VecDeque;

use crate::backend::{Command, LeaseCommand};
use crate::shard::writer::Origin;
use crate::store::command::Write;
use crate::store::quota;
use crate::types::Uptime;

/// While there is less room, writes are held up: it may be too little for the next one. A request has 1.5 MiB by default, and
/// comes behind a group.
pub const SCARCE_BYTES: usize = 4 << 20;
/// A put of which so many would find room is not held up.
const PUTS_IN_ROOM: usize = 8;
/// Of one shard. It has place for twice as many commands under way, and reads and keep-alives have the others.
const COUNT_MAX: usize = 1_024;
/// Of all shards together.
const BYTES_MAX: usize = 64 << 20;
/// In milliseconds: etcd's clients wait for 5 s and longer.
const WAIT_MAX: u64 = 3_000;

struct Held {
    origin: Origin,
    command: Command,
    bytes: usize,
    since: Uptime,
}

pub struct HeldUp {
    writes: VecDeque<Held>,
    bytes: usize,
    /// How many each shard has here.
    counts: Vec<usize>,
}

impl HeldUp {
    pub fn new(shards: usize) -> HeldUp {
        HeldUp { writes: VecDeque::new(), bytes: 0, counts: vec![0; shards] }
    }

    pub fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }

    /// What they hold of their requests, about.
    pub fn bytes(&self) -> usize {
        self.bytes + self.writes.len() * size_of::<Held>()
    }

    /// Takes a write that has to wait with so much room; gives back what need not or cannot. An alarm that is taken back and a
    /// compaction need little, and are asked for when there is little.
    pub fn take(&mut self, origin: Origin, command: Command, room: usize, now: Uptime) -> Option<Command> {
        let bytes = match &command {
            Command::Write(Write::Alarm { .. } | Write::Compact(_)) => return Some(command),
            Command::Write(write) => quota::cost_bytes(write) as usize,
            Command::Lease(LeaseCommand::Revoke(_)) => 0,
            _ => return Some(command),
        };
        let is_small = matches!(command, Command::Write(Write::Put(_))) && bytes <= room / PUTS_IN_ROOM;
        let count = &mut self.counts[usize::from(origin.shard)];
        if is_small || *count == COUNT_MAX || self.bytes + bytes > BYTES_MAX {
            return Some(command);
        }
        *count += 1;
        self.bytes += bytes;
        self.writes.push_back(Held { origin, command, bytes, since: now });
        None
    }

    /// The first of them; with a moment, only if it has waited for too long by then.
    pub fn next(&mut self, now: Option<Uptime>) -> Option<(Origin, Command)> {
        if now.is_some_and(|now| self.writes.front().is_some_and(|held| now.0 < held.since.0 + WAIT_MAX)) {
            return None;
        }
        let Held { origin, command, bytes, .. } = self.writes.pop_front()?;
        self.counts[usize::from(origin.shard)] -= 1;
        self.bytes -= bytes;
        Some((origin, command))
    }

    /// Nobody waits for them any more.
    pub fn clear(&mut self) {
        *self = HeldUp::new(self.counts.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::command::{Put, PutLease, PutValue};
    use crate::types::LeaseId;

    fn put(bytes: usize) -> Command {
        let (value, lease) = (PutValue::Set(vec![0; bytes].into()), PutLease::Set(LeaseId::NONE));
        Command::Write(Write::Put(Put { key: "a".into(), value, lease, prev_kv: false }))
    }

    fn origin(shard: u16) -> Origin {
        Origin { shard, token: 0 }
    }

    #[test]
    fn what_waits_is_bounded_by_number_by_bytes_and_by_time() {
        let mut held = HeldUp::new(2);
        assert!((0..COUNT_MAX).all(|_| held.take(origin(0), put(1), 0, Uptime(7)).is_none()));
        assert!(held.take(origin(0), put(1), 0, Uptime(7)).is_some());
        assert!(held.take(origin(1), put(BYTES_MAX), 0, Uptime(7)).is_some(), "too long beside the others");
        assert!(held.take(origin(1), put(BYTES_MAX / 2), 0, Uptime(8)).is_none());
        assert!(held.bytes() > BYTES_MAX / 2);
        assert!(held.next(Some(Uptime(7 + WAIT_MAX - 1))).is_none());
        let over = std::iter::from_fn(|| held.next(Some(Uptime(7 + WAIT_MAX)))).count();
        assert_eq!((over, held.is_empty()), (COUNT_MAX, false));
        assert!(held.next(None).is_some() && held.is_empty() && held.bytes() == 0);
        assert!(held.take(origin(0), put(1), 0, Uptime(9)).is_none());
        held.clear();
        assert!(held.is_empty() && held.bytes() == 0 && held.counts == [0, 0]);
    }

    #[test]
    fn small_puts_and_what_makes_room_do_not_wait() {
        let mut held = HeldUp::new(1);
        let mut waits = |command, room| held.take(origin(0), command, room, Uptime(0)).is_none();
        assert!(waits(put(1_000), 1_000) && !waits(put(1_000), 20_000));
        assert!(!waits(Command::Write(Write::Compact(crate::types::Revision(2))), 0) && !waits(Command::Status, 0));
        assert!(waits(Command::Lease(LeaseCommand::Revoke(LeaseId(7))), 20_000), "nobody knows how many keys it has");
    }
}
