//! How a run shows that it moves: a bar on a terminal, now and then a line elsewhere.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{HumanCount, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Pause between two lines where there is no terminal.
const LINE_PAUSE: Duration = Duration::from_secs(5);

/// One thing that is counted up to a total. Everything goes to the error stream; results alone go to the output.
pub struct Bar {
    bar: ProgressBar,
    what: &'static str,
    total: u64,
    /// When the last line was written; none on a terminal.
    line_at: Option<Instant>,
}

impl Bar {
    pub fn new(what: &'static str, total: u64) -> Bar {
        let is_terminal = std::io::stderr().is_terminal();
        let target = if is_terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(total), target).with_message(what);
        let template = "{msg:>20} {wide_bar} {human_pos} of {human_len}, {per_sec}, {eta} left";
        bar.set_style(ProgressStyle::with_template(template).expect("the template is a constant and valid"));
        Bar { bar, what, total, line_at: (!is_terminal).then(Instant::now) }
    }

    pub fn set(&mut self, position: u64) {
        self.bar.set_position(position);
        if self.line_at.is_some_and(|at| at.elapsed() >= LINE_PAUSE) {
            eprintln!("{}: {} of {}", self.what, HumanCount(position), HumanCount(self.total));
            self.line_at = Some(Instant::now());
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// 1234567 as 1,234,567.
pub fn count(number: u64) -> String {
    HumanCount(number).to_string()
}

/// Bytes as megabytes of a million, one digit behind the point.
pub fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}
