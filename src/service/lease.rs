//! Lease: requests to commands, and answers to messages.
//!
//! Four calls have one request and one answer. LeaseKeepAlive goes on: each request has one answer, in their order, and one
//! is at the backend at a time, so a stream holds no more than the answers that its peer has not taken. When the peer
//! half-closes, the call ends behind the last answer, unlike a watch (etcd: `leaseKeepAlive` returns at `io.EOF`).

use bytes::Bytes;
use prost::Message;

use crate::backend::{Command, Identity, LeaseAnswer, LeaseCommand, LeaseOutcome};
use crate::grpc::status::Status;
use crate::lease::Standing;
use crate::pb::etcdserverpb as wire;
use crate::service::errors::{malformed_message, response_too_large};
use crate::service::kv::encode::MESSAGE_BYTES_MAX;
use crate::service::message::{framed, header, parse};
use crate::types::{Lease, LeaseId};

/// What a stream of keep-alives holds for a peer that does not read before it hears no further requests.
const ANSWERS_BYTES_MAX: usize = 4 << 10;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LeaseMethod {
    Grant,
    Revoke,
    KeepAlive,
    TimeToLive,
    Leases,
}

impl LeaseMethod {
    pub fn of(name: &str) -> Option<LeaseMethod> {
        Some(match name {
            "LeaseGrant" => LeaseMethod::Grant,
            "LeaseRevoke" => LeaseMethod::Revoke,
            "LeaseKeepAlive" => LeaseMethod::KeepAlive,
            "LeaseTimeToLive" => LeaseMethod::TimeToLive,
            "LeaseLeases" => LeaseMethod::Leases,
            _ => return None,
        })
    }
}

/// The command for the backend.
///
/// # Errors
/// When it is no request of the call. What depends on the leases is judged by the backend.
pub fn decode(method: LeaseMethod, message: Bytes) -> Result<Command, Status> {
    Ok(Command::Lease(match method {
        LeaseMethod::Grant => {
            let wire::LeaseGrantRequest { ttl, id } = parse(message)?;
            LeaseCommand::Grant { id: LeaseId(id), ttl }
        }
        LeaseMethod::Revoke => LeaseCommand::Revoke(LeaseId(parse::<wire::LeaseRevokeRequest>(message)?.id)),
        LeaseMethod::KeepAlive => {
            let request = wire::LeaseKeepAliveRequest::decode(message).map_err(|_| malformed_message())?;
            LeaseCommand::KeepAlive(LeaseId(request.id))
        }
        LeaseMethod::TimeToLive => {
            let wire::LeaseTimeToLiveRequest { id, keys } = parse(message)?;
            LeaseCommand::TimeToLive { id: LeaseId(id), keys }
        }
        LeaseMethod::Leases => {
            parse::<wire::LeaseLeasesRequest>(message)?;
            LeaseCommand::List
        }
    }))
}

/// The message that tells an answer, but for a list: that is a [`Response`](crate::service::kv::encode::Response).
///
/// # Errors
/// When a lease has more keys than gRPC lets etcd send in one message.
pub fn encode(answer: LeaseAnswer, identity: Identity) -> Result<Bytes, Status> {
    let header = header(identity, answer.revision);
    Ok(match answer.outcome {
        LeaseOutcome::Granted(Lease { id, ttl }) => {
            framed(&wire::LeaseGrantResponse { header, id: id.0, ttl, error: String::new() })
        }
        LeaseOutcome::Revoked => framed(&wire::LeaseRevokeResponse { header }),
        LeaseOutcome::KeptAlive { id, ttl } => {
            framed(&wire::LeaseKeepAliveResponse { header, id: id.0, ttl: ttl.unwrap_or_default() })
        }
        LeaseOutcome::TimeToLive { id, standing, keys } => {
            // etcd says so of a lease that is not there.
            let Standing { remaining, granted } = standing.unwrap_or(Standing { remaining: -1, granted: 0 });
            let (ttl, granted_ttl) = (remaining, granted);
            let message = wire::LeaseTimeToLiveResponse { header, id: id.0, ttl, granted_ttl, keys };
            let bytes = message.encoded_len() as u64;
            if bytes > MESSAGE_BYTES_MAX {
                return Err(response_too_large(bytes, MESSAGE_BYTES_MAX));
            }
            framed(&message)
        }
        LeaseOutcome::List(_) => unreachable!("a list is encoded in pieces"),
    })
}

/// The answers of a stream of keep-alives that its peer has not taken yet, and how it ends.
#[derive(Debug, Default)]
pub struct Answers {
    bytes: Vec<u8>,
    end: Option<Status>,
}

impl Answers {
    pub fn push(&mut self, message: &[u8]) {
        self.bytes.extend_from_slice(message);
    }

    /// The first end counts.
    pub fn end(&mut self, status: Status) {
        self.end.get_or_insert(status);
    }

    /// Whether there is room for the answer to a further request.
    pub fn has_room(&self) -> bool {
        self.bytes.len() < ANSWERS_BYTES_MAX && self.end.is_none()
    }

    pub fn take(&mut self) -> Option<Bytes> {
        (!self.bytes.is_empty()).then(|| std::mem::take(&mut self.bytes).into())
    }

    /// Once nothing is left to take.
    pub fn take_end(&mut self) -> Option<Status> {
        self.end.take()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::backend::Reply;
    use crate::net::{CallId, Output};
    use crate::service::errors::{Refusal, malformed_request};
    use crate::service::{Limits, Member, Method, Services};
    use crate::store::command::Error;
    use crate::types::Revision;

    const IDENTITY: Identity = Identity { cluster_id: 3, member_id: 7, raft_term: 2 };
    const NAMES: [&str; 5] = ["LeaseGrant", "LeaseRevoke", "LeaseKeepAlive", "LeaseTimeToLive", "LeaseLeases"];

    fn told<M: Message + Default>(outcome: LeaseOutcome) -> M {
        let bytes = encode(LeaseAnswer { revision: Revision(4), outcome }, IDENTITY).expect("it is short");
        M::decode(&bytes[5..]).expect("a whole message")
    }

    #[test]
    fn a_lease_that_is_not_there_has_minus_one_second_left_and_is_kept_alive_for_none() {
        let id = LeaseId(-5);
        let left: wire::LeaseTimeToLiveResponse =
            told(LeaseOutcome::TimeToLive { id, standing: None, keys: Vec::new() });
        assert_eq!((left.id, left.ttl, left.granted_ttl), (-5, -1, 0));
        let kept: wire::LeaseKeepAliveResponse = told(LeaseOutcome::KeptAlive { id, ttl: None });
        assert_eq!((kept.id, kept.ttl, kept.header.map(|header| header.revision)), (-5, 0, Some(4)));
    }

    #[test]
    fn what_is_no_request_is_refused() {
        for name in NAMES {
            let method = LeaseMethod::of(name).expect("a method");
            let words = if method == LeaseMethod::KeepAlive { malformed_message() } else { malformed_request() };
            assert_eq!(decode(method, Bytes::from_static(&[0x0f])).map(drop), Err(words), "{name}");
        }
    }

    #[test]
    fn a_stream_that_is_refused_hears_no_more_and_tells_what_was_answered_before() {
        let member = Member { name: String::new(), peer_urls: Vec::new(), client_urls: Vec::new() };
        let mut services = Services::new(IDENTITY, Arc::new(member), Limits::default(), Revision::FIRST);
        let handle = services.open(CallId { connection: 1, stream: 1 }, Method::Lease(LeaseMethod::KeepAlive));
        let request = || Bytes::from(wire::LeaseKeepAliveRequest { id: 7 }.encode_to_vec());
        assert!(services.request(handle, request()).is_some() && !services.can_take_requests(handle));
        let outcome = LeaseOutcome::KeptAlive { id: LeaseId(7), ttl: Some(60) };
        services.reply(handle, Reply::Lease(LeaseAnswer { revision: Revision(4), outcome }));
        assert!(services.can_take_requests(handle), "the first answer is not taken yet, and there is room for more");
        assert!(services.request(handle, request()).is_some());
        services.reply(handle, Reply::Answer(Err(Error::LogRefused)));
        assert!(!services.can_take_requests(handle));
        assert!(matches!(services.output(handle, 1 << 14), Output::Bytes(bytes) if !bytes.is_empty()));
        let end = services.output(handle, 1 << 14);
        assert!(matches!(end, Output::End(status) if status == Refusal::LogRefused.into()));
        assert_eq!(services.bytes().0, 0, "the call is over");
    }

    #[test]
    fn what_answers_take_is_counted_until_their_peer_has_taken_them_or_gone() {
        let member = Member { name: String::new(), peer_urls: Vec::new(), client_urls: Vec::new() };
        let mut services = Services::new(IDENTITY, Arc::new(member), Limits::default(), Revision(1));
        let keys = vec![crate::types::Key::from_static(b"a key of a lease"); 1_000];
        let (id, standing) = (LeaseId(7), Some(Standing { remaining: 1, granted: 2 }));
        for method in [LeaseMethod::TimeToLive, LeaseMethod::Leases] {
            for is_taken in [true, false] {
                let handle = services.open(CallId { connection: 1, stream: 1 }, Method::Lease(method));
                services.request(handle, Bytes::new());
                let outcome = match method {
                    LeaseMethod::Leases => LeaseOutcome::List(vec![id; 1_000]),
                    _ => LeaseOutcome::TimeToLive { id, standing, keys: keys.clone() },
                };
                services.reply(handle, Reply::Lease(LeaseAnswer { revision: Revision(4), outcome }));
                assert!(services.scratch_bytes() > 8_000, "{method:?}");
                if is_taken {
                    while !matches!(services.output(handle, 1 << 10), Output::Last(_)) {}
                } else {
                    services.closed(handle);
                    while services.has_work() {
                        services.turn();
                    }
                }
                assert_eq!((services.scratch_bytes(), services.bytes().0), (0, 0), "{method:?}");
            }
        }
    }

    #[test]
    fn a_peer_that_does_not_read_is_not_heard_and_hears_every_answer_before_the_end() {
        let mut answers = Answers::default();
        let mut pushed = 0;
        while answers.has_room() {
            answers.push(&[7; 30]);
            pushed += 30;
        }
        assert!(pushed < ANSWERS_BYTES_MAX + 30);
        answers.end(Status::ok());
        assert_eq!(answers.take().map(|bytes| bytes.len()), Some(pushed));
        assert!(answers.take().is_none() && !answers.has_room());
        assert_eq!(answers.take_end(), Some(Status::ok()));
    }
}
