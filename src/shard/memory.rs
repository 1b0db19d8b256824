//! What the process tells the kernel and the allocator about its memory.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::shard::cgroup::{self, Version};

/// What this process may use at most: the memory of the machine, or less if a cgroup on the way to the root says so.
///
/// # Errors
/// When the kernel does not say how much memory the machine has.
pub fn available_bytes() -> io::Result<usize> {
    let machine = kilobytes("/proc/meminfo", "MemTotal:")?;
    let groups = cgroup::own_groups("memory");
    let folders = groups.iter().flat_map(|group| group.folders().into_iter().map(|folder| (group.version, folder)));
    Ok(least(machine, folders, |file| fs::read_to_string(file).ok()))
}

/// The least of all limits. At `memory.high` nobody is killed, but the kernel holds up whoever allocates beyond it, and
/// watchers would wait for that: it is a limit like the other (cgroup-v2, "Memory Interface Files").
fn least(
    machine: usize,
    folders: impl Iterator<Item = (Version, PathBuf)>,
    read: impl Fn(&Path) -> Option<String>,
) -> usize {
    let files = folders.flat_map(|(version, folder)| {
        let names: &[&str] = match version {
            Version::V1 => &["memory.limit_in_bytes"],
            Version::V2 => &["memory.max", "memory.high"],
        };
        names.iter().map(move |name| folder.join(name))
    });
    // `max`, and version 1's number of as many pages as there are numbers for, are no limits.
    let limits = files.filter_map(|file| read(&file)?.trim().parse().ok());
    limits.fold(machine, usize::min)
}

fn kilobytes(path: &str, name: &str) -> io::Result<usize> {
    let text = fs::read_to_string(path)?;
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let kilobytes = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<usize>().ok());
    kilobytes.map(|kilobytes| kilobytes * 1024).ok_or_else(|| io::Error::other(format!("{path} has no {name}")))
}

/// Switches transparent huge pages off for the process. They doubled what an idle connection keeps resident: a 2 MiB page
/// stays whole as long as one live 4 KiB page of it is in use.
pub fn without_huge_pages() -> io::Result<()> {
    rustix::thread::disable_transparent_huge_pages(true).map_err(io::Error::from)
}

/// The number of `mi_option_purge_delay` in mimalloc 3, for which its bindings have no name.
const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;

/// From here on the allocator returns a page to the system when its last block is freed. By itself it lets what was freed lie
/// for a second and then returns it in one piece, at whatever allocation comes first: after ten million watches had gone, in
/// two of 9 ms and 600 system calls each. Page by page it is part of the bounded turns that free. Neither small puts nor those
/// of 100 kB nor ranges of 10 MB took more of the CPU for it. `MIMALLOC_PURGE_DELAY` in the environment, in milliseconds,
/// has the last word.
///
/// Call it before the first thread is started.
#[allow(unsafe_code)]
pub fn return_pages_at_once() {
    // SAFETY: it takes no pointer. It is not safe beside other threads that allocate; the caller has none. There is no safe
    // wrapper for it in the mimalloc crate.
    unsafe { libmimalloc_sys::mi_option_set_default(PURGE_DELAY, 0) }
}

/// Returns what this thread has freed to the system. mimalloc keeps freed pages until it is told: after 250,000 streams
/// had gone, 272 MB stayed resident; after a collection, 10 MB.
#[allow(unsafe_code)]
pub fn collect() {
    // SAFETY: `mi_collect` takes no pointer and may be called at any time from any thread. There is no safe wrapper for
    // it in the mimalloc crate.
    unsafe { libmimalloc_sys::mi_collect(true) }
}

/// Resident memory of this process in bytes, as the kernel counts it.
pub fn resident_bytes() -> io::Result<usize> {
    // The shortest of the files that say so, since this is asked a hundred times a second.
    let text = fs::read_to_string("/proc/self/statm")?;
    let pages = text.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok());
    pages
        .map(|pages| pages * rustix::param::page_size())
        .ok_or_else(|| io::Error::other("/proc/self/statm is malformed"))
}

/// Virtual memory of this process in bytes.
pub fn virtual_bytes() -> io::Result<usize> {
    kilobytes("/proc/self/status", "VmSize:")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[allow(unsafe_code)]
    fn the_number_is_that_of_the_option_for_the_delay() {
        // SAFETY: it takes no pointer, and nobody sets an option in the tests.
        let delay = |option| unsafe { libmimalloc_sys::mi_option_get(option) };
        // Its neighbours are one that does nothing any more and one for machines of several nodes.
        assert_eq!([PURGE_DELAY - 1, PURGE_DELAY, PURGE_DELAY + 1].map(delay), [1, 1_000, 0]);
    }

    #[test]
    fn the_least_limit_on_the_way_to_the_root_counts() {
        let folders = [(Version::V2, "/c/unit"), (Version::V2, "/c"), (Version::V1, "/m")];
        let check = |files: &[(&str, &str)], expected: usize| {
            let folders = folders.iter().map(|(version, folder)| (*version, PathBuf::from(folder)));
            let read = |asked: &Path| {
                let file = files.iter().find(|(name, _)| Path::new(name) == asked)?;
                Some(format!("{}\n", file.1))
            };
            assert_eq!(least(1_000, folders, read), expected, "{files:?}");
        };
        check(&[], 1_000);
        check(&[("/c/unit/memory.max", "max"), ("/c/unit/memory.high", "max")], 1_000);
        check(&[("/c/unit/memory.max", "900"), ("/c/memory.max", "800")], 800);
        check(&[("/c/unit/memory.max", "900"), ("/c/unit/memory.high", "700")], 700);
        check(&[("/c/unit/memory.max", "600"), ("/c/memory.high", "700")], 600);
        check(&[("/m/memory.limit_in_bytes", "9223372036854771712")], 1_000);
        check(&[("/m/memory.limit_in_bytes", "500"), ("/m/memory.high", "1")], 500);
    }

    #[test]
    fn a_process_has_less_resident_than_it_may_have() {
        let (available, resident) = (available_bytes().unwrap(), resident_bytes().unwrap());
        assert!(resident > 1 << 20 && resident < available, "{resident} of {available}");
    }
}
