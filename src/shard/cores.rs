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
use std::path::{Path, PathBuf};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::config::SHARDS_MAX;

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
    let own_paths = fs::read_to_string("/proc/self/cgroup").ok()?;
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    cpu_groups(&own_paths, &mounts)
        .iter()
        .flat_map(|group| group.folders().into_iter().filter_map(|folder| group.quota_in(&folder)).collect::<Vec<_>>())
        .reduce(|smallest, quota| if quota.is_smaller_than(smallest) { quota } else { smallest })
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Version {
    V1,
    V2,
}

/// Where the cgroup of this process stands in the file system.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Group {
    version: Version,
    mount: PathBuf,
    /// Below the mount; empty for the group that is mounted.
    path: PathBuf,
}

impl Group {
    /// Its folder and every one above it up to the mount: each may hold a quota of its own.
    fn folders(&self) -> Vec<PathBuf> {
        self.path.ancestors().map(|path| self.mount.join(path)).collect()
    }

    fn quota_in(&self, folder: &Path) -> Option<Quota> {
        let text = |name: &str| fs::read_to_string(folder.join(name)).ok();
        match self.version {
            Version::V1 => quota_v1(&text("cpu.cfs_quota_us")?, &text("cpu.cfs_period_us")?),
            Version::V2 => quota_v2(&text("cpu.max")?),
        }
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

/// Finds the groups that govern CPU time: version 1's `cpu` controller, version 2's only hierarchy, or both, as on a
/// host in between.
fn cpu_groups(own_paths: &str, mounts: &str) -> Vec<Group> {
    let mut groups = Vec::new();
    for line in own_paths.lines() {
        // `4:cpu,cpuacct:/path` in version 1, `0::/path` in version 2. A path may hold colons.
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else { continue };
        let version = if controllers.is_empty() {
            Version::V2
        } else if controllers.split(',').any(|controller| controller == "cpu") {
            Version::V1
        } else {
            continue;
        };
        groups.extend(mounts.lines().find_map(|mount| group_at(version, path, mount)));
    }
    groups
}

/// Where `path` is found under this mount, if it is one of the right hierarchy (proc(5), mountinfo).
fn group_at(version: Version, path: &str, mount: &str) -> Option<Group> {
    let (head, tail) = mount.split_once(" - ")?;
    let mut head = head.split(' ').skip(3);
    let (root, mount_point) = (unescape(head.next()?), unescape(head.next()?));
    let mut tail = tail.split(' ');
    let matches = match version {
        Version::V2 => tail.next() == Some("cgroup2"),
        Version::V1 => {
            tail.next() == Some("cgroup") && tail.nth(1).is_some_and(|options| options.split(',').any(|o| o == "cpu"))
        }
    };
    // In a container the mount shows the container's own group as its root, so that part of the path falls away. A path
    // outside of it (`/../other`) is a group we cannot see; the mounted one is the nearest that we can.
    let path = Path::new(path);
    let below = path.strip_prefix(&root).unwrap_or(Path::new(""));
    let below = if below.components().all(|part| matches!(part, std::path::Component::Normal(_))) {
        below
    } else {
        Path::new("")
    };
    matches.then(|| Group { version, mount: PathBuf::from(mount_point), path: below.to_owned() })
}

/// mountinfo writes space, tab, newline and backslash as three octal digits.
fn unescape(text: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(text.to_owned(), |text, (escaped, plain)| text.replace(escaped, plain))
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1_MOUNTS: &str = "\
        31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n\
        33 31 0:30 / /sys/fs/cgroup/cpuset rw,relatime - cgroup cgroup rw,cpuset\n\
        32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct\n";
    const V2_MOUNTS: &str = "29 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";

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
    fn the_group_is_found_in_version_one() {
        let own = "9:name=systemd:/\n4:cpuset:/a\n3:cpu,cpuacct:/kubepods/pod:1/x\n0::/\n";
        let groups = cpu_groups(own, V1_MOUNTS);
        let path = PathBuf::from("kubepods/pod:1/x");
        assert_eq!(groups, [Group { version: Version::V1, mount: "/sys/fs/cgroup/cpu,cpuacct".into(), path }]);
        let folders: Vec<String> = groups[0].folders().iter().map(|folder| folder.display().to_string()).collect();
        let mount = "/sys/fs/cgroup/cpu,cpuacct/";
        assert_eq!(
            folders,
            [
                format!("{mount}kubepods/pod:1/x"),
                format!("{mount}kubepods/pod:1"),
                format!("{mount}kubepods"),
                mount.to_owned()
            ]
        );
    }

    #[test]
    fn the_group_is_found_in_version_two_and_in_a_container() {
        let found = |own: &str, mounts: &str| cpu_groups(own, mounts).into_iter().next().map(|group| group.path);
        assert_eq!(found("0::/system.slice/tarsier.service\n", V2_MOUNTS), Some("system.slice/tarsier.service".into()));
        assert_eq!(found("0::/\n", V2_MOUNTS), Some("".into()));
        // The host's path beside a mount whose root is the container's group.
        let inside = "40 30 0:26 /docker/ab\\040c /sys/fs/cgroup ro - cgroup2 cgroup2 rw\n";
        assert_eq!(found("0::/docker/ab c/sub\n", inside), Some("sub".into()));
        assert_eq!(found("0::/../other\n", V2_MOUNTS), Some("".into()));
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
            group.folders().iter().filter_map(|folder| group.quota_in(folder)).map(Quota::cores).collect();
        fs::remove_dir_all(&root).unwrap();
        assert_eq!(quotas, [3, 1]);
        let (two_thirds, half) = (Quota { quota: 2, period: 3 }, Quota { quota: 1, period: 2 });
        assert!(half.is_smaller_than(two_thirds) && !two_thirds.is_smaller_than(half));
    }

    #[test]
    fn garbled_files_give_no_group_and_no_panic() {
        let mut state = 7_u64;
        let good = format!("3:cpu,cpuacct:/a\n0::/b\n{V1_MOUNTS}{V2_MOUNTS}");
        for _ in 0..2_000 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let cut = (state >> 33) as usize % good.len();
            cpu_groups(&good[cut..], &good[..cut]);
            cpu_groups(&good[..cut], &good[cut..]);
        }
        assert_eq!(cpu_groups("cpu\n:\n::\n1:cpu\n", "a b - c\n - \nx - cgroup\n"), []);
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
