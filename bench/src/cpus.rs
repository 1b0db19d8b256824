//! Which CPUs the servers have, and which the load.
//!
//! A load client on the server's own cores takes them from what it measures. Where there are few, `--server-cpus` gives the
//! servers some of them and the load client the others, as two machines would have it: what is late then is late in the
//! server. A process takes over the CPUs of the thread that starts it, and a thread those of the thread that made it.

use std::fmt;
use std::str::FromStr;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::fault::{Fault, Result};
use crate::ranges;

/// CPUs by their numbers, in order, each once.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Cpus(Vec<usize>);

impl Cpus {
    /// Those that this thread may run on.
    fn own() -> Result<Cpus> {
        let mask = sched_getaffinity(None).map_err(|cause| Fault::Refused(format!("no CPUs are known: {cause}")))?;
        Ok(Cpus((0..CpuSet::MAX_CPU).filter(|cpu| mask.is_set(*cpu)).collect()))
    }

    /// Keeps the calling thread, and what it makes, on these.
    fn hold(&self) -> Result<()> {
        let mut mask = CpuSet::new();
        self.0.iter().for_each(|cpu| mask.set(*cpu));
        let refused = |cause| Fault::Refused(format!("CPUs {self} are refused: {cause}"));
        sched_setaffinity(None, &mask).map_err(refused)
    }
}

impl FromStr for Cpus {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Cpus, String> {
        let number = |word: &str| match word.parse::<usize>() {
            Ok(cpu) if cpu < CpuSet::MAX_CPU => Ok(cpu),
            _ => Err(format!("{word:?} is no CPU: name them as in 0 or 0,2-3")),
        };
        ranges::numbers(text, "CPU", number).map(Cpus)
    }
}

impl fmt::Display for Cpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<String> = self.0.iter().map(usize::to_string).collect();
        f.write_str(&words.join(","))
    }
}

/// From here on the calling thread and all that it makes leave these CPUs alone, but for what [`on`] starts.
pub fn leave_to_servers(servers: &Cpus) -> Result<()> {
    load_cpus(&Cpus::own()?, servers)?.hold()
}

fn load_cpus(own: &Cpus, servers: &Cpus) -> Result<Cpus> {
    if let Some(cpu) = servers.0.iter().find(|cpu| !own.0.contains(cpu)) {
        return Err(Fault::Refused(format!("CPU {cpu} is none of those that this program may use ({own})")));
    }
    let left: Vec<usize> = own.0.iter().copied().filter(|cpu| !servers.0.contains(cpu)).collect();
    if left.is_empty() {
        return Err(Fault::Refused(format!("servers on CPUs {servers} leave none to the load client")));
    }
    Ok(Cpus(left))
}

/// Starts something there.
pub fn on<T>(cpus: Option<&Cpus>, start: impl FnOnce() -> Result<T>) -> Result<T> {
    let Some(cpus) = cpus else { return start() };
    let own = Cpus::own()?;
    cpus.hold()?;
    let started = start();
    own.hold()?;
    started
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cpus(text: &str) -> Cpus {
        text.parse().unwrap()
    }

    #[test]
    fn cpus_are_named_one_by_one_and_from_to() {
        assert_eq!(cpus("0"), Cpus(vec![0]));
        assert_eq!(cpus("6,2-4,3,0").to_string(), "0,2,3,4,6");
        for text in ["", "a", "0,", "1-", "-1", "3-2", "0-99999999"] {
            assert!(text.parse::<Cpus>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_load_has_what_the_servers_leave() {
        assert_eq!(load_cpus(&cpus("0-3"), &cpus("1-2")).unwrap(), cpus("0,3"));
        let refused = |own, servers| load_cpus(&cpus(own), &cpus(servers)).unwrap_err().to_string();
        assert_eq!(refused("0-1", "0-1"), "servers on CPUs 0,1 leave none to the load client");
        assert_eq!(refused("0-1", "1-2"), "CPU 2 is none of those that this program may use (0,1)");
    }

    #[test]
    fn what_is_started_on_cpus_runs_there_and_the_thread_that_starts_it_does_not() {
        let own = Cpus::own().unwrap();
        let last = Cpus(vec![*own.0.last().unwrap()]);
        let inherited = on(Some(&last), || std::thread::spawn(Cpus::own).join().unwrap()).unwrap();
        assert_eq!((inherited, Cpus::own().unwrap()), (last, own));
    }
}
