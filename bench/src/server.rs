//! A server under test: started on ports of ours with a data directory of its own, stopped and removed on every way out.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::net::TcpListener;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use clap::Args;
use rustix::process::Signal;

use crate::caller::{self, Caller};
use crate::cgroup::MemoryGroup;
use crate::cpus::{self, Cpus};
use crate::disk::Disk;
use crate::fault::{Fault, Result};
use crate::numbers;
use crate::process::Process;

/// From the start of the process to its first answer.
const START_PATIENCE: Duration = Duration::from_secs(20);
/// From the request to end to the end; then it is killed.
const STOP_PATIENCE: Duration = Duration::from_secs(10);
/// From the end of a server that was killed to its port being free.
const PORT_PATIENCE: Duration = Duration::from_secs(2);
/// The data directory inside the directory of a server.
const DATA: &str = "data";

/// The two sides of a comparison.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Side {
    Etcd,
    Tarsier,
}

impl Side {
    pub fn name(self) -> &'static str {
        match self {
            Side::Etcd => "etcd",
            Side::Tarsier => "tarsier",
        }
    }

    /// What a program says it is when asked for its version.
    pub fn of(path: &Path) -> Result<Side> {
        let shown = path.display();
        if !path.is_file() {
            return Err(Fault::Refused(format!("{shown} is no file")));
        }
        let version = Command::new(path).arg("--version").stdin(Stdio::null()).output();
        let version = version.map_err(|cause| Fault::Refused(format!("{shown} does not start: {cause}")))?;
        let words = String::from_utf8_lossy(&version.stdout);
        match words.lines().next().unwrap_or_default() {
            line if line.starts_with("etcd Version") => Ok(Side::Etcd),
            line if line.starts_with("tarsier ") => Ok(Side::Tarsier),
            line => Err(Fault::Refused(format!("{shown} is neither etcd nor tarsier: --version says {line:?}"))),
        }
    }
}

/// How the programs that a run names are started.
#[derive(Args, Clone, Debug)]
pub struct ProgramFlags {
    /// Where the data directories of the servers are made; not on a tmpfs, or no disk is measured
    #[arg(long)]
    data_dir_root: Option<PathBuf>,
    /// Further flags for etcd, separated by spaces
    #[arg(long, default_value = "", allow_hyphen_values = true)]
    etcd_flags: String,
    /// GOGC for etcd: by how many per cent its heap may grow until it is collected
    #[arg(long)]
    etcd_gogc: Option<u32>,
    /// GOMEMLIMIT for etcd, such as 6GiB: near it, it collects more often
    #[arg(long)]
    etcd_gomemlimit: Option<String>,
    /// Further flags for tarsier, separated by spaces
    #[arg(long, default_value = "", allow_hyphen_values = true)]
    tarsier_flags: String,
    /// CPUs of the servers, such as 0 or 0,2-3; the load client has the others [default: both have all]
    #[arg(long)]
    server_cpus: Option<Cpus>,
}

impl ProgramFlags {
    pub fn data_root(&self) -> PathBuf {
        self.data_dir_root.clone().unwrap_or_else(std::env::temp_dir)
    }

    /// What a reader of the figures should know.
    pub fn note(&self) -> Option<String> {
        self.server_cpus.as_ref().map(|cpus| format!("servers on CPUs {cpus}, the load client on the others"))
    }

    fn etcd_environment(&self) -> Vec<(&'static str, String)> {
        let collection = self.etcd_gogc.map(|percent| ("GOGC", percent.to_string()));
        collection.into_iter().chain(self.etcd_gomemlimit.clone().map(|limit| ("GOMEMLIMIT", limit))).collect()
    }

    /// The programs that are named, on the four ports from `port` on. From here on this thread, and all that it makes but for
    /// these, leaves their CPUs alone.
    ///
    /// # Errors
    /// When one is not what it was named as, or the CPUs cannot be shared out as asked.
    pub fn programs(&self, etcd: Option<PathBuf>, tarsier: Option<PathBuf>, port: u16) -> Result<Vec<Program>> {
        let named =
            [(Side::Etcd, etcd, &self.etcd_flags, port), (Side::Tarsier, tarsier, &self.tarsier_flags, port + 2)];
        let programs = named.into_iter().filter_map(|(side, path, flags, port)| {
            let flags = flags.split_whitespace().map(str::to_owned).collect();
            let environment = if side == Side::Etcd { self.etcd_environment() } else { Vec::new() };
            let (data_root, cpus) = (self.data_root(), self.server_cpus.clone());
            Some(Program { side, path: path?, flags, environment, port, data_root, cpus })
        });
        let programs: Vec<Program> = programs.collect();
        programs.iter().try_for_each(Program::check)?;
        self.server_cpus.as_ref().map_or(Ok(()), cpus::leave_to_servers)?;
        Ok(programs)
    }
}

/// How to start one side.
#[derive(Clone, Debug)]
pub struct Program {
    pub side: Side,
    pub path: PathBuf,
    /// Flags of the user behind ours.
    pub flags: Vec<String>,
    /// Variables beside those of this process, of which it gets none that would set it up.
    pub environment: Vec<(&'static str, String)>,
    /// For clients; etcd takes the next one for its peers.
    pub port: u16,
    /// Where the directories of its servers are made. What a disk costs shows only on a disk: not on a tmpfs.
    pub data_root: PathBuf,
    /// Where it runs, if not everywhere.
    pub cpus: Option<Cpus>,
}

impl Program {
    /// Refuses a program that is not what it was named as: another server under its flags would be measured as it.
    pub fn check(&self) -> Result<()> {
        match Side::of(&self.path)? {
            side if side == self.side => Ok(()),
            other => {
                let (path, named, other) = (self.path.display(), self.side.name(), other.name());
                Err(Fault::Refused(format!("{path} was named as {named}, but says that it is {other}")))
            }
        }
    }

    fn flags(&self, data: &str) -> Vec<String> {
        let client = format!("http://127.0.0.1:{}", self.port);
        let mut flags =
            vec!["--listen-client-urls".to_owned(), client.clone(), "--data-dir".to_owned(), data.to_owned()];
        if self.side == Side::Etcd {
            let peer = format!("http://127.0.0.1:{}", self.port + 1);
            let cluster = format!("default={peer}");
            let single = ["--advertise-client-urls", &client, "--listen-peer-urls", &peer];
            let single =
                single.into_iter().chain(["--initial-advertise-peer-urls", &peer, "--initial-cluster", &cluster]);
            // The quota is the largest that etcd's documents advise; the default of 2 GiB would end the larger loads.
            let advised = ["--quota-backend-bytes", "8589934592", "--log-level", "error"];
            flags.extend(single.chain(advised).map(str::to_owned));
        }
        flags.extend(self.flags.iter().cloned());
        flags
    }

    /// Starts it on an empty directory and waits until it answers a read.
    pub async fn start(&self) -> Result<Server> {
        self.start_on(|_| {}).await
    }

    /// Starts it on a data directory that `prepare` makes at the path it is given.
    pub async fn start_on(&self, prepare: impl FnOnce(&Path)) -> Result<Server> {
        self.start_with(prepare, None).await
    }

    /// Starts it on an empty directory inside a memory cgroup, where it stays when it is started again.
    pub async fn start_in(&self, group: Option<MemoryGroup>) -> Result<Server> {
        self.start_with(|_| {}, group).await
    }

    async fn start_with(&self, prepare: impl FnOnce(&Path), group: Option<MemoryGroup>) -> Result<Server> {
        self.check_port().await?;
        let directory = TemporaryDirectory::new(&self.data_root)?;
        prepare(&directory.path.join(DATA));
        let child = self.spawn(&directory.path, group.as_ref())?;
        let process = Process { id: child.id() };
        let endpoint: Arc<str> = format!("127.0.0.1:{}", self.port).into();
        let mut server = Server { side: self.side, process, endpoint, program: self.clone(), child, directory, group };
        server.wait_until_ready().await?;
        Ok(server)
    }

    fn spawn(&self, directory: &Path, group: Option<&MemoryGroup>) -> Result<Child> {
        let log = directory.join("log");
        let no_log = |cause| Fault::Refused(format!("{} cannot be written: {cause}", log.display()));
        let output = File::options().create(true).append(true).open(&log).map_err(no_log)?;
        let errors = output.try_clone().map_err(no_log)?;
        let data = directory.join(DATA);
        let mut command = group.map_or_else(|| Command::new(&self.path), |group| group.command(&self.path));
        end_with_us(&mut command);
        for (name, _) in std::env::vars_os().filter(|(name, _)| sets_up(name)) {
            command.env_remove(name);
        }
        command
            .args(self.flags(&data.to_string_lossy()))
            .envs(self.environment.iter().cloned())
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors);
        let refused = |cause| Fault::Refused(format!("{} does not start: {cause}", self.path.display()));
        cpus::on(self.cpus.as_ref(), || command.spawn().map_err(refused))
    }

    /// A server that shares its port silently with a forgotten one would serve half of the clients. One that was just killed
    /// keeps its sockets for a moment, until the kernel has taken its rings apart.
    async fn check_port(&self) -> Result<()> {
        let asked = Instant::now();
        while let Err(cause) = TcpListener::bind(("127.0.0.1", self.port)) {
            if asked.elapsed() >= PORT_PATIENCE {
                return Err(Fault::Refused(format!(
                    "port {} cannot be used: {cause}; choose another --port",
                    self.port
                )));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }
}

/// Whether a variable of our own environment would change how a server works: the settings of both, of the runtime of Go and
/// of tarsier's allocator. What a figure rests on must be in the command that the report shows.
fn sets_up(name: &OsStr) -> bool {
    let name = name.as_encoded_bytes();
    let begins = |prefix: &&[u8]| name.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix));
    let prefixes: [&[u8]; 3] = [b"ETCD_", b"TARSIER_", b"MIMALLOC_"];
    let of_go: [&[u8]; 4] = [b"GOGC", b"GOMEMLIMIT", b"GOMAXPROCS", b"GODEBUG"];
    prefixes.iter().any(begins) || of_go.contains(&name)
}

/// Has the kernel kill the process when the thread that starts it ends, which must be one that lasts as long as the process is
/// wanted. Nothing of ours runs when this program is killed or aborts, and a server left behind would hold its port, its
/// memory and, in the next run, half of the clients.
#[allow(
    unsafe_code,
    reason = "only between fork and exec can a process ask for this, and std has no safe way to be there"
)]
pub fn end_with_us(command: &mut Command) {
    let parent = rustix::process::getpid();
    let ask = move || {
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        // We may have ended before it asked.
        match rustix::process::getppid() == Some(parent) {
            true => Ok(()),
            false => Err(std::io::ErrorKind::BrokenPipe.into()),
        }
    };
    // SAFETY: the closure makes two system calls and allocates nothing, so it may run in the child of a process with threads.
    unsafe { command.pre_exec(ask) };
}

/// A running server; dropping it stops it and removes its data.
pub struct Server {
    pub side: Side,
    pub process: Process,
    pub endpoint: Arc<str>,
    program: Program,
    child: Child,
    directory: TemporaryDirectory,
    /// Dropped behind the process.
    group: Option<MemoryGroup>,
}

impl Server {
    /// An error with the last words of the process, if it has ended.
    pub fn check_alive(&mut self) -> Result<()> {
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => Err(self.died(status)),
            Err(cause) => Err(Fault::ServerDied(format!("{} cannot be waited for: {cause}", self.side.name()))),
        }
    }

    fn died(&self, status: ExitStatus) -> Fault {
        let log = self.log();
        let words = log.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("nothing");
        Fault::ServerDied(format!("{} has ended ({status}); its last words: {words}", self.side.name()))
    }

    /// The memory cgroup it runs in, if it was given one.
    pub fn memory_group(&self) -> Option<&MemoryGroup> {
        self.group.as_ref()
    }

    /// Everything that its processes have printed.
    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.path.join("log")).unwrap_or_default()
    }

    /// A fault of the load, or the death of the server where that explains it. The kernel closes the connections of a
    /// dying process a moment before it can be waited for.
    pub fn explain(&mut self, fault: Fault) -> Fault {
        std::thread::sleep(Duration::from_millis(200));
        self.check_alive().err().unwrap_or(fault)
    }

    pub async fn caller(&self) -> Result<Caller> {
        Caller::connect(&self.endpoint, crate::link::Windows::SMALL).await
    }

    /// What a tarsier says it may hold, in its own numbers: a default is a share of the machine's memory, or of the
    /// cgroup's, and only the server knows what it took that share of. 0 means no limit.
    pub async fn memory_limit_bytes(&self) -> Result<u64> {
        self.number("tarsier_memory_limit_bytes").await
    }

    /// A number of its page of numbers that has no labels.
    pub async fn number(&self, name: &str) -> Result<u64> {
        numbers::number(&self.endpoint, name).await
    }

    /// Its data directory, which lasts over restarts.
    pub fn data(&self) -> PathBuf {
        self.directory.path.join(DATA)
    }

    /// The device that its data lies on.
    pub fn disk(&self) -> Result<Disk> {
        Disk::under(&self.directory.path)
    }

    /// Ends it as a crash would.
    pub fn kill(&mut self) {
        // Killing fails only for a process that has ended, and waiting then returns at once.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Asks it to end and waits for that, while its clients go on.
    pub async fn end(&mut self) -> Result<ExitStatus> {
        self.signal(Signal::TERM);
        let asked = Instant::now();
        while asked.elapsed() < STOP_PATIENCE {
            match self.child.try_wait() {
                Ok(Some(status)) => return Ok(status),
                Ok(None) => tokio::time::sleep(Duration::from_millis(5)).await,
                Err(cause) => return Err(Fault::Refused(format!("the server cannot be waited for: {cause}"))),
            }
        }
        Err(Fault::Stalled { waiting_for: "the end of the server".to_owned(), seconds: STOP_PATIENCE.as_secs() })
    }

    /// Ends it as an operator would. Our connections hear its farewell meanwhile and close: while they did not, since dropping
    /// blocks their thread, a tarsier waited 5 s for them.
    ///
    /// # Errors
    /// When it has ended in another way than by being asked to: then what it did before counts for nothing.
    pub async fn stop(mut self) -> Result<()> {
        match self.end().await {
            // An etcd that was asked to end kills itself with the same signal when it has done so.
            Ok(status) if status.success() || status.signal() == Some(Signal::TERM.as_raw()) => Ok(()),
            Ok(status) => Err(self.died(status)),
            // It is killed when it is dropped.
            Err(Fault::Stalled { .. }) => Ok(()),
            Err(fault) => Err(fault),
        }
    }

    /// Sends a signal, unless the process has ended: then there is nothing to ask for.
    pub fn signal(&mut self, signal: Signal) {
        if let Some(id) = rustix::process::Pid::from_raw(self.process.id as i32)
            && matches!(self.child.try_wait(), Ok(None))
        {
            let _ = rustix::process::kill_process(id, signal);
        }
    }

    /// Starts it again on the same directory and port, without waiting for it. It must have ended.
    pub fn spawn_again(&mut self) -> Result<()> {
        self.child = self.program.spawn(&self.directory.path, self.group.as_ref())?;
        self.process = Process { id: self.child.id() };
        Ok(())
    }

    /// The same, with one more flag from here on.
    pub fn spawn_again_with(&mut self, flag: &str) -> Result<()> {
        self.program.flags.push(flag.to_owned());
        self.spawn_again()
    }

    /// The time from here to the first answer.
    pub async fn wait_until_ready(&mut self) -> Result<Duration> {
        let (begun, endpoint) = (Instant::now(), self.endpoint.clone());
        // Its connection is not kept: each scene brings its own.
        caller::wait_until_ready(&endpoint, START_PATIENCE, || self.check_alive()).await?;
        Ok(begun.elapsed())
    }

    /// Waits until the server has nothing more to do, so that one scene does not pay for another.
    pub async fn wait_until_quiet(&self) -> Result<()> {
        const LOOK: Duration = Duration::from_millis(500);
        for _ in 0..60 {
            let before = self.process.cpu()?;
            tokio::time::sleep(LOOK).await;
            if self.process.cpu()? - before <= LOOK / 25 {
                break;
            }
        }
        Ok(())
    }
}

impl Drop for Server {
    /// Its data goes with it, so it need not put that in order; one that has stopped answering would not even hear the request
    /// to end, and an interrupt would wait for it.
    fn drop(&mut self) {
        self.kill();
    }
}

/// Removed with all that is in it.
struct TemporaryDirectory {
    path: PathBuf,
}

impl TemporaryDirectory {
    fn new(root: &Path) -> Result<TemporaryDirectory> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = root.join(format!("tarsier-bench-{}-{number}", std::process::id()));
        let refused = |cause| Fault::Refused(format!("{} cannot be made: {cause}", path.display()));
        fs::create_dir_all(&path).map_err(refused)?;
        // It must outlive a power cut: what lies in it is the server's to keep, the folder itself is ours.
        File::open(root).and_then(|root| root.sync_all()).map_err(refused)?;
        Ok(TemporaryDirectory { path })
    }
}

impl Drop for TemporaryDirectory {
    fn drop(&mut self) {
        if let Err(cause) = fs::remove_dir_all(&self.path) {
            eprintln!("{} remains: {cause}", self.path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_temporary_directory_goes_with_its_owner() {
        let directory = TemporaryDirectory::new(&std::env::temp_dir()).unwrap();
        let path = directory.path.clone();
        fs::write(path.join("file"), "x").unwrap();
        drop(directory);
        assert!(!path.exists());
    }

    #[test]
    fn a_server_ends_with_the_thread_that_started_it() {
        let start = || {
            let mut command = Command::new("sleep");
            end_with_us(command.arg("10"));
            command.spawn().unwrap()
        };
        let ended = std::thread::spawn(start).join().unwrap().wait().unwrap();
        assert_eq!(ended.signal(), Some(Signal::KILL.as_raw()));
    }

    #[test]
    fn what_the_shell_has_set_does_not_set_up_a_server() {
        for name in ["ETCD_NAME", "TARSIER_MEMORY_LIMIT", "mimalloc_arena_eager_commit", "GOGC", "GODEBUG"] {
            assert!(sets_up(OsStr::new(name)), "{name}");
        }
        for name in ["PATH", "HOME", "ETCD", "GOPATH", "LD_LIBRARY_PATH", ""] {
            assert!(!sets_up(OsStr::new(name)), "{name}");
        }
    }

    #[test]
    fn only_etcd_gets_the_flags_of_a_cluster() {
        let program = |side| Program {
            side,
            path: "x".into(),
            flags: vec!["--extra".to_owned()],
            environment: Vec::new(),
            port: 7,
            data_root: "y".into(),
            cpus: None,
        };
        let flags = program(Side::Tarsier).flags("d");
        assert_eq!(flags, ["--listen-client-urls", "http://127.0.0.1:7", "--data-dir", "d", "--extra"]);
        let flags = program(Side::Etcd).flags("d");
        assert!(flags.contains(&"default=http://127.0.0.1:8".to_owned()) && flags.last().unwrap() == "--extra");
    }
}
