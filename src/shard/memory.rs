//! What the process tells the kernel and the allocator about its memory.

use std::fs;
use std::io;

use crate::shard::cgroup::{self, Version};

/// What this process may use at most: the memory of the machine, or less if a cgroup on the way to the root says so.
///
/// # Errors
/// When the kernel does not say how much memory the machine has.
pub fn available_bytes() -> io::Result<usize> {
    let machine = kilobytes("/proc/meminfo", "MemTotal:")?;
    let groups = cgroup::own_groups("memory");
    let limits = groups.iter().flat_map(|group| group.folders().into_iter().map(|folder| (group.version, folder)));
    let limits = limits.filter_map(|(version, folder)| {
        let file = match version {
            Version::V1 => "memory.limit_in_bytes",
            Version::V2 => "memory.max",
        };
        // `max`, and version 1's number of as many pages as there are numbers for, are no limits.
        fs::read_to_string(folder.join(file)).ok()?.trim().parse().ok()
    });
    Ok(limits.fold(machine, usize::min))
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
    fn a_process_has_less_resident_than_it_may_have() {
        let (available, resident) = (available_bytes().unwrap(), resident_bytes().unwrap());
        assert!(resident > 1 << 20 && resident < available, "{resident} of {available}");
    }
}
