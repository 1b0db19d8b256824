//! The messages of the API and the table of its methods, as the build script of `tarsier-proto` generates them.
//!
//! Only `service/` names them: it turns wire values into core types once, and nothing below it knows a field number.

pub use tarsier_proto::*;
