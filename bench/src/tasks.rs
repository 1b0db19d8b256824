//! Tasks side by side: what came of them, or the first fault among them.

use tokio::task::{JoinError, JoinSet};

use crate::fault::{Fault, Result};

/// What all of them gave, in the order of their ends. The first fault ends the wait; dropping the set ends the others.
pub async fn all<T: 'static>(tasks: &mut JoinSet<Result<T>>) -> Result<Vec<T>> {
    let mut given = Vec::with_capacity(tasks.len());
    while let Some(outcome) = tasks.join_next().await {
        given.push(ended(outcome)?);
    }
    Ok(given)
}

/// What one of them gave.
pub fn ended<T>(outcome: std::result::Result<Result<T>, JoinError>) -> Result<T> {
    outcome.map_err(|cause| Fault::Refused(format!("a task of the load ended badly: {cause}")))?
}
