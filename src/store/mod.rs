//! The multi-version store.

pub mod command;
