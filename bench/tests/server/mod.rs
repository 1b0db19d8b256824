//! Starts the server under test as a process of its own: a free port, a directory that goes away, a kill on drop.
//!
//! The binary is the one named by `TARSIER_BIN`; without it, the `tarsier` of this workspace, which cargo is asked to
//! build first (a test of this package does not depend on another package's binary, and a stale one would test
//! yesterday's code). A real etcd may stand in its place, so that the tests themselves can be checked: it needs a peer
//! address too, and says who it is when asked for its version.

#[allow(dead_code, reason = "each test binary uses its part of this module")]
mod account;

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

#[allow(unused_imports, reason = "each test binary uses its part of this module")]
pub use account::Held;

/// How long a server may take until it answers. A real etcd elects itself first, on a busy machine.
const READY_WITHIN: Duration = Duration::from_secs(30);

/// A running server. Dropping it kills the process and removes its directory.
pub struct Server {
    binary: PathBuf,
    child: Child,
    port: u16,
    directory: PathBuf,
    settings: Vec<String>,
}

impl Server {
    /// Starts `binary` on an empty directory and waits until it takes connections.
    #[allow(dead_code, reason = "each test binary uses its part of this module")]
    pub fn start(binary: &Path) -> Server {
        Server::start_with(binary, &[])
    }

    /// The same with more flags.
    pub fn start_with(binary: &Path, settings: &[&str]) -> Server {
        static STARTED: AtomicU32 = AtomicU32::new(0);
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        let directory = std::env::temp_dir().join(format!("tarsier-test-{}-{number}", std::process::id()));
        fs::create_dir_all(&directory).expect("the temporary directory is writable");
        let port = free_port();
        let settings: Vec<String> = settings.iter().map(|&setting| setting.to_owned()).collect();
        let child = spawn(binary, port, &directory, &settings);
        let mut server = Server { binary: binary.to_owned(), child, port, directory, settings };
        server.wait_until_ready();
        server
    }

    pub fn address(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.port))
    }

    /// What an etcd client is given as its endpoint.
    #[allow(dead_code, reason = "each test binary uses its part of this module")]
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address())
    }

    /// For signals and for what the kernel says of it.
    #[allow(dead_code, reason = "each test binary uses its part of this module")]
    pub fn process(&self) -> u32 {
        self.child.id()
    }

    /// Everything it has printed.
    #[allow(dead_code, reason = "each test binary uses its part of this module")]
    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }

    /// How it ended, if it has.
    #[allow(dead_code, reason = "each test binary uses its part of this module")]
    pub fn ended(&mut self) -> Option<std::process::ExitStatus> {
        self.child.try_wait().expect("our own child can be waited for")
    }

    /// Kills the process as a crash would and starts it again on the same directory and port.
    #[allow(dead_code, reason = "each test binary uses its part of this module")]
    pub fn restart_after_kill(&mut self) {
        self.kill();
        self.start_again();
    }

    /// Asks the process to end, and starts it again on the same directory and port.
    #[allow(dead_code, reason = "each test binary uses its part of this module")]
    pub fn restart_after_stop(&mut self) {
        let process = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(process, rustix::process::Signal::TERM).expect("our own child runs");
        self.child.wait().expect("our own child can be waited for");
        self.start_again();
    }

    fn start_again(&mut self) {
        self.child = spawn(&self.binary, self.port, &self.directory, &self.settings);
        self.wait_until_ready();
    }

    /// A connect is not enough: a real etcd listens before it serves.
    fn wait_until_ready(&mut self) {
        let deadline = Instant::now() + READY_WITHIN;
        loop {
            if let Some(status) = self.child.try_wait().expect("our own child can be waited for") {
                panic!("{} ended at its start with {status}\n{}", self.binary.display(), self.log_tail());
            }
            if answers(self.address()) {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "{} took no connection for {READY_WITHIN:?}\n{}",
                self.binary.display(),
                self.log_tail()
            );
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn kill(&mut self) {
        // The process may have ended by itself; both calls then report what is already true.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    fn log_tail(&self) -> String {
        let log = fs::read_to_string(self.directory.join("log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
        if thread::panicking() {
            eprintln!("the last lines of the server's log:\n{}", self.log_tail());
        }
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// The binary under test.
pub fn binary_under_test() -> PathBuf {
    match std::env::var_os("TARSIER_BIN") {
        Some(path) => PathBuf::from(path),
        None => built_binary().to_owned(),
    }
}

/// Whether this binary is a real etcd.
pub fn is_real_etcd(binary: &Path) -> bool {
    // A script that was just written is busy for as long as another test's child, forked meanwhile, holds it open.
    let output = (0..200).find_map(|_| match Command::new(binary).arg("--version").output() {
        Err(error) if error.kind() == std::io::ErrorKind::ExecutableFileBusy => {
            std::thread::sleep(std::time::Duration::from_millis(10));
            None
        }
        output => Some(output),
    });
    let output = output.unwrap_or_else(|| panic!("{} stays busy", binary.display()));
    let output = output.unwrap_or_else(|error| panic!("{} does not start: {error}", binary.display()));
    output.stdout.starts_with(b"etcd Version")
}

/// Asks cargo for the binary once per test process. Cargo's lock is free again while tests run, and it knows best
/// where its target directory is.
fn built_binary() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let mut cargo = Command::new(env!("CARGO"));
        cargo.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
        cargo.args([
            "build",
            "--package",
            "tarsier",
            "--bin",
            "tarsier",
            "--message-format",
            "json-render-diagnostics",
        ]);
        if !cfg!(debug_assertions) {
            cargo.arg("--release");
        }
        let output = cargo.stderr(Stdio::inherit()).output().expect("the cargo that built this test is still there");
        assert!(output.status.success(), "cargo build --package tarsier failed");
        executable_of(&output.stdout).expect("cargo names the executable it has built")
    })
}

fn executable_of(messages: &[u8]) -> Option<PathBuf> {
    let lines = messages.split(|&byte| byte == b'\n');
    let messages = lines.filter_map(|line| serde_json::from_slice::<serde_json::Value>(line).ok());
    messages.filter_map(|message| message["executable"].as_str().map(PathBuf::from)).next_back()
}

fn spawn(binary: &Path, port: u16, directory: &Path, settings: &[String]) -> Child {
    let client_url = format!("http://127.0.0.1:{port}");
    let log = File::options().create(true).append(true).open(directory.join("log")).expect("the directory is writable");
    let mut command = Command::new(binary);
    command.args(["--listen-client-urls", &client_url, "--advertise-client-urls", &client_url]);
    command.arg("--data-dir").arg(directory.join("data"));
    if is_real_etcd(binary) {
        // Its default peer port may be taken by another etcd of this machine.
        let peer_url = format!("http://127.0.0.1:{}", free_port());
        command.args(["--listen-peer-urls", &peer_url, "--initial-advertise-peer-urls", &peer_url]);
        command.args(["--initial-cluster", &format!("default={peer_url}"), "--unsafe-no-fsync"]);
    }
    command.args(settings);
    command.stdin(Stdio::null()).stdout(log.try_clone().expect("a file handle can be doubled")).stderr(log);
    command.spawn().unwrap_or_else(|error| panic!("{} does not start: {error}", binary.display()))
}

/// A port that was free a moment ago. The kernel hands such ports out in turn, so that the moment is long enough.
fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a loopback port is free");
    listener.local_addr().expect("a bound socket has an address").port()
}

/// Whether the server speaks HTTP/2 yet: it must send its SETTINGS after our preface (RFC 9113 section 3.4).
fn answers(address: SocketAddr) -> bool {
    use std::io::{Read, Write};
    let Ok(mut socket) = TcpStream::connect_timeout(&address, Duration::from_millis(500)) else { return false };
    let _ = socket.set_read_timeout(Some(Duration::from_millis(500)));
    let preface_and_settings = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    let mut head = [0u8; 9];
    socket.write_all(preface_and_settings).is_ok() && socket.read_exact(&mut head).is_ok() && head[3] == 4
}
