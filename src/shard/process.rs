//! What the kernel says of this process: its memory, CPU time and descriptors.

use std::io;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::time::{ClockId, clock_gettime};

/// The command line. No flag carries a secret.
pub fn arguments() -> Vec<String> {
    std::env::args_os().map(|argument| argument.to_string_lossy().into_owned()).collect()
}

/// How many descriptors the process may have open.
pub fn descriptors_max() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// Lets the process have as many as it may ask for. What a shell sets by default is for programs that wait for descriptors with
/// `select`.
pub fn raise_descriptors_max() {
    let limit = getrlimit(Resource::Nofile);
    // Where it is refused, the old one holds.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

/// How many it has open. The kernel counts them since Linux 6.2; before that they are counted one by one.
pub fn descriptors_open() -> io::Result<u64> {
    let counted = rustix::fs::stat("/proc/self/fd")?.st_size;
    if counted > 0 {
        return Ok(counted as u64);
    }
    // One of them is the directory that is being read.
    Ok((std::fs::read_dir("/proc/self/fd")?.count() as u64).saturating_sub(1))
}

/// CPU time of all threads, in user and kernel mode.
pub fn cpu_time() -> Duration {
    duration(ClockId::ProcessCPUTime)
}

/// CPU time of the calling thread.
pub fn thread_cpu_time() -> Duration {
    duration(ClockId::ThreadCPUTime)
}

fn duration(clock: ClockId) -> Duration {
    Duration::try_from(clock_gettime(clock)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_counted_as_they_come() {
        let before = descriptors_open().unwrap();
        let opened: Vec<_> = (0..50).map(|_| std::fs::File::open("/proc/self/stat").unwrap()).collect();
        // Other tests open and close some meanwhile.
        assert!(descriptors_open().unwrap() + 25 > before + opened.len() as u64);
        assert!(before < descriptors_max());
    }

    #[test]
    fn cpu_time_of_a_thread_is_part_of_the_processs() {
        let (thread, process) = (thread_cpu_time(), cpu_time());
        assert!(thread <= process && process > Duration::ZERO);
    }
}
