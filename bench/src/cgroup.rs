//! A memory cgroup for one server: how much it may take, and what it took, kernel memory included.
//!
//! The group is a folder of ours where one can be made (version 2 or 1, below our own group or below the root of the
//! hierarchy), and otherwise a transient scope that `systemd-run` makes. Version 1 counts the buffers of sockets apart
//! (`memory.kmem.tcp`), and only for a group whose limit for them was ever set; version 2 has them in the sum.
//!
//! Errors are sentences, so that the tests of the real binary can use this file without the rest of the program.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// Where the processes of a group may still be on their way out when it is removed.
const REMOVALS: u32 = 50;
const REMOVAL_PAUSE: Duration = Duration::from_millis(20);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Version {
    V1,
    V2,
}

/// What the processes of a group have taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Usage {
    pub now_bytes: u64,
    /// The most at any time, pages of files included.
    pub peak_bytes: u64,
    /// Pages of files, which go when memory is short.
    pub file_bytes: u64,
    /// Buffers of sockets and the most of them at any time; part of the above in version 2.
    pub socket_bytes: u64,
    pub socket_peak_bytes: u64,
    /// How often the group was at its limit, and how many of its processes were killed for it.
    pub at_limit: u64,
    pub killed: u64,
}

/// A group with a limit. It goes when this is dropped; its processes must have ended by then.
#[derive(Debug)]
pub struct MemoryGroup {
    name: String,
    limit_bytes: u64,
    place: Place,
}

#[derive(Debug)]
enum Place {
    Folder(Version, PathBuf),
    /// systemd makes it with the first process and removes it behind the last.
    Scope,
}

impl MemoryGroup {
    /// # Errors
    /// When this user may make no memory cgroup here.
    pub fn new(limit_bytes: u64) -> Result<MemoryGroup, String> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("tarsier-bench-{}-{number}", std::process::id());
        let mut refusals = Vec::new();
        for (version, parent) in parents() {
            let folder = parent.join(&name);
            match make(version, &folder, limit_bytes) {
                Ok(()) => return Ok(MemoryGroup { name, limit_bytes, place: Place::Folder(version, folder) }),
                Err(refusal) => refusals.push(refusal),
            }
        }
        let group = MemoryGroup { name, limit_bytes, place: Place::Scope };
        match group.command(Path::new("true")).output() {
            Ok(output) if output.status.success() => return Ok(group),
            Ok(output) => {
                refusals.push(format!("systemd-run: {}", String::from_utf8_lossy(&output.stderr).trim()));
            }
            Err(cause) => refusals.push(format!("systemd-run: {cause}")),
        }
        Err(format!("no memory cgroup can be made here: {}", refusals.join("; ")))
    }

    /// Different from the names of all other groups of this host.
    #[allow(dead_code, reason = "only the tests of the memory limit ask")]
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn limit_bytes(&self) -> u64 {
        self.limit_bytes
    }

    /// A command that runs the program in the group. Its process is the program's: the shell, or systemd-run, that joins
    /// the group is replaced by it.
    pub fn command(&self, program: &Path) -> Command {
        match &self.place {
            Place::Folder(_, folder) => {
                let mut command = Command::new("/bin/sh");
                command.args(["-c", "echo $$ > \"$0\" && exec \"$@\""]).arg(folder.join("cgroup.procs")).arg(program);
                command
            }
            Place::Scope => {
                let mut command = Command::new("systemd-run");
                if !rustix::process::geteuid().is_root() {
                    command.arg("--user");
                }
                let limit = format!("MemoryMax={}", self.limit_bytes);
                command.args(["--scope", "--quiet", "--collect", "--unit", &self.name]);
                command.args(["-p", &limit, "-p", "MemorySwapMax=0", "--"]).arg(program);
                command
            }
        }
    }

    /// # Errors
    /// When the files of the group cannot be read.
    pub fn usage(&self) -> Result<Usage, String> {
        match &self.place {
            Place::Folder(version, folder) => usage(*version, folder),
            Place::Scope => {
                let (version, folder) = self.scope()?;
                usage(version, &folder)
            }
        }
    }

    /// Where systemd has put the scope.
    fn scope(&self) -> Result<(Version, PathBuf), String> {
        let mut command = Command::new("systemctl");
        if !rustix::process::geteuid().is_root() {
            command.arg("--user");
        }
        let unit = format!("{}.scope", self.name);
        let shown = command.args(["show", &unit, "-p", "ControlGroup", "--value"]).output();
        let shown = shown.map_err(|cause| format!("systemctl: {cause}"))?;
        let path = String::from_utf8_lossy(&shown.stdout).trim().trim_start_matches('/').to_owned();
        let mounts = mounts(&read(Path::new("/proc/self/mountinfo"))?);
        let folders = mounts.into_iter().map(|(version, mount)| (version, mount.join(&path)));
        let mut folders = folders.filter(|(version, folder)| !path.is_empty() && is_memory_group(*version, folder));
        folders.next().ok_or_else(|| format!("the cgroup of {unit} is not found"))
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        let Place::Folder(_, folder) = &self.place else { return };
        for _ in 0..REMOVALS {
            if fs::remove_dir(folder).is_ok() {
                return;
            }
            std::thread::sleep(REMOVAL_PAUSE);
        }
        eprintln!("the cgroup {} remains: a process is still in it", folder.display());
    }
}

/// Where a group may be made: below our own, or below the root of the hierarchy.
fn parents() -> Vec<(Version, PathBuf)> {
    let (Ok(own), Ok(table)) = (read(Path::new("/proc/self/cgroup")), read(Path::new("/proc/self/mountinfo"))) else {
        return Vec::new();
    };
    let mut parents = Vec::new();
    for (version, mount) in mounts(&table) {
        if let Some(path) = own_path(version, &own) {
            parents.push((version, mount.join(path.trim_start_matches('/'))));
        }
        parents.push((version, mount));
    }
    parents
}

/// The mounts of hierarchies that count memory, version 2 first (proc(5), mountinfo).
fn mounts(table: &str) -> Vec<(Version, PathBuf)> {
    let of = |wanted: Version| {
        table.lines().filter_map(move |line| {
            let (head, tail) = line.split_once(" - ")?;
            let mount = PathBuf::from(head.split(' ').nth(4)?);
            let mut tail = tail.split(' ');
            let version = match (tail.next()?, tail.nth(1)?) {
                ("cgroup2", _) => Version::V2,
                ("cgroup", options) if options.split(',').any(|option| option == "memory") => Version::V1,
                _ => return None,
            };
            (version == wanted).then_some((version, mount))
        })
    };
    of(Version::V2).chain(of(Version::V1)).collect()
}

/// Where this process stands in the hierarchy.
fn own_path(version: Version, own: &str) -> Option<&str> {
    own.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next()?, parts.next()?);
        let is_it = match version {
            Version::V1 => controllers.split(',').any(|controller| controller == "memory"),
            Version::V2 => controllers.is_empty(),
        };
        is_it.then_some(path)
    })
}

fn limit_file(version: Version) -> &'static str {
    match version {
        Version::V1 => "memory.limit_in_bytes",
        Version::V2 => "memory.max",
    }
}

fn is_memory_group(version: Version, folder: &Path) -> bool {
    folder.join(limit_file(version)).exists()
}

fn make(version: Version, folder: &Path, limit_bytes: u64) -> Result<(), String> {
    fs::create_dir(folder).map_err(|cause| format!("{}: {cause}", folder.display()))?;
    let limited = limit(version, folder, limit_bytes);
    if limited.is_err() {
        // It is empty and ours; what matters to whoever asked is why it is of no use.
        let _ = fs::remove_dir(folder);
    }
    limited
}

fn limit(version: Version, folder: &Path, limit_bytes: u64) -> Result<(), String> {
    let set = |file: &str| {
        let path = folder.join(file);
        fs::write(&path, limit_bytes.to_string()).map_err(|cause| format!("{}: {cause}", path.display()))
    };
    if !is_memory_group(version, folder) {
        return Err(format!("{}: it counts no memory", folder.display()));
    }
    match version {
        Version::V1 => {
            set("memory.kmem.tcp.limit_in_bytes")?;
            set("memory.limit_in_bytes")
        }
        Version::V2 => set("memory.max"),
    }?;
    // Swap in place of memory would hide that the limit was passed. A kernel without swap has no such file.
    let swap = match version {
        Version::V1 => ("memory.memsw.limit_in_bytes", limit_bytes),
        Version::V2 => ("memory.swap.max", 0),
    };
    let path = folder.join(swap.0);
    if path.exists() {
        fs::write(&path, swap.1.to_string()).map_err(|cause| format!("{}: {cause}", path.display()))?;
    }
    Ok(())
}

fn usage(version: Version, folder: &Path) -> Result<Usage, String> {
    let text = |file: &str| read(&folder.join(file));
    let number = |file: &str| {
        let text = text(file)?;
        text.trim().parse().map_err(|_| format!("{file} of the cgroup holds {text:?}"))
    };
    let stat = text("memory.stat")?;
    Ok(match version {
        Version::V1 => Usage {
            now_bytes: number("memory.usage_in_bytes")?,
            peak_bytes: number("memory.max_usage_in_bytes")?,
            file_bytes: named(&stat, "cache"),
            socket_bytes: number("memory.kmem.tcp.usage_in_bytes")?,
            socket_peak_bytes: number("memory.kmem.tcp.max_usage_in_bytes")?,
            at_limit: number("memory.failcnt")?,
            killed: named(&text("memory.oom_control")?, "oom_kill"),
        },
        Version::V2 => {
            let (events, sockets) = (text("memory.events")?, named(&stat, "sock"));
            Usage {
                now_bytes: number("memory.current")?,
                peak_bytes: number("memory.peak")?,
                file_bytes: named(&stat, "file"),
                socket_bytes: sockets,
                socket_peak_bytes: 0,
                at_limit: named(&events, "max"),
                killed: named(&events, "oom_kill"),
            }
        }
    })
}

/// The number behind a name in a file of such lines; 0 where a kernel does not count it.
fn named(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.and_then(|number| number.trim().parse().ok()).unwrap_or(0)
}

fn read(path: &Path) -> Result<String, String> {
    fs::read_to_string(path).map_err(|cause| format!("{}: {cause}", path.display()))
}

/// A number of bytes as people write it: `1073741824`, `512MiB`, `1GiB`, `800MB`.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    const UNITS: [(&str, u64); 6] =
        [("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("kB", 1_000), ("MB", 1_000_000), ("GB", 1_000_000_000)];
    let unit = UNITS.iter().find_map(|(name, bytes)| Some((text.strip_suffix(name)?, *bytes)));
    let (number, unit) = unit.unwrap_or((text, 1));
    let bytes = number.trim().parse::<u64>().ok().and_then(|number| number.checked_mul(unit));
    bytes.filter(|bytes| *bytes > 0).ok_or_else(|| format!("{text:?} is no number of bytes such as 1GiB"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        assert_eq!(parse_bytes("1GiB"), Ok(1 << 30));
        assert_eq!(parse_bytes("800MB"), Ok(800_000_000));
        assert_eq!(parse_bytes("4096"), Ok(4_096));
        for text in ["", "GiB", "0", "-1", "1.5GiB", "99999999999GiB"] {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_hierarchies_that_count_memory_are_found() {
        let table = "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
             33 31 0:30 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n\
             41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:4 - cgroup2 cgroup2 rw\n";
        let found = [(Version::V2, "/sys/fs/cgroup/unified".into()), (Version::V1, "/sys/fs/cgroup/memory".into())];
        assert_eq!(mounts(table), found);
        let own = "4:memory:/a/b\n1:cpu:/c\n0::/d:e\n";
        assert_eq!(own_path(Version::V1, own), Some("/a/b"));
        assert_eq!(own_path(Version::V2, own), Some("/d:e"));
    }

    #[test]
    fn a_group_counts_what_its_process_takes_and_is_gone_afterwards() {
        let group = match MemoryGroup::new(64 << 20) {
            Ok(group) => group,
            Err(reason) => return eprintln!("skipped: {reason}"),
        };
        let mut command = group.command(Path::new("/bin/sh"));
        let script = "x=$(head -c 9000000 /dev/zero | tr '\\0' x); cat /proc/self/cgroup";
        let output = command.args(["-c", script]).output().expect("a shell starts");
        let usage = group.usage().expect("its files can be read");
        assert!(String::from_utf8_lossy(&output.stdout).contains(&group.name), "{output:?}");
        assert!(usage.peak_bytes > 9_000_000 && usage.peak_bytes <= group.limit_bytes(), "{usage:?}");
        assert_eq!(usage.killed, 0);
        let Place::Folder(_, folder) = &group.place else { return };
        let folder = folder.clone();
        drop(group);
        assert!(!folder.exists());
    }
}
