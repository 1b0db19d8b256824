//! Log lines with the keys and the order of etcd's (zap's), so that what collects etcd's log collects ours.
//!
//! JSON: `{"level":"info","ts":"2026-11-23T21:00:00.000Z","caller":"src/shard/start.rs:80","msg":"...","field":...}`.
//! Console: the same, tab-separated, the fields as one JSON object at the end. A line is written in one piece, so that
//! lines of several shards do not mix. Everyone logs through `tracing`; this file alone knows how a line looks.

use std::fmt::{self, Write as _};
use std::io::{self, Write as _};
use std::time::{Duration, UNIX_EPOCH};

use serde_json::Value;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::Registry;

use crate::config::{LogConfig, LogFormat, LogLevel, LogOutput};
use crate::shard::clock;
use crate::types::Time;

/// Sends every `tracing` event of the process to the output that was chosen. To be called once, before any thread starts.
pub fn start(config: LogConfig) -> Result<(), tracing::subscriber::SetGlobalDefaultError> {
    let subscriber = Registry::default().with(Lines { config }.with_filter(filter(config.level)));
    tracing::subscriber::set_global_default(subscriber)
}

/// The line a process ends with. `tracing` has no level above error; `--log-level fatal` must still let this one through.
pub fn fatal(config: LogConfig, message: &str) {
    let fields = Fields { message: message.to_owned(), others: Vec::new() };
    write(config.output, &line(config.format, clock::wall(), "fatal", None, &fields));
}

/// Lines at panic and fatal are not written through `tracing`, so those two settings leave it nothing.
fn filter(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Panic | LogLevel::Fatal => LevelFilter::OFF,
    }
}

struct Lines {
    config: LogConfig,
}

impl<S: Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let metadata = event.metadata();
        let caller = metadata.file().zip(metadata.line());
        write(self.config.output, &line(self.config.format, clock::wall(), name(*metadata.level()), caller, &fields));
    }
}

/// zap's names; it has nothing below debug.
fn name(level: Level) -> &'static str {
    match level {
        Level::ERROR => "error",
        Level::WARN => "warn",
        Level::INFO => "info",
        _ => "debug",
    }
}

fn write(output: LogOutput, line: &str) {
    // A log that cannot be written has nowhere to complain, and a server does not stop for it.
    let _ = match output {
        LogOutput::Stderr => io::stderr().lock().write_all(line.as_bytes()),
        // Standard output is buffered by lines already; what we hand over ends with one.
        LogOutput::Stdout => io::stdout().lock().write_all(line.as_bytes()),
    };
}

fn line(format: LogFormat, time: Time, level: &str, caller: Option<(&str, u32)>, fields: &Fields) -> String {
    let timestamp = humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_millis(time.0.min(YEAR_9999)));
    let caller = caller.map(|(file, line)| format!("{file}:{line}"));
    let mut text = String::with_capacity(256);
    match format {
        LogFormat::Json => {
            // `write!` to a string cannot fail.
            let _ = write!(text, "{{\"level\":\"{level}\",\"ts\":\"{timestamp}\"");
            if let Some(caller) = caller {
                let _ = write!(text, ",\"caller\":{}", Value::from(caller));
            }
            let _ = write!(text, ",\"msg\":{}", Value::from(fields.message.as_str()));
            for (name, value) in &fields.others {
                let _ = write!(text, ",{}:{value}", Value::from(*name));
            }
            text.push('}');
        }
        LogFormat::Console => {
            let _ = write!(text, "{timestamp}\t{level}\t");
            if let Some(caller) = caller {
                let _ = write!(text, "{caller}\t");
            }
            text.push_str(&fields.message.replace(['\n', '\r'], " "));
            for (index, (name, value)) in fields.others.iter().enumerate() {
                let opening = if index == 0 { "\t{" } else { ", " };
                let _ = write!(text, "{opening}{}: {value}", Value::from(*name));
            }
            if !fields.others.is_empty() {
                text.push('}');
            }
        }
    }
    text.push('\n');
    text
}

/// The last millisecond that RFC 3339 can write; the formatter refuses a later one.
const YEAR_9999: u64 = 253_402_300_799_999;

/// The fields of one event, in the order they were written; `message` stands apart.
#[derive(Default)]
struct Fields {
    message: String,
    others: Vec<(&'static str, Value)>,
}

impl Fields {
    fn push(&mut self, field: &Field, value: Value) {
        match (field.name(), value) {
            ("message", Value::String(text)) => self.message = text,
            ("message", other) => self.message = other.to_string(),
            (name, value) => self.others.push((name, value)),
        }
    }
}

impl Visit for Fields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        // JSON has no infinity; the text says more than the null it would become.
        self.push(field, if value.is_finite() { Value::from(value) } else { Value::from(value.to_string()) });
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.push(field, Value::from(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.push(field, Value::from(value));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.push(field, Value::from(value));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.push(field, Value::from(value));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.push(field, Value::from(format!("{value:?}")));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// Keeps the lines instead of writing them.
    struct Kept {
        format: LogFormat,
        lines: Arc<Mutex<Vec<String>>>,
    }

    impl<S: Subscriber> Layer<S> for Kept {
        fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
            let mut fields = Fields::default();
            event.record(&mut fields);
            let text = line(self.format, Time(1_795_467_600_042), name(*event.metadata().level()), None, &fields);
            self.lines.lock().unwrap().push(text);
        }
    }

    fn lines(format: LogFormat, level: LogLevel, emit: impl FnOnce()) -> Vec<String> {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let layer = Kept { format, lines: lines.clone() }.with_filter(filter(level));
        tracing::subscriber::with_default(Registry::default().with(layer), emit);
        let lines = lines.lock().unwrap();
        lines.clone()
    }

    #[test]
    fn a_json_line_has_the_keys_of_etcds_log_in_their_order() {
        let lines = lines(LogFormat::Json, LogLevel::Info, || {
            tracing::info!(address = "127.0.0.1:2379", shards = 2, idle = false, ratio = 0.5, "serving client traffic");
        });
        assert_eq!(
            lines,
            ["{\"level\":\"info\",\"ts\":\"2026-11-23T21:00:00.042Z\",\"msg\":\"serving client traffic\",\
              \"address\":\"127.0.0.1:2379\",\"shards\":2,\"idle\":false,\"ratio\":0.5}\n"]
        );
    }

    #[test]
    fn a_line_stays_one_line_of_json_whatever_its_fields_hold() {
        let hostile = "a\"b\\c\nd\u{1}e\u{1f600}";
        let lines = lines(LogFormat::Json, LogLevel::Debug, || {
            tracing::warn!(key = ?hostile, value = hostile, ratio = f64::INFINITY, "{hostile}");
        });
        assert_eq!(lines.len(), 1);
        assert_eq!(lines[0].matches('\n').count(), 1, "only the last");
        let value: Value = serde_json::from_str(&lines[0]).unwrap();
        assert_eq!(value["msg"], hostile);
        assert_eq!(value["value"], hostile);
        assert_eq!(value["ratio"], "inf");
    }

    #[test]
    fn a_console_line_is_separated_by_tabs_with_its_fields_as_json_behind() {
        let lines = lines(LogFormat::Console, LogLevel::Info, || {
            tracing::warn!("two\nlines");
            tracing::error!(error = "no ring", code = 1, "cannot start");
        });
        assert_eq!(
            lines,
            [
                "2026-11-23T21:00:00.042Z\twarn\ttwo lines\n",
                "2026-11-23T21:00:00.042Z\terror\tcannot start\t{\"error\": \"no ring\", \"code\": 1}\n"
            ]
        );
    }

    #[test]
    fn lines_below_the_level_are_dropped_and_panic_and_fatal_silence_all_of_them() {
        for (level, expected) in [
            (LogLevel::Debug, 4),
            (LogLevel::Info, 3),
            (LogLevel::Warn, 2),
            (LogLevel::Error, 1),
            (LogLevel::Panic, 0),
            (LogLevel::Fatal, 0),
        ] {
            let lines = lines(LogFormat::Json, level, || {
                tracing::error!("e");
                tracing::warn!("w");
                tracing::info!("i");
                tracing::debug!("d");
            });
            assert_eq!(lines.len(), expected, "{level:?}");
        }
    }

    #[test]
    fn a_clock_gone_wild_still_gives_a_line() {
        for time in [0, YEAR_9999, u64::MAX] {
            let text = line(LogFormat::Json, Time(time), "info", Some(("a\\b.rs", 7)), &Fields::default());
            let value: Value = serde_json::from_str(&text).unwrap();
            assert_eq!(value["caller"], "a\\b.rs:7");
        }
    }
}
