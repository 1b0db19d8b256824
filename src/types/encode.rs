//! Event and KeyValue to bytes by hand.
