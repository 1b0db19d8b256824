//! What SIGUSR1 makes the server print: count and bytes by class.

use std::collections::HashMap;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::Server;

/// From the signal to the last line.
const PRINTED_WITHIN: Duration = Duration::from_secs(10);

/// What a class holds; classes without a count have 0.
#[derive(Clone, Copy, Debug)]
pub struct Held {
    pub count: u64,
    pub bytes: u64,
}

impl Server {
    /// Its account of this moment, by class. Blocks the thread until it is printed.
    pub fn account(&self) -> HashMap<String, Held> {
        let before = accounts(&self.log());
        let process = Pid::from_raw(self.process() as i32).expect("a process has a number");
        kill_process(process, Signal::USR1).expect("the server runs");
        let deadline = Instant::now() + PRINTED_WITHIN;
        loop {
            let log = self.log();
            if accounts(&log) > before {
                let lines: Vec<&str> = log.lines().collect();
                let start = lines.iter().rposition(|line| line.starts_with("class")).expect("an account has a head");
                return lines[start + 1..].iter().filter_map(|line| row(line)).collect();
            }
            assert!(Instant::now() < deadline, "no account is printed");
            thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Accounts that are there to the end of their last line: the server writes while this is read.
fn accounts(log: &str) -> usize {
    log.split_inclusive('\n').filter(|line| line.starts_with("resident") && line.ends_with('\n')).count()
}

fn row(line: &str) -> Option<(String, Held)> {
    let (class, numbers) = line.split_at_checked(16)?;
    let mut numbers = numbers.split_whitespace().rev();
    let bytes = numbers.next()?.parse().ok()?;
    let count = numbers.next().and_then(|count| count.parse().ok()).unwrap_or(0);
    Some((class.trim().to_owned(), Held { count, bytes }))
}
