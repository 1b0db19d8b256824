//! The services: wire types to core types and back.
