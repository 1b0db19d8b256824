//! Short messages: read and written at once and as a whole, with the generated types.

use bytes::{BufMut, Bytes};
use prost::Message;

use crate::backend::Identity;
use crate::grpc::status::Status;
use crate::pb::etcdserverpb as wire;
use crate::service::errors::malformed_request;
use crate::types::Revision;

/// The one request of a call.
///
/// # Errors
/// When it is no message of its type.
pub fn parse<M: Message + Default>(message: Bytes) -> Result<M, Status> {
    M::decode(message).map_err(|_| malformed_request())
}

/// The header of an answer at a revision.
pub fn header(identity: Identity, revision: Revision) -> Option<wire::ResponseHeader> {
    let Identity { cluster_id, member_id, raft_term } = identity;
    Some(wire::ResponseHeader { cluster_id, member_id, revision: revision.0, raft_term })
}

/// The one message of a response, or one of many: no compression, the length, the message.
pub fn framed<M: Message>(message: &M) -> Bytes {
    let mut bytes = Vec::with_capacity(5 + message.encoded_len());
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(message.encoded_len()).expect("no short message has 4 GiB"));
    message.encode_raw(&mut bytes);
    bytes.into()
}
