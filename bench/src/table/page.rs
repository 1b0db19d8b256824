//! The report as one Markdown page with pictures beside it.
//!
//! Everything here is a function of the results: a folder that several runs have filled gets one page over all of them.

use std::fmt::Write;
use std::path::Path;

use super::fit::Costs;
use super::results::{self, Held, Keys, Outcome, Results, Sample};
use super::rows::ROWS;
use crate::fault::Result;
use crate::files::write_file;
use crate::keys::KeyChoice;
use crate::plot::{Axis, Chart, Mark, Scale, Series};
use crate::screen::{count, megabytes};

/// The name of the page in the folder of a report.
const FILE: &str = "table.md";
const PUBLISHED: &str = "published for etcd, 2015";

/// Writes the page and its pictures into a folder.
pub fn write(results: &Results, folder: &Path) -> Result<()> {
    for keys in results.key_choices() {
        for (name, chart) in pictures(results, &keys) {
            write_file(&folder.join(name), &chart.svg()?)?;
        }
    }
    write_file(&folder.join(FILE), &markdown(results, true))
}

/// What came of a row, in one line.
pub fn sentence(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Held(held) => format!(
            "{} resident, created in {:.1} s with {:.1} s of CPU, {} events proven",
            megabytes(held.resident_bytes),
            held.create_seconds,
            held.create_server_cpu_seconds,
            count(held.events_proven)
        ),
        Outcome::Killed { watchings } => format!("killed at its memory limit at {} watchings", count(*watchings)),
        Outcome::Refused { watchings, reason } => format!("refused at {} watchings: {reason}", count(*watchings)),
        Outcome::Void { reason } => format!("void: {reason}"),
        Outcome::Skipped { reason } => format!("skipped: {reason}"),
        Outcome::Failed { watchings, reason } => format!("failed at {} watchings: {reason}", count(*watchings)),
    }
}

pub fn markdown(results: &Results, with_pictures: bool) -> String {
    let mut text = String::from("# Memory of watches\n\n");
    if !results.is_finished {
        text.push_str("**Partial: the run that wrote this has not come to its end.**\n\n");
    }
    text.push_str(
        "Clients x streams of each x watchings of each stream, as on etcd's \"Watch Memory Usage Benchmark\" of \
         2015-11-13. Memory is the server's resident memory while all watchings are held and nothing happens, in MB of \
         a million bytes. A figure stands only where puts then reached every watching that was due, once and in order.\n",
    );
    for keys in results.key_choices() {
        let servers = results.servers(&keys);
        let _ = write!(text, "\n## Keys: {}\n\n", keys_words(&keys));
        memory(&mut text, results, &keys, &servers);
        costs(&mut text, results, &keys, &servers);
        if with_pictures {
            for (name, chart) in pictures(results, &keys) {
                let _ = write!(text, "\n![{}]({name})\n", chart.title);
            }
        }
        details(&mut text, results, &keys, &servers);
    }
    made_with(&mut text, results);
    text
}

fn keys_words(keys: &Keys) -> String {
    let bytes = keys.key_bytes;
    match keys.choice {
        KeyChoice::Own => format!("each watching its own, {bytes} bytes"),
        KeyChoice::One => format!("one for all, {bytes} bytes"),
        KeyChoice::Range => format!("ranges in a pool of {}, {bytes} bytes", count(u64::from(keys.pool))),
        KeyChoice::Pool => format!("drawn from a pool of {}, {bytes} bytes", count(u64::from(keys.pool))),
    }
}

/// One line a row, as on the page.
fn memory(text: &mut String, results: &Results, keys: &Keys, servers: &[String]) {
    head(
        text,
        &["", "watchings", "published, MB"],
        &servers.iter().map(|name| format!("{name}, MB")).collect::<Vec<_>>(),
    );
    for row in &ROWS {
        let shape = row.shape;
        let cells: Vec<String> = servers
            .iter()
            .map(|server| results.of(keys, server).find(|sample| sample.shape == shape).map_or(String::new(), cell))
            .collect();
        if cells.iter().all(String::is_empty) {
            continue;
        }
        let published = row.published.map_or("out of memory".to_owned(), count);
        let watchings = count(shape.watching_total());
        let _ = writeln!(text, "| {shape} | {watchings} | {published} | {} |", cells.join(" | "));
    }
}

fn cell(sample: &Sample) -> String {
    match &sample.outcome {
        Outcome::Held(held) => format!("{:.1}", held.resident_bytes as f64 / 1e6),
        Outcome::Killed { watchings } => {
            let limit = sample.limit_bytes.map_or(String::new(), |limit| format!(" in {}", megabytes(limit)));
            format!("killed at {}{limit}", count(*watchings))
        }
        Outcome::Refused { watchings, .. } => format!("refused at {}", count(*watchings)),
        Outcome::Void { .. } => "void".to_owned(),
        Outcome::Skipped { .. } => "skipped".to_owned(),
        Outcome::Failed { watchings, .. } => format!("failed at {}", count(*watchings)),
    }
}

fn costs(text: &mut String, results: &Results, keys: &Keys, servers: &[String]) {
    text.push_str("\nBytes by least squares over the rows, the empty server taken off:\n\n");
    head(
        text,
        &[""],
        &["a connection", "a stream", "a watching", "a different key", "largest miss of a row"].map(str::to_owned),
    );
    let line = |text: &mut String, name: &str, costs: Option<Costs>| {
        let [connection, stream, watching, key, miss] = match costs {
            Some(Costs { each: [connection, stream, watching, key], drawn_from, miss_max }) => [
                format!("{connection:.0}"),
                format!("{stream:.0}"),
                format!("{watching:.1}"),
                if drawn_from.is_some() { format!("{key:.0}") } else { String::new() },
                if miss_max > 0.0 { format!("{:.0} %", miss_max * 100.0) } else { String::new() },
            ],
            None => ["too few rows"; 5].map(str::to_owned),
        };
        let _ = writeln!(text, "| {name} | {connection} | {stream} | {watching} | {key} | {miss} |");
    };
    line(text, PUBLISHED, Some(Costs::published()));
    for server in servers {
        line(text, server, results.costs(keys, server));
    }
}

fn details(text: &mut String, results: &Results, keys: &Keys, servers: &[String]) {
    text.push_str("\nAll that was measured; the cgroup's figures include the kernel's buffers of sockets:\n\n");
    let columns = [
        "RSS, MB",
        "of it anonymous",
        "cgroup held, MB",
        "cgroup peak, MB",
        "of it sockets now, MB",
        "created in, s",
        "server CPU, s",
        "client RSS, MB",
        "client CPU, s",
        "events proven",
    ];
    head(text, &["", "server"], &columns.map(str::to_owned));
    let samples = || servers.iter().flat_map(|server| results.of(keys, server));
    for sample in samples() {
        if let Some(held) = sample.held() {
            let _ = writeln!(text, "| {} | {} | {} |", sample.shape, sample.server, figures(held).join(" | "));
        }
    }
    let others: Vec<&Sample> = samples().filter(|sample| sample.held().is_none()).collect();
    if !others.is_empty() {
        text.push_str("\nWithout figures:\n\n");
    }
    for sample in others {
        let _ = writeln!(text, "- {} at {}: {}", sample.server, sample.shape, sentence(&sample.outcome));
    }
}

fn figures(held: &Held) -> [String; 10] {
    let millions = |bytes: u64| format!("{:.1}", bytes as f64 / 1e6);
    let grouped = |of: fn(&results::Grouped) -> u64| held.cgroup.as_ref().map_or("-".to_owned(), |at| millions(of(at)));
    [
        millions(held.resident_bytes),
        millions(held.anonymous_bytes),
        grouped(|at| at.held_bytes),
        grouped(|at| at.peak_bytes),
        grouped(|at| at.socket_bytes),
        format!("{:.2}", held.create_seconds),
        format!("{:.2}", held.create_server_cpu_seconds),
        millions(held.client_resident_bytes),
        format!("{:.2}", held.client_cpu_seconds),
        count(held.events_proven),
    ]
}

/// Machine, versions and commands; two machines in one folder show as two lines.
fn made_with(text: &mut String, results: &Results) {
    text.push_str("\n## Made with\n\n");
    let mut lines: Vec<String> = Vec::new();
    let samples = &results.samples;
    lines.extend(samples.iter().map(|sample| format!("machine: {}, Linux {}", sample.machine, sample.kernel)));
    let versions = samples.iter().filter(|sample| !sample.version.is_empty());
    lines.extend(versions.map(|sample| format!("{}: says version {}", sample.server, sample.version)));
    lines.extend(samples.iter().map(|sample| format!("command: `{}`", sample.command)));
    lines.sort_by_key(|line| !line.starts_with("machine"));
    let mut told: Vec<&String> = Vec::new();
    for line in &lines {
        if !told.contains(&line) {
            let _ = writeln!(text, "- {line}");
            told.push(line);
        }
    }
    text.push_str("- the load client ran on the same machine, without TLS; every sample stands in table.json\n");
}

/// Names on the left, figures on the right.
fn head(text: &mut String, left: &[&str], right: &[String]) {
    let names: Vec<&str> = left.iter().copied().chain(right.iter().map(String::as_str)).collect();
    let rule: Vec<&str> = left[..1].iter().map(|_| ":--").chain(names[1..].iter().map(|_| "--:")).collect();
    let _ = writeln!(text, "| {} |\n| {} |", names.join(" | "), rule.join(" | "));
}

/// File names and charts; one without a point is left out.
fn pictures(results: &Results, keys: &Keys) -> Vec<(String, Chart)> {
    let suffix = format!("{}-{}-{}.svg", keys.choice.name(), keys.pool, keys.key_bytes);
    let axis = |label: &str, format| Axis { label: label.to_owned(), scale: Scale::Log, format };
    let series = |of: fn(&Held) -> f64| -> Vec<Series> {
        let points = |server: &str| {
            let held = results.of(keys, server).filter_map(|sample| Some((sample.shape, sample.held()?)));
            held.map(|(shape, held)| (shape.watching_total() as f64, of(held))).collect()
        };
        let servers = results.servers(keys);
        servers.iter().map(|name| Series { name: name.clone(), mark: Mark::Dots, points: points(name) }).collect()
    };
    let mut memory = series(|held| held.resident_bytes as f64);
    if memory.iter().all(|series| series.points.is_empty()) {
        return Vec::new();
    }
    let published =
        ROWS.iter().filter_map(|row| Some((row.shape.watching_total() as f64, row.published? as f64 * 1e6)));
    memory.push(Series { name: PUBLISHED.to_owned(), mark: Mark::Crosses, points: published.collect() });
    let watchings = || axis("watchings", rounded);
    vec![
        (
            format!("memory-{suffix}"),
            Chart {
                title: format!("Resident memory, keys {}", keys_words(keys)),
                x: watchings(),
                y: axis("bytes", |value| format!("{}B", rounded(value))),
                series: memory,
            },
        ),
        (
            format!("create-{suffix}"),
            Chart {
                title: format!("Time to create all, keys {}", keys_words(keys)),
                x: watchings(),
                y: axis("seconds", |value| format!("{value}")),
                series: series(|held| held.create_seconds),
            },
        ),
    ]
}

/// 25000000 as 25M.
fn rounded(value: f64) -> String {
    match value {
        value if value >= 1e9 => format!("{}G", value / 1e9),
        value if value >= 1e6 => format!("{}M", value / 1e6),
        value if value >= 1e3 => format!("{}k", value / 1e3),
        value => format!("{value}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::results::tests::{held, sample};

    fn results() -> Results {
        let mut results = Results::default();
        results.add(sample("etcd", 1, held(50_000_000)));
        results.add(sample("etcd", 2, Outcome::Void { reason: "9 of 10 events".to_owned() }));
        results.add(sample("tarsier", 1, held(12_300_000)));
        results.add(sample("tarsier", 15, Outcome::Killed { watchings: 1_234_567 }));
        results
    }

    #[test]
    fn a_page_shows_each_row_beside_the_published_one_and_what_is_void() {
        let mut results = results();
        let page = markdown(&results, false);
        assert!(page.contains("| 1,000 x 1 x 1 | 1,000 | 50 | 50.0 | 12.3 |"), "{page}");
        assert!(page.contains("| 2,000 x 1 x 1 | 2,000 | 90 | void |  |"), "{page}");
        assert!(page.contains("| out of memory |  | killed at 1,234,567 in 1073.7 MB |"), "{page}");
        assert!(page.contains("- etcd at 2,000 x 1 x 1: void: 9 of 10 events"), "{page}");
        assert_eq!(page.matches("a machine").count(), 1, "{page}");
        assert!(page.contains("Partial"));
        results.is_finished = true;
        assert!(!markdown(&results, false).contains("Partial"));
    }

    #[test]
    fn a_void_figure_is_in_no_picture() {
        let results = results();
        let keys = results.key_choices().remove(0);
        let pictures = pictures(&results, &keys);
        let points: Vec<usize> = pictures[0].1.series.iter().map(|series| series.points.len()).collect();
        assert_eq!(points, [1, 1, 14]);
        assert!(pictures.iter().all(|(_, chart)| chart.svg().is_ok()));
        let nothing = Results::default();
        assert!(super::pictures(&nothing, &keys).is_empty());
    }
}
