//! Compiles the .proto files with protox, so that nothing but cargo is needed, and writes the table of methods beside
//! the generated messages.

use std::env;
use std::error::Error;
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use prost_types::FileDescriptorSet;

/// Every file of the API; imports are found below `proto/`.
const FILES: [&str; 11] = [
    "proto/authpb/auth.proto",
    "proto/etcdserverpb/auth.proto",
    "proto/etcdserverpb/cluster.proto",
    "proto/etcdserverpb/header.proto",
    "proto/etcdserverpb/kv.proto",
    "proto/etcdserverpb/lease.proto",
    "proto/etcdserverpb/maintenance.proto",
    "proto/etcdserverpb/watch.proto",
    "proto/grpc/health/v1/health.proto",
    "proto/v3electionpb/election.proto",
    "proto/v3lockpb/lock.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(FILES, ["proto"])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("methods.rs"), methods(&descriptors)?)?;
    // Values go from the socket's buffer into the store by reference, so `bytes` fields are `Bytes`.
    prost_build::Config::new().bytes(["."]).compile_fds(descriptors)?;
    Ok(())
}

/// The source of the method table: one row for each RPC of each service, sorted by path for a binary search.
fn methods(descriptors: &FileDescriptorSet) -> Result<String, Box<dyn Error>> {
    let mut rows = Vec::new();
    for file in &descriptors.file {
        for service in &file.service {
            for method in &service.method {
                let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                rows.push((path, method.client_streaming(), method.server_streaming()));
            }
        }
    }
    rows.sort();
    let mut source = String::from("&[\n");
    for (path, client_streaming, server_streaming) in rows {
        writeln!(
            source,
            "    Method {{ path: {path:?}, client_streaming: {client_streaming}, server_streaming: {server_streaming} }},"
        )?;
    }
    source.push_str("]\n");
    Ok(source)
}
