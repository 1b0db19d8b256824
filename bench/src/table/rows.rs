//! The fifteen rows of etcd's page on the memory of watches, and which of them a run wants.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::ranges;
use crate::screen::count;

/// Clients, streams of each, watchings of each stream. A client is a connection.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Shape {
    pub clients: u32,
    pub streams: u32,
    pub watchings: u32,
}

impl Shape {
    pub fn stream_total(self) -> u64 {
        u64::from(self.clients) * u64::from(self.streams)
    }

    pub fn watching_total(self) -> u64 {
        self.stream_total() * u64::from(self.watchings)
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} x {} x {}", count(u64::from(self.clients)), self.streams, self.watchings)
    }
}

/// A row of the page, with its megabytes; `None` where it says "out of memory".
pub struct Row {
    pub shape: Shape,
    pub published: Option<u64>,
}

const fn row(clients: u32, streams: u32, watchings: u32, published: Option<u64>) -> Row {
    Row { shape: Shape { clients, streams, watchings }, published }
}

/// etcd's "Watch Memory Usage Benchmark" of 2015-11-13: one server on a GCE n1-standard-2, its resident memory.
pub const ROWS: [Row; 15] = [
    row(1_000, 1, 1, Some(50)),
    row(2_000, 1, 1, Some(90)),
    row(5_000, 1, 1, Some(200)),
    row(1_000, 10, 1, Some(217)),
    row(2_000, 10, 1, Some(417)),
    row(5_000, 10, 1, Some(980)),
    row(1_000, 50, 1, Some(1_001)),
    row(2_000, 50, 1, Some(1_960)),
    row(5_000, 50, 1, Some(4_700)),
    row(1_000, 50, 10, Some(1_171)),
    row(2_000, 50, 10, Some(2_371)),
    row(5_000, 50, 10, Some(5_710)),
    row(1_000, 50, 100, Some(2_380)),
    row(2_000, 50, 100, Some(4_672)),
    row(5_000, 50, 100, None),
];

/// What the page derives from its rows: bytes of a connection, of a stream, of a watching.
pub const PUBLISHED_COSTS: [f64; 3] = [17_000.0, 18_000.0, 350.0];

/// Rows by their numbers, such as `1-9,12`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Chosen(pub Vec<usize>);

impl Chosen {
    pub fn all() -> Chosen {
        Chosen((1..=ROWS.len()).collect())
    }

    /// Small rows that still tell a connection, a stream and a watching apart.
    pub fn quick() -> Chosen {
        Chosen(vec![1, 3, 4, 5, 7, 10])
    }

    pub fn shapes(&self) -> impl Iterator<Item = Shape> {
        self.0.iter().map(|number| ROWS[number - 1].shape)
    }
}

impl FromStr for Chosen {
    type Err = String;

    fn from_str(text: &str) -> Result<Chosen, String> {
        let number = |text: &str| {
            let number = text.parse().ok().filter(|number| (1..=ROWS.len()).contains(number));
            number.ok_or_else(|| format!("{text:?} is no row: they are numbered from 1 to {}", ROWS.len()))
        };
        ranges::numbers(text, "row", number).map(Chosen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_chosen_by_number_and_range() {
        assert_eq!("3,1-2, 2".parse(), Ok(Chosen(vec![1, 2, 3])));
        assert_eq!("1-15".parse(), Ok(Chosen::all()));
        for text in ["", "0", "16", "a", "1-", "5-2"] {
            assert!(text.parse::<Chosen>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn the_rows_run_from_a_thousand_watchings_to_twenty_five_million() {
        assert_eq!(ROWS[0].shape.watching_total(), 1_000);
        assert_eq!(ROWS[14].shape.watching_total(), 25_000_000);
        assert_eq!(ROWS[14].shape.to_string(), "5,000 x 50 x 100");
    }
}
