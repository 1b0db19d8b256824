//! What the server tells of itself in numbers, and the text format of Prometheus that carries them.
//!
//! Values in, text out: `numbers` is the table of what there is, `histogram` how durations are counted, `exposition` the
//! page. Who counts what is the shard's business.
//!
//! The page is written by hand and not with a library: those for Rust (`prometheus-client`) count in atomics of their own
//! behind a registry, add `_total` to the name of every counter, and write OpenMetrics. etcd has counters without that
//! ending and gauges with it, and the boards that read them would find nothing.

pub mod exposition;
pub mod histogram;
pub mod numbers;

pub use exposition::{Facts, Method, Page};
pub use histogram::Histogram;
pub use numbers::{CODES, Number, Numbers, Timing};
