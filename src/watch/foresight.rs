//! Looking ahead: what the next requests of a stream will be looked up by.
//!
//! Most of a create is waiting for memory. With many groups, each step of the way to one (the table, the row, its bytes, its
//! members, or every level of the tree) is a miss of the cache that the next step depends on. But creates come by the
//! dozen, and the ways of different creates do not depend on each other. So before some are done one by one, the same step is
//! taken for all of them, then the next one: the processor has the misses of a step under way at once, and finds all in its
//! cache when the creates are done.
//!
//! It changes nothing, and what is done is judged anew: between a look and its create anything may come and go.

/// A range that a create is about to name, as it stands on the wire.
#[derive(Clone, Copy, Default, Debug)]
pub struct Foreseen<'a> {
    pub key: &'a [u8],
    pub range_end: &'a [u8],
}

/// Requests that are looked at together. What they look at fits in the cache nearest to the processor.
pub const FORESIGHT: usize = 16;

/// Fewer are not looked at: there is too little to wait for at once.
pub(super) const FORESIGHT_MIN: usize = 4;

/// Groups up to which it does not pay: they lie in the cache anyway.
pub(super) const GROUPS_MIN: usize = 4_096;
