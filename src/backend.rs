//! The seam between the services and whoever keeps the truth: commands in with their caller, answers and revision-ordered
//! batches out.
//!
//! The embedded store behind `shard/writer` is the first backend. An upstream etcd cluster will be the second, so nothing
//! here speaks of a log, a disk or a shard.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::lease::Standing;
use crate::store::command::{Answer, Error, Read, Write};
use crate::types::{Alarm, AlarmKind, Batch, Key, Lease, LeaseId, Revision};
use crate::watch::hub::HeaderIds;

/// Who asks. Every call carries it, so that permissions have one place to look when users are built.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Caller {
    pub peer: SocketAddr,
    /// The `token` or `authorization` metadata, a leading `Bearer ` removed.
    pub token: Option<Arc<str>>,
    /// The common name of the client's certificate, once there is TLS.
    pub certificate_name: Option<Arc<str>>,
}

/// Who answers: the ids and the term that stand in every response header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Identity {
    pub cluster_id: u64,
    pub member_id: u64,
    pub raft_term: u64,
}

impl From<Identity> for HeaderIds {
    fn from(identity: Identity) -> HeaderIds {
        let Identity { cluster_id, member_id, raft_term } = identity;
        HeaderIds { cluster_id, member_id, raft_term }
    }
}

/// One request to the backend.
#[derive(Clone, Debug)]
pub enum Command {
    Write(Write),
    /// Waits until the removal that a compaction asks for is done (`physical`).
    CompactPhysical(Revision),
    Read(Read),
    /// Batches from this revision on, for watchers that are behind further than recent history reaches.
    History {
        from: Revision,
    },
    Lease(LeaseCommand),
    /// Which alarms are active.
    Alarms(AlarmFilter),
    /// How the backend stands.
    Status,
    /// Gives back the space of the disk that nothing uses any more. Answered once it is done, and once what earlier
    /// compactions forgot is gone as well: an operator defragments to make room for the next write.
    Defragment,
}

/// What is asked of the leases.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LeaseCommand {
    /// Id 0 leaves the choice to the backend. The time to live is in seconds.
    Grant {
        id: LeaseId,
        ttl: i64,
    },
    Revoke(LeaseId),
    KeepAlive(LeaseId),
    /// How much time it has left, and with `keys` which keys go with it.
    TimeToLive {
        id: LeaseId,
        keys: bool,
    },
    List,
}

/// The answer to it, with the revision that its header carries.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LeaseAnswer {
    pub revision: Revision,
    pub outcome: LeaseOutcome,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LeaseOutcome {
    Granted(Lease),
    Revoked,
    /// With the time to live that it has again, in seconds; none when there is no such lease.
    KeptAlive {
        id: LeaseId,
        ttl: Option<i64>,
    },
    TimeToLive {
        id: LeaseId,
        standing: Option<Standing>,
        keys: Vec<Key>,
    },
    /// The one that expires first in front.
    List(Vec<LeaseId>),
}

/// Which alarms are asked for. The member plays no part: etcd passes over it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AlarmFilter {
    All,
    Only(AlarmKind),
    /// To raise or take back no alarm at all is legal, and lists none.
    Nothing,
}

impl AlarmFilter {
    pub fn lists(self, alarm: Alarm) -> bool {
        match self {
            AlarmFilter::All => true,
            AlarmFilter::Only(kind) => alarm.kind == kind,
            AlarmFilter::Nothing => false,
        }
    }
}

/// How the backend stands, as far as it is told: what is applied and not yet durable shows nowhere.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BackendStatus {
    pub revision: Revision,
    /// What the quota counts, in bytes. At least 1, since `etcdctl` divides by it.
    pub size_bytes: u64,
    /// What of it is in use.
    pub used_bytes: u64,
    /// `None`: there is no quota.
    pub quota_bytes: Option<u64>,
    /// How many groups of writes are committed, over all starts.
    pub position: u64,
    pub alarms: Vec<Alarm>,
    /// The disk takes no writes any more; only a restart can change that.
    pub is_refusing_writes: bool,
}

/// What the backend answers to a [`Command`].
#[derive(Clone, Debug)]
pub enum Reply {
    Answer(Result<Answer, Error>),
    History(Result<Vec<Arc<Batch>>, HistoryError>),
    /// A refusal is an [`Reply::Answer`], as for every command.
    Lease(LeaseAnswer),
    Alarms {
        revision: Revision,
        alarms: Vec<Alarm>,
    },
    Status(BackendStatus),
    /// Done, or why it was not.
    Defragmented(Result<(), String>),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HistoryError {
    /// Everything below this revision is forgotten.
    Compacted(Revision),
}
