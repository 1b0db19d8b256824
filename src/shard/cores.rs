//! How many shards there are, and which core each is pinned to.
//!
//! A thread more than the process may really run costs latency: under a CPU quota the kernel stops all of them once the
//! quota of a period is spent. So the usable cores are the smaller of the affinity mask and the CPU quota, rounded up.
//! The quota of a process is the smallest on the way from its own cgroup to the root, in either version of cgroups.
//! Where a quota throttles, threads are not pinned: the scheduler can then use whichever core is free while there is
//! quota left. The reading of files stands apart from the reading of their text.

use std::fs;
use std::io;
use std::num::NonZeroUsize;
use std::path::Path;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::config::SHARDS_MAX;
use crate::shard::cgroup::{self, Group, Version};

/// One entry a shard.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Plan {
    pub shards: NonZeroUsize,
    /// The core of each shard, in the order of the shards; empty where threads are not pinned.
    pub pins: Vec<usize>,
}

/// Decides for this process. `wanted` is `--shards`; without it there is one shard a usable core.
pub fn plan(wanted: Option<NonZeroUsize>) -> io::Result<Plan> {
    Ok(plan_for(wanted, &allowed_cores()?, quota_of_this_process()))
}

/// Pins the calling thread to one core.
pub fn pin(core: usize) -> io::Result<()> {
    let mut cores = CpuSet::new();
    cores.set(core);
    Ok(sched_setaffinity(None, &cores)?)
}

/// CPU time a cgroup may use in each period, both in microseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Quota {
    quota: u64,
    period: u64,
}

impl Quota {
    /// The cores it amounts to, rounded up: a quota of 1.5 cores keeps two threads half-way busy.
    fn cores(self) -> usize {
        usize::try_from(self.quota.div_ceil(self.period)).unwrap_or(usize::MAX).max(1)
    }

    fn is_smaller_than(self, other: Quota) -> bool {
        u128::from(self.quota) * u128::from(other.period) < u128::from(other.quota) * u128::from(self.period)
    }
}

fn plan_for(wanted: Option<NonZeroUsize>, allowed: &[usize], quota: Option<Quota>) -> Plan {
    let of_quota = quota.map_or(usize::MAX, Quota::cores);
    let usable = NonZeroUsize::new(allowed.len().min(of_quota).min(SHARDS_MAX as usize)).unwrap_or(NonZeroUsize::MIN);
    let shards = wanted.unwrap_or(usable);
    // A quota that covers the whole mask never stops a thread. More shards than cores have to share them, and then the
    // scheduler places them better than we do.
    let throttled =
        quota.is_some_and(|quota| u128::from(quota.quota) < allowed.len() as u128 * u128::from(quota.period));
    let pinned = !throttled && shards.get() <= allowed.len();
    Plan { shards, pins: if pinned { allowed[..shards.get()].to_vec() } else { Vec::new() } }
}

fn allowed_cores() -> io::Result<Vec<usize>> {
    let mask = sched_getaffinity(None)?;
    Ok((0..CpuSet::MAX_CPU).filter(|core| mask.is_set(*core)).collect())
}

/// No quota where the files cannot be read: a process without cgroups has none.
fn quota_of_this_process() -> Option<Quota> {
    cgroup::own_groups("cpu")
        .iter()
        .flat_map(|group| group.folders().into_iter().filter_map(|folder| quota_in(group, &folder)).collect::<Vec<_>>())
        .reduce(|smallest, quota| if quota.is_smaller_than(smallest) { quota } else { smallest })
}

fn quota_in(group: &Group, folder: &Path) -> Option<Quota> {
    let text = |name: &str| fs::read_to_string(folder.join(name)).ok();
    match group.version {
        Version::V1 => quota_v1(&text("cpu.cfs_quota_us")?, &text("cpu.cfs_period_us")?),
        Version::V2 => quota_v2(&text("cpu.max")?),
    }
}

/// `-1` is no quota.
fn quota_v1(quota: &str, period: &str) -> Option<Quota> {
    quota_of(quota.trim().parse().ok()?, period.trim().parse().ok()?)
}

/// `max 100000` is no quota; the period may be missing.
fn quota_v2(cpu_max: &str) -> Option<Quota> {
    let mut words = cpu_max.split_whitespace();
    let quota = words.next()?.parse().ok()?;
    quota_of(quota, words.next().map_or(Some(100_000), |period| period.parse().ok())?)
}

fn quota_of(quota: i64, period: u64) -> Option<Quota> {
    let quota = u64::try_from(quota).ok().filter(|quota| *quota > 0)?;
    (period > 0).then_some(Quota { quota, period })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(wanted: usize, allowed: &[usize], quota: Option<(u64, u64)>, shards: usize, pins: &[usize]) {
        let quota = quota.map(|(quota, period)| Quota { quota, period });
        let plan = plan_for(NonZeroUsize::new(wanted), allowed, quota);
        assert_eq!((plan.shards.get(), plan.pins.as_slice()), (shards, pins), "{wanted} {allowed:?} {quota:?}");
    }

    #[test]
    fn there_is_one_shard_a_core_of_the_mask_pinned_to_it() {
        check(0, &[0, 1, 2, 3], None, 4, &[0, 1, 2, 3]);
        check(0, &[5, 9], None, 2, &[5, 9]);
        check(0, &[], None, 1, &[]);
    }

    #[test]
    fn a_machine_of_more_cores_than_shards_can_be_named_has_as_many_as_can() {
        let cores: Vec<usize> = (0..384).collect();
        check(0, &cores, None, 256, &cores[..256]);
    }

    #[test]
    fn a_quota_below_the_mask_lowers_the_shards_and_frees_the_threads() {
        check(0, &[0, 1, 2, 3], Some((150_000, 100_000)), 2, &[]);
        check(0, &[0, 1], Some((150_000, 100_000)), 2, &[]);
        check(0, &[0, 1], Some((1_000, 100_000)), 1, &[]);
        check(0, &[0, 1], Some((200_000, 100_000)), 2, &[0, 1]);
        check(0, &[0, 1], Some((u64::MAX, 1)), 2, &[0, 1]);
    }

    #[test]
    fn an_operators_number_is_kept_and_pinned_only_when_there_are_that_many_cores() {
        check(1, &[2, 3], None, 1, &[2]);
        check(4, &[2, 3], None, 4, &[]);
        check(2, &[2, 3], Some((50_000, 100_000)), 2, &[]);
    }

    #[test]
    fn quotas_are_read_in_both_versions() {
        assert_eq!(quota_v1("-1\n", "100000\n"), None);
        assert_eq!(quota_v1("250000\n", "100000\n"), Some(Quota { quota: 250_000, period: 100_000 }));
        assert_eq!(quota_v2("max 100000\n"), None);
        assert_eq!(quota_v2("50000 200000\n"), Some(Quota { quota: 50_000, period: 200_000 }));
        assert_eq!(quota_v2("50000\n"), Some(Quota { quota: 50_000, period: 100_000 }));
        for text in ["", "x", "-5 100000", "0 100000", "5 0", "5 x", "99999999999999999999 1"] {
            assert_eq!(quota_v2(text), None, "{text}");
        }
        assert_eq!(quota_v1("5", "0"), None);
    }

    #[test]
    fn the_smallest_quota_on_the_way_to_the_root_counts() {
        let root = std::env::temp_dir().join(format!("tarsier-cores-{}", std::process::id()));
        fs::create_dir_all(root.join("slice/unit")).unwrap();
        for (folder, text) in [("", "max 100000"), ("slice", "100000 100000"), ("slice/unit", "300000 100000")] {
            fs::write(root.join(folder).join("cpu.max"), text).unwrap();
        }
        let group = Group { version: Version::V2, mount: root.clone(), path: "slice/unit".into() };
        let quotas: Vec<usize> =
            group.folders().iter().filter_map(|folder| quota_in(&group, folder)).map(Quota::cores).collect();
        fs::remove_dir_all(&root).unwrap();
        assert_eq!(quotas, [3, 1]);
        let (two_thirds, half) = (Quota { quota: 2, period: 3 }, Quota { quota: 1, period: 2 });
        assert!(half.is_smaller_than(two_thirds) && !two_thirds.is_smaller_than(half));
    }

    #[test]
    fn this_process_never_gets_more_shards_than_its_mask_has_cores() {
        assert!(plan(None).unwrap().shards.get() <= allowed_cores().unwrap().len());
    }

    #[test]
    fn a_pinned_thread_is_left_with_that_core_alone() {
        for core in allowed_cores().unwrap() {
            // On a thread of its own: other tests keep their freedom.
            let left = std::thread::spawn(move || pin(core).and_then(|()| allowed_cores())).join().unwrap();
            assert_eq!(left.unwrap(), [core]);
        }
        assert!(pin(CpuSet::MAX_CPU - 1).is_err(), "a core that this machine does not have");
    }
}
