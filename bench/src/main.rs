//! The load generator of tarsier.
fn main() {}
