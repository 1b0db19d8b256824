//! What observers are told of a leader: encoded once and held once, however many of them are told.
//!
//! All who observe an election are told the same bytes, most of them in one turn. A message of their own for each would be
//! a value of a megabyte a thousand times over, in one turn and beyond every limit of memory.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use bytes::Bytes;

use crate::backend::Identity;
use crate::pb::v3electionpb;
use crate::service::kv::encode::Scratch;
use crate::service::message::{framed, header};
use crate::types::{KeyValue, Revision};

use super::key_value;

/// A message on its way to one observer. The whole of it counts for as long as one of them has a rest of it to send.
#[derive(Clone, Debug)]
pub struct Announcement {
    pub bytes: Bytes,
    _scratch: Rc<Scratch>,
}

/// Makes the messages of one shard, and keeps the last one until it is told to forget it.
pub struct Announcer {
    last: RefCell<Option<(Revision, KeyValue, Announcement)>>,
    scratch_bytes: Rc<Cell<usize>>,
}

impl Announcer {
    /// The sum counts what the messages take.
    pub fn new(scratch_bytes: Rc<Cell<usize>>) -> Announcer {
        Announcer { last: RefCell::default(), scratch_bytes }
    }

    /// That a key is its leader's at a revision, and what it says.
    pub fn announce(&self, kv: &KeyValue, revision: Revision, identity: Identity) -> Announcement {
        let mut last = self.last.borrow_mut();
        if let Some((of, told, announcement)) = &*last
            && (*of, told.mod_revision(), told.key()) == (revision, kv.mod_revision(), kv.key())
        {
            return announcement.clone();
        }
        let response = v3electionpb::LeaderResponse { header: header(identity, revision), kv: Some(key_value(kv)) };
        let bytes = framed(&response);
        let announcement = Announcement { _scratch: Rc::new(Scratch::new(&self.scratch_bytes, bytes.len())), bytes };
        *last = Some((revision, kv.clone(), announcement.clone()));
        announcement
    }

    /// Nobody is left who is to be told of the same.
    pub fn forget(&self) {
        self.last.take();
    }
}
