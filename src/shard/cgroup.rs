//! Where this process stands among the control groups, in either version: for the limits of CPU time and of memory.
//!
//! The limit of a process is the smallest on the way from its own group to the root. The reading of files stands apart from
//! the reading of their text.

use std::fs;
use std::path::{Path, PathBuf};

/// The two kinds of hierarchy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Version {
    V1,
    V2,
}

/// Where the cgroup of this process stands in the file system.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Group {
    pub version: Version,
    pub mount: PathBuf,
    /// Below the mount; empty for the group that is mounted.
    pub path: PathBuf,
}

impl Group {
    /// Its folder and every one above it up to the mount: each may hold a limit of its own.
    pub fn folders(&self) -> Vec<PathBuf> {
        self.path.ancestors().map(|path| self.mount.join(path)).collect()
    }
}

/// The groups of this process that a controller governs it by: none where the files cannot be read, since a process without
/// cgroups has none.
pub fn own_groups(controller: &str) -> Vec<Group> {
    let text = |path| fs::read_to_string(path).unwrap_or_default();
    groups(controller, &text("/proc/self/cgroup"), &text("/proc/self/mountinfo"))
}

/// Version 1's hierarchy of this controller, version 2's only hierarchy, or both, as on a host in between.
fn groups(controller: &str, own_paths: &str, mounts: &str) -> Vec<Group> {
    let mut groups = Vec::new();
    for line in own_paths.lines() {
        // `4:cpu,cpuacct:/path` in version 1, `0::/path` in version 2. A path may hold colons.
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else { continue };
        let version = if controllers.is_empty() {
            Version::V2
        } else if controllers.split(',').any(|known| known == controller) {
            Version::V1
        } else {
            continue;
        };
        groups.extend(mounts.lines().find_map(|mount| group_at(controller, version, path, mount)));
    }
    groups
}

/// Where `path` is found under this mount, if it is one of the right hierarchy (proc(5), mountinfo).
fn group_at(controller: &str, version: Version, path: &str, mount: &str) -> Option<Group> {
    let (head, tail) = mount.split_once(" - ")?;
    let mut head = head.split(' ').skip(3);
    let (root, mount_point) = (unescape(head.next()?), unescape(head.next()?));
    let mut tail = tail.split(' ');
    let matches = match version {
        Version::V2 => tail.next() == Some("cgroup2"),
        Version::V1 => {
            tail.next() == Some("cgroup")
                && tail.nth(1).is_some_and(|options| options.split(',').any(|known| known == controller))
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

    #[test]
    fn the_group_is_found_in_version_one() {
        let own = "9:name=systemd:/\n4:cpuset:/a\n3:cpu,cpuacct:/kubepods/pod:1/x\n0::/\n";
        let groups = groups("cpu", own, V1_MOUNTS);
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
        let found = |own: &str, mounts: &str| groups("cpu", own, mounts).into_iter().next().map(|group| group.path);
        assert_eq!(found("0::/system.slice/tarsier.service\n", V2_MOUNTS), Some("system.slice/tarsier.service".into()));
        assert_eq!(found("0::/\n", V2_MOUNTS), Some("".into()));
        // The host's path beside a mount whose root is the container's group.
        let inside = "40 30 0:26 /docker/ab\\040c /sys/fs/cgroup ro - cgroup2 cgroup2 rw\n";
        assert_eq!(found("0::/docker/ab c/sub\n", inside), Some("sub".into()));
        assert_eq!(found("0::/../other\n", V2_MOUNTS), Some("".into()));
    }

    #[test]
    fn garbled_files_give_no_group_and_no_panic() {
        let mut state = 7_u64;
        let good = format!("3:cpu,cpuacct:/a\n0::/b\n{V1_MOUNTS}{V2_MOUNTS}");
        for _ in 0..2_000 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let cut = (state >> 33) as usize % good.len();
            groups("cpu", &good[cut..], &good[..cut]);
            groups("cpu", &good[..cut], &good[cut..]);
        }
        assert_eq!(groups("cpu", "cpu\n:\n::\n1:cpu\n", "a b - c\n - \nx - cgroup\n"), []);
    }
}
