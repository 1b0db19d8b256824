//! One checked [`Config`]: every setting with its unit, its default and its reason.
//!
//! `flags` is the table of all flags, `source` reads their texts from command line and environment, `value` and `listen`
//! read the texts, `gates` the names of features, `subcommand` knows the two words that do not serve. What leaves this module is right: nobody downstream checks a setting again. Nothing here opens, binds,
//! logs or exits; warnings are handed to the caller, since the log can only be set up once its flags are known.

pub mod flags;
mod gates;
pub mod listen;
mod source;
mod subcommand;
mod value;

use std::ffi::OsString;
use std::fmt;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use flags::{FLAGS, Meaning, Shape};
use listen::ListenAddress;
use source::{Given, Source};

use crate::types::WatchLimits;

pub use crate::types::ETCD_API_VERSION;

/// etcd's quota when none is given, in bytes.
const QUOTA_BACKEND_BYTES_DEFAULT: u64 = 2 * 1024 * 1024 * 1024;
/// A message may not reach the 32-bit length of a gRPC frame, and one request must not be the whole memory.
const REQUEST_BYTES_MAX: u64 = 1024 * 1024 * 1024;
/// One transaction runs in one turn, so even a generous operator needs an end.
const TXN_OPERATIONS_MAX: u64 = 1_000_000;
/// A waker names its shard in one byte.
pub const SHARDS_MAX: u64 = 256;
/// Below this a single large transaction would turn every watch that is one batch behind into a late one.
const HISTORY_BYTES_MIN: u64 = 1024 * 1024;
/// Below this there is hardly room for a client beside the server itself.
const MEMORY_BYTES_MIN: u64 = 32 * 1024 * 1024;
/// etcd's floor; a shorter interval is raised to it.
const PROGRESS_INTERVAL_MIN: Duration = Duration::from_millis(100);
const PROGRESS_INTERVAL_DEFAULT: Duration = Duration::from_secs(600);
const WARN_AFTER_UNARY_DEFAULT: Duration = Duration::from_millis(300);
/// grpc-go's, which counts when etcd sets none.
const KEEPALIVE_MIN_TIME_DEFAULT: Duration = Duration::from_secs(300);
/// grpc-go raises a shorter ping interval of a server to this.
const KEEPALIVE_INTERVAL_MIN: Duration = Duration::from_secs(1);

/// What leases have left is kept in whole seconds.
const LEASE_CHECKPOINT_INTERVAL_MIN: Duration = Duration::from_secs(1);

/// Everything an operator can choose.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    /// `--name`, default `default`. Never empty.
    pub name: String,
    /// `--listen-client-urls`, default `http://localhost:2379`. Never empty, no address twice.
    pub listen: Vec<ListenAddress>,
    /// `--listen-metrics-urls`: where pages are served beside the addresses for clients. None by default, as in etcd.
    pub listen_metrics: Vec<ListenAddress>,
    /// `--advertise-client-urls`, default the URLs of `--listen-client-urls` as they were written.
    pub advertise_client_urls: Vec<String>,
    /// `--initial-advertise-peer-urls`, default that of etcd. Nothing listens there: this is what the one member is listed
    /// with, as tools tell members apart by it.
    pub advertise_peer_urls: Vec<String>,
    /// `--data-dir`, default `default.tarsier`: not etcd's `default.etcd`, whose files we could not read.
    pub data_dir: PathBuf,
    /// `--wal-dir`: where the log is, if not in the data directory.
    pub wal_dir: Option<PathBuf>,
    /// `--unsafe-no-fsync` turns it off: what is told is on the disk only once the kernel has written it there.
    pub fsync: bool,
    /// `--quota-backend-bytes`: bytes that the store may hold, default 2 GiB as in etcd. `None`: there is no quota.
    pub quota_backend_bytes: Option<u64>,
    /// `--auto-compaction-mode` and `--auto-compaction-retention`; `None` when the retention is 0, as it is without the
    /// flags.
    pub auto_compaction: Option<AutoCompaction>,
    /// `--max-request-bytes`: bytes of one request message, default 1.5 MiB as in etcd.
    pub request_bytes_max: usize,
    /// `--max-txn-ops`: operations of one transaction, default 128 as in etcd.
    pub txn_operations_max: usize,
    /// `--max-concurrent-streams`: streams of one connection, default 16,384. etcd allows 2^32 - 1; waiting watches and
    /// locks each hold a stream, and this many are enough for any client while a runaway one is stopped.
    pub concurrent_streams_max: u32,
    /// `--grpc-keepalive-min-time`: default 5 s as in etcd. Clients that ping more often are told to go. 0 leaves it to gRPC,
    /// whose own default is five minutes.
    pub keepalive_min_time: Duration,
    /// `--grpc-keepalive-interval` and `--grpc-keepalive-timeout`; `None` when either is 0, which disables the pings.
    pub keepalive_ping: Option<KeepalivePing>,
    /// `--watch-progress-notify-interval`: default 10 min, at least 100 ms, as in etcd.
    pub watch_progress_interval: Duration,
    /// `--max-connections`: connections of the whole process; no limit by default, since descriptors and memory are.
    pub connections_max: Option<u64>,
    /// `--max-connections-per-address`: connections of one IPv4 address or one IPv6 network of 64 bits. No limit by
    /// default: thousands of clients may stand behind one address.
    pub connections_per_address_max: Option<u32>,
    /// `--max-watches-per-stream` and `--max-watches-per-connection`; no limits by default.
    pub watch_limits: WatchLimits,
    /// `--stalled-stream-timeout`: default 10 min. A client that hangs for so long is better served by a new stream; a
    /// shorter time would end streams of clients that are only paused. `None` waits for ever.
    pub stalled_stream_timeout: Option<Duration>,
    /// `--scrub-interval`: default 24 h. A start reads every row as well; this finds what rots while the server runs, early
    /// enough to copy what memory still has. `None` never looks.
    pub scrub_interval: Option<Duration>,
    /// `--feature-gates=LeaseCheckpoint=true` and `--lease-checkpoint-interval`: what a lease has left is written down once in
    /// so long, at least 1 s, so that a start need not give it its whole time again. `None`, as in etcd by default: it does.
    pub lease_checkpoint_interval: Option<Duration>,
    /// `--idle-buffers`: `give-back` (the default) returns what a silent connection's buffers hold in memory, half of what
    /// such a connection costs; `keep` is the way back should that ever be suspected of harm.
    pub idle_buffers_are_kept: bool,
    /// `--shards`: event-loop threads; `None` means one for each usable core.
    pub shards: Option<NonZeroUsize>,
    /// `--history-limit`: bytes of recent changes in memory, default 64 MiB. Watches within it catch up without asking
    /// the writer; more only pays when watchers are often cut off for long.
    pub history_bytes_max: usize,
    /// `--metrics extensive`: the times of calls by method are kept and shown, 5 KB a shard.
    pub metrics_are_extensive: bool,
    /// `--warning-apply-duration` and `--warning-unary-request-duration`: default 100 ms and 300 ms as in etcd.
    pub warn_after: WarnAfter,
    /// `--memory-limit`: default 80% of what the machine or the cgroup has; the rest is the kernel's, for sockets and files.
    /// `None`: there is no limit.
    pub memory_limit: Option<MemoryLimit>,
    pub log: LogConfig,
}

/// How much memory the process may hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MemoryLimit {
    Bytes(u64),
    /// Of what the machine has, or the cgroup: 1 to 100.
    Percent(u8),
}

impl MemoryLimit {
    pub fn bytes(self, available_bytes: usize) -> usize {
        match self {
            MemoryLimit::Bytes(bytes) => usize::try_from(bytes).unwrap_or(usize::MAX),
            MemoryLimit::Percent(percent) => available_bytes / 100 * usize::from(percent),
        }
    }
}

/// After how long a request counts as slow. etcd has a line for each.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WarnAfter {
    pub apply: Duration,
    pub unary: Duration,
}

/// How much history is kept when nobody compacts by hand, in etcd's two modes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AutoCompaction {
    /// What is older than this is forgotten. Never zero.
    Periodic(Duration),
    /// What lies more revisions back than this is forgotten. Never zero.
    Revision(i64),
}

/// How silent clients are found out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KeepalivePing {
    /// Silence before a ping: default 2 h as in etcd, at least 1 s.
    pub interval: Duration,
    /// Wait for its answer before the connection is closed: default 20 s as in etcd.
    pub timeout: Duration,
}

/// How and where log lines are written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LogConfig {
    /// `--log-level`, default info.
    pub level: LogLevel,
    /// `--log-format`, default JSON, as in etcd.
    pub format: LogFormat,
    /// `--log-outputs`, default stderr.
    pub output: LogOutput,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum LogLevel {
    Debug,
    Info,
    Warn,
    Error,
    /// The lines between error and the end of the process; etcd has them apart.
    Panic,
    Fatal,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LogFormat {
    Json,
    Console,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LogOutput {
    Stderr,
    Stdout,
}

/// Something the operator wrote that has no effect.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Warning {
    /// The flag or environment variable as it was written.
    pub what: String,
    pub why: &'static str,
}

/// What a command line asks for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Asked {
    Help(String),
    Version(String),
    Serve(Box<Config>, Vec<Warning>),
    /// Reads a data directory offline and says what is whole.
    Check {
        dir: PathBuf,
        wal_dir: Option<PathBuf>,
    },
    /// Writes what of a data directory can be proven whole into a new one.
    Salvage {
        dir: PathBuf,
        new: PathBuf,
        wal_dir: Option<PathBuf>,
    },
}

/// Why there is no [`Config`]. Each is shown as one line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ConfigError {
    UnknownFlag { name: String, nearest: Option<String> },
    NotAFlag { word: String },
    MissingValue { name: String },
    NotText { written_as: String },
    Unreadable { written_as: String, value: String, reason: String },
    Refused { written_as: String, reason: String },
    Usage { reason: String, usage: &'static str },
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConfigError::UnknownFlag { name, nearest: Some(nearest) } => {
                write!(f, "unknown flag {name}, did you mean {nearest}?")
            }
            ConfigError::UnknownFlag { name, nearest: None } => write!(f, "unknown flag {name}, see --help"),
            ConfigError::NotAFlag { word } if !word.starts_with('-') => {
                write!(f, "{word:?} is neither a flag nor one of the commands check and salvage, see --help")
            }
            ConfigError::NotAFlag { word } => write!(f, "{word:?} is not a valid flag, see --help"),
            ConfigError::MissingValue { name } => write!(f, "{name} needs a value"),
            ConfigError::NotText { written_as } => write!(f, "{written_as} is not valid UTF-8"),
            ConfigError::Unreadable { written_as, value, reason } => write!(f, "{written_as} {value:?}: {reason}"),
            ConfigError::Refused { written_as, reason } => write!(f, "{written_as} cannot be kept: {reason}"),
            ConfigError::Usage { reason, usage } => write!(f, "{reason}; usage: {usage}"),
        }
    }
}

impl std::error::Error for ConfigError {}

impl Config {
    /// Reads a command line (without the program's name) and an environment.
    pub fn read(
        args: impl IntoIterator<Item = OsString>,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Asked, ConfigError> {
        let args: Vec<OsString> = args.into_iter().collect();
        if let Some(asked) = subcommand::read(&args) {
            return asked;
        }
        let source = Source::read(args, environment)?;
        if source.help {
            return Ok(Asked::Help(source::help()));
        }
        if source.version {
            return Ok(Asked::Version(version()));
        }
        let config = config(&source)?;
        let mut warnings = foreign_flags(&source)?;
        warnings.extend(foreign_gates(&source)?);
        warnings.extend(source.warnings);
        Ok(Asked::Serve(Box::new(config), warnings))
    }
}

/// Three lines in the manner of `etcd --version`.
fn version() -> String {
    format!(
        "tarsier Version: {}\netcd API Version: {ETCD_API_VERSION}\nOS/Arch: {}/{}",
        env!("CARGO_PKG_VERSION"),
        std::env::consts::OS,
        std::env::consts::ARCH
    )
}

fn config(source: &Source) -> Result<Config, ConfigError> {
    let listen_urls = text(source, "listen-client-urls");
    let listen = read(source, "listen-client-urls", listen::listen_addresses)?;
    let name =
        read(source, "name", |name| Some(name.to_owned()).filter(|name| !name.is_empty()).ok_or("expected a name"))?;
    check_members(source, &name)?;
    read(source, "logger", |logger| if logger == "zap" { Ok(()) } else { Err("expected zap") })?;
    Ok(Config {
        listen_metrics: read(source, "listen-metrics-urls", |urls| listen::listen_addresses_beside(urls, &listen))?,
        listen,
        // As in etcd, an empty list is one that was not given.
        advertise_peer_urls: read(source, "initial-advertise-peer-urls", |urls| {
            listen::peer_urls(if urls.is_empty() { flags::PEER_URLS_DEFAULT } else { urls })
        })?,
        advertise_client_urls: match source.given.get("advertise-client-urls") {
            Some(_) => read(source, "advertise-client-urls", listen::advertised_urls)?,
            None => listen_urls.split(',').map(|url| url.trim().to_owned()).collect(),
        },
        data_dir: read(source, "data-dir", |path| {
            if path.is_empty() { Err("expected a directory") } else { Ok(PathBuf::from(path)) }
        })?,
        wal_dir: Some(text(source, "wal-dir")).filter(|path| !path.is_empty()).map(PathBuf::from),
        fsync: !read(source, "unsafe-no-fsync", value::boolean)?,
        quota_backend_bytes: match read(source, "quota-backend-bytes", value::signed)? {
            0 => Some(QUOTA_BACKEND_BYTES_DEFAULT),
            bytes => u64::try_from(bytes).ok(),
        },
        auto_compaction: auto_compaction(source)?,
        request_bytes_max: number(source, "max-request-bytes", 1, REQUEST_BYTES_MAX)? as usize,
        txn_operations_max: number(source, "max-txn-ops", 1, TXN_OPERATIONS_MAX)? as usize,
        concurrent_streams_max: u32::try_from(number(source, "max-concurrent-streams", 1, u64::from(u32::MAX))?)
            .expect("the line above bounds it"),
        keepalive_min_time: match read(source, "grpc-keepalive-min-time", value::duration)? {
            Duration::ZERO => KEEPALIVE_MIN_TIME_DEFAULT,
            time => time,
        },
        keepalive_ping: keepalive_ping(source)?,
        watch_progress_interval: match read(source, "watch-progress-notify-interval", value::duration)? {
            Duration::ZERO => PROGRESS_INTERVAL_DEFAULT,
            interval => interval.max(PROGRESS_INTERVAL_MIN),
        },
        connections_max: limit(source, "max-connections", u64::MAX)?,
        connections_per_address_max: limit(source, "max-connections-per-address", u64::from(u32::MAX))?
            .map(|max| u32::try_from(max).expect("the line above bounds it")),
        watch_limits: watch_limits(source)?,
        stalled_stream_timeout: Some(read(source, "stalled-stream-timeout", value::duration)?)
            .filter(|timeout| !timeout.is_zero()),
        scrub_interval: Some(read(source, "scrub-interval", value::duration)?).filter(|interval| !interval.is_zero()),
        lease_checkpoint_interval: lease_checkpoint_interval(source)?,
        idle_buffers_are_kept: read(source, "idle-buffers", |text| match text {
            "give-back" => Ok(false),
            "keep" => Ok(true),
            _ => Err("expected give-back or keep"),
        })?,
        shards: NonZeroUsize::new(number(source, "shards", 0, SHARDS_MAX)? as usize),
        history_bytes_max: number(source, "history-limit", HISTORY_BYTES_MIN, i64::MAX as u64)? as usize,
        metrics_are_extensive: read(source, "metrics", |detail| match detail {
            "basic" => Ok(false),
            "extensive" => Ok(true),
            _ => Err("expected basic or extensive"),
        })?,
        warn_after: WarnAfter {
            apply: read(source, "warning-apply-duration", value::duration)?,
            unary: match read(source, "warning-unary-request-duration", value::duration)? {
                Duration::ZERO => WARN_AFTER_UNARY_DEFAULT,
                duration => duration,
            },
        },
        memory_limit: read(source, "memory-limit", memory_limit)?,
        log: log(source)?,
        name,
    })
}

fn lease_checkpoint_interval(source: &Source) -> Result<Option<Duration>, ConfigError> {
    let is_on = read(source, "feature-gates", gates::gates)?.lease_checkpoint;
    let interval = read(source, "lease-checkpoint-interval", |text| match value::duration(text)? {
        interval if interval < LEASE_CHECKPOINT_INTERVAL_MIN => Err("expected at least 1s".to_owned()),
        interval => Ok(interval),
    })?;
    Ok(is_on.then_some(interval))
}

fn auto_compaction(source: &Source) -> Result<Option<AutoCompaction>, ConfigError> {
    let by_revision = read(source, "auto-compaction-mode", |mode| match mode {
        "periodic" => Ok(false),
        "revision" => Ok(true),
        _ => Err("expected periodic or revision"),
    })?;
    if by_revision {
        let revisions = number(source, "auto-compaction-retention", 0, i64::MAX as u64)?;
        return Ok(Some(AutoCompaction::Revision(revisions as i64)).filter(|_| revisions > 0));
    }
    let period = read(source, "auto-compaction-retention", value::hours_or_duration)?;
    Ok(Some(AutoCompaction::Periodic(period)).filter(|_| !period.is_zero()))
}

fn memory_limit(text: &str) -> Result<Option<MemoryLimit>, String> {
    if let Some(percent) = text.strip_suffix('%') {
        let percent = value::whole(percent, 1, 100)?;
        return Ok(Some(MemoryLimit::Percent(percent as u8)));
    }
    let bytes = value::whole(text, 0, i64::MAX as u64).map_err(|_| {
        "expected bytes as a whole number without a unit, such as 4294967296, or percent of what there is, such as 80%"
    })?;
    match bytes {
        0 => Ok(None),
        bytes if bytes < MEMORY_BYTES_MIN => Err(format!("expected at least {MEMORY_BYTES_MIN} bytes")),
        bytes => Ok(Some(MemoryLimit::Bytes(bytes))),
    }
}

fn watch_limits(source: &Source) -> Result<WatchLimits, ConfigError> {
    let read = |name| {
        let max = limit(source, name, u64::from(u32::MAX))?;
        Ok(max.map(|max| u32::try_from(max).expect("the line above bounds it")))
    };
    Ok(WatchLimits { per_stream: read("max-watches-per-stream")?, per_connection: read("max-watches-per-connection")? })
}

fn keepalive_ping(source: &Source) -> Result<Option<KeepalivePing>, ConfigError> {
    let interval = read(source, "grpc-keepalive-interval", value::duration)?;
    let timeout = read(source, "grpc-keepalive-timeout", value::duration)?;
    if interval.is_zero() || timeout.is_zero() {
        return Ok(None);
    }
    Ok(Some(KeepalivePing { interval: interval.max(KEEPALIVE_INTERVAL_MIN), timeout }))
}

fn log(source: &Source) -> Result<LogConfig, ConfigError> {
    Ok(LogConfig {
        level: read(source, "log-level", |level| {
            Ok(match level {
                "debug" => LogLevel::Debug,
                "info" => LogLevel::Info,
                "warn" => LogLevel::Warn,
                "error" => LogLevel::Error,
                "panic" => LogLevel::Panic,
                "fatal" => LogLevel::Fatal,
                _ => return Err("expected debug, info, warn, error, panic or fatal"),
            })
        })?,
        format: read(source, "log-format", |format| match format {
            "json" => Ok(LogFormat::Json),
            "console" => Ok(LogFormat::Console),
            _ => Err("expected json or console"),
        })?,
        output: read(source, "log-outputs", |output| match output {
            "default" | "stderr" => Ok(LogOutput::Stderr),
            "stdout" => Ok(LogOutput::Stdout),
            _ => Err("expected default, stderr or stdout; log files are not supported"),
        })?,
    })
}

/// etcd fails when `--initial-cluster` does not list its own name; several members would promise a cluster.
fn check_members(source: &Source, name: &str) -> Result<(), ConfigError> {
    let Some(given) = source.given.get("initial-cluster") else { return Ok(()) };
    let refused = |reason: String| Err(ConfigError::Refused { written_as: given.written_as.clone(), reason });
    let mut members: Vec<&str> =
        given.value.split(',').map(|member| member.split('=').next().unwrap_or_default().trim()).collect();
    members.sort_unstable();
    members.dedup();
    match members.as_slice() {
        // A member with several peer URLs is listed once for each.
        [""] => Ok(()),
        [only] if *only == name => Ok(()),
        [only] => refused(format!("its only member is {only:?}, but --name is {name:?}")),
        several => refused(format!("it lists {} members, and this is a single server", several.len())),
    }
}

/// Warnings for the flags of etcd that have no effect; an error for those that cannot be ignored.
fn foreign_flags(source: &Source) -> Result<Vec<Warning>, ConfigError> {
    let mut warnings = Vec::new();
    for flag in FLAGS {
        let Some(given) = source.given.get(flag.name) else { continue };
        let asks_for_nothing = match flag.shape {
            Shape::Switch => read(source, flag.name, value::boolean)? == (flag.default == "true"),
            Shape::Value => same(&given.value, flag.default),
        };
        match flag.meaning {
            Meaning::Harmless(why) if !asks_for_nothing => {
                warnings.push(Warning { what: given.written_as.clone(), why });
            }
            Meaning::Refused(reason) if !asks_for_nothing => {
                return Err(ConfigError::Refused { written_as: given.written_as.clone(), reason: reason.to_owned() });
            }
            _ => {}
        }
    }
    Ok(warnings)
}

/// `0`, `0s` and `0h` are one duration.
fn same(value: &str, default: &str) -> bool {
    value == default || value::duration(value).is_ok_and(|value| value::duration(default) == Ok(value))
}

/// A warning for what of a flag has no effect.
fn foreign_gates(source: &Source) -> Result<Option<Warning>, ConfigError> {
    let has_foreign = read(source, "feature-gates", gates::gates)?.has_foreign;
    let given = source.given.get("feature-gates").filter(|_| has_foreign);
    let why = "all but LeaseCheckpoint name features of etcd's own";
    Ok(given.map(|given| Warning { what: given.written_as.clone(), why }))
}

fn text<'a>(source: &'a Source, name: &str) -> &'a str {
    let default = || flags::find(name).expect("only names of the table are asked for").default;
    source.given.get(name).map_or_else(default, |given| given.value.as_str())
}

fn number(source: &Source, name: &str, min: u64, max: u64) -> Result<u64, ConfigError> {
    read(source, name, |text| value::whole(text, min, max))
}

/// A number of which 0 means that there is no limit.
fn limit(source: &Source, name: &str, max: u64) -> Result<Option<u64>, ConfigError> {
    Ok(Some(number(source, name, 0, max)?).filter(|limit| *limit > 0))
}

/// Reads one setting, or says which one cannot be read and why.
fn read<T, E: Into<String>>(
    source: &Source,
    name: &str,
    parse: impl FnOnce(&str) -> Result<T, E>,
) -> Result<T, ConfigError> {
    let text = text(source, name);
    parse(text).map_err(|reason| {
        let written_as =
            source.given.get(name).map_or_else(|| format!("--{name}"), |Given { written_as, .. }| written_as.clone());
        ConfigError::Unreadable { written_as, value: text.to_owned(), reason: reason.into() }
    })
}

#[cfg(test)]
mod tests;
