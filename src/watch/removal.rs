//! Taking out what is gone: the watches of closed streams, and the dead members of large groups.
//!
//! Both go in bounded pieces between batches. A stream with a million watches, or a group from which a million watchers went,
//! holds nobody up.

use super::group::{Group, Member};
use super::hub::Hub;
use super::stream::Row;

/// A member of a group up to this size is looked for and removed when its watch ends; in a larger one it stays, dead,
/// until a sweep.
const EAGER_MEMBERS_MAX: usize = 64;

impl Hub {
    /// A dead member of a small group is taken out; in a large one it is counted, so that ending a watch never costs as
    /// much as the group is long.
    pub(super) fn remove_or_bury(&mut self, member: Member, group: u32) {
        let members = self.groups.get(group).expect("a group lives while a member is in it").members();
        if members.len() > EAGER_MEMBERS_MAX {
            if self.groups.bury(group) {
                self.sweeps.push_back(group);
            }
            return;
        }
        let at = members.position(member).expect("a synced watch is a member of its group");
        self.groups.swap_remove(group, at);
        self.streams.drop_entry(member.stream, member.row);
        self.groups.release(group);
    }

    /// Goes through the watches of a stream that is gone.
    pub(super) fn empty_stream(&mut self, stream: u32, budget: usize) -> usize {
        let mut used = 0;
        while used < budget {
            used += 1;
            if let Some((row, group)) = self.catch_up.take_parked(stream) {
                self.drop_apart(Member { stream, row }, group);
            } else if self.closing_row < self.streams.get(stream).row_count() {
                self.empty_row(stream, self.closing_row as u32);
                self.closing_row += 1;
            } else {
                self.closing_row = 0;
                self.closing.pop_front();
                self.streams.emptied(stream);
                break;
            }
        }
        used
    }

    fn empty_row(&mut self, stream: u32, row: u32) {
        let Row::Live { group, apart } = self.streams.get(stream).row(row) else { return };
        let member = Member { stream, row };
        if !apart {
            self.streams.mark_dead(stream, row);
            self.remove_or_bury(member, group);
        } else if self.leave_future(stream, row) {
            self.drop_apart(member, group);
        } else {
            self.streams.mark_dead(stream, row);
        }
    }

    /// Takes the dead out of a group.
    pub(super) fn sweep(&mut self, group: u32, budget: usize) -> usize {
        let mut used = 0;
        loop {
            // The group may be gone since, or its row be another's: then there is nothing to find, and no harm in looking.
            let entry = self.groups.get(group).filter(|entry| entry.dead() > 0);
            let Some(member) = entry.and_then(|entry| entry.members().get(self.sweep_member)) else { break };
            if used >= budget {
                return used;
            }
            used += 1;
            if self.streams.get(member.stream).is_stale(member.row) {
                self.remove_stale_member(group, self.sweep_member);
            } else {
                self.sweep_member += 1;
            }
        }
        self.sweep_member = 0;
        self.sweeps.pop_front();
        match self.groups.get(group).map(Group::dead) {
            // A cancel in between has brought one to where the sweep had been.
            Some(1..) => self.sweeps.push_back(group),
            Some(0) => {
                self.groups.swept(group);
                self.groups.release(group);
            }
            None => {}
        }
        used + 1
    }
}
