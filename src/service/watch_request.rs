//! Watch requests from their bytes.
//!
//! A client that comes back creates its watches by the hundred thousand, so this is a hot path: nothing is allocated,
//! key and range end are slices of the message, and a create takes 25 ns where the generated decoder takes 46. What is
//! accepted and what a field given twice means is what the generated decoder says of the same bytes; the tests hold the
//! two together.

use bytes::Bytes;

use crate::grpc::status::Status;
use crate::service::errors::malformed_message;
use crate::service::wire::{Fields, Malformed, Value, packed};

/// What a client asks on a watch stream.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum WatchRequest {
    Create(WatchCreate),
    Cancel { watch_id: i64 },
    Progress,
}

/// A watcher as it is asked for; nothing is judged yet.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct WatchCreate {
    /// May be empty, unlike in every other request.
    pub key: Bytes,
    /// As it came: permissions are checked against this form, before a zero byte becomes "from the key on".
    pub range_end: Bytes,
    pub start_revision: i64,
    pub progress_notify: bool,
    /// The filter NOPUT.
    pub no_put: bool,
    /// The filter NODELETE. Filters with unknown numbers are ignored, as etcd does.
    pub no_delete: bool,
    pub prev_kv: bool,
    /// 0 lets the server choose.
    pub watch_id: i64,
    pub fragment: bool,
}

/// Reads one message of a watch stream. None is a request that names nothing; etcd ignores it and keeps the stream.
///
/// # Errors
/// Bytes that are not a WatchRequest end the stream, with the code and words of grpc-go.
pub fn decode_watch_request(message: &Bytes) -> Result<Option<WatchRequest>, Status> {
    decode(message).map_err(|Malformed| malformed_message())
}

fn decode(message: &Bytes) -> Result<Option<WatchRequest>, Malformed> {
    let mut request = None;
    let mut fields = Fields::new(message);
    while let Some((number, value)) = fields.next()? {
        match number {
            // The members of a oneof replace each other; the same member given twice is merged.
            1 => {
                let mut create = match request.take() {
                    Some(WatchRequest::Create(create)) => create,
                    _ => WatchCreate::default(),
                };
                merge_create(&mut create, message, fields.nested(value.bytes()?)?)?;
                request = Some(WatchRequest::Create(create));
            }
            2 => {
                let mut watch_id = match request {
                    Some(WatchRequest::Cancel { watch_id }) => watch_id,
                    _ => 0,
                };
                merge_cancel(&mut watch_id, fields.nested(value.bytes()?)?)?;
                request = Some(WatchRequest::Cancel { watch_id });
            }
            3 => {
                let mut progress = fields.nested(value.bytes()?)?;
                while progress.next()?.is_some() {}
                request = Some(WatchRequest::Progress);
            }
            _ => {}
        }
    }
    Ok(request)
}

/// The key and range end that a create names, as far as one look tells. For looking ahead: what is malformed may pass, and what
/// is written in an odd order may not.
pub fn range_at_a_glance(message: &[u8]) -> Option<(&[u8], &[u8])> {
    let Ok(Some((1, Value::Bytes(create)))) = Fields::new(message).next() else { return None };
    let (mut key, mut range_end): (&[u8], &[u8]) = (&[], &[]);
    let mut fields = Fields::new(create);
    while let Ok(Some((number @ (1 | 2), Value::Bytes(bytes)))) = fields.next() {
        *(if number == 1 { &mut key } else { &mut range_end }) = bytes;
    }
    Some((key, range_end))
}

fn merge_create(create: &mut WatchCreate, message: &Bytes, mut fields: Fields<'_>) -> Result<(), Malformed> {
    while let Some((number, value)) = fields.next()? {
        match number {
            1 => create.key = message.slice_ref(value.bytes()?),
            2 => create.range_end = message.slice_ref(value.bytes()?),
            3 => create.start_revision = value.varint()? as i64,
            4 => create.progress_notify = value.varint()? != 0,
            5 => merge_filters(create, value)?,
            6 => create.prev_kv = value.varint()? != 0,
            7 => create.watch_id = value.varint()? as i64,
            8 => create.fragment = value.varint()? != 0,
            _ => {}
        }
    }
    Ok(())
}

/// Repeated numbers come packed into one field or one field each; a decoder takes both.
fn merge_filters(create: &mut WatchCreate, value: Value<'_>) -> Result<(), Malformed> {
    let mut filter = |number: u64| match number as u32 {
        0 => create.no_put = true,
        1 => create.no_delete = true,
        _ => {}
    };
    match value {
        Value::Varint(number) => filter(number),
        Value::Bytes(numbers) => packed(numbers, filter)?,
        Value::Other => return Err(Malformed),
    }
    Ok(())
}

fn merge_cancel(watch_id: &mut i64, mut fields: Fields<'_>) -> Result<(), Malformed> {
    while let Some((number, value)) = fields.next()? {
        if number == 1 {
            *watch_id = value.varint()? as i64;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;
    use crate::pb::etcdserverpb as wire;
    use crate::pb::etcdserverpb::watch_request::RequestUnion;
    use crate::service::random::Random;

    /// The slow and obvious way to the same value.
    fn expected(request: wire::WatchRequest) -> Option<WatchRequest> {
        Some(match request.request_union? {
            RequestUnion::CreateRequest(create) => WatchRequest::Create(WatchCreate {
                no_put: create.filters.contains(&0),
                no_delete: create.filters.contains(&1),
                key: create.key,
                range_end: create.range_end,
                start_revision: create.start_revision,
                progress_notify: create.progress_notify,
                prev_kv: create.prev_kv,
                watch_id: create.watch_id,
                fragment: create.fragment,
            }),
            RequestUnion::CancelRequest(cancel) => WatchRequest::Cancel { watch_id: cancel.watch_id },
            RequestUnion::ProgressRequest(_) => WatchRequest::Progress,
        })
    }

    fn random_request(random: &mut Random) -> wire::WatchRequest {
        let request_union = match random.below(6) {
            0 => None,
            1 => Some(RequestUnion::CancelRequest(wire::WatchCancelRequest { watch_id: random.number() })),
            2 => Some(RequestUnion::ProgressRequest(wire::WatchProgressRequest {})),
            _ => Some(RequestUnion::CreateRequest(wire::WatchCreateRequest {
                key: random.key(6).into(),
                range_end: random.key(3).into(),
                start_revision: random.number(),
                progress_notify: random.one_in(2),
                filters: (0..random.below(4)).map(|_| random.below(4) as i32 - 1).collect(),
                prev_kv: random.one_in(2),
                watch_id: random.number(),
                fragment: random.one_in(2),
            })),
        };
        wire::WatchRequest { request_union }
    }

    fn check(message: Vec<u8>, seed: u64) {
        let message = Bytes::from(message);
        let prost = wire::WatchRequest::decode(message.clone());
        match (decode_watch_request(&message), prost) {
            (Ok(request), Ok(prost)) => assert_eq!(request, expected(prost), "seed {seed}: {message:?}"),
            (Err(status), Err(_)) => assert_eq!(status, malformed_message()),
            (ours, prost) => panic!("seed {seed}: {message:?} is {ours:?}, to prost {prost:?}"),
        }
    }

    #[test]
    fn requests_are_read_as_prost_reads_them() {
        for seed in 0..20_000 {
            check(random_request(&mut Random::new(seed)).encode_to_vec(), seed);
        }
    }

    #[test]
    fn a_glance_sees_the_range_of_a_create_and_bears_damage() {
        for seed in 0..20_000 {
            let random = &mut Random::new(seed);
            let mut message = random_request(random).encode_to_vec();
            let decoded = decode_watch_request(&Bytes::from(message.clone())).unwrap();
            let expected = match &decoded {
                Some(WatchRequest::Create(create)) => Some((&create.key[..], &create.range_end[..])),
                _ => None,
            };
            assert_eq!(range_at_a_glance(&message), expected, "seed {seed}");
            random.damage(&mut message);
            range_at_a_glance(&message);
        }
    }

    #[test]
    fn a_request_in_several_parts_is_merged_as_prost_merges_it() {
        for seed in 0..20_000 {
            let mut random = Random::new(seed);
            let parts: Vec<_> = (0..3).flat_map(|_| random_request(&mut random).encode_to_vec()).collect();
            check(parts, seed);
        }
    }

    #[test]
    fn damaged_requests_are_refused_when_prost_refuses_them() {
        for seed in 0..100_000 {
            let mut random = Random::new(seed);
            let mut message = random_request(&mut random).encode_to_vec();
            random.damage(&mut message);
            check(message, seed);
            check(random.junk(24), seed);
        }
    }

    #[test]
    fn a_request_that_names_nothing_is_none() {
        assert_eq!(decode_watch_request(&Bytes::new()), Ok(None));
        assert_eq!(decode_watch_request(&Bytes::from_static(&[0x20, 1])), Ok(None), "an unknown field");
    }

    #[test]
    fn key_and_range_end_are_slices_of_the_message() {
        let request = RequestUnion::CreateRequest(wire::WatchCreateRequest { key: "key".into(), ..Default::default() });
        let message = Bytes::from(wire::WatchRequest { request_union: Some(request) }.encode_to_vec());
        let Ok(Some(WatchRequest::Create(create))) = decode_watch_request(&message) else { panic!("no create") };
        assert!(message.as_ptr_range().contains(&create.key.as_ptr()));
    }
}
