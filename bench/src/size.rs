//! `size`: the memory and the cores that a tarsier needs for so many connections, streams and watches.
//!
//! Memory is a sum of few terms, each with a constant that the table of memory has measured: a connection; its streams,
//! of which h2 keeps a slab that doubles; a watching; and each different range that is watched, once in every shard that
//! watches it, with its keys. The constants are those that miss all rows of the table least, whatever the watches watch,
//! and the test below holds them against those rows. CPU is a sum over what is sent: waking a connection and writing to
//! it costs most, one more stream or event in the same write little.

use clap::Args;

use crate::fault::{Fault, Result};
use crate::keys::KeyChoice;
use crate::screen::{count, megabytes};
use crate::table::different;

/// What the constants were measured on.
const MEASURED: &str = "tarsier 0.1.0 on 2026-11-26, two shards, Linux 6.18 on x86-64";

/// Bytes, by the least of the greatest relative miss over the 48 rows of the test; none is missed by more than the first.
const MISS_MAX: f64 = 0.05;
const EMPTY: f64 = 9.4e6;
const CONNECTION: f64 = 8_660.0;
/// Where a connection opens more streams than this, what h2 decodes of their headers fills the page that it shares with
/// others, and goes on in one of its own.
const STREAMS_ON_FIRST_PAGE: u64 = 10;
const SECOND_PAGE: f64 = 4_096.0;
const STREAM_SLOT: f64 = 515.0;
const WATCHING: f64 = 14.3;
/// Of a different range in a shard, its keys left out.
const OWN_KEY: f64 = 58.7;
const POOL_KEY: f64 = 65.3;
const RANGE: f64 = 105.5;
/// What a connection takes beyond that while it is busy, or with `--idle-buffers keep`.
const BUSY_CONNECTION: f64 = 8_000.0;
/// What the kernel takes for a silent socket: the cgroup's sum less the resident memory, over the rows of one stream.
const KERNEL_SOCKET: f64 = 3_300.0;
/// h2's slab of streams begins with so many slots.
const STREAM_SLOTS_MIN: u32 = 4;

/// Seconds of the server's CPU.
const CONNECT: f64 = 50e-6;
const OPEN_STREAM: f64 = 15e-6;
const PUT: f64 = 15e-6;
const CREATE_ON_ONE_KEY: f64 = 0.6e-6;
const CREATE_ON_A_KEY: f64 = 1.3e-6;
const CREATE_ON_A_RANGE: f64 = 1.5e-6;
/// One write to a connection, one message of a stream in it, one event in that.
const SEND: f64 = 6.2e-6;
const MESSAGE: f64 = 0.6e-6;
const EVENT: f64 = 0.1e-6;
/// Of each core, so that a burst finds room and tails stay short.
const BUSY_PART_MAX: f64 = 0.5;

/// The default of `--memory-limit`, as a part of what the host or the cgroup has, and the part of that at which caches
/// begin to shrink.
const LIMIT_PART: f64 = 0.8;
const COMFORT_PART: f64 = 0.85;

/// Streams or watches that are sized: far above what any host holds, and far below where a sum would overflow.
const HELD_MAX: u64 = 1 << 40;

#[derive(Args, Clone, Debug)]
pub struct SizeArgs {
    /// Connections, such as 50000 or 50k
    #[arg(long, short = 'c', value_parser = parse_count)]
    connections: u64,
    /// Watch streams of each connection
    #[arg(long, short = 's', default_value = "1", value_parser = parse_count)]
    streams: u64,
    /// Watches of all streams together, such as 10M
    #[arg(long, value_parser = parse_count, required_unless_present = "watchings")]
    watches: Option<u64>,
    /// Watches of each stream, in place of --watches
    #[arg(long, short = 'w', value_parser = parse_count, conflicts_with = "watches")]
    watchings: Option<u64>,
    /// What the watches watch
    #[arg(long, value_enum, default_value_t = KeyChoice::Pool)]
    keys: KeyChoice,
    /// Keys that `pool` and `range` draw from
    #[arg(long, default_value = "100k", value_parser = parse_count)]
    pool: u64,
    /// Keys in a range, for `range`
    #[arg(long, default_value = "10", value_parser = parse_count)]
    range_keys: u64,
    /// Length of a key
    #[arg(long, default_value_t = 32)]
    key_bytes: u64,
    /// Event-loop threads, one a core
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=256))]
    shards: u64,
    /// Puts a second to the keys that are watched
    #[arg(long, default_value = "1k", value_parser = parse_count)]
    puts_per_second: u64,
}

/// 10M as 10,000,000.
fn parse_count(text: &str) -> std::result::Result<u64, String> {
    const UNITS: [(&str, u64); 3] = [("k", 1_000), ("M", 1_000_000), ("G", 1_000_000_000)];
    let unit = UNITS.iter().find_map(|(name, unit)| Some((text.strip_suffix(name)?, *unit)));
    let (number, unit) = unit.unwrap_or((text, 1));
    let number = number.trim().parse::<u64>().ok().and_then(|number| number.checked_mul(unit));
    number.filter(|number| *number > 0).ok_or_else(|| format!("{text:?} is no count such as 5000, 50k or 10M"))
}

/// What is to be held.
#[derive(Clone, Copy, Debug)]
struct Load {
    connections: u64,
    streams: u64,
    watches: u64,
    choice: KeyChoice,
    pool: u64,
    range_keys: u64,
    key_bytes: u64,
    shards: u64,
}

/// What holding it takes, in bytes, by what it is for.
#[derive(Clone, Copy, Debug)]
struct Memory {
    connections: f64,
    streams: f64,
    watchings: f64,
    ranges: f64,
}

impl Memory {
    fn held(&self) -> f64 {
        EMPTY + self.connections + self.streams + self.watchings + self.ranges
    }
}

impl Load {
    fn memory(&self) -> Memory {
        let [connections, streams] = [self.connections, self.streams].map(|count| count as f64);
        let slots = (self.streams as f64).log2().ceil().exp2().max(f64::from(STREAM_SLOTS_MIN));
        assert!(slots >= streams, "a slab holds its streams");
        let key_bytes = self.key_bytes as f64;
        let range = match self.choice {
            KeyChoice::Own => OWN_KEY + key_bytes,
            KeyChoice::Pool | KeyChoice::One => POOL_KEY + key_bytes,
            KeyChoice::Range => RANGE + 2.0 * key_bytes,
        };
        Memory {
            connections: connections
                * (CONNECTION + if self.streams > STREAMS_ON_FIRST_PAGE { SECOND_PAGE } else { 0.0 }),
            streams: connections * slots * STREAM_SLOT,
            watchings: self.watches as f64 * WATCHING,
            ranges: self.ranges() * range,
        }
    }

    /// Different ranges, each counted in every shard that is expected to watch it.
    fn ranges(&self) -> f64 {
        let (watches, shards) = (self.watches as f64, self.shards as f64);
        let drawn_from = match self.choice {
            KeyChoice::Own => return watches,
            KeyChoice::One => return shards,
            KeyChoice::Pool => self.pool as f64,
            KeyChoice::Range => (self.pool - self.range_keys + 1) as f64,
        };
        shards * different(drawn_from, watches / shards)
    }

    /// Watches that a put reaches, on average.
    fn events_a_put(&self) -> f64 {
        let watches = self.watches as f64;
        match self.choice {
            KeyChoice::Own => 1.0,
            KeyChoice::One => watches,
            KeyChoice::Pool => watches / self.pool as f64,
            KeyChoice::Range => watches * self.range_keys as f64 / self.pool as f64,
        }
    }

    /// Seconds of CPU for a put and its events.
    fn put_cpu(&self) -> f64 {
        let events = self.events_a_put();
        let messages = events.min((self.connections * self.streams) as f64);
        PUT + events.min(self.connections as f64) * SEND + messages * MESSAGE + events * EVENT
    }

    /// Seconds of CPU until all are connected and watch.
    fn arrival_cpu(&self) -> f64 {
        let create = match self.choice {
            KeyChoice::One => CREATE_ON_ONE_KEY,
            KeyChoice::Own | KeyChoice::Pool => CREATE_ON_A_KEY,
            KeyChoice::Range => CREATE_ON_A_RANGE,
        };
        let streams = (self.connections * self.streams) as f64;
        self.connections as f64 * CONNECT + streams * OPEN_STREAM + self.watches as f64 * create
    }
}

pub fn run(args: &SizeArgs) -> Result<()> {
    let load = load(args)?;
    print!("{}", answer(&load, args.puts_per_second));
    Ok(())
}

fn load(args: &SizeArgs) -> Result<Load> {
    let &SizeArgs { connections, streams, keys, pool, range_keys, key_bytes, shards, .. } = args;
    let all_streams = connections.saturating_mul(streams);
    let watches = args.watches.unwrap_or_else(|| all_streams.saturating_mul(args.watchings.unwrap_or(1)));
    if range_keys > pool {
        return Err(Fault::Refused("--range-keys must not exceed --pool".to_owned()));
    }
    if streams > u64::from(u32::MAX) || all_streams > HELD_MAX || watches > HELD_MAX {
        let text = "no server holds that many: at most 2^32 streams a connection, 2^40 streams, 2^40 watches";
        return Err(Fault::Refused(text.to_owned()));
    }
    Ok(Load { connections, streams, watches, choice: keys, pool, range_keys, key_bytes, shards })
}

fn answer(load: &Load, puts_a_second: u64) -> String {
    let memory = load.memory();
    let (held, connections) = (memory.held(), load.connections as f64);
    let (busy, kernel) = (connections * BUSY_CONNECTION, connections * KERNEL_SOCKET);
    let host = (held + busy + kernel) / (LIMIT_PART * COMFORT_PART);
    let lines = [
        ("the empty server".to_owned(), EMPTY),
        (format!("{} connections", count(load.connections)), memory.connections),
        (format!("{} streams", count(load.connections * load.streams)), memory.streams),
        (format!("{} watches", count(load.watches)), memory.watchings),
        (format!("{} different ranges, over {} shards", count(load.ranges() as u64), load.shards), memory.ranges),
        ("resident while nothing happens".to_owned(), held),
        ("more when every connection is busy".to_owned(), busy),
        ("the kernel's, for the sockets".to_owned(), kernel),
    ];
    let mut text: String = lines.iter().map(|(name, bytes)| row(name, &megabytes(*bytes as u64))).collect();
    let (put, puts) = (load.put_cpu(), puts_a_second as f64);
    let cores = (put * puts / BUSY_PART_MAX).ceil().max(1.0);
    text += &row("a host or a cgroup of at least", &megabytes(host as u64));
    text += &format!(
        "\nKeys, versions and history come on top; the host leaves the default --memory-limit of 80 % in peace.\n\n\
         {} puts a second reach {} watches each: {:.2} s of CPU a second; with every core at most half busy, {} cores.\n\
         After a restart all are back after {:.1} s of CPU, spread over the shards.\n\n\
         From constants of {MEASURED}; a row of the table was missed by {:.0} % at most.\n",
        count(puts_a_second),
        crate::report::number(load.events_a_put()),
        put * puts,
        count(cores as u64),
        load.arrival_cpu(),
        MISS_MAX * 100.0,
    );
    text
}

fn row(name: &str, value: &str) -> String {
    format!("{name:<44} {value:>16}\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use KeyChoice::{One, Own, Pool, Range};

    /// Rows of the table of 2026-11-26: what is watched, key bytes, clients x streams x watchings, and the megabytes that the
    /// server had grown by. `tarsier-bench table --idle 10 --keys ...` measures them again.
    const ROWS: [(KeyChoice, u64, [u64; 3], f64); 48] = [
        (Pool, 32, [1_000, 1, 1], 10.6),
        (Pool, 32, [1_000, 10, 1], 18.2),
        (Pool, 32, [1_000, 50, 1], 51.0),
        (Pool, 32, [1_000, 50, 10], 70.6),
        (Pool, 32, [1_000, 50, 100], 143.4),
        (Pool, 32, [2_000, 1, 1], 21.0),
        (Pool, 32, [2_000, 10, 1], 36.8),
        (Pool, 32, [2_000, 50, 1], 97.6),
        (Pool, 32, [2_000, 50, 10], 124.2),
        (Pool, 32, [2_000, 50, 100], 260.9),
        (Pool, 32, [5_000, 1, 1], 51.7),
        (Pool, 32, [5_000, 10, 1], 88.3),
        (Pool, 32, [5_000, 50, 1], 235.1),
        (Pool, 32, [5_000, 50, 10], 278.8),
        (Pool, 32, [5_000, 50, 100], 601.5),
        (One, 32, [1_000, 1, 1], 10.6),
        (One, 32, [1_000, 50, 1], 46.8),
        (One, 32, [1_000, 50, 10], 53.4),
        (One, 32, [1_000, 50, 100], 116.0),
        (One, 32, [2_000, 10, 1], 34.4),
        (One, 32, [2_000, 50, 100], 227.7),
        (One, 32, [5_000, 1, 1], 51.5),
        (One, 32, [5_000, 50, 1], 221.8),
        (One, 32, [5_000, 50, 10], 252.8),
        (One, 32, [5_000, 50, 100], 559.3),
        (Own, 32, [1_000, 1, 1], 10.5),
        (Own, 32, [1_000, 50, 1], 50.9),
        (Own, 32, [1_000, 50, 10], 99.0),
        (Own, 32, [1_000, 50, 100], 557.6),
        (Own, 32, [2_000, 10, 1], 37.7),
        (Own, 32, [2_000, 50, 100], 1112.6),
        (Own, 32, [5_000, 1, 1], 51.8),
        (Own, 32, [5_000, 50, 1], 245.1),
        (Own, 32, [5_000, 50, 10], 475.5),
        (Own, 32, [5_000, 50, 100], 2725.1),
        (Own, 128, [1_000, 50, 1], 56.5),
        (Own, 128, [1_000, 50, 10], 148.4),
        (Own, 128, [1_000, 50, 100], 1045.5),
        (Range, 32, [1_000, 1, 1], 10.6),
        (Range, 32, [1_000, 50, 1], 54.0),
        (Range, 32, [1_000, 50, 10], 84.2),
        (Range, 32, [1_000, 50, 100], 158.2),
        (Range, 32, [2_000, 10, 1], 37.4),
        (Range, 32, [2_000, 50, 100], 278.1),
        (Range, 32, [5_000, 1, 1], 52.4),
        (Range, 32, [5_000, 50, 1], 245.4),
        (Range, 32, [5_000, 50, 10], 293.4),
        (Range, 32, [5_000, 50, 100], 617.3),
    ];

    fn of(choice: KeyChoice, key_bytes: u64, [connections, streams, watchings]: [u64; 3]) -> Load {
        let watches = connections * streams * watchings;
        let (pool, range_keys, shards) = (100_000, 10, 2);
        Load { connections, streams, watches, choice, pool, range_keys, key_bytes, shards }
    }

    #[test]
    fn the_constants_explain_every_row_that_was_measured() {
        for (choice, key_bytes, shape, grown) in ROWS {
            let load = of(choice, key_bytes, shape);
            let miss = (load.memory().held() - EMPTY) / (grown * 1e6) - 1.0;
            assert!(miss.abs() < MISS_MAX, "{choice:?} {key_bytes} {shape:?}: {:.1} %", miss * 100.0);
        }
    }

    #[test]
    fn what_no_server_holds_is_refused() {
        let args = |connections, streams, watches| SizeArgs {
            connections,
            streams,
            watches: Some(watches),
            watchings: None,
            keys: Pool,
            pool: 100_000,
            range_keys: 10,
            key_bytes: 32,
            shards: 2,
            puts_per_second: 1_000,
        };
        assert!(load(&args(50_000, 2, 10_000_000)).is_ok());
        for (connections, streams, watches) in
            [(1 << 54, 1 << 31, 1), (1, 1 << 33, 1), (1, 1, 1 << 41), (1 << 41, 1, 1)]
        {
            assert!(load(&args(connections, streams, watches)).is_err(), "{connections} x {streams}, {watches}");
        }
    }

    #[test]
    fn more_of_anything_never_takes_less() {
        let least = of(Pool, 32, [10, 1, 1]);
        let held = least.memory().held();
        let more = [
            Load { connections: 11, ..least },
            Load { streams: 9, ..least },
            Load { watches: 1_000, ..least },
            Load { key_bytes: 64, ..least },
            Load { shards: 4, watches: 1_000, ..least },
            Load { choice: Range, ..least },
        ];
        for load in more {
            assert!(load.memory().held() > held, "{load:?}");
        }
        assert!(of(Own, 32, [10, 1, 1]).put_cpu() < of(One, 32, [10, 1, 1]).put_cpu());
    }

    #[test]
    fn an_event_costs_what_the_shapes_of_the_speed_table_cost() {
        // Microseconds of CPU an event, as `speed` measured them, with a third of it as leeway: its clock ticks coarsely.
        for (shape, measured) in
            [([100, 1, 100], 0.15), ([100, 10, 10], 0.3), ([100, 100, 1], 0.85), ([1_000, 1, 1], 6.75)]
        {
            let load = of(One, 32, shape);
            let each = (load.put_cpu() - PUT) * 1e6 / load.events_a_put();
            assert!((0.66..=1.33).contains(&(each / measured)), "{shape:?}: {each:.2} us for {measured}");
        }
    }

    #[test]
    fn counts_are_read_as_people_write_them() {
        assert_eq!(parse_count("50000"), Ok(50_000));
        assert_eq!((parse_count("50k"), parse_count("10M")), (Ok(50_000), Ok(10_000_000)));
        for text in ["", "0", "M", "1.5M", "-1", "10MB", "99999999999G"] {
            assert!(parse_count(text).is_err(), "{text}");
        }
    }

    #[test]
    fn an_answer_names_memory_and_cores() {
        let text = answer(&of(Own, 40, [50_000, 2, 100]), 1_000);
        for part in ["10,000,000 watches", "10,000,000 different ranges", "resident", "a host or a cgroup", "1 cores"] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}
