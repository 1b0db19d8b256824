//! The step between applying a group and telling anyone of it.

use std::sync::Arc;

use crate::types::{Batch, Position};

/// Takes sealed groups in order and reports, later and in order, up to which position they are durable.
///
/// It is asynchronous from the first day: between [`Durability::append`] and [`Durability::completed`] the next groups
/// gather, and nothing of an unreported one is told.
pub trait Durability {
    fn append(&mut self, position: Position, batches: &[Arc<Batch>]);

    /// The highest position that became durable since the last call.
    fn completed(&mut self) -> Option<Position>;
}

/// State in memory only: what is applied is as durable as it will get.
#[derive(Default)]
pub struct InMemory {
    appended: Option<Position>,
}

impl Durability for InMemory {
    fn append(&mut self, position: Position, _batches: &[Arc<Batch>]) {
        self.appended = Some(position);
    }

    fn completed(&mut self) -> Option<Position> {
        self.appended.take()
    }
}
