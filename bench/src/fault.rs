//! What can go wrong between this client and a server, each as one clear sentence.

use std::fmt;
use std::time::Duration;

use crate::wire::Malformed;

/// For what a server that works does within seconds. One that says nothing for so long has stopped answering, and a run that
/// went on waiting would have no end.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Why a run cannot go on.
#[derive(Debug)]
pub enum Fault {
    Connect {
        endpoint: String,
        cause: std::io::Error,
    },
    /// The peer does not speak HTTP/2, or broke the connection or a stream.
    Http {
        endpoint: String,
        cause: h2::Error,
    },
    /// The connection ended without an error.
    Closed {
        endpoint: String,
    },
    /// A call ended with a status that is not OK.
    Status {
        path: &'static str,
        code: String,
        message: String,
    },
    /// An HTTP answer that is not gRPC.
    NotGrpc {
        endpoint: String,
        status: http::StatusCode,
    },
    /// A call ended OK where an answer was due.
    NoAnswer {
        path: &'static str,
    },
    Malformed {
        path: &'static str,
        cause: Malformed,
    },
    /// The server ended a watch that nobody canceled.
    Canceled {
        watch: u64,
        reason: String,
    },
    /// Creates are answered in order with ids counted from 0; this one was not.
    WatchId {
        expected: i64,
        found: i64,
    },
    /// Nothing moved for too long.
    Stalled {
        waiting_for: String,
        seconds: u64,
    },
    /// Anything about this machine or the arguments.
    Refused(String),
    /// The server did not do what it had promised.
    Broken(String),
    /// The server's process is gone.
    ServerDied(String),
}

pub type Result<T> = std::result::Result<T, Fault>;

/// What comes of the work, or that it took too long. Dropping the work ends it.
pub async fn within<T>(
    patience: Duration,
    waiting_for: impl fmt::Display,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    let late = |_| Fault::Stalled { waiting_for: waiting_for.to_string(), seconds: patience.as_secs() };
    tokio::time::timeout(patience, work).await.map_err(late)?
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Connect { endpoint, cause } => write!(f, "no connection to {endpoint}: {cause}"),
            // Only bytes of another protocol make h2 find a frame of an impossible size.
            Fault::Http { endpoint, cause }
                if cause.is_library() && cause.reason() == Some(h2::Reason::FRAME_SIZE_ERROR) =>
            {
                write!(f, "what answers at {endpoint} does not speak HTTP/2, so it is no etcd ({cause})")
            }
            Fault::Http { endpoint, cause } => write!(f, "the HTTP/2 connection to {endpoint} failed: {cause}"),
            Fault::Closed { endpoint } => write!(f, "{endpoint} closed a connection that was in use"),
            Fault::Status { path, code, message } => write!(f, "{path} ended with status {code}: {message}"),
            Fault::NotGrpc { endpoint, status } => write!(f, "{endpoint} answered HTTP {status}; it is no gRPC server"),
            Fault::NoAnswer { path } => write!(f, "{path} ended without an answer"),
            Fault::Malformed { path, cause } => write!(f, "the answer to {path} is malformed: {}", cause.0),
            Fault::Canceled { watch, reason } => write!(f, "the server canceled watch {watch}: {reason}"),
            Fault::WatchId { expected, found } => {
                write!(f, "a watch was created with id {found} where {expected} was due")
            }
            Fault::Stalled { waiting_for, seconds } => {
                write!(f, "nothing moved for {seconds} s; missing: {waiting_for}")
            }
            Fault::Refused(text) | Fault::Broken(text) | Fault::ServerDied(text) => f.write_str(text),
        }
    }
}
