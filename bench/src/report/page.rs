//! A report as a page of Markdown, as JSON, and as pictures.

use std::fmt::Write;

use hdrhistogram::Histogram;
use serde_json::{Value, json};

use super::{Circumstances, Limit, Report, Row, median};
use crate::latency::{is_told, milliseconds};
use crate::plot::{Axis, Chart, Mark, Scale, Series};
use crate::server::Side;

/// The quantiles of a distribution that are drawn and kept, as "one in so many is slower".
const SLOWER_ONE_IN: [f64; 13] = [1.25, 2.0, 4.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1e3, 2e3, 5e3, 1e4];

impl Report {
    pub fn markdown(&self, with_pictures: bool) -> String {
        let mut text = String::from("# What a unit of work costs\n\n");
        if !self.is_finished {
            text.push_str("**Partial: the run that wrote this has not come to its end.**\n\n");
        }
        table(&mut text, self.rows.iter().filter(|row| row.is_headline));
        if !self.failures.is_empty() {
            text.push_str("\nNot measured:\n\n");
            self.failures.iter().for_each(|failure| line(&mut text, &format!("- {failure}")));
        }
        self.limits(&mut text);
        if with_pictures {
            for (name, chart) in self.pictures() {
                line(&mut text, &format!("\n![{}]({name})", chart.title));
            }
        }
        text.push_str("\n## All that was measured\n\n");
        table(&mut text, self.rows.iter());
        text + &self.circumstances.markdown()
    }

    /// What the clock on the wall says less about.
    fn limits(&self, text: &mut String) {
        let words = [
            (Limit::Client, "The load client had a core's worth of work, so \"a second\" may be its limit"),
            (Limit::Machine, "No core was idle, so server and load client held each other up"),
        ];
        for (limit, words) in words {
            let of_side = |side: Side| {
                let is_it = |entry: &&(Limit, Side, String)| (entry.0, entry.1) == (limit, side);
                let scenes: Vec<&str> = self.limits.iter().filter(is_it).map(|entry| entry.2.as_str()).collect();
                (!scenes.is_empty()).then(|| format!("{}: {}", side.name(), scenes.join("; ")))
            };
            let sides: Vec<String> = [Side::Etcd, Side::Tarsier].into_iter().filter_map(of_side).collect();
            if !sides.is_empty() {
                line(text, &format!("\n{words}. {}.", sides.join(". ")));
            }
        }
    }

    pub fn json(&self) -> Value {
        let side = |row: &Row, side: Side| {
            let (values, voids) = (&row.values[side as usize], &row.voids[side as usize]);
            json!({ "median": median(values), "values": values, "void": voids })
        };
        let rows = self.rows.iter().map(|row| {
            json!({
                "work": row.scene,
                "measure": row.measure,
                "etcd": side(row, Side::Etcd),
                "tarsier": side(row, Side::Tarsier),
            })
        });
        let limits = self.limits.iter().map(|(limit, side, scene)| {
            json!({ "limit": format!("{limit:?}").to_lowercase(), "server": side.name(), "work": scene })
        });
        let latencies = self.latencies.iter().map(|(scene, side, latency)| {
            let points: Vec<_> = distribution(latency).collect();
            json!({ "work": scene, "server": side.name(), "calls": latency.len(), "slower_one_in_and_ms": points })
        });
        let courses = self.courses.iter().map(|(side, course)| {
            json!({ "picture": course.picture, "server": side.name(), "name": course.name, "points": course.points })
        });
        let versions = self.circumstances.versions.iter().map(|(side, version)| json!([side.name(), version]));
        json!({
            "is_finished": self.is_finished,
            "machine": self.circumstances.machine,
            "kernel": self.circumstances.kernel,
            "versions": versions.collect::<Vec<_>>(),
            "command": self.circumstances.command,
            "notes": self.circumstances.notes,
            "failures": self.failures,
            "rows": rows.collect::<Vec<_>>(),
            "limits": limits.collect::<Vec<_>>(),
            "latencies": latencies.collect::<Vec<_>>(),
            "courses": courses.collect::<Vec<_>>(),
        })
    }

    /// Names of files, and what to draw into them.
    pub fn pictures(&self) -> Vec<(String, Chart)> {
        let mut pictures: Vec<(String, Chart)> = Vec::new();
        let axis = |label: &str, scale, format| Axis { label: label.to_owned(), scale, format };
        for (scene, side, latency) in &self.latencies {
            let name = format!("latency-{}.svg", file_name(scene));
            let axes = || (axis("calls that are not slower", Scale::Log, not_slower), axis("ms", Scale::Log, plain));
            let points = distribution(latency).collect();
            let series = Series { name: side.name().to_owned(), mark: Mark::Line, points };
            draw(&mut pictures, name, &format!("Latency: {scene}"), axes, series);
        }
        for (side, course) in &self.courses {
            let name = format!("{}.svg", file_name(course.picture));
            let axes = || (axis("seconds", Scale::Linear, plain), axis("a second", Scale::Log, plain));
            let mark = if *side == Side::Etcd { Mark::Crosses } else { Mark::Dots };
            let series =
                Series { name: format!("{}, {}", side.name(), course.name), mark, points: course.points.clone() };
            draw(&mut pictures, name, course.picture, axes, series);
        }
        pictures
    }
}

/// Into the picture of that name, which is begun if there is none.
fn draw(
    pictures: &mut Vec<(String, Chart)>,
    name: String,
    title: &str,
    axes: impl Fn() -> (Axis, Axis),
    series: Series,
) {
    match pictures.iter_mut().find(|(known, _)| *known == name) {
        Some((_, chart)) => chart.series.push(series),
        None => {
            let (x, y) = axes();
            pictures.push((name, Chart { title: title.to_owned(), x, y, series: vec![series] }));
        }
    }
}

/// One in so many calls is slower than so many milliseconds, as far as there are enough calls to tell.
fn distribution(latency: &Histogram<u64>) -> impl Iterator<Item = (f64, f64)> {
    let told = SLOWER_ONE_IN.into_iter().filter(|one_in| is_told(latency, *one_in));
    told.map(|one_in| (one_in, milliseconds(latency, one_in)))
}

/// One in a hundred is slower: 99 % are not.
fn not_slower(one_in: f64) -> String {
    let per_cent = format!("{:.3}", 100.0 * (1.0 - 1.0 / one_in));
    format!("{} %", per_cent.trim_end_matches('0').trim_end_matches('.'))
}

fn plain(value: f64) -> String {
    format!("{value}")
}

/// A title in letters that every file system takes.
fn file_name(title: &str) -> String {
    let words = title.split(|character: char| !character.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join("-").to_lowercase()
}

fn table<'a>(text: &mut String, rows: impl Iterator<Item = &'a Row>) {
    text.push_str("| work | measure | etcd | tarsier | tarsier / etcd |\n| --- | --- | --- | --- | --- |\n");
    for row in rows {
        let [etcd, tarsier] = [Side::Etcd, Side::Tarsier].map(|side| row.cell(side));
        line(text, &format!("| {} | {} | {etcd} | {tarsier} | {} |", row.scene, row.measure, row.ratio()));
    }
}

fn line(text: &mut String, line: &str) {
    writeln!(text, "{line}").expect("writing to a String does not fail");
}

impl Circumstances {
    fn markdown(&self) -> String {
        let versions: Vec<String> =
            self.versions.iter().map(|(side, version)| format!("{} {version}", side.name())).collect();
        // A run that was cut short may have none yet.
        let versions = Some(versions.join(", ")).filter(|versions| !versions.is_empty());
        let machine = format!("{}; kernel {}", self.machine, self.kernel);
        let points = [machine].into_iter().chain(versions).chain([format!("`{}`", self.command)]);
        let points = points.chain(self.notes.iter().cloned()).map(|point| format!("- {point}\n"));
        format!(
            "\nMedians, with the least and the greatest of the rounds; of a ratio, those of the rounds' own.\n\n{}",
            points.collect::<String>()
        )
    }
}
