//! The leases of the checkpoint: what the log says of them becomes rows of a table of their own.

use redb::{ReadableTable, TableDefinition, WriteTransaction};

use crate::types::{Entry, LeaseId, StoredLease};

use super::checkpoint_backend::{CheckpointError, RedbError};
use super::checkpoint_rows::{decode_lease, encode_lease};

pub const LEASES_TABLE: &str = "leases";
/// By id, bit for bit.
pub const LEASES: TableDefinition<u64, &[u8]> = TableDefinition::new(LEASES_TABLE);

/// Does in a transaction what entries say of leases, in their order. One that cannot follow those before it is damage.
pub fn write(transaction: &WriteTransaction, entries: &[Entry]) -> Result<(), RedbError> {
    let mut table = transaction.open_table(LEASES)?;
    for entry in entries {
        let fault = match entry {
            Entry::Lease { lease, granted: true } => {
                let row = encode_lease(StoredLease { lease: *lease, remaining: None });
                let before = table.insert(lease.id.0 as u64, &row[..])?;
                before.is_some().then(|| damage(lease.id, "was there before it was granted"))
            }
            Entry::Lease { lease, granted: false } => {
                let before = table.remove(lease.id.0 as u64)?;
                before.is_none().then(|| damage(lease.id, "ended and was not there"))
            }
            Entry::Remaining { lease, seconds } => {
                let stored = table.get(lease.0 as u64)?.and_then(|row| decode_lease(*lease, row.value()));
                match stored {
                    Some(stored) => {
                        let row = encode_lease(StoredLease { remaining: *seconds, ..stored });
                        table.insert(lease.0 as u64, &row[..])?;
                        None
                    }
                    None => Some(damage(*lease, "has time left and is not there, or not whole")),
                }
            }
            Entry::Batch(_) | Entry::Compaction(_) | Entry::Alarm { .. } | Entry::Start { .. } | Entry::Stop => None,
        };
        if let Some(fault) = fault {
            return Err(fault.into());
        }
    }
    Ok(())
}

fn damage(lease: LeaseId, what: &str) -> CheckpointError {
    CheckpointError::Damaged(format!("lease {:016x} {what}", lease.0))
}
