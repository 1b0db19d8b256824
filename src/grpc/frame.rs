//! Length-prefixed messages out of and into chunks.
