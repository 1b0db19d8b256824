//! `--feature-gates`: etcd's switches for features by name, such as `LeaseCheckpoint=true,TxnModeWriteWithSharedBuffer=false`.
//!
//! Every gate of etcd 3.7 is known by its name and its default. The two about leases mean what they mean in etcd; the others
//! name insides of etcd's, and one that is given against its default is answered by a warning.

use std::collections::BTreeMap;

use super::value;

/// The gates of etcd 3.7.3 that have no effect here, with their defaults.
const FOREIGN: [(&str, bool); 7] = [
    ("CompactHashCheck", false),
    ("FastLeaseKeepAlive", true),
    ("InitialCorruptCheck", false),
    ("PriorityRequest", false),
    ("SetMemberLocalAddr", false),
    ("StopGRPCServiceOnDefrag", false),
    ("TxnModeWriteWithSharedBuffer", true),
];
const ALL_ALPHA: &str = "AllAlpha";
const ALL_BETA: &str = "AllBeta";
const LEASE_CHECKPOINT: &str = "LeaseCheckpoint";
/// From release 3.6 on etcd keeps what it has checkpointed with or without this one.
const LEASE_CHECKPOINT_PERSIST: &str = "LeaseCheckpointPersist";

/// What the gates ask for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Gates {
    /// What leases have left is written down now and then.
    pub lease_checkpoint: bool,
    /// A gate without effect here stands against its default.
    pub has_foreign: bool,
}

/// The gates of a list, `name=bool` with commas between.
pub fn gates(list: &str) -> Result<Gates, String> {
    let mut given = BTreeMap::new();
    for gate in list.split(',').map(str::trim).filter(|gate| !gate.is_empty()) {
        let (name, value) = gate.split_once('=').ok_or_else(|| format!("missing bool value for {gate}"))?;
        let (name, value) = (name.trim(), value.trim());
        if ![ALL_ALPHA, ALL_BETA, LEASE_CHECKPOINT, LEASE_CHECKPOINT_PERSIST].contains(&name)
            && !FOREIGN.iter().any(|(foreign, _)| *foreign == name)
        {
            return Err(format!("unrecognized feature gate: {name}"));
        }
        let value = value::boolean(value).map_err(|expected| format!("invalid value of {gate}, {expected}"))?;
        given.insert(name, value);
    }
    // Both are alpha features, so this one stands for each that is not named itself.
    let all_alpha = given.get(ALL_ALPHA).copied().unwrap_or(false);
    let is_on = |name| given.get(name).copied().unwrap_or(all_alpha);
    let lease_checkpoint = is_on(LEASE_CHECKPOINT);
    if is_on(LEASE_CHECKPOINT_PERSIST) && !lease_checkpoint {
        return Err(format!(
            "enabling feature gate {LEASE_CHECKPOINT_PERSIST} requires enabling feature gate {LEASE_CHECKPOINT}"
        ));
    }
    let stands_apart = |(name, default): &(&str, bool)| given.get(name).is_some_and(|value| value != default);
    // All beta features are on without being asked for.
    let has_foreign = FOREIGN.iter().any(stands_apart) || all_alpha || given.get(ALL_BETA) == Some(&false);
    Ok(Gates { lease_checkpoint, has_foreign })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gates_are_read_as_etcd_reads_them() {
        let (on, off) = (true, false);
        for (list, lease_checkpoint, has_foreign) in [
            ("", off, off),
            ("LeaseCheckpoint=true", on, off),
            ("LeaseCheckpoint=T, LeaseCheckpointPersist=1", on, off),
            ("LeaseCheckpoint=false", off, off),
            ("AllAlpha=true", on, on),
            ("AllAlpha=true,LeaseCheckpointPersist=false,LeaseCheckpoint=false", off, on),
            ("FastLeaseKeepAlive=true,InitialCorruptCheck=false", off, off),
            ("FastLeaseKeepAlive=false", off, on),
            ("AllBeta=true,AllAlpha=false", off, off),
            ("AllBeta=false", off, on),
            ("LeaseCheckpoint=false,InitialCorruptCheck=true,LeaseCheckpoint=true", on, on),
        ] {
            assert_eq!(gates(list), Ok(Gates { lease_checkpoint, has_foreign }), "{list}");
        }
        for (list, reason) in [
            ("LeaseCheckpoint", "missing bool value for LeaseCheckpoint"),
            ("LeaseCheckpoint=maybe", "invalid value of LeaseCheckpoint=maybe, expected true or false"),
            ("Nonsense=true", "unrecognized feature gate: Nonsense"),
            (
                "LeaseCheckpointPersist=true",
                "enabling feature gate LeaseCheckpointPersist requires enabling feature gate LeaseCheckpoint",
            ),
        ] {
            assert_eq!(gates(list), Err(reason.to_owned()));
        }
    }
}
