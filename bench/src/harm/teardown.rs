//! The clients of very many watches are killed: nobody says goodbye, and the kernel closes their connections at once.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::Sizes;
use super::witness::Witness;
use crate::fault::{Fault, Result};
use crate::report::Measured;
use crate::screen::count;
use crate::server::{Server, end_with_us};

const STREAMS: u32 = 50;
const WATCHINGS: u32 = 100;
/// What the server may keep of those that left.
const LEFT_BYTES_MAX: u64 = 16 << 20;
const MEMORY_BACK_WITHIN: Duration = Duration::from_secs(30);
/// The time behind the kill that counts as the teardown.
const TEARDOWN: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(100);

pub async fn teardown(server: &mut Server, sizes: Sizes) -> Result<Measured> {
    let connections = (sizes.teardown_watches / (STREAMS * WATCHINGS)).max(1);
    let watches = u64::from(connections) * u64::from(STREAMS * WATCHINGS);
    let scene = format!("teardown of {} watches", count(watches));
    let empty = server.process.memory()?;
    let (mut clients, created) = Clients::launch(server, connections, sizes.threads)?;
    if !created.await.unwrap_or(false) {
        return Err(Fault::Refused("the clients to be killed ended before all watches were created".to_owned()));
    }
    server.wait_until_quiet().await?;
    let held = server.process.memory()?;

    let witness = Witness::start(&server.endpoint, sizes.puts_a_second)?;
    tokio::time::sleep(sizes.window).await;
    witness.next_phase();
    let killed = Instant::now();
    clients.kill()?;
    let mut back = None;
    let mut look = |server: &Server| -> Result<u64> {
        let resident = server.process.memory()?.resident;
        if resident <= empty.resident + LEFT_BYTES_MAX {
            back.get_or_insert(killed.elapsed());
        }
        Ok(resident)
    };
    while killed.elapsed() < TEARDOWN {
        look(server)?;
        tokio::time::sleep(LOOK).await;
    }
    let tails = witness.finish().await?;
    while killed.elapsed() < MEMORY_BACK_WITHIN {
        look(server)?;
        tokio::time::sleep(LOOK).await;
    }
    let after = look(server)?;

    let mut measured = Measured::default();
    measured.add(&scene, "VmRSS empty, MB", empty.resident as f64 / 1e6);
    measured.add(&scene, "VmRSS held, MB", held.resident as f64 / 1e6);
    measured.add(&scene, "VmRSS 30 s behind the kill, MB", after as f64 / 1e6);
    if let Some(back) = back {
        measured.add(&scene, "back to empty + 16 MiB, s", back.as_secs_f64());
    }
    tails[0].add(&mut measured, &format!("{scene}: quiet control"));
    tails[1].add(&mut measured, &format!("{scene}: witness in the 5 s behind the kill"));
    Ok(measured)
}

/// The clients: a process of this very program, killed when this is dropped.
struct Clients {
    child: Child,
}

impl Clients {
    /// What comes with them says whether all watches were created.
    fn launch(server: &Server, connections: u32, threads: u32) -> Result<(Clients, oneshot::Receiver<bool>)> {
        let refused = |cause| Fault::Refused(format!("the clients to be killed do not start: {cause}"));
        let program = std::env::current_exe().map_err(refused)?;
        let mut command = Command::new(program);
        // Killed without a word, we would leave them with their watches for a day. The thread is that of the run.
        end_with_us(&mut command);
        let mut child = command
            .args(["hold", "--endpoint", &server.endpoint, "--pid", &server.process.id.to_string()])
            .args(["--connections", &connections.to_string(), "--streams", &STREAMS.to_string()])
            .args(["--watchings", &WATCHINGS.to_string(), "--threads", &threads.to_string()])
            .args(["--puts", "0", "--idle", "86400"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(refused)?;
        let output = child.stdout.take().expect("it was asked for");
        let (created, told) = oneshot::channel();
        std::thread::spawn(move || {
            let mut lines = BufReader::new(output).lines().map_while(std::result::Result::ok);
            // Whoever waited may be gone.
            let _ = created.send(lines.any(|line| line.starts_with("created ")));
            lines.for_each(drop);
        });
        Ok((Clients { child }, told))
    }

    /// Its end is not waited for: the kernel closes its connections on its own time.
    fn kill(&mut self) -> Result<()> {
        self.child.kill().map_err(|cause| Fault::Refused(format!("the clients cannot be killed: {cause}")))
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        // Killing fails only for a process that has ended, and waiting then returns at once.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
