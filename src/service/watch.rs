//! Watch requests: from the wire to the hub's words.

use bytes::Bytes;

use crate::grpc::status::Status;
use crate::service::watch_request::{WatchCreate, WatchRequest, decode_watch_request, range_at_a_glance};
use crate::types::KeyRange;
use crate::watch::foresight::Foreseen;
use crate::watch::hub::{Create, Request};

/// The request that a message of a watch stream makes; `None` for one that etcd passes over (an empty union).
pub fn request(message: &Bytes) -> Result<Option<Request>, Status> {
    Ok(decode_watch_request(message)?.map(|request| match request {
        WatchRequest::Create(create) => Request::Create(core_create(create)),
        WatchRequest::Cancel { watch_id } => Request::Cancel { watch_id },
        WatchRequest::Progress => Request::Progress,
    }))
}

/// The range that a create is about to name, from its message.
pub fn foreseen(message: &[u8]) -> Option<Foreseen<'_>> {
    let (key, range_end) = range_at_a_glance(message)?;
    Some(Foreseen { key: if key.is_empty() { b"\0" } else { key }, range_end })
}

fn core_create(create: WatchCreate) -> Create {
    // etcd watches the key of one zero byte when none is given; with a range end of one zero byte that is every key.
    let key = if create.key.is_empty() { Bytes::from_static(b"\0") } else { create.key };
    Create {
        range: KeyRange::from_wire(key, create.range_end),
        start: create.start_revision,
        watch_id: create.watch_id,
        no_put: create.no_put,
        no_delete: create.no_delete,
        prev_kv: create.prev_kv,
        progress_notify: create.progress_notify,
        fragment: create.fragment,
    }
}
