//! What all tests of this folder share: a server of their own on ports of their own, and words that are seen.

use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use tokio::task::LocalSet;

use crate::binary::{binary_under_test, is_real_etcd};
use crate::fault::Result;
use crate::proof::calls::PATIENCE;
use crate::server::{Program, Server, Side};

/// Runs a test in one thread; its fault is the panic.
pub fn run(test: impl Future<Output = Result<()>>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("a runtime of one thread starts");
    if let Err(fault) = LocalSet::new().block_on(&runtime, test) {
        panic!("{fault}");
    }
}

/// The server under test, on two ports below those that the kernel hands out: a client that connects to such a port
/// while nobody listens there may be given it as its own, and then talks to itself.
pub fn program() -> Program {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let path = binary_under_test();
    let side = if is_real_etcd(&path) { Side::Etcd } else { Side::Tarsier };
    let first = 25_500 + (std::process::id() % 500) as u16 * 4;
    let is_free = |port| TcpListener::bind(("127.0.0.1", port)).is_ok();
    let port = loop {
        let port = first + NEXT.fetch_add(2, Ordering::Relaxed);
        if is_free(port) && is_free(port + 1) {
            break port;
        }
    };
    Program {
        side,
        path,
        flags: Vec::new(),
        environment: Vec::new(),
        port,
        data_root: std::env::temp_dir(),
        cpus: None,
    }
}

/// The tarsier under test, or `None` with a word about it.
pub fn tarsier(test: &str) -> Option<Program> {
    let program = program();
    if program.side == Side::Tarsier {
        return Some(program);
    }
    say(&format!("{test}: skipped, it concerns tarsier's own files"));
    None
}

/// Prints past the capture of the test harness: a seed and a skip must be seen when all is well, too.
pub fn say(text: &str) {
    // Nobody may be listening; the test does not depend on it.
    let _ = writeln!(std::io::stderr(), "durability: {text}");
}

/// Shows the end of the server's log beside a fault.
pub fn with_log<T>(server: &Server, outcome: Result<T>) -> Result<T> {
    if outcome.is_err() {
        let log = server.log();
        let lines: Vec<&str> = log.lines().collect();
        say(&format!("the server's last words:\n{}", lines[lines.len().saturating_sub(20)..].join("\n")));
    }
    outcome
}

/// A number from the environment.
pub fn number(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text}")),
        Err(_) => default,
    }
}

/// A folder that goes with the test.
pub struct Folder {
    pub path: PathBuf,
}

impl Folder {
    pub fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("tarsier-durability-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).expect("the temporary directory is writable");
        Folder { path }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What remains is seen in the temporary directory; no test depends on it.
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// Starts a server on a directory that it must refuse, and gives its last words: one line, behind what every start logs.
pub fn refused_start(binary: &Path, data: &Path) -> String {
    let other = program();
    let url = format!("http://127.0.0.1:{}", other.port);
    let mut command = Command::new(binary);
    command.args(["--listen-client-urls", &url, "--log-level", "error", "--data-dir"]).arg(data);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the binary starts");
    let begun = Instant::now();
    while matches!(child.try_wait(), Ok(None)) {
        if begun.elapsed() > PATIENCE {
            let _ = child.kill();
            panic!("the server runs on {}, which it should refuse", data.display());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let output = child.wait_with_output().expect("it has ended");
    let words = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).trim().to_owned();
    assert_eq!(output.status.code(), Some(1), "{words}");
    assert_eq!(words.lines().count(), 1, "one line says it all: {words}");
    words
}

impl Program {
    /// Salvages a directory into a new one and starts a server on that.
    pub async fn start_salvaged(&self, data: &Path) -> Result<Server> {
        let into = |new: &Path| {
            let salvage = Command::new(&self.path).arg("salvage").arg(data).arg(new).output().expect("it starts");
            let words = String::from_utf8_lossy(&[salvage.stdout, salvage.stderr].concat()).into_owned();
            assert!(salvage.status.success() && !words.trim().is_empty(), "{}: {words}", salvage.status);
            say(&format!("salvage said: {}", words.trim()));
        };
        let other = Program { port: program().port, ..self.clone() };
        other.start_on(into).await
    }
}
