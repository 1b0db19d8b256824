//! What the rows of a run, and of the runs before it into the same folder, have measured.
//!
//! One file keeps it all, so that a table that takes an hour can be measured in pieces: a row that is measured again
//! replaces the older one of the same server, shape and keys. Every sample carries the machine and the command that made
//! it, so a folder that was filled on two machines says so.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::fit::{self, Costs};
use super::rows::Shape;
use crate::fault::{Fault, Result};
use crate::files::write_file;
use crate::keys::KeyChoice;

/// The name of the file in the folder of a report.
pub const FILE: &str = "table.json";

/// The keys of a row's watches.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Keys {
    pub choice: KeyChoice,
    /// Keys that `pool` and `range` draw from.
    pub pool: u32,
    pub key_bytes: usize,
}

/// How a row ended.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// All watchings were held and each got its events.
    Held(Held),
    /// The kernel ended the server at its memory limit when so many watchings were created.
    Killed { watchings: u64 },
    /// The server refused further watchings.
    Refused { watchings: u64, reason: String },
    /// Held, but events were lost, doubled or out of order: no figure of such a run counts.
    Void { reason: String },
    /// Not tried.
    Skipped { reason: String },
    /// Anything else.
    Failed { watchings: u64, reason: String },
}

/// The figures of a row whose watchings are all held.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Held {
    pub resident_bytes: u64,
    pub anonymous_bytes: u64,
    pub create_seconds: f64,
    pub create_server_cpu_seconds: f64,
    pub cgroup: Option<Grouped>,
    pub client_resident_bytes: u64,
    pub client_cpu_seconds: f64,
    /// What the load client took for itself, beyond what it had before.
    pub client_grown_bytes: u64,
    pub events_proven: u64,
}

/// What the cgroup counted, buffers of sockets included.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Grouped {
    pub peak_bytes: u64,
    /// While the watchings were held, pages of files left out.
    pub held_bytes: u64,
    pub socket_bytes: u64,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Sample {
    pub server: String,
    pub version: String,
    pub shape: Shape,
    pub keys: Keys,
    pub empty_resident_bytes: u64,
    pub limit_bytes: Option<u64>,
    pub outcome: Outcome,
    /// Seconds since 1970.
    pub measured_at: u64,
    pub machine: String,
    pub kernel: String,
    pub command: String,
}

impl Sample {
    pub fn held(&self) -> Option<&Held> {
        match &self.outcome {
            Outcome::Held(held) => Some(held),
            _ => None,
        }
    }

    fn is_of_same_row(&self, other: &Sample) -> bool {
        (&self.server, self.shape, &self.keys) == (&other.server, other.shape, &other.keys)
    }
}

#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Results {
    /// The newest run has come to its end; false while it goes on, and for ever if it was stopped.
    pub is_finished: bool,
    pub samples: Vec<Sample>,
}

impl Results {
    /// Those of earlier runs, or none.
    pub fn read(folder: &Path) -> Result<Results> {
        let path = folder.join(FILE);
        let unusable = |cause: &dyn std::fmt::Display| Fault::Refused(format!("{}: {cause}", path.display()));
        match fs::read_to_string(&path) {
            Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => Ok(Results::default()),
            Err(cause) => Err(unusable(&cause)),
            Ok(text) => serde_json::from_str(&text).map_err(|cause| unusable(&cause)),
        }
    }

    pub fn write(&self, folder: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self).expect("results are plain numbers and texts");
        write_file(&folder.join(FILE), &(text + "\n"))
    }

    /// A row that was not tried now does not replace one that was measured.
    pub fn add(&mut self, sample: Sample) {
        match self.samples.iter_mut().find(|known| known.is_of_same_row(&sample)) {
            Some(known) if known.held().is_some() && matches!(sample.outcome, Outcome::Skipped { .. }) => {}
            Some(known) => *known = sample,
            None => self.samples.push(sample),
        }
        self.samples.sort_by(|a, b| (&a.keys, &a.server, a.shape).cmp(&(&b.keys, &b.server, b.shape)));
    }

    pub fn key_choices(&self) -> Vec<Keys> {
        let mut keys: Vec<Keys> = self.samples.iter().map(|sample| sample.keys.clone()).collect();
        keys.dedup();
        keys
    }

    pub fn servers(&self, keys: &Keys) -> Vec<String> {
        let mut servers: Vec<String> =
            self.samples.iter().filter(|sample| sample.keys == *keys).map(|sample| sample.server.clone()).collect();
        servers.dedup();
        servers
    }

    pub fn of<'a>(&'a self, keys: &'a Keys, server: &'a str) -> impl Iterator<Item = &'a Sample> {
        self.samples.iter().filter(move |sample| sample.keys == *keys && sample.server == server)
    }

    /// What the rows say that a connection, a stream, a watching and a different key cost this server.
    pub fn costs(&self, keys: &Keys, server: &str) -> Option<Costs> {
        let grown = |sample: &Sample| {
            let grown = sample.held()?.resident_bytes.saturating_sub(sample.empty_resident_bytes);
            Some((sample.shape, grown as f64))
        };
        let drawn_from = matches!(keys.choice, KeyChoice::Pool | KeyChoice::Range).then_some(keys.pool);
        fit::fit(&self.of(keys, server).filter_map(grown).collect::<Vec<_>>(), drawn_from)
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::table::rows::ROWS;

    pub fn sample(server: &str, row: usize, outcome: Outcome) -> Sample {
        Sample {
            server: server.to_owned(),
            version: "1.0".to_owned(),
            shape: ROWS[row - 1].shape,
            keys: Keys { choice: KeyChoice::Pool, pool: 100_000, key_bytes: 32 },
            empty_resident_bytes: 5_000_000,
            limit_bytes: Some(1 << 30),
            outcome,
            measured_at: 1,
            machine: "a machine".to_owned(),
            kernel: "6.18".to_owned(),
            command: "bench".to_owned(),
        }
    }

    pub fn held(resident_bytes: u64) -> Outcome {
        Outcome::Held(Held { resident_bytes, create_seconds: 2.0, ..Held::default() })
    }

    #[test]
    fn a_row_measured_again_replaces_the_older_and_one_not_tried_does_not() {
        let mut results = Results::default();
        results.add(sample("tarsier", 2, held(10)));
        results.add(sample("tarsier", 1, held(20)));
        results.add(sample("etcd", 1, held(30)));
        results.add(sample("tarsier", 1, held(40)));
        results.add(sample("tarsier", 2, Outcome::Skipped { reason: "no room".to_owned() }));
        let shown: Vec<_> =
            results.samples.iter().map(|sample| (&sample.server[..], sample.held().unwrap().resident_bytes)).collect();
        assert_eq!(shown, [("etcd", 30), ("tarsier", 40), ("tarsier", 10)]);
    }

    #[test]
    fn results_read_back_as_they_were_written() {
        let folder = std::env::temp_dir().join(format!("tarsier-bench-results-{}", std::process::id()));
        crate::files::make_folder(&folder).unwrap();
        assert_eq!(Results::read(&folder).unwrap(), Results::default());
        let mut results = Results { is_finished: true, ..Results::default() };
        results.add(sample("etcd", 15, Outcome::Killed { watchings: 7 }));
        results.add(sample("etcd", 1, held(3)));
        results.write(&folder).unwrap();
        assert_eq!(Results::read(&folder).unwrap(), results);
        fs::write(folder.join(FILE), "{").unwrap();
        assert!(Results::read(&folder).unwrap_err().to_string().contains(FILE));
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn only_held_rows_enter_the_costs() {
        let mut results = Results::default();
        let made = Costs { each: [20_000.0, 1_000.0, 20.0, 0.0], drawn_from: None, miss_max: 0.0 };
        for (at, row) in ROWS.iter().enumerate() {
            results.add(sample("tarsier", at + 1, held(5_000_000 + made.bytes(row.shape) as u64)));
        }
        results.add(sample("tarsier", 3, Outcome::Void { reason: "an event is missing".to_owned() }));
        let keys = results.key_choices().remove(0);
        let found = results.costs(&keys, "tarsier").unwrap();
        assert!((found.each[0] / 20_000.0 - 1.0).abs() < 0.001, "{found:?}");
        assert!(results.costs(&keys, "etcd").is_none());
    }
}
