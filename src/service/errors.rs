//! The one table from what is refused to the code and the words that clients hear.
//!
//! Clients match on the exact text (the Go client and jetcd look the whole message up, Patroni and kube-apiserver
//! compare it), so the texts are part of the API and stand here literally, as etcd sends them. The layers below name
//! causes; no other file turns a cause into words. Texts that gRPC itself sends are grpc-go's, since that is what
//! stands in front of etcd.

use std::fmt;

use crate::grpc::status::{Code, Status};
use crate::pb;
use crate::store::command::Error;

/// Why a request is refused, one for each row of etcd's table that a single node can say.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Refusal {
    EmptyKey,
    /// A put that keeps the value or lease of a key that is not there, and also an operation of a transaction that
    /// names no request.
    KeyNotFound,
    ValueProvided,
    LeaseProvided,
    TooManyOps,
    DuplicateKey,
    InvalidClientApiVersion,
    InvalidSortOption,
    Compacted,
    FutureRevision,
    NoSpace,
    LeaseNotFound,
    LeaseExists,
    LeaseTtlTooLarge,
    WatchCanceled,
    RequestTooLarge,
    Corrupt,
    /// Ours: etcd ends its process when the log cannot be written. A client tries another server, or again later.
    LogRefused,
    /// Ours: the memory budget. etcd meets the OOM killer.
    NoMemory,
    /// Ours, of a code that etcd's clients give to their callers: they would try again after some milliseconds if it were
    /// UNAVAILABLE.
    NoStreamMemory,
    /// The same for a lock, a campaign or an observer, and for whatever a connection asks beside a hundred open calls.
    NoCallMemory,
    /// Ours: each alarm costs memory and a look at every write.
    TooManyAlarms,
    RootUserNotExist,
    RootRoleNotExist,
    UserAlreadyExist,
    UserEmpty,
    UserNotFound,
    RoleAlreadyExist,
    RoleNotFound,
    RoleEmpty,
    AuthFailed,
    PermissionNotGiven,
    PermissionDenied,
    RoleNotGranted,
    PermissionNotGranted,
    AuthNotEnabled,
    InvalidAuthToken,
    InvalidAuthManagement,
    AuthOldRevision,
    MemberExist,
    PeerUrlExist,
    MemberBadUrls,
    MemberNotFound,
    MemberNotLearner,
    /// On the wire its code is 2, though etcd's own table says 9: there it loses its status on the way.
    NotEnoughStartedMembers,
    /// A number that names no action.
    UnknownMethod,
    NotLeader,
    BadLeaderTransferee,
    Stopped,
    Timeout,
    Canceled,
    WrongDowngradeVersionFormat,
    InvalidDowngradeTargetVersion,
    NoInflightDowngrade,
}

impl Refusal {
    /// The code and the text, as in etcd's `rpctypes`.
    pub const fn row(self) -> (Code, &'static str) {
        use Code::*;
        match self {
            Refusal::EmptyKey => (InvalidArgument, "etcdserver: key is not provided"),
            Refusal::KeyNotFound => (InvalidArgument, "etcdserver: key not found"),
            Refusal::ValueProvided => (InvalidArgument, "etcdserver: value is provided"),
            Refusal::LeaseProvided => (InvalidArgument, "etcdserver: lease is provided"),
            Refusal::TooManyOps => (InvalidArgument, "etcdserver: too many operations in txn request"),
            Refusal::DuplicateKey => (InvalidArgument, "etcdserver: duplicate key given in txn request"),
            Refusal::InvalidClientApiVersion => (InvalidArgument, "etcdserver: invalid client api version"),
            Refusal::InvalidSortOption => (InvalidArgument, "etcdserver: invalid sort option"),
            Refusal::Compacted => (OutOfRange, "etcdserver: mvcc: required revision has been compacted"),
            Refusal::FutureRevision => (OutOfRange, "etcdserver: mvcc: required revision is a future revision"),
            Refusal::NoSpace => (ResourceExhausted, "etcdserver: mvcc: database space exceeded"),
            Refusal::LeaseNotFound => (NotFound, "etcdserver: requested lease not found"),
            Refusal::LeaseExists => (FailedPrecondition, "etcdserver: lease already exists"),
            Refusal::LeaseTtlTooLarge => (OutOfRange, "etcdserver: too large lease TTL"),
            Refusal::WatchCanceled => (Canceled, "etcdserver: watch canceled"),
            Refusal::RequestTooLarge => (InvalidArgument, "etcdserver: request is too large"),
            Refusal::Corrupt => (DataLoss, "etcdserver: corrupt cluster"),
            Refusal::NoStreamMemory => (ResourceExhausted, "tarsier: no memory for a further watch stream"),
            Refusal::NoCallMemory => (ResourceExhausted, "tarsier: no memory for a further call"),
            Refusal::NoMemory => (ResourceExhausted, "tarsier: no memory for so large a range, ask for less at a time"),
            Refusal::TooManyAlarms => (ResourceExhausted, "tarsier: too many alarms are active, disarm some"),
            Refusal::LogRefused => {
                (Unavailable, "etcdserver: the disk refuses writes, only reads and watches are served until a restart")
            }
            Refusal::RootUserNotExist => (FailedPrecondition, "etcdserver: root user does not exist"),
            Refusal::RootRoleNotExist => (FailedPrecondition, "etcdserver: root user does not have root role"),
            Refusal::UserAlreadyExist => (FailedPrecondition, "etcdserver: user name already exists"),
            Refusal::UserEmpty => (InvalidArgument, "etcdserver: user name is empty"),
            Refusal::UserNotFound => (FailedPrecondition, "etcdserver: user name not found"),
            Refusal::RoleAlreadyExist => (FailedPrecondition, "etcdserver: role name already exists"),
            Refusal::RoleNotFound => (FailedPrecondition, "etcdserver: role name not found"),
            Refusal::RoleEmpty => (InvalidArgument, "etcdserver: role name is empty"),
            Refusal::AuthFailed => (InvalidArgument, "etcdserver: authentication failed, invalid user ID or password"),
            Refusal::PermissionNotGiven => (InvalidArgument, "etcdserver: permission not given"),
            Refusal::PermissionDenied => (PermissionDenied, "etcdserver: permission denied"),
            Refusal::RoleNotGranted => (FailedPrecondition, "etcdserver: role is not granted to the user"),
            Refusal::PermissionNotGranted => (FailedPrecondition, "etcdserver: permission is not granted to the role"),
            Refusal::AuthNotEnabled => (FailedPrecondition, "etcdserver: authentication is not enabled"),
            Refusal::InvalidAuthToken => (Unauthenticated, "etcdserver: invalid auth token"),
            Refusal::InvalidAuthManagement => (InvalidArgument, "etcdserver: invalid auth management"),
            Refusal::AuthOldRevision => (InvalidArgument, "etcdserver: revision of auth store is old"),
            Refusal::MemberExist => (FailedPrecondition, "etcdserver: member ID already exist"),
            Refusal::PeerUrlExist => (FailedPrecondition, "etcdserver: Peer URLs already exists"),
            Refusal::MemberBadUrls => (InvalidArgument, "etcdserver: given member URLs are invalid"),
            Refusal::MemberNotFound => (NotFound, "etcdserver: member not found"),
            Refusal::MemberNotLearner => (FailedPrecondition, "etcdserver: can only promote a learner member"),
            Refusal::NotEnoughStartedMembers => {
                (Unknown, "etcdserver: re-configuration failed due to not enough started members")
            }
            Refusal::UnknownMethod => (Unknown, "etcdserver: unknown method"),
            Refusal::NotLeader => (FailedPrecondition, "etcdserver: not leader"),
            Refusal::BadLeaderTransferee => (FailedPrecondition, "etcdserver: bad leader transferee"),
            Refusal::Stopped => (Unavailable, "etcdserver: server stopped"),
            Refusal::Timeout => (Unavailable, "etcdserver: request timed out"),
            Refusal::Canceled => (Canceled, "etcdserver: request canceled"),
            Refusal::WrongDowngradeVersionFormat => {
                (InvalidArgument, "etcdserver: wrong downgrade target version format")
            }
            Refusal::InvalidDowngradeTargetVersion => (InvalidArgument, "etcdserver: invalid downgrade target version"),
            Refusal::NoInflightDowngrade => (FailedPrecondition, "etcdserver: no inflight downgrade job"),
        }
    }
}

impl fmt::Display for Refusal {
    /// The text alone, as the `cancel_reason` of a watch has it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.row().1)
    }
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Status {
        let (code, text) = refusal.row();
        Status::new(code, text)
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Refusal {
        match error {
            Error::Compacted { .. } => Refusal::Compacted,
            Error::FutureRevision { .. } => Refusal::FutureRevision,
            Error::KeyNotFound => Refusal::KeyNotFound,
            Error::LeaseNotFound { .. } => Refusal::LeaseNotFound,
            Error::LeaseExists => Refusal::LeaseExists,
            Error::LeaseTtlTooLarge => Refusal::LeaseTtlTooLarge,
            Error::NoSpace => Refusal::NoSpace,
            Error::Corrupt => Refusal::Corrupt,
            Error::LogRefused => Refusal::LogRefused,
            Error::NoMemory => Refusal::NoMemory,
            Error::TooManyAlarms => Refusal::TooManyAlarms,
        }
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Status {
        Refusal::from(error).into()
    }
}

/// etcd has no words of its own for it either: what the disk said reaches the client.
pub fn defragment_failed(reason: String) -> Status {
    Status::new(Code::Unknown, reason)
}

/// A stream of parts is told as it is read.
pub fn no_custom_order() -> Status {
    Status::new(Code::Unimplemented, "RangeStream does not support custom sort orders")
}

pub fn no_revision_filters() -> Status {
    Status::new(Code::Unimplemented, "RangeStream does not support revision filters")
}

/// What a cluster does and a single server cannot.
pub fn single_server(what: &'static str) -> Status {
    Status::new(Code::Unimplemented, format!("tarsier is a single server: {what}"))
}

pub fn missing_leader() -> Status {
    Status::new(Code::Unknown, "\"leader\" field must be provided")
}

pub fn no_leader() -> Status {
    Status::new(Code::Unknown, "election: no leader")
}

pub fn not_leader() -> Status {
    Status::new(Code::Unknown, "election: not leader")
}

/// The key of a waiting lock went with its lease.
pub fn session_expired() -> Status {
    Status::new(Code::Unknown, "mutex: session is expired")
}

pub fn observe_closed_early() -> Status {
    Status::new(Code::Unknown, "election: observe closed early")
}

/// etcd keeps an alarm of any number, and an action of any number ends its process.
pub fn unknown_alarm() -> Status {
    Status::new(Code::InvalidArgument, "etcdserver: unknown alarm action or alarm type")
}

/// The one request of a call is not a message of its type.
pub fn malformed_request() -> Status {
    Status::new(Code::Internal, "grpc: error unmarshalling request: proto: cannot parse invalid wire-format data")
}

/// A message on a stream is not a message of its type; grpc-go has other words for it than for the one request of a
/// call.
pub fn malformed_message() -> Status {
    Status::new(
        Code::Internal,
        "grpc: failed to unmarshal the received message: proto: cannot parse invalid wire-format data",
    )
}

/// A response that is larger than gRPC lets etcd send.
pub fn response_too_large(bytes: u64, bytes_max: u64) -> Status {
    Status::new(
        Code::ResourceExhausted,
        format!("grpc: trying to send message larger than max ({bytes} vs. {bytes_max})"),
    )
}

/// What is answered to a `:path` that nothing serves: grpc-go's words for one that the API does not have, ours for one
/// that it has. Kubernetes falls back to older calls on this code. Authenticate is answered as by an etcd whose auth is off:
/// Go's client with a user and a password asks it first, and goes on over this answer alone.
pub fn unknown_path(path: &str) -> Status {
    if path == "/etcdserverpb.Auth/Authenticate" {
        return Refusal::AuthNotEnabled.into();
    }
    let text = match path.strip_prefix('/').unwrap_or(path).rsplit_once('/') {
        None => format!("malformed method name: {path:?}"),
        Some((service, method)) if pb::method(path).is_some() => {
            format!("tarsier does not serve {service}/{method} yet")
        }
        Some((service, method)) if pb::has_service(service) => format!("unknown method {method} for service {service}"),
        Some((service, _)) => format!("unknown service {service}"),
    };
    Status::new(Code::Unimplemented, text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{LeaseId, Revision};

    #[test]
    fn errors_of_the_store_have_the_codes_and_texts_that_clients_match_on() {
        let said = |error: Error| {
            let status = Status::from(error);
            (status.code as u8, status.message.into_owned())
        };
        let expected = [
            (
                Error::Compacted { asked: 1, compacted: Revision(2) },
                11,
                "etcdserver: mvcc: required revision has been compacted",
            ),
            (
                Error::FutureRevision { asked: 3, current: Revision(2) },
                11,
                "etcdserver: mvcc: required revision is a future revision",
            ),
            (Error::KeyNotFound, 3, "etcdserver: key not found"),
            (Error::LeaseNotFound { lease: LeaseId(9) }, 5, "etcdserver: requested lease not found"),
            (Error::LeaseExists, 9, "etcdserver: lease already exists"),
            (Error::LeaseTtlTooLarge, 11, "etcdserver: too large lease TTL"),
        ];
        for (error, code, text) in expected {
            assert_eq!(said(error), (code, text.to_owned()));
        }
    }

    #[test]
    fn an_unknown_path_says_whether_the_service_or_the_method_is_unknown() {
        let expected = [
            ("/etcdserverpb.KV/Nope", "unknown method Nope for service etcdserverpb.KV"),
            ("/etcdserverpb.Maintenance/Hash", "tarsier does not serve etcdserverpb.Maintenance/Hash yet"),
            ("/etcdserverpb.Nope/Range", "unknown service etcdserverpb.Nope"),
            ("/a/b/c", "unknown service a/b"),
            ("/Range", "malformed method name: \"/Range\""),
        ];
        for (path, text) in expected {
            assert_eq!(unknown_path(path), Status::new(Code::Unimplemented, text));
        }
        let status = unknown_path("/etcdserverpb.Auth/Authenticate");
        assert_eq!(status, Status::new(Code::FailedPrecondition, "etcdserver: authentication is not enabled"));
    }
}
