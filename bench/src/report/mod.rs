//! What the scenes of several rounds and both sides have measured.
//!
//! A report is whole after every scene: [`page`] makes a table for people, JSON for programs, and pictures of it. What failed
//! stands in it beside what was measured, so a run that is stopped, or whose server died, has said what it knows.

mod page;

use std::path::Path;

use hdrhistogram::Histogram;

use crate::fault::Result;
use crate::files::{make_folder, write_file};
use crate::latency::{greatest_milliseconds, is_told, milliseconds};
use crate::server::Side;

/// Stands before the measures of such a tail.
const CLOSED_LOOP: &str = "closed loop ";
/// What a reader of them should know.
pub const CLOSED_LOOP_NOTE: &str = "latencies called those of a closed loop are of clients that each wait for an answer before they \
                                    ask again, so a stall counts once a client and not with all that it kept from coming; the \
                                    others count from when a call was due";

/// What one scene measured in one round. A scene that lost an event has measured nothing: then `void` says why.
#[derive(Default, Debug)]
pub struct Measured {
    pub figures: Vec<Figure>,
    pub void: Option<String>,
    /// By scene: what set the pace beside the server.
    pub limits: Vec<(String, Limit)>,
    /// By scene: all latencies, in microseconds, for a picture of their distribution.
    pub latencies: Vec<(String, Histogram<u64>)>,
    pub courses: Vec<Course>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    pub scene: String,
    pub measure: String,
    pub value: f64,
    /// It stands in the short table.
    is_headline: bool,
}

/// Why a figure on the wall's clock says less than it seems. The server's CPU for a unit of work says what it says.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Limit {
    /// The load client had a core's worth of work.
    Client,
    /// No core was idle, so server and client held each other up.
    Machine,
}

/// How something went over time.
#[derive(Clone, Debug)]
pub struct Course {
    /// The title of the picture, which names what is counted; all courses of one title share it.
    pub picture: &'static str,
    pub name: String,
    /// Seconds, and what was counted.
    pub points: Vec<(f64, f64)>,
}

impl Measured {
    pub fn add(&mut self, scene: &str, measure: impl Into<String>, value: f64) {
        self.figures.push(Figure { scene: scene.to_owned(), measure: measure.into(), value, is_headline: false });
    }

    /// The tail of latencies, as far as there are enough of them to tell, and how many there are.
    pub fn tail(&mut self, scene: &str, latency: &Histogram<u64>) {
        self.tail_of(scene, "", latency);
    }

    /// The tail of calls that each waited for the one before: a stall holds back what would have met it, so such a tail says less
    /// than one of calls on a schedule, and it says so.
    pub fn closed_loop_tail(&mut self, scene: &str, latency: &Histogram<u64>) {
        self.tail_of(scene, CLOSED_LOOP, latency);
    }

    /// A figure that was added.
    pub fn value(&self, scene: &str, measure: &str) -> Option<f64> {
        self.figures
            .iter()
            .find(|figure| (&*figure.scene, &*figure.measure) == (scene, measure))
            .map(|figure| figure.value)
    }

    /// The same where a scene has several, named by what was waited for: "put " is.
    pub fn tail_of(&mut self, scene: &str, what: &str, latency: &Histogram<u64>) {
        for (name, one_in) in [("p50", 2.0), ("p99", 100.0), ("p99.9", 1_000.0)] {
            if is_told(latency, one_in) {
                self.add(scene, format!("{what}{name}, ms"), milliseconds(latency, one_in));
            }
        }
        if !latency.is_empty() {
            self.add(scene, format!("{what}max, ms"), greatest_milliseconds(latency));
        }
        self.add(scene, format!("{what}calls"), latency.len() as f64);
    }

    /// Lets a figure that was added stand for its scene.
    pub fn stands_for(&mut self, scene: &str, measure: &str) {
        let is_it = |figure: &&mut Figure| figure.scene == scene && figure.measure == measure;
        self.figures.iter_mut().filter(is_it).for_each(|figure| figure.is_headline = true);
    }

    /// A figure that stands for its scene.
    pub fn headline(&mut self, scene: &str, measure: impl Into<String>, value: f64) {
        self.figures.push(Figure { scene: scene.to_owned(), measure: measure.into(), value, is_headline: true });
    }
}

/// One line of the table.
struct Row {
    scene: String,
    measure: String,
    is_headline: bool,
    /// By side: etcd, tarsier.
    values: [Vec<f64>; 2],
    voids: [Vec<String>; 2],
}

/// Where and how the figures were made.
#[derive(Clone, Debug, Default)]
pub struct Circumstances {
    pub machine: String,
    pub kernel: String,
    pub versions: Vec<(Side, String)>,
    pub command: String,
    pub notes: Vec<String>,
}

#[derive(Default)]
pub struct Report {
    pub circumstances: Circumstances,
    /// The run has come to its end.
    pub is_finished: bool,
    rows: Vec<Row>,
    limits: Vec<(Limit, Side, String)>,
    /// Of all rounds together.
    latencies: Vec<(String, Side, Histogram<u64>)>,
    /// Of the first round: one picture shows one run.
    courses: Vec<(Side, Course)>,
    failures: Vec<String>,
}

impl Report {
    pub fn add(&mut self, side: Side, measured: Measured) {
        let is_void = measured.void.is_some();
        if let (Some(reason), true) = (&measured.void, measured.figures.is_empty()) {
            // Without a figure that would stand for it in the table, nobody would hear of it.
            self.fail(format!("{}: void: {reason}", side.name()));
        }
        for figure in measured.figures {
            let row = self.row(&figure);
            match &measured.void {
                None => row.values[side as usize].push(figure.value),
                Some(reason) => row.voids[side as usize].push(reason.clone()),
            }
        }
        for (scene, limit) in measured.limits {
            let limit = (limit, side, scene);
            if !self.limits.contains(&limit) {
                self.limits.push(limit);
            }
        }
        // A void run has measured nothing, so nothing of it is drawn.
        if is_void {
            return;
        }
        for (scene, latency) in measured.latencies {
            match self.latencies.iter_mut().find(|(known, of, _)| (known, *of) == (&scene, side)) {
                Some((_, _, sum)) => sum.add(latency).expect("all histograms have the same bounds"),
                None => self.latencies.push((scene, side, latency)),
            }
        }
        for course in measured.courses {
            let is_same = |(of, known): &(Side, Course)| {
                (*of, known.picture, &known.name) == (side, course.picture, &course.name)
            };
            if !self.courses.iter().any(is_same) {
                self.courses.push((side, course));
            }
        }
    }

    /// Notes that a scene has ended without figures.
    pub fn fail(&mut self, text: String) {
        self.failures.push(text);
    }

    /// Writes the page, the JSON and the pictures into a folder.
    pub fn write(&self, folder: &Path) -> Result<()> {
        make_folder(folder)?;
        for (name, chart) in self.pictures() {
            write_file(&folder.join(name), &chart.svg()?)?;
        }
        write_file(&folder.join("speed.json"), &format!("{:#}\n", self.json()))?;
        write_file(&folder.join("speed.md"), &self.markdown(true))
    }

    fn row(&mut self, figure: &Figure) -> &mut Row {
        let is_it = |row: &Row| row.scene == figure.scene && row.measure == figure.measure;
        let at = self.rows.iter().position(is_it).unwrap_or_else(|| {
            let (values, voids) = Default::default();
            let (scene, measure, is_headline) = (figure.scene.clone(), figure.measure.clone(), figure.is_headline);
            self.rows.push(Row { scene, measure, is_headline, values, voids });
            self.rows.len() - 1
        });
        &mut self.rows[at]
    }

    /// How many figures of single rounds are void.
    pub fn voids(&self) -> usize {
        self.rows.iter().flat_map(|row| &row.voids).map(Vec::len).sum()
    }

    /// Whether any scene has come to a figure, be it a void one.
    pub fn has_figures(&self) -> bool {
        !self.rows.is_empty()
    }

    pub fn failures(&self) -> usize {
        self.failures.len()
    }
}

impl Row {
    fn cell(&self, side: Side) -> String {
        let (values, voids) = (&self.values[side as usize], &self.voids[side as usize]);
        // One lost event voids the figure: a median of the other rounds would hide it.
        if let Some(reason) = voids.first() {
            return format!("void: {reason}");
        }
        median(values).map_or_else(|| "-".to_owned(), |middle| with_spread(middle, values))
    }

    /// That of the medians, with the spread of the rounds' own ratios: both sides run in each, one right behind the other, so it
    /// tells less of what the machine did in between than the spread of either.
    fn ratio(&self) -> String {
        let is_void = self.voids.iter().any(|voids| !voids.is_empty());
        let [etcd, tarsier] = &self.values;
        let (Some(of_etcd), Some(of_tarsier)) = (median(etcd), median(tarsier)) else { return "-".to_owned() };
        if is_void || etcd.iter().any(|value| *value <= 0.0) {
            return "-".to_owned();
        }
        let ratio = of_tarsier / of_etcd;
        if etcd.len() != tarsier.len() {
            // A round that failed on one side leaves nothing to pair.
            return number(ratio);
        }
        let of_rounds: Vec<f64> = tarsier.iter().zip(etcd).map(|(tarsier, etcd)| tarsier / etcd).collect();
        with_spread(ratio, &of_rounds)
    }
}

/// A value that stands for several, with the least and the greatest of them.
fn with_spread(middle: f64, values: &[f64]) -> String {
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let greatest = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    match values.len() {
        1 => number(middle),
        _ => format!("{} ({} - {})", number(middle), number(least), number(greatest)),
    }
}

fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let upper = *sorted.get(sorted.len() / 2)?;
    Some(if sorted.len() % 2 == 1 { upper } else { (sorted[sorted.len() / 2 - 1] + upper) / 2.0 })
}

/// Three digits that matter, thousands apart.
pub fn number(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        size if size < 0.001 => format!("{value:.5}"),
        size if size < 1.0 => format!("{value:.3}"),
        size if size < 10.0 => format!("{value:.2}"),
        size if size < 100.0 => format!("{value:.1}"),
        size if size < 1e15 && value > 0.0 => crate::screen::count(value.round() as u64),
        _ => format!("{value:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(value: f64, void: Option<&str>) -> Measured {
        let mut measured = Measured { void: void.map(str::to_owned), ..Measured::default() };
        measured.add("put", "us", value);
        measured
    }

    #[test]
    fn the_table_shows_medians_ranges_and_ratios() {
        let mut report = Report::default();
        for (etcd, tarsier) in [(50.0, 10.0), (52.0, 13.0), (40.0, 11.0)] {
            report.add(Side::Etcd, measured(etcd, None));
            report.add(Side::Tarsier, measured(tarsier, None));
        }
        assert!(
            report
                .markdown(false)
                .contains("| put | us | 50.0 (40.0 - 52.0) | 11.0 (10.0 - 13.0) | 0.220 (0.200 - 0.275) |")
        );
        assert_eq!(report.json()["rows"][0]["etcd"]["median"], 50.0);
        assert_eq!(report.voids(), 0);
    }

    #[test]
    fn a_round_that_one_side_lacks_leaves_a_ratio_without_a_spread() {
        let mut report = Report::default();
        report.add(Side::Etcd, measured(50.0, None));
        report.add(Side::Tarsier, measured(10.0, None));
        report.add(Side::Tarsier, measured(20.0, None));
        assert!(report.markdown(false).contains("| put | us | 50.0 | 15.0 (10.0 - 20.0) | 0.300 |"));
        report.add(Side::Etcd, measured(0.0, None));
        assert!(report.markdown(false).contains("| 25.0 (0 - 50.0) | 15.0 (10.0 - 20.0) | - |"));
    }

    #[test]
    fn one_lost_event_voids_the_figure_of_all_rounds() {
        let mut report = Report::default();
        report.add(Side::Etcd, measured(50.0, None));
        report.add(Side::Tarsier, measured(1.0, None));
        report.add(Side::Tarsier, measured(1.0, Some("1 event is missing")));
        assert!(report.markdown(false).contains("| put | us | 50.0 | void: 1 event is missing | - |"));
        assert_eq!(report.voids(), 1);
    }

    #[test]
    fn what_is_void_before_it_has_a_figure_is_a_failure() {
        let mut report = Report::default();
        report.add(Side::Etcd, Measured { void: Some("it died".to_owned()), ..Measured::default() });
        assert_eq!(report.failures(), 1);
        assert!(report.markdown(false).contains("- etcd: void: it died"), "{}", report.markdown(false));
    }

    #[test]
    fn a_tail_has_its_calls_beside_it_and_goes_no_further_than_they_tell() {
        let tail = |calls: u64| {
            let (mut latency, mut measured) = (crate::latency::latencies(), Measured::default());
            (1..=calls).for_each(|microseconds| latency.record(microseconds).unwrap());
            measured.tail_of("put", "put ", &latency);
            measured.figures.into_iter().map(|figure| figure.measure).collect::<Vec<_>>()
        };
        assert_eq!(tail(0), ["put calls"]);
        assert_eq!(tail(999), ["put p50, ms", "put p99, ms", "put max, ms", "put calls"]);
        assert_eq!(tail(1_000)[2], "put p99.9, ms");
    }

    #[test]
    fn a_tail_of_a_closed_loop_says_so() {
        let (mut latency, mut measured) = (crate::latency::latencies(), Measured::default());
        latency.record_n(7_000, 100).unwrap();
        measured.closed_loop_tail("put", &latency);
        let measures: Vec<_> = measured.figures.iter().map(|figure| &*figure.measure).collect();
        assert_eq!(
            measures,
            ["closed loop p50, ms", "closed loop p99, ms", "closed loop max, ms", "closed loop calls"]
        );
        assert_eq!(measured.value("put", "closed loop calls"), Some(100.0));
        assert_eq!(measured.value("get", "closed loop calls"), None);
    }

    #[test]
    fn numbers_keep_three_digits() {
        let shown: Vec<String> = [0.0, 0.0421, 4.0, 42.12, 1234567.8].into_iter().map(number).collect();
        assert_eq!(shown, ["0", "0.042", "4.00", "42.1", "1,234,568"]);
    }

    #[test]
    fn a_headline_stands_in_the_short_table_too_and_a_limit_is_told_once() {
        let mut report = Report::default();
        for _ in 0..2 {
            let mut measured = measured(7.0, None);
            measured.headline("put", "server CPU, us each", 3.0);
            measured.limits.push(("put".to_owned(), Limit::Machine));
            report.add(Side::Tarsier, measured);
        }
        let page = report.markdown(false);
        assert_eq!(page.matches("| put | server CPU, us each | - | 3.00 (3.00 - 3.00) | - |").count(), 2, "{page}");
        assert_eq!(page.matches("| put | us |").count(), 1, "{page}");
        assert_eq!(page.matches("tarsier: put").count(), 1, "{page}");
    }

    #[test]
    fn what_failed_and_what_is_partial_says_so() {
        let mut report = Report::default();
        report.fail("etcd, put: it died".to_owned());
        let page = report.markdown(false);
        assert!(page.contains("Partial") && page.contains("- etcd, put: it died"), "{page}");
        assert_eq!(report.json()["failures"][0], "etcd, put: it died");
        report.is_finished = true;
        assert!(!report.markdown(false).contains("Partial"));
    }

    #[test]
    fn latencies_of_the_rounds_are_drawn_as_one_distribution_and_void_ones_not_at_all() {
        let mut report = Report::default();
        for void in [None, None, Some("an event is missing")] {
            let mut latency = crate::latency::latencies();
            (1..=1_000).for_each(|microseconds| latency.record(microseconds).unwrap());
            let mut measured = measured(1.0, void);
            measured.latencies.push(("put on a schedule".to_owned(), latency));
            let points = vec![(0.0, 10.0), (1.0, 20.0)];
            measured.courses.push(Course { picture: "Puts a second", name: "1 stuck".to_owned(), points });
            report.add(Side::Tarsier, measured);
        }
        assert_eq!(report.latencies[0].2.len(), 2_000);
        let pictures = report.pictures();
        let names: Vec<&str> = pictures.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["latency-put-on-a-schedule.svg", "puts-a-second.svg"]);
        assert!(pictures.iter().all(|(_, chart)| chart.series.len() == 1 && chart.svg().is_ok()));
    }
}
