//! What a connection, a stream, a watching and a different key cost, by least squares over rows.
//!
//! Keys are a term of their own where they are drawn from a pool: a small row watches thousands of different ones and the
//! largest has long drawn them all, so what the first watch of a key costs is no part of what a watching costs.
//!
//! Each row's miss counts in proportion to the row: else the one with ten gigabytes would decide alone, and what a
//! connection costs would be noise. The empty server is no part of it: it was measured and is taken off beforehand.

use super::rows::{PUBLISHED_COSTS, Shape};

/// Bytes of a connection, of a stream, of a watching, of a different key.
pub const TERMS: usize = 4;
/// The last of them.
const KEY: usize = 3;

#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Costs {
    pub each: [f64; TERMS],
    /// The pool that keys are drawn from, where they are a term.
    pub drawn_from: Option<u32>,
    /// The largest miss of a row, as a part of it.
    pub miss_max: f64,
}

impl Costs {
    /// What etcd's page derives from its rows.
    pub fn published() -> Costs {
        let [connection, stream, watching] = PUBLISHED_COSTS;
        Costs { each: [connection, stream, watching, 0.0], drawn_from: None, miss_max: 0.0 }
    }

    pub fn bytes(&self, shape: Shape) -> f64 {
        terms(shape, self.drawn_from).iter().zip(self.each).map(|(count, cost)| count * cost).sum()
    }
}

fn terms(shape: Shape, drawn_from: Option<u32>) -> [f64; TERMS] {
    let watchings = shape.watching_total() as f64;
    let keys = drawn_from.map_or(0.0, |pool| different(f64::from(pool), watchings));
    [f64::from(shape.clients), shape.stream_total() as f64, watchings, keys]
}

/// How many of `pool` things are expected to be drawn at least once in so many draws.
pub fn different(pool: f64, draws: f64) -> f64 {
    pool * (1.0 - (1.0 - 1.0 / pool).powf(draws))
}

/// The costs that explain the rows best; none when the rows do not tell them apart.
pub fn fit(rows: &[(Shape, f64)], drawn_from: Option<u32>) -> Option<Costs> {
    match drawn_from {
        // Few rows may tell the first three apart and not the keys.
        Some(_) => fit_terms(rows, drawn_from).or_else(|| fit_terms(rows, None)),
        None => fit_terms(rows, None),
    }
}

fn fit_terms(rows: &[(Shape, f64)], drawn_from: Option<u32>) -> Option<Costs> {
    // The normal equations of the rows, each divided by its bytes.
    let mut equations = [[0.0; TERMS + 1]; TERMS];
    // A row that took nothing beyond what was there says nothing about costs.
    let rows = || rows.iter().filter(|(_, bytes)| *bytes > 0.0);
    for &(shape, bytes) in rows() {
        let scaled = terms(shape, drawn_from).map(|count| count / bytes);
        for (at, equation) in equations.iter_mut().enumerate() {
            for (sum, value) in equation.iter_mut().zip(scaled.iter().chain(&[1.0])) {
                *sum += scaled[at] * value;
            }
        }
    }
    if drawn_from.is_none() {
        // A term that no row has costs nothing.
        equations[KEY][KEY] = 1.0;
    }
    let mut costs = Costs { each: solve(equations)?, drawn_from, miss_max: 0.0 };
    let misses = rows().map(|&(shape, bytes)| (costs.bytes(shape) / bytes - 1.0).abs());
    costs.miss_max = misses.fold(0.0, f64::max);
    Some(costs)
}

/// Gauss's elimination with the largest pivot; none when an unknown is not determined.
fn solve(mut equations: [[f64; TERMS + 1]; TERMS]) -> Option<[f64; TERMS]> {
    // The unknowns differ by orders of magnitude; brought to one size, a pivot near zero means "undetermined".
    let sizes: [f64; TERMS] = std::array::from_fn(|at| equations[at][at].sqrt());
    if sizes.contains(&0.0) {
        return None;
    }
    for (at, equation) in equations.iter_mut().enumerate() {
        for (other, value) in equation.iter_mut().enumerate() {
            *value /= sizes[at] * sizes.get(other).copied().unwrap_or(1.0);
        }
    }
    for at in 0..TERMS {
        let pivot = (at..TERMS).max_by(|&a, &b| equations[a][at].abs().total_cmp(&equations[b][at].abs()))?;
        equations.swap(at, pivot);
        if equations[at][at].abs() < 1e-9 {
            return None;
        }
        let row = equations[at];
        for (_, equation) in equations.iter_mut().enumerate().filter(|(other, _)| *other != at) {
            let factor = equation[at] / row[at];
            equation.iter_mut().zip(row).for_each(|(value, above)| *value -= factor * above);
        }
    }
    Some(std::array::from_fn(|at| equations[at][TERMS] / equations[at][at] / sizes[at]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::rows::ROWS;

    #[test]
    fn costs_that_made_the_rows_are_found_again() {
        for drawn_from in [None, Some(100_000)] {
            let key = if drawn_from.is_some() { 200.0 } else { 0.0 };
            let made = Costs { each: [13_000.0, 700.0, 16.0, key], drawn_from, miss_max: 0.0 };
            let rows: Vec<_> = ROWS.iter().map(|row| (row.shape, made.bytes(row.shape))).collect();
            let found = fit(&rows, drawn_from).unwrap();
            for (found, made) in found.each.iter().zip(made.each) {
                assert!((found - made).abs() <= made * 1e-6, "{found} for {made}");
            }
            assert!(found.miss_max < 1e-6);
        }
    }

    #[test]
    fn three_rows_tell_three_costs_apart_and_leave_the_keys_out() {
        let made = Costs { each: [13_000.0, 700.0, 16.0, 0.0], drawn_from: None, miss_max: 0.0 };
        let rows: Vec<_> = [0, 6, 12].map(|at| (ROWS[at].shape, made.bytes(ROWS[at].shape))).into();
        let found = fit(&rows, Some(100_000)).unwrap();
        assert_eq!((found.drawn_from, found.each[0].round(), found.each[KEY]), (None, 13_000.0, 0.0));
    }

    #[test]
    fn the_rows_of_the_page_give_other_costs_than_it_prints() {
        // The page prints 17 kB, 18 kB and 350 B, found by hand; those miss its own first row by 29 %, because they leave
        // the empty server out, whose size it does not give. Here the connections carry that: with a constant for the
        // server they would come out at 18 kB. A watching is 269 B to 457 B, by the pair of rows one subtracts.
        // The values expected are those of the same sums done by another program.
        let published = |row: &crate::table::rows::Row| Some((row.shape, row.published? as f64 * 1e6));
        let rows: Vec<_> = ROWS.iter().filter_map(published).collect();
        let found = fit(&rows, None).unwrap();
        assert_eq!(found.each.map(f64::round), [24_915.0, 18_731.0, 286.0, 0.0]);
        assert_eq!((found.miss_max * 1e4).round(), 1_213.0);
        let printed = Costs::published();
        let first = rows[0];
        assert_eq!((printed.bytes(first.0) / first.1).to_string(), "0.707");
    }

    #[test]
    fn rows_that_cannot_tell_a_stream_from_a_connection_give_no_costs() {
        let rows: Vec<_> = ROWS.iter().take(3).map(|row| (row.shape, 1e6)).collect();
        assert_eq!(fit(&rows, None), None);
        assert_eq!(fit(&rows, Some(100_000)), None);
        assert_eq!(fit(&[], Some(100_000)), None);
    }
}
