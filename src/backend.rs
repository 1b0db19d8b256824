//! The seam between the services and whoever keeps the truth: commands in with their caller, answers and revision-ordered
//! batches out.
//!
//! The embedded store behind `shard/writer` is the first backend. An upstream etcd cluster will be the second, so nothing
//! here speaks of a log, a disk or a shard.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::store::command::{Answer, Error, Read, Write};
use crate::types::{Batch, Revision};
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
}

/// What the backend answers to a [`Command`].
#[derive(Clone, Debug)]
pub enum Reply {
    Answer(Result<Answer, Error>),
    History(Result<Vec<Arc<Batch>>, HistoryError>),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HistoryError {
    /// Everything below this revision is forgotten.
    Compacted(Revision),
}
