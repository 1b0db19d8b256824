//! Watch responses to bytes: the prefix of a gRPC message, the head, and events that are encoded already.

use super::outbox::Outbox;
use crate::types::Revision;
use crate::types::encode::{Sink, bytes_len, number_len, varint_len};
use bytes::Bytes;

/// The prefix of a gRPC message: not compressed, and four bytes of length.
const PREFIX_BYTES: usize = 5;
/// Events from this size on are shared by reference instead of copied behind each head.
pub const SHARED_BYTES_MIN: usize = 2_048;

/// `etcdserverpb.WatchResponse`
const HEADER: u8 = 0x0a;
const WATCH_ID: u8 = 0x10;
const CREATED: u8 = 0x18;
const CANCELED: u8 = 0x20;
const COMPACT_REVISION: u8 = 0x28;
const CANCEL_REASON: u8 = 0x32;
const FRAGMENT: u8 = 0x38;
/// The tag of `events`, field 11. Encoded events carry it, so that they can stand behind any head.
pub const EVENTS: u8 = 0x5a;

/// `etcdserverpb.ResponseHeader`
const CLUSTER_ID: u8 = 0x08;
const MEMBER_ID: u8 = 0x10;
const REVISION: u8 = 0x18;
const RAFT_TERM: u8 = 0x20;

/// The ids and the term that stand in every response header.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct HeaderIds {
    pub cluster_id: u64,
    pub member_id: u64,
    pub raft_term: u64,
}

impl HeaderIds {
    /// The encoded header field for one revision; made once for all messages that carry it. Revision 0 is left out, as in
    /// etcd's cancel for a compacted watch.
    pub fn header(&self, revision: Revision) -> Header {
        let numbers = [
            (CLUSTER_ID, self.cluster_id),
            (MEMBER_ID, self.member_id),
            (REVISION, revision.0 as u64),
            (RAFT_TERM, self.raft_term),
        ];
        let length: usize = numbers.iter().map(|(_, number)| number_len(*number)).sum();
        let mut header = Header { bytes: [0; HEADER_BYTES_MAX], length: 0 };
        header.put_byte(HEADER);
        header.put_varint(length as u64);
        for (tag, number) in numbers {
            header.put_number(tag, number);
        }
        header
    }
}

/// Tag and length, and four numbers of eleven bytes at most.
const HEADER_BYTES_MAX: usize = 2 + 4 * 11;

/// An encoded header field.
#[derive(Clone, Copy)]
pub struct Header {
    bytes: [u8; HEADER_BYTES_MAX],
    length: u8,
}

impl Header {
    fn as_slice(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }
}

impl Sink for Header {
    fn put(&mut self, bytes: &[u8]) {
        let start = usize::from(self.length);
        self.bytes[start..start + bytes.len()].copy_from_slice(bytes);
        self.length += bytes.len() as u8;
    }
}

/// Everything of a response but its header revision and its events.
#[derive(Clone, Copy, Default)]
pub struct Head<'a> {
    pub watch_id: i64,
    pub created: bool,
    pub canceled: bool,
    pub compact_revision: i64,
    pub cancel_reason: &'a str,
    pub fragment: bool,
}

impl Head<'_> {
    fn length(&self, header: &Header) -> usize {
        header.as_slice().len()
            + number_len(self.watch_id as u64)
            + number_len(self.created.into())
            + number_len(self.canceled.into())
            + number_len(self.compact_revision as u64)
            + bytes_len(self.cancel_reason.len())
            + number_len(self.fragment.into())
    }

    fn put(&self, out: &mut impl Sink, header: &Header) {
        out.put(header.as_slice());
        out.put_number(WATCH_ID, self.watch_id as u64);
        out.put_number(CREATED, self.created.into());
        out.put_number(CANCELED, self.canceled.into());
        out.put_number(COMPACT_REVISION, self.compact_revision as u64);
        out.put_bytes(CANCEL_REASON, self.cancel_reason.as_bytes());
        out.put_number(FRAGMENT, self.fragment.into());
    }
}

/// Encoded events, each with tag and length, one behind the other.
#[derive(Clone, Copy)]
pub struct Events<'a> {
    pub bytes: &'a [u8],
    /// The same bytes, when there are enough of them to share.
    pub shared: Option<&'a Bytes>,
    /// Events that lie elsewhere, each with its place among the others.
    pub large: &'a [(usize, Bytes)],
    /// Where `bytes` start, by the count of those places.
    pub offset: usize,
}

impl<'a> Events<'a> {
    pub const NONE: Events<'static> = Events { bytes: &[], shared: None, large: &[], offset: 0 };

    pub fn is_empty(self) -> bool {
        self.bytes.is_empty() && self.large.is_empty()
    }

    pub fn length(self) -> usize {
        self.bytes.len() + self.large.iter().map(|(_, event)| event.len()).sum::<usize>()
    }

    /// Whole events, one or several a piece, and what a piece is a part of that can be shared.
    pub fn pieces(self) -> impl Iterator<Item = (&'a [u8], Option<&'a Bytes>)> {
        let between = std::iter::once(self.offset).chain(self.large.iter().map(|(place, _)| *place));
        let ends = self.large.iter().map(|(place, event)| (*place, Some(event)));
        let ends = ends.chain(std::iter::once((self.offset + self.bytes.len(), None)));
        let pieces = between.zip(ends).flat_map(move |(start, (end, event))| {
            let small = &self.bytes[start - self.offset..end - self.offset];
            [(small, self.shared), (event.map_or(&[][..], |event| event), event)]
        });
        pieces.filter(|(bytes, _)| !bytes.is_empty())
    }
}

/// The length of a message has four bytes (gRPC, "Length-Prefixed-Message").
const MESSAGE_BYTES_MAX: usize = u32::MAX as usize;

/// Appends one response. One that is longer than a message can be, which a delete of all that a large store has may be for a
/// watch that asks for previous values, goes in fragments, asked for or not.
pub fn put_response(out: &mut Outbox, header: &Header, head: &Head<'_>, events: Events<'_>) {
    let length = head.length(header) + events.length();
    if length > MESSAGE_BYTES_MAX && !head.fragment {
        return put_fragments(out, header, head.watch_id, events, MESSAGE_BYTES_MAX);
    }
    put_head(out, header, head, length);
    if events.large.is_empty() {
        // The way of every live event.
        put_events(out, events.bytes, events.shared);
    } else {
        events.pieces().for_each(|(bytes, shared)| put_events(out, bytes, shared));
    }
}

/// `length` is that of the message.
fn put_head(out: &mut Outbox, header: &Header, head: &Head<'_>, length: usize) {
    let prefix = u32::try_from(length).expect("one event is far shorter than a message can be");
    let tail = out.tail(PREFIX_BYTES + head.length(header));
    tail.put_byte(0);
    tail.put(&prefix.to_be_bytes());
    head.put(tail, header);
}

fn put_events(out: &mut Outbox, bytes: &[u8], shared: Option<&Bytes>) {
    match shared {
        Some(shared) if bytes.len() >= SHARED_BYTES_MIN => out.share(shared.slice_ref(bytes)),
        _ => out.tail(bytes.len()).put(bytes),
    }
}

/// Appends one response in fragments of less than `bytes_max`, unless it is smaller or has one event only (etcd:
/// `sendFragments`). Each has one event at least; all but the last are marked. They leave one behind the other, because
/// clients drop other watches' messages while they put fragments together.
pub fn put_fragments(out: &mut Outbox, header: &Header, watch_id: i64, events: Events<'_>, bytes_max: usize) {
    let head = Head { watch_id, ..Head::default() };
    let is_one = |(bytes, _): (&[u8], _)| event_end(bytes) == events.length();
    if head.length(header) + events.length() < bytes_max || events.pieces().next().is_none_or(is_one) {
        return put_response(out, header, &head, events);
    }
    let fragment = Head { fragment: true, ..head };
    let head_len = fragment.length(header);
    let (mut parts, mut length) = (Vec::new(), 0);
    for (bytes, shared) in events.pieces() {
        let (mut start, mut end) = (0, 0);
        while end < bytes.len() {
            let event_len = event_end(&bytes[end..]);
            if length > 0 && head_len + length + event_len >= bytes_max {
                parts.push((&bytes[start..end], shared));
                put_parts(out, header, &fragment, length, &mut parts);
                (start, length) = (end, 0);
            }
            end += event_len;
            length += event_len;
        }
        parts.push((&bytes[start..], shared));
    }
    put_parts(out, header, &head, length, &mut parts);
}

/// Appends one response with so many bytes of events, and takes them.
fn put_parts(
    out: &mut Outbox,
    header: &Header,
    head: &Head<'_>,
    length: usize,
    parts: &mut Vec<(&[u8], Option<&Bytes>)>,
) {
    put_head(out, header, head, head.length(header) + length);
    parts.drain(..).for_each(|(bytes, shared)| put_events(out, bytes, shared));
}

/// Where the first of some encoded events ends.
fn event_end(events: &[u8]) -> usize {
    debug_assert_eq!(events[0], EVENTS);
    let mut length = 0;
    for (at, byte) in events[1..].iter().enumerate() {
        length |= u64::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            debug_assert_eq!(varint_len(length), at + 1);
            return at + 2 + length as usize;
        }
    }
    panic!("events are encoded by this crate");
}

/// For a planted bug: where the first event ends, if there are more.
#[cfg(test)]
pub fn first_of_several(events: &[u8]) -> Option<usize> {
    Some(event_end(events)).filter(|end| *end < events.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pb::etcdserverpb::{ResponseHeader, WatchResponse};
    use crate::random::Random;
    use prost::Message;

    #[test]
    fn heads_are_the_bytes_that_prost_writes() {
        let ids = HeaderIds { cluster_id: u64::MAX, member_id: 300, raft_term: 2 };
        let cases = [
            (7, Head { created: true, ..Head::default() }),
            (0, Head { watch_id: 5, canceled: true, compact_revision: 9, ..Head::default() }),
            (i64::MAX, Head { watch_id: -1, created: true, canceled: true, cancel_reason: "why", ..Head::default() }),
            (1, Head { watch_id: i64::MAX, fragment: true, ..Head::default() }),
        ];
        for (revision, head) in cases {
            let mut outbox = Outbox::default();
            put_response(&mut outbox, &ids.header(Revision(revision)), &head, Events::NONE);
            let written = outbox.take(1_000).unwrap();
            let header = ResponseHeader { cluster_id: u64::MAX, member_id: 300, revision, raft_term: 2 };
            let expected = WatchResponse {
                header: Some(header),
                watch_id: head.watch_id,
                created: head.created,
                canceled: head.canceled,
                compact_revision: head.compact_revision,
                cancel_reason: head.cancel_reason.into(),
                fragment: head.fragment,
                events: Vec::new(),
            };
            assert_eq!(&written[PREFIX_BYTES..], expected.encode_to_vec());
            assert_eq!(&written[..PREFIX_BYTES], [&[0], &(written.len() as u32 - 5).to_be_bytes()[..]].concat());
        }
    }

    #[test]
    fn where_fragments_end_does_not_depend_on_where_the_events_lie() {
        let header = HeaderIds::default().header(Revision(9));
        for seed in 0..300 {
            let random = &mut Random::new(seed);
            let (mut all, mut own, mut large) = (Vec::new(), Vec::new(), Vec::new());
            for _ in 0..1 + random.below(8) {
                let mut event = vec![EVENTS];
                let length = random.below(5_000);
                event.put_varint(length);
                event.resize(event.len() + length as usize, 7);
                all.extend_from_slice(&event);
                if random.below(2) == 0 {
                    large.push((own.len(), Bytes::from(event)));
                } else {
                    own.extend_from_slice(&event);
                }
            }
            let bytes_max = 1 + random.below(12_000) as usize;
            let told = |events: Events<'_>| {
                let mut outbox = Outbox::default();
                put_fragments(&mut outbox, &header, 5, events, bytes_max);
                std::iter::from_fn(|| outbox.take(usize::MAX)).flatten().collect::<Vec<u8>>()
            };
            let alike = Events { bytes: &own, large: &large, ..Events::NONE };
            assert!(told(alike) == told(Events { bytes: &all, ..Events::NONE }), "seed {seed}");
        }
    }
}
