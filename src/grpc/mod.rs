//! gRPC over HTTP/2: the headers that open a call, length-prefixed messages, and the status that ends it.

pub mod frame;
pub mod head;
pub mod status;
