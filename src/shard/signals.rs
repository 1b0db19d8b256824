//! What the process is told by signals, from its first moment on: SIGTERM and SIGINT end it, SIGUSR1 asks for the account of
//! the memory.
//!
//! A thread of its own waits for them, since the main thread may read a log for minutes before it serves anybody. Until then
//! there is nothing to drain: the process ends on the spot, as it may at any moment by `kill -9`, and what it has read is on
//! the disk as before.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::thread;

use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;
use signal_hook::low_level;

use crate::shard::supervisor::{State, Supervisor};

/// What the main thread acts on while clients are served.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wish {
    Account,
    Stop,
}

pub struct Wishes {
    is_served: Arc<AtomicBool>,
    received: Receiver<Wish>,
}

impl Wishes {
    /// Listens from here on. A wish to stop ends the process until [`Wishes::serve`] is called.
    ///
    /// # Errors
    /// When the system refuses the signals or the thread.
    pub fn listen() -> io::Result<Wishes> {
        let mut signals = Signals::new([SIGTERM, SIGINT, SIGUSR1])?;
        let (sender, received) = mpsc::channel();
        let is_served = Arc::new(AtomicBool::new(false));
        let wishes = Wishes { is_served: Arc::clone(&is_served), received };
        thread::Builder::new().name("signals".to_owned()).spawn(move || {
            for signal in signals.forever() {
                let wish = if signal == SIGUSR1 { Wish::Account } else { Wish::Stop };
                if wish == Wish::Stop {
                    let signal = low_level::signal_name(signal).unwrap_or("unknown");
                    tracing::info!(signal, "received signal, shutting down");
                    if !is_served.load(Ordering::Acquire) {
                        end();
                    }
                }
                if sender.send(wish).is_err() {
                    // The main thread stops already.
                    return;
                }
            }
        })?;
        Ok(wishes)
    }

    /// From here on clients may be served, and whoever reads the wishes sees to their end.
    pub fn serve(&self) {
        self.is_served.store(true, Ordering::Release);
    }

    /// Waits for the next one.
    pub fn next(&self) -> Wish {
        self.received.recv().expect("the thread that listens ends after its reader")
    }
}

/// Without the exit handlers of the process: the allocator's would take away the memory that the main thread reads into.
fn end() -> ! {
    Supervisor::of_this_process().tell(State::Stopping);
    tracing::info!("nobody was served yet");
    low_level::exit(0)
}
