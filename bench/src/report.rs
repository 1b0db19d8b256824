//! Figures of several rounds and both sides, as a table for people and as JSON for programs.

use std::fmt::Write;

use serde_json::{Value, json};

use crate::harm::Pace;
use crate::server::Side;

/// What one scene measured in one round. A scene that lost an event has measured nothing: then `void` says why.
#[derive(Default, Debug)]
pub struct Measured {
    pub figures: Vec<Figure>,
    pub void: Option<String>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    pub scene: String,
    pub measure: &'static str,
    pub value: f64,
}

impl Measured {
    pub fn add(&mut self, scene: &str, measure: &'static str, value: f64) {
        self.figures.push(Figure { scene: scene.to_owned(), measure, value });
    }
}

/// One line of the table.
struct Row {
    scene: String,
    measure: &'static str,
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
    /// What is drawn and not tabled.
    pub paces: Vec<(Side, Pace)>,
    rows: Vec<Row>,
}

impl Report {
    pub fn add(&mut self, side: Side, measured: Measured) {
        for figure in measured.figures {
            let row = self.row(&figure);
            match &measured.void {
                None => row.values[side as usize].push(figure.value),
                Some(reason) => row.voids[side as usize].push(reason.clone()),
            }
        }
    }

    fn row(&mut self, figure: &Figure) -> &mut Row {
        let is_it = |row: &Row| row.scene == figure.scene && row.measure == figure.measure;
        let at = self.rows.iter().position(is_it).unwrap_or_else(|| {
            let (values, voids) = Default::default();
            self.rows.push(Row { scene: figure.scene.clone(), measure: figure.measure, values, voids });
            self.rows.len() - 1
        });
        &mut self.rows[at]
    }

    /// How many figures of single rounds are void.
    pub fn voids(&self) -> usize {
        self.rows.iter().flat_map(|row| &row.voids).map(Vec::len).sum()
    }

    pub fn markdown(&self) -> String {
        let mut text =
            String::from("| work | measure | etcd | tarsier | tarsier / etcd |\n| --- | --- | --- | --- | --- |\n");
        for row in &self.rows {
            let [etcd, tarsier] = [Side::Etcd, Side::Tarsier].map(|side| row.cell(side));
            let line = writeln!(text, "| {} | {} | {etcd} | {tarsier} | {} |", row.scene, row.measure, row.ratio());
            line.expect("writing to a String does not fail");
        }
        text + &self.circumstances.markdown()
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
        let versions = self.circumstances.versions.iter().map(|(side, version)| json!([side.name(), version]));
        json!({
            "machine": self.circumstances.machine,
            "kernel": self.circumstances.kernel,
            "versions": versions.collect::<Vec<_>>(),
            "command": self.circumstances.command,
            "notes": self.circumstances.notes,
            "rows": rows.collect::<Vec<_>>(),
        })
    }
}

impl Circumstances {
    fn markdown(&self) -> String {
        let versions: Vec<String> =
            self.versions.iter().map(|(side, version)| format!("{} {version}", side.name())).collect();
        let notes = self.notes.iter().map(|note| format!("- {note}\n"));
        format!(
            "\nMedians, with the least and the greatest of the rounds.\n\n- {}; kernel {}\n- {}\n- `{}`\n{}",
            self.machine,
            self.kernel,
            versions.join(", "),
            self.command,
            notes.collect::<String>()
        )
    }
}

impl Row {
    fn cell(&self, side: Side) -> String {
        let (values, voids) = (&self.values[side as usize], &self.voids[side as usize]);
        // One lost event voids the figure: a median of the other rounds would hide it.
        if let Some(reason) = voids.first() {
            return format!("void: {reason}");
        }
        let Some(middle) = median(values) else { return "-".to_owned() };
        let least = values.iter().copied().fold(f64::INFINITY, f64::min);
        let greatest = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        match values.len() {
            1 => number(middle),
            _ => format!("{} ({} - {})", number(middle), number(least), number(greatest)),
        }
    }

    fn ratio(&self) -> String {
        let is_void = self.voids.iter().any(|voids| !voids.is_empty());
        match (median(&self.values[0]), median(&self.values[1])) {
            (Some(etcd), Some(tarsier)) if !is_void && etcd > 0.0 => number(tarsier / etcd),
            _ => "-".to_owned(),
        }
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
        assert!(report.markdown().contains("| put | us | 50.0 (40.0 - 52.0) | 11.0 (10.0 - 13.0) | 0.220 |"));
        assert_eq!(report.json()["rows"][0]["etcd"]["median"], 50.0);
        assert_eq!(report.voids(), 0);
    }

    #[test]
    fn one_lost_event_voids_the_figure_of_all_rounds() {
        let mut report = Report::default();
        report.add(Side::Etcd, measured(50.0, None));
        report.add(Side::Tarsier, measured(1.0, None));
        report.add(Side::Tarsier, measured(1.0, Some("1 event is missing")));
        assert!(report.markdown().contains("| put | us | 50.0 | void: 1 event is missing | - |"));
        assert_eq!(report.voids(), 1);
    }

    #[test]
    fn numbers_keep_three_digits() {
        let shown: Vec<String> = [0.0, 0.0421, 4.0, 42.12, 1234567.8].into_iter().map(number).collect();
        assert_eq!(shown, ["0", "0.042", "4.00", "42.1", "1,234,568"]);
    }
}
