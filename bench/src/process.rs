//! What the kernel knows of a process: its memory, its CPU time, its limits, and which one listens on a port.

use std::fmt;
use std::fs;
use std::path::Path;
use std::time::Duration;

use nix::time::{clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;
use thread_priority::{
    RealtimeThreadSchedulePolicy, ThreadPriority, ThreadPriorityValue, ThreadSchedulePolicy,
    set_thread_priority_and_policy, thread_native_id,
};

use crate::fault::{Fault, Result};

/// Resident memory in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Memory {
    pub resident: u64,
    /// The part that is the process's own: what remains of `resident` without mapped files.
    pub anonymous: u64,
    /// The part that is mapped from files: the program, and a database that is read in place.
    pub file: u64,
}

/// A process, by its id.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Process {
    pub id: u32,
}

impl Process {
    pub fn own() -> Process {
        Process { id: std::process::id() }
    }

    fn read(self, file: &str) -> Result<String> {
        let path = format!("/proc/{}/{file}", self.id);
        let gone = |cause| Fault::ServerDied(format!("process {} cannot be looked at ({path}: {cause})", self.id));
        fs::read_to_string(&path).map_err(gone)
    }

    pub fn memory(self) -> Result<Memory> {
        let status = self.read("status")?;
        let kilobytes = |name| kilobytes(&status, name);
        match (kilobytes("VmRSS:"), kilobytes("RssAnon:"), kilobytes("RssFile:")) {
            (Some(resident), Some(anonymous), Some(file)) => Ok(Memory { resident, anonymous, file }),
            _ => Err(Fault::ServerDied(format!("process {} has ended", self.id))),
        }
    }

    /// User and system time of all its threads, those that ended included, to the nanosecond: `/proc/PID/stat` cuts both off
    /// at whole ticks of 10 ms, and what a short stretch of a run costs is a few of them.
    pub fn cpu(self) -> Result<Duration> {
        let gone = |cause| Fault::ServerDied(format!("the CPU time of process {} cannot be read: {cause}", self.id));
        let clock = clock_getcpuclockid(Pid::from_raw(self.id as i32)).map_err(gone)?;
        clock_gettime(clock).map(Duration::from).map_err(gone)
    }

    /// How many files it may open.
    pub fn files_max(self) -> Result<u64> {
        let limits = self.read("limits")?;
        let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
        let soft = line.and_then(|line| line.split_whitespace().next());
        Ok(soft.and_then(|soft| soft.parse().ok()).unwrap_or(u64::MAX))
    }

    /// The process behind an endpoint, if it is on this host and we may see it.
    pub fn serving(endpoint: &str) -> Option<Process> {
        let (host, port) = endpoint.rsplit_once(':')?;
        let is_here = ["127.0.0.1", "localhost", "[::1]"].contains(&host);
        is_here.then(|| Process::listening_on(port.parse().ok()?)).flatten()
    }

    /// The process on this host that listens on a TCP port, if we may see it.
    fn listening_on(port: u16) -> Option<Process> {
        let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|path| fs::read_to_string(path).unwrap_or_default());
        let inodes: Vec<&str> = tables.iter().flat_map(|table| listening_inodes(table, port)).collect();
        let sockets: Vec<String> = inodes.iter().map(|inode| format!("socket:[{inode}]")).collect();
        let processes = fs::read_dir("/proc").ok()?.flatten();
        let ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        ids.map(|id| Process { id }).find(|process| process.has_open(&sockets))
    }

    fn has_open(self, sockets: &[String]) -> bool {
        let Ok(files) = fs::read_dir(format!("/proc/{}/fd", self.id)) else { return false };
        files.flatten().any(|file| {
            let target = fs::read_link(file.path()).unwrap_or_default();
            sockets.iter().any(|socket| target == Path::new(socket))
        })
    }
}

/// What stands beside every published figure.
pub struct Machine {
    pub model: String,
    pub cores: usize,
    pub memory_bytes: u64,
    pub kernel: String,
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} cores of {}, {:.1} GB", self.cores, self.model, self.memory_bytes as f64 / 1e9)
    }
}

/// Memory that programs could still take, as the kernel estimates it.
pub fn memory_available() -> u64 {
    kilobytes(&fs::read_to_string("/proc/meminfo").unwrap_or_default(), "MemAvailable:").unwrap_or(0)
}

/// Opens as many files as the hard limit allows, for this process and the servers that it starts.
pub fn raise_files_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // A refusal leaves the limit as it was, and `check_files` says what that is not enough for.
    let _ = setrlimit(Resource::Nofile, limit);
}

/// Has the calling thread, which stands for a client on another machine, run as soon as it has something to do: in real
/// time, which takes CAP_SYS_NICE. Whether that was allowed. A niceness does not do it: whoever holds the core ends its
/// slice first (seen on Linux 6.18).
pub fn prefer_this_thread() -> bool {
    let least = ThreadPriorityValue::try_from(1).map(ThreadPriority::Crossplatform);
    let policy = ThreadSchedulePolicy::Realtime(RealtimeThreadSchedulePolicy::Fifo);
    let is_set = |least| set_thread_priority_and_policy(thread_native_id(), least, policy).is_ok();
    least.is_ok_and(is_set)
}

/// What the report says of such threads.
pub fn preference_note() -> String {
    let text = match std::thread::spawn(prefer_this_thread).join() {
        Ok(true) => "run in real time: what they wait for is the server, not a core",
        Ok(false) | Err(_) => "may not run in real time (that takes CAP_SYS_NICE), so their waits for a core count",
    };
    format!("the clock of a schedule and the client that it paces {text}")
}

/// Sets how the calling thread, and no other, stands against those that want the same core.
pub fn set_niceness(niceness: i32) -> std::io::Result<()> {
    Ok(rustix::process::setpriority_process(None, niceness)?)
}

/// Cores of the machine, whichever this thread may use: `/proc/stat` counts all of them too.
pub fn cores() -> usize {
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    cpus.lines().filter(|line| line.starts_with("processor")).count().max(1)
}

/// This machine, as far as it says what it is.
pub fn machine() -> Machine {
    let text = |path| fs::read_to_string(path).unwrap_or_default();
    let cpus = text("/proc/cpuinfo");
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    Machine {
        model: model.map_or("an unnamed processor", |(_, name)| name).to_owned(),
        cores: cores(),
        memory_bytes: kilobytes(&text("/proc/meminfo"), "MemTotal:").unwrap_or(0),
        kernel: text("/proc/sys/kernel/osrelease").trim().to_owned(),
    }
}

/// Refuses a load that needs more files than this process may open.
pub fn check_files(needed: u64, for_what: &str) -> Result<()> {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    // Event loops, standard streams and what the coordinator opens.
    let needed = needed + 40;
    match limit {
        Some(limit) if limit < needed => Err(Fault::Refused(format!(
            "{for_what} needs {needed} open files and the limit is {limit}: raise ulimit -n"
        ))),
        _ => Ok(()),
    }
}

fn kilobytes(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
}

/// The inodes of sockets that listen (state 0A) on a port.
fn listening_inodes(table: &str, port: u16) -> impl Iterator<Item = &str> {
    let port = format!(":{port:04X}");
    table.lines().skip(1).filter_map(move |line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let listens = fields.get(1)?.ends_with(&port) && *fields.get(3)? == "0A";
        listens.then_some(*fields.get(9)?)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_process_has_memory_and_uses_cpu() {
        let own = Process::own();
        let before = own.cpu().unwrap();
        let worker =
            std::thread::spawn(|| (0..1_000_000u64).fold(0, |sum: u64, at| sum.wrapping_mul(31).wrapping_add(at)));
        assert_ne!(worker.join().unwrap(), 0);
        let after = own.cpu().unwrap();
        assert!(after > before, "a thread that has ended is counted");
        assert_ne!(after.as_nanos() % 1_000_000, 0, "it is no number of ticks");
        let memory = own.memory().unwrap();
        assert!(memory.resident >= memory.anonymous && memory.anonymous > 0);
    }

    #[test]
    fn a_process_that_is_gone_has_no_cpu_time() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let gone = Process { id: child.id() };
        child.wait().unwrap();
        assert!(gone.cpu().unwrap_err().to_string().contains("cannot be read"));
    }

    #[test]
    fn the_listener_of_a_port_is_found() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        assert_eq!(Process::listening_on(socket.local_addr().unwrap().port()), Some(Process::own()));
    }

    #[test]
    fn too_many_files_are_refused() {
        assert!(check_files(1, "a test").is_ok());
        let fault = check_files(1 << 40, "a test").unwrap_err();
        assert!(fault.to_string().contains("ulimit -n"));
    }
}
