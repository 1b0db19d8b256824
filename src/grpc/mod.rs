//! gRPC over HTTP/2: length-prefixed messages and the status that ends a call.

pub mod frame;
pub mod status;
