//! What a stretch of a run cost: the server's CPU time, this client's, the whole machine's, and the time on the wall.
//!
//! The machine's figure is there because the kernel does work for one process in the name of another.

use std::fs;
use std::time::{Duration, Instant};

use crate::fault::{Fault, Result};
use crate::process::{self, Process};
use crate::report::{Limit, Measured};

/// From this part of the time on, something counts as busy all the time: the clock of the machine ticks coarsely.
const BUSY: f64 = 0.95;

/// The measure of how much was done.
pub const A_SECOND: &str = "a second";

/// Readings at the beginning of a stretch.
pub struct Meter {
    server: Process,
    cpu: Duration,
    own: Duration,
    machine: Duration,
    begun: Instant,
}

/// What a stretch cost.
#[derive(Clone, Copy, Debug)]
pub struct Spent {
    pub cpu: Duration,
    /// Of the load client.
    pub own: Duration,
    pub machine: Duration,
    pub wall: Duration,
}

impl Meter {
    pub fn start(server: Process) -> Result<Meter> {
        let (cpu, own, machine) = (server.cpu()?, Process::own().cpu()?, machine_busy()?);
        Ok(Meter { server, cpu, own, machine, begun: Instant::now() })
    }

    pub fn read(&self) -> Result<Spent> {
        let wall = self.begun.elapsed();
        let cpu = self.server.cpu()?.saturating_sub(self.cpu);
        let own = Process::own().cpu()?.saturating_sub(self.own);
        Ok(Spent { cpu, own, machine: machine_busy()?.saturating_sub(self.machine), wall })
    }
}

impl Spent {
    /// The figures of each kind of work.
    pub fn figures(&self, scene: &str, units: u64, measured: &mut Measured) {
        let units = units as f64;
        measured.headline(scene, "server CPU, us each", self.cpu.as_secs_f64() * 1e6 / units);
        measured.add(scene, "load client's CPU, us each", self.own.as_secs_f64() * 1e6 / units);
        measured.add(scene, "whole machine busy, us each", self.machine.as_secs_f64() * 1e6 / units);
        measured.add(scene, A_SECOND, units / self.wall.as_secs_f64());
        measured.limits.extend(self.limits().map(|limit| (scene.to_owned(), limit)));
    }

    /// The figures of work whose pace was set beforehand.
    pub fn figures_on_schedule(&self, scene: &str, units: u64, measured: &mut Measured) {
        measured.add(scene, "server CPU, us each", self.cpu.as_secs_f64() * 1e6 / units as f64);
        measured.limits.extend(self.limits().map(|limit| (scene.to_owned(), limit)));
    }

    /// The part of a core that the server took.
    pub fn cpu_per_cent(&self) -> f64 {
        100.0 * self.cpu.as_secs_f64() / self.wall.as_secs_f64()
    }

    /// The server's CPU time without what it takes by itself and for whoever asks something all the time, which a control
    /// tells: an equal part of every second.
    pub fn cpu_beyond(&self, control: &Spent) -> Duration {
        let share = self.wall.as_secs_f64() / control.wall.as_secs_f64();
        self.cpu.saturating_sub(control.cpu.mul_f64(share))
    }

    /// What has set the pace beside the server.
    fn limits(&self) -> impl Iterator<Item = Limit> + use<> {
        let cores = process::cores() as f64;
        let share = |time: Duration| time.as_secs_f64() / self.wall.as_secs_f64();
        let client = (share(self.own) >= BUSY).then_some(Limit::Client);
        client.into_iter().chain((share(self.machine) >= cores * BUSY).then_some(Limit::Machine))
    }
}

/// The time that all cores together were not idle.
fn machine_busy() -> Result<Duration> {
    let unreadable = |cause: &dyn std::fmt::Display| Fault::Refused(format!("/proc/stat cannot be used: {cause}"));
    let stat = fs::read_to_string("/proc/stat").map_err(|cause| unreadable(&cause))?;
    let ticks = busy_ticks(&stat).ok_or_else(|| unreadable(&"its first line is malformed"))?;
    Ok(Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64))
}

/// User, nice, system, and behind idle and iowait: irq, softirq. Stolen time is another machine's work.
fn busy_ticks(stat: &str) -> Option<u64> {
    let fields: Vec<u64> = stat.lines().next()?.strip_prefix("cpu ")?.split_whitespace().flat_map(str::parse).collect();
    let counted = fields.get(..3)?.iter().chain(fields.get(5..7)?);
    Some(counted.sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_busy_all_the_time_is_a_limit() {
        let cores = process::cores() as f64;
        let spent = |own, machine| {
            let [own, machine] = [own, machine * cores].map(Duration::from_secs_f64);
            let spent = Spent { cpu: Duration::from_secs(1), own, machine, wall: Duration::from_secs(1) };
            spent.limits().collect::<Vec<_>>()
        };
        assert_eq!(spent(0.5, 0.7), []);
        assert_eq!(spent(0.97, 0.7), [Limit::Client]);
        assert_eq!(spent(0.97, 0.99), [Limit::Client, Limit::Machine]);
    }

    #[test]
    fn what_a_control_takes_a_second_is_no_part_of_what_stands_beside_it() {
        let spent = |cpu, wall| {
            let [cpu, wall] = [cpu, wall].map(Duration::from_millis);
            Spent { cpu, own: Duration::ZERO, machine: Duration::ZERO, wall }
        };
        assert_eq!(spent(900, 3_000).cpu_beyond(&spent(100, 1_000)), Duration::from_millis(600));
        assert_eq!(spent(100, 3_000).cpu_beyond(&spent(100, 1_000)), Duration::ZERO);
    }

    #[test]
    fn idle_and_stolen_time_are_not_busy() {
        assert_eq!(busy_ticks("cpu  1 2 3 1000 1000 4 5 1000 0 0\ncpu0 9 9 9"), Some(15));
        assert_eq!(busy_ticks("cpu  1 2"), None);
        assert_eq!(busy_ticks("intr 1"), None);
    }
}
