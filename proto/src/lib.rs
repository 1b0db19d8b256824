//! The messages of the etcd v3 API, as Rust types, and the table of its methods.
//!
//! The .proto files beside this crate describe the API in our words; names and numbers are etcd's, and they are all
//! that reaches the wire. The build script compiles them with protox, so nothing but cargo is needed. `bytes` fields
//! are [`bytes::Bytes`]: a decoded key or value is a slice of the buffer that it came in.
//!
//! The modules carry the names of the packages, because those stand in the paths of the methods:
//!
//! | package | services |
//! | --- | --- |
//! | [`etcdserverpb`] | `KV`, `Watch`, `Lease`, `Cluster`, `Maintenance`, `Auth` |
//! | [`v3lockpb`] | `Lock` |
//! | [`v3electionpb`] | `Election` |
//! | [`grpc::health::v1`] | `Health` |
//! | [`mvccpb`], [`authpb`] | none: messages that the others carry |
//!
//! No client or server code is generated: a server looks its calls up in [`METHODS`].

/// Users, roles and permissions.
pub mod authpb {
    include!(concat!(env!("OUT_DIR"), "/authpb.rs"));
}

/// The etcd services and what they carry.
pub mod etcdserverpb {
    include!(concat!(env!("OUT_DIR"), "/etcdserverpb.rs"));
}

/// Keys and events.
pub mod mvccpb {
    include!(concat!(env!("OUT_DIR"), "/mvccpb.rs"));
}

/// Elections on the server's side.
pub mod v3electionpb {
    include!(concat!(env!("OUT_DIR"), "/v3electionpb.rs"));
}

/// Locks on the server's side.
pub mod v3lockpb {
    include!(concat!(env!("OUT_DIR"), "/v3lockpb.rs"));
}

/// What gRPC itself defines for every server.
pub mod grpc {
    pub mod health {
        /// The health check.
        pub mod v1 {
            include!(concat!(env!("OUT_DIR"), "/grpc.health.v1.rs"));
        }
    }
}

/// One RPC, as its `service` declares it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Method {
    /// What stands in the `:path` of a call: `/package.Service/Method`.
    pub path: &'static str,
    pub client_streaming: bool,
    pub server_streaming: bool,
}

/// How many messages go either way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// One request, one response.
    Unary,
    /// One request, any number of responses.
    ServerStream,
    /// Any number of requests, one response.
    ClientStream,
    /// Any number both ways.
    Bidi,
}

impl Method {
    pub const fn kind(&self) -> Kind {
        match (self.client_streaming, self.server_streaming) {
            (false, false) => Kind::Unary,
            (false, true) => Kind::ServerStream,
            (true, false) => Kind::ClientStream,
            (true, true) => Kind::Bidi,
        }
    }

    /// `package.Service`.
    pub fn service(&self) -> &'static str {
        split(self.path).expect("the table holds whole paths").0
    }

    /// The name of the RPC in its service.
    pub fn name(&self) -> &'static str {
        split(self.path).expect("the table holds whole paths").1
    }
}

/// Every RPC of every service, sorted by path.
pub const METHODS: &[Method] = include!(concat!(env!("OUT_DIR"), "/methods.rs"));

/// Service and method of a path. The method is what follows the last slash, as gRPC servers read it.
fn split(path: &str) -> Option<(&str, &str)> {
    path.strip_prefix('/')?.rsplit_once('/')
}

/// The method of this path.
pub fn method(path: &str) -> Option<&'static Method> {
    METHODS.binary_search_by_key(&path, |method| method.path).ok().map(|at| &METHODS[at])
}

/// Whether any path belongs to this service: one word of an error text hangs on it.
pub fn has_service(service: &str) -> bool {
    METHODS.iter().any(|method| method.service() == service)
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    #[test]
    fn the_methods_are_sorted_and_found_by_path() {
        assert!(METHODS.is_sorted_by(|a, b| a.path < b.path));
        for row in METHODS {
            assert_eq!(method(row.path), Some(row));
            assert!(has_service(row.service()));
        }
        assert_eq!(method("/etcdserverpb.KV/Range").map(Method::kind), Some(Kind::Unary));
        assert_eq!(method("/etcdserverpb.KV/RangeStream").map(Method::kind), Some(Kind::ServerStream));
        assert_eq!(method("/etcdserverpb.Watch/Watch").map(Method::kind), Some(Kind::Bidi));
        assert_eq!(method("/etcdserverpb.KV/Rang"), None);
        assert!(!has_service("etcdserverpb.K"));
    }

    #[test]
    fn each_service_has_the_methods_that_etcd_serves() {
        let count = |service| METHODS.iter().filter(|method| method.service() == service).count();
        let expected = [
            ("etcdserverpb.Auth", 17),
            ("etcdserverpb.Cluster", 5),
            ("etcdserverpb.KV", 6),
            ("etcdserverpb.Lease", 5),
            ("etcdserverpb.Maintenance", 8),
            ("etcdserverpb.Watch", 1),
            ("grpc.health.v1.Health", 3),
            ("v3electionpb.Election", 5),
            ("v3lockpb.Lock", 2),
        ];
        for (service, methods) in expected {
            assert_eq!(count(service), methods, "{service}");
        }
        assert_eq!(METHODS.len(), expected.iter().map(|(_, methods)| methods).sum::<usize>());
    }

    #[test]
    fn a_decoded_key_shares_the_buffer_of_its_message() {
        let message: bytes::Bytes =
            etcdserverpb::PutRequest { key: "key".into(), value: "value".into(), ..Default::default() }
                .encode_to_vec()
                .into();
        let request = etcdserverpb::PutRequest::decode(message.clone()).unwrap();
        assert!(message.as_ptr_range().contains(&request.value.as_ptr()));
    }

    #[test]
    fn the_fields_with_odd_numbers_keep_them() {
        let compare = etcdserverpb::Compare { range_end: "z".into(), ..Default::default() };
        assert_eq!(compare.encode_to_vec(), [0x82, 0x04, 1, b'z'], "field 64, length-delimited");
        let response = etcdserverpb::WatchResponse { events: vec![mvccpb::Event::default()], ..Default::default() };
        assert_eq!(response.encode_to_vec(), [0x5a, 0], "field 11, length-delimited");
    }
}
