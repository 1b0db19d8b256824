//! What the kernel says of this process: its command line and descriptors.

use rustix::process::{Resource, getrlimit};

/// The command line. No flag carries a secret.
pub fn arguments() -> Vec<String> {
    std::env::args_os().map(|argument| argument.to_string_lossy().into_owned()).collect()
}

/// How many descriptors the process may have open.
pub fn descriptors_max() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}
