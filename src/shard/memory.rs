//! What the process tells the kernel and the allocator about its memory.

use std::io;
use std::thread;
use std::time::Duration;

use libmimalloc_sys::mi_option_t;

/// How often memory that was freed goes back to the kernel: as long as mimalloc waits by itself.
const PURGE_INTERVAL: Duration = Duration::from_secs(1);
/// After this long mimalloc gives memory back from within whatever call frees a page next. Never, while the purger runs.
const PURGE_DELAY_MILLIS: i64 = 60_000;
/// mimalloc's number for `mi_option_purge_delay`, which its crate leaves out.
const PURGE_DELAY_OPTION: mi_option_t = 15;

/// Starts the thread that gives freed memory back to the kernel. mimalloc would do it on the thread that happens to free a
/// page when it is time: behind a compaction of a million revisions that was 25 ms of `madvise` in one turn of the writer.
///
/// # Errors
/// When the system has no thread left.
#[allow(unsafe_code)]
pub fn start_purger() -> io::Result<()> {
    // SAFETY: setting an option stores one number, and may be done at any time from any thread. There is no safe wrapper.
    unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY_OPTION, PURGE_DELAY_MILLIS) };
    let purge = || {
        loop {
            thread::sleep(PURGE_INTERVAL);
            // This thread holds nothing itself; what all threads have freed lies in arenas that they share.
            collect();
        }
    };
    thread::Builder::new().name("purger".to_owned()).spawn(purge).map(drop)
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
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<usize>().ok());
    kilobytes.map(|kilobytes| kilobytes * 1024).ok_or_else(|| io::Error::other("/proc/self/status has no VmRSS"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_option_is_the_purge_delay_of_this_mimalloc() {
        // SAFETY: reading an option reads one number. The number 15 was counted by hand; its neighbours have other defaults.
        #[allow(unsafe_code)]
        let delay = unsafe { libmimalloc_sys::mi_option_get(PURGE_DELAY_OPTION) };
        assert_eq!(delay, 1_000);
    }
}
