//! Whether there is space for what a command would keep: the quota, the disk, and the memory of the process.
//!
//! Pure: it is told the numbers and judges. The quota and the disk raise the alarm for space, as in etcd. The memory budget
//! raises none: other things than keys may have taken the memory, and an alarm would stand when they are gone.

use crate::store::quota::Quota;

pub struct Space {
    pub quota: Quota,
    /// Whose alarm it is.
    pub member: u64,
    /// The disk has no room for the log to grow into.
    pub is_short: bool,
    /// What the store may hold before there is no memory left for the process, and what reads may hold beside it.
    memory: Quota,
    scratch_bytes_max: usize,
    /// Why the alarm was raised, for the line in the log behind it.
    raised_for: Option<Shortage>,
}

/// What there is too little of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shortage {
    Quota,
    Disk,
}

/// What an operator does about the alarm for space, in a line.
pub const RUNBOOK: &str = "make room (for the quota: etcdctl compact; for the disk: delete other files, or etcdctl compact \
                           and defrag), then etcdctl alarm disarm";

/// What becomes of a write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    Admitted,
    /// Refused, and the alarm for space is raised.
    Alarm(Shortage),
    /// Refused for now.
    NoMemory,
}

impl Space {
    pub fn new(quota: Quota, member: u64) -> Space {
        Space {
            quota,
            member,
            is_short: false,
            memory: Quota::default(),
            scratch_bytes_max: usize::MAX,
            raised_for: None,
        }
    }

    /// From here on store and scratch may each grow by so many bytes.
    pub fn set_memory_room(&mut self, store_bytes: usize, scratch_bytes: usize, room: usize) {
        self.memory.bytes = Some(store_bytes.saturating_add(room) as u64);
        self.scratch_bytes_max = scratch_bytes.saturating_add(room);
    }

    /// What costs nothing, a delete or a compaction, is always admitted here: it is the way out. A delete of which the log could
    /// not take all is refused where it is carried out.
    pub fn judge(&self, used_bytes: u64, cost_bytes: u64) -> Verdict {
        if !self.quota.admits(used_bytes, cost_bytes) {
            Verdict::Alarm(Shortage::Quota)
        } else if cost_bytes > 0 && self.is_short {
            Verdict::Alarm(Shortage::Disk)
        } else if !self.memory.admits(used_bytes, cost_bytes) {
            Verdict::NoMemory
        } else {
            Verdict::Admitted
        }
    }

    /// The alarm is raised, for this.
    pub fn note_raised(&mut self, shortage: Shortage) {
        self.raised_for = Some(shortage);
    }

    /// Why it was raised, once; nothing when a call has raised it.
    pub fn take_raised_for(&mut self) -> Option<Shortage> {
        self.raised_for.take()
    }

    /// What there is too little of, with the numbers to it. `disks` says what is free where.
    pub fn explain(&self, shortage: Option<Shortage>, used_bytes: u64, disks: &str) -> String {
        let quota = match self.quota.bytes {
            Some(quota) => format!("{used_bytes} of the {quota} bytes of the quota are used"),
            None => format!("{used_bytes} bytes are used, and there is no quota"),
        };
        match shortage {
            Some(Shortage::Quota) => format!("the space quota is reached: {quota}"),
            Some(Shortage::Disk) => format!("the disk is full: {disks}, kept for what the log holds"),
            None => format!("a small put would fit at the moment: {quota}; {disks}"),
        }
    }

    /// Whether reads may hold so much while they run.
    pub fn admits_scratch(&self, bytes: usize) -> bool {
        bytes <= self.scratch_bytes_max
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::{Command, Reply};
    use crate::shard::writer::{Origin, Pace, Writer};
    use crate::store::Store;
    use crate::store::command::{DeleteRange, Error, Put, PutLease, PutValue, Read, Write};
    use crate::types::{KeyRange, LeaseId, Position, Revision, Time};

    #[test]
    fn the_quota_and_the_disk_raise_the_alarm_and_memory_does_not() {
        let mut space = Space::new(Quota { bytes: Some(1_000) }, 1);
        assert_eq!(space.judge(400, 300), Verdict::Admitted);
        space.set_memory_room(400, 0, 300);
        assert_eq!((space.judge(400, 300), space.judge(400, 299)), (Verdict::NoMemory, Verdict::Admitted));
        assert_eq!(space.judge(400, 600), Verdict::Alarm(Shortage::Quota), "the quota is asked first");
        assert_eq!(space.judge(5_000, 0), Verdict::Admitted, "the way out stays open");
        space.is_short = true;
        assert_eq!((space.judge(400, 1), space.judge(400, 0)), (Verdict::Alarm(Shortage::Disk), Verdict::Admitted));
    }

    #[test]
    fn the_reason_of_an_alarm_names_the_quota_or_the_disk_with_their_numbers() {
        let space = Space::new(Quota { bytes: Some(1_000) }, 1);
        let explained = |shortage| space.explain(shortage, 990, "5 bytes are free in /data");
        let quota = "990 of the 1000 bytes of the quota are used";
        assert_eq!(explained(Some(Shortage::Quota)), format!("the space quota is reached: {quota}"));
        assert_eq!(
            explained(Some(Shortage::Disk)),
            "the disk is full: 5 bytes are free in /data, kept for what the log holds"
        );
        assert!(explained(None).ends_with(&format!("at the moment: {quota}; 5 bytes are free in /data")));
    }

    #[test]
    fn reads_may_hold_what_they_hold_and_the_room() {
        let mut space = Space::new(Quota::default(), 1);
        assert!(space.admits_scratch(usize::MAX));
        space.set_memory_room(0, 500, 100);
        assert!(space.admits_scratch(600) && !space.admits_scratch(601));
    }

    #[test]
    fn without_memory_puts_and_large_reads_are_refused_without_an_alarm_and_small_ones_go_on() {
        let pace = Pace { read_rows: 1, ..Pace::default() };
        let mut writer = Writer::new(Store::new(), pace, Position(1));
        (1..4).for_each(|token| writer.command(origin(token), put(["a", "b", "c"][token as usize - 1]), Time(1)));
        let (position, _) = writer.seal().expect("a group");
        writer.durable(position);
        assert_eq!(tokens(&mut writer), [1, 2, 3]);
        writer.set_memory_room(0);
        writer.command(origin(4), put("d"), Time(1));
        writer.command(origin(5), Command::Read(all()), Time(1));
        let range = KeyRange::One("c".into());
        writer.command(origin(6), Command::Write(Write::DeleteRange(DeleteRange { range, prev_kv: false })), Time(1));
        let (position, _) = writer.seal().expect("the delete");
        writer.durable(position);
        let replies: Vec<_> = std::iter::from_fn(|| writer.next_reply()).map(|(_, reply)| reply).collect();
        assert!(matches!(replies[0], Reply::Answer(Err(Error::NoSpace))), "{:?}", replies[0]);
        assert!(matches!(replies[1], Reply::Answer(Err(Error::NoMemory))), "{:?}", replies[1]);
        assert!(matches!(replies[2], Reply::Answer(Ok(_))), "{:?}", replies[2]);
        assert_eq!((writer.store().alarms().count(), writer.scratch_bytes()), (0, 0));
        writer.set_memory_room(1 << 20);
        writer.command(origin(7), Command::Read(all()), Time(1));
        assert!(writer.scratch_bytes() > 0, "its first row is held");
        while writer.step() {}
        assert_eq!((tokens(&mut writer), writer.scratch_bytes()), (vec![7], 0));
    }

    #[test]
    fn a_put_for_which_the_log_has_no_room_raises_the_alarm_unless_room_is_coming_and_a_delete_never_does() {
        let mut writer = Writer::new(Store::new(), Pace::default(), Position(1));
        let range = KeyRange::From("a".into());
        let delete = Command::Write(Write::DeleteRange(DeleteRange { range, prev_kv: false }));
        let alarms = |writer: &Writer| writer.store().alarms().count();
        writer.command(origin(1), put("a"), Time(1));
        writer.set_log_bytes_max(10);
        writer.set_room_coming(true);
        writer.command(origin(2), put("b"), Time(1));
        assert_eq!(alarms(&writer), 0, "it has only come too soon");
        writer.set_room_coming(false);
        let (position, _) = writer.seal().expect("the first put");
        writer.durable(position);
        writer.command(origin(3), delete, Time(1));
        assert_eq!(alarms(&writer), 0);
        writer.command(origin(4), put("b"), Time(1));
        assert_eq!((alarms(&writer), writer.store().revision()), (1, Revision(2)));
        let (position, entries) = writer.seal().expect("the alarm");
        assert_eq!(entries.len(), 1);
        writer.durable(position);
        assert!(writer.take_raised_for("here").is_some_and(|reason| reason.starts_with("the disk is full: here")));
        let replies = std::iter::from_fn(|| writer.next_reply());
        let refused = replies.filter(|(_, reply)| matches!(reply, Reply::Answer(Err(Error::NoSpace))));
        assert_eq!(refused.count(), 3);
    }

    fn put(key: &'static str) -> Command {
        let (value, lease) = (PutValue::Set("v".into()), PutLease::Set(LeaseId::NONE));
        Command::Write(Write::Put(Put { key: key.into(), value, lease, prev_kv: false }))
    }

    fn all() -> Read {
        Read::Range(crate::sim::plain_range(KeyRange::From("a".into()), 0))
    }

    fn origin(token: u32) -> Origin {
        Origin { shard: 0, token }
    }

    fn tokens(writer: &mut Writer) -> Vec<u32> {
        std::iter::from_fn(|| writer.next_reply()).map(|(origin, _)| origin.token).collect()
    }
}
