//! RangeStream: a range in parts, all at one revision.
//!
//! Between two parts a call holds a position: the last key that was told, the revision, how many rows were told. The next
//! part is read once the one before has left, so a client that does not read holds no rows, and one range over everything
//! takes no more memory than a part. Nothing pins the revision meanwhile: a compaction that passes it ends the stream with
//! etcd's refusal, behind what was told already.
//!
//! Parts are cut as etcd cuts them: ten rows at first, then twice or half as many by what the last one weighed. Only the
//! last has a header, and `more` and `count`, which speak of the whole range. To count what a limit leaves out, the part that
//! reaches the limit walks the rest of the range; no other part walks behind its end.

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;

use crate::backend::{Command, Identity};
use crate::grpc::status::Status;
use crate::pb::etcdserverpb as wire;
use crate::service::errors::{malformed_message, no_custom_order, no_revision_filters};
use crate::service::kv::decode::{check_range, range};
use crate::service::kv::encode::Response;
use crate::store::command::{Answer, Outcome, Range, Read, Rows, SortOrder, SortTarget};
use crate::types::{Key, KeyRange, Revision};

const FIRST_PART_ROWS: usize = 10;
/// etcd's `--max-request-bytes`, by which it measures its parts.
const PART_BYTES: u64 = 1_572_864;

/// One call under way.
#[derive(Debug)]
pub struct RangeStream {
    /// What the next part asks for, but for how many rows of it: its range begins behind what was told.
    rest: Range,
    part_rows: usize,
    told: u64,
    /// The newest revision when the first part was read: the last part names it.
    began_at: Option<Revision>,
    is_over: bool,
}

/// Reads the request of a call.
///
/// # Errors
/// When it is no request, and as [`RangeStream::new`].
pub fn decode(message: Bytes) -> Result<RangeStream, Status> {
    let request = wire::RangeRequest::decode(message).map_err(|_| malformed_message())?;
    RangeStream::new(request)
}

impl RangeStream {
    /// # Errors
    /// With what etcd would answer to the request whatever the store holds.
    pub fn new(request: wire::RangeRequest) -> Result<RangeStream, Status> {
        check_range(&request)?;
        let mut rest = range(request)?;
        let is_in_key_order = match rest.order {
            SortOrder::None => true,
            SortOrder::Ascend => rest.target == SortTarget::Key,
            SortOrder::Descend => false,
        };
        if !is_in_key_order {
            return Err(no_custom_order());
        }
        if rest.has_revision_bounds() {
            return Err(no_revision_filters());
        }
        // Without an order a target changes nothing.
        rest.target = SortTarget::Key;
        // Not pieces of the request: a call whose client does not read would keep the buffer that the request came in.
        rest.range = match rest.range {
            KeyRange::One(key) => KeyRange::One(copied(&key)),
            KeyRange::Span { start, end } => KeyRange::Span { start: copied(&start), end: copied(&end) },
            KeyRange::From(start) => KeyRange::From(copied(&start)),
        };
        Ok(RangeStream { rest, part_rows: FIRST_PART_ROWS, told: 0, began_at: None, is_over: false })
    }

    /// Reads the next part.
    pub fn command(&self) -> Command {
        let mut part = self.rest.clone();
        if part.count_only || (part.limit > 0 && part.limit <= self.part_rows) {
            return Command::Read(Read::Range(part));
        }
        part.limit = self.part_rows;
        Command::Read(Read::Part(part))
    }

    /// What it holds, itself included.
    pub fn bytes(&self) -> usize {
        let keys = match &self.rest.range {
            KeyRange::One(key) | KeyRange::From(key) => key.len(),
            KeyRange::Span { start, end } => start.len() + end.len(),
        };
        size_of::<RangeStream>() + keys
    }

    /// Whether the last part has been read.
    pub fn is_over(&self) -> bool {
        self.is_over
    }

    /// The message of the part that was read.
    pub fn part(&mut self, answer: Answer, identity: Identity) -> Response {
        let Outcome::Range(mut rows) = answer.result else { unreachable!("a range was asked") };
        let began_at = *self.began_at.get_or_insert(answer.revision);
        if self.rest.revision <= 0 {
            self.rest.revision = began_at.0;
        }
        let is_limited = self.rest.limit > 0;
        let reached_limit = is_limited && rows.rows.len() == self.rest.limit;
        self.is_over = !rows.more || reached_limit;
        // What was told before is not in the count of a later part.
        let before = self.told;
        self.told += rows.rows.len() as u64;
        if self.is_over {
            rows.count += before;
            return Response::last_part(rows, began_at, identity);
        }
        if is_limited {
            self.rest.limit -= rows.rows.len();
        }
        let last = rows.rows.last().expect("a part that is not the last one has rows");
        self.rest.range = behind(&self.rest.range, last.key());
        Response::part(Rows { more: false, count: 0, ..rows })
    }

    /// How many bytes the last part weighs.
    pub fn weighed(&mut self, bytes: u64) {
        if bytes < PART_BYTES / 2 {
            self.part_rows = self.part_rows.saturating_mul(2);
        } else if bytes > PART_BYTES * 2 {
            self.part_rows = (self.part_rows / 2).max(1);
        }
    }
}

fn copied(key: &Key) -> Key {
    Key::copy_from_slice(key)
}

/// What of a range lies behind a key of it.
fn behind(range: &KeyRange, key: &[u8]) -> KeyRange {
    let mut next = BytesMut::with_capacity(key.len() + 1);
    next.put_slice(key);
    next.put_u8(0);
    let start: Key = Bytes::from(next);
    match range {
        KeyRange::One(_) => unreachable!("a range of one key has one part"),
        KeyRange::Span { end, .. } => KeyRange::Span { start, end: end.clone() },
        KeyRange::From(_) => KeyRange::From(start),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;
    use crate::store::command::{Error, Put, PutLease, PutValue, Write};
    use crate::types::{LeaseId, Time};

    const IDENTITY: Identity = Identity { cluster_id: 1, member_id: 2, raft_term: 3 };

    fn put(store: &mut Store, key: String, value: usize) {
        let (value, lease) = (PutValue::Set(vec![b'v'; value].into()), PutLease::Set(LeaseId::NONE));
        let put = Write::Put(Put { key: key.into(), value, lease, prev_kv: false });
        store.apply(&put, Time(0)).answer.expect("a put");
    }

    fn filled(keys: usize, value: usize) -> Store {
        let mut store = Store::new();
        for at in 0..keys {
            put(&mut store, format!("k{at:05}"), value);
        }
        store
    }

    fn all(limit: i64) -> wire::RangeRequest {
        wire::RangeRequest { key: "k".into(), range_end: "l".into(), limit, ..Default::default() }
    }

    /// The visits of a read, and its answer.
    fn read(store: &Store, command: Command) -> Result<(usize, Answer), Error> {
        let Command::Read(read) = command else { panic!("a read") };
        let mut job = store.read(&read, store.revision())?;
        let mut turns = 1;
        loop {
            match store.step(&mut job, 1) {
                Some(answer) => return answer.map(|answer| (turns, answer)),
                None => turns += 1,
            }
        }
    }

    fn message(mut response: Response) -> wire::RangeResponse {
        assert_eq!(response.prepare(usize::MAX), Ok(true));
        let bytes = response.next(usize::MAX).expect("a message");
        assert!(response.is_finished());
        wire::RangeStreamResponse::decode(&bytes[5..]).expect("a message").range_response.expect("its only field")
    }

    /// Reads a stream to its end; `between` comes before every part.
    fn parts(
        store: &mut Store,
        request: wire::RangeRequest,
        mut between: impl FnMut(&mut Store),
    ) -> Result<Vec<wire::RangeResponse>, Error> {
        let mut stream = RangeStream::new(request).expect("a request");
        let mut parts = Vec::new();
        while !stream.is_over() {
            between(store);
            let (_, answer) = read(store, stream.command())?;
            let response = message(stream.part(answer, IDENTITY));
            stream.weighed(response.encoded_len() as u64);
            parts.push(response);
        }
        Ok(parts)
    }

    #[test]
    fn merged_parts_are_the_range_as_a_whole_whatever_is_written_meanwhile() {
        for keys in [0, 1, 9, 10, 11, 30, 31, 100] {
            for limit in [0, 1, 9, 10, 11, 29, 30, 31, 99, 100, 101] {
                let mut store = filled(keys, 3);
                let revision = store.revision();
                let expected = read(&store, Command::Read(Read::Range(range(all(limit)).expect("a range"))));
                let mut whole = Response::new(expected.expect("a range").1, IDENTITY);
                assert_eq!(whole.prepare(usize::MAX), Ok(true));
                let bytes = whole.next(usize::MAX).expect("a message");
                let whole = wire::RangeResponse::decode(&bytes[5..]).expect("a message");
                let mut written = 0;
                let parts = parts(&mut store, all(limit), |store| {
                    written += 1;
                    // The first part is read before anything is written.
                    if written > 1 {
                        put(store, "k0000".to_owned(), 9);
                        put(store, format!("k9{written}"), 9);
                    }
                });
                let parts = parts.expect("nothing is compacted");
                let mut merged = wire::RangeResponse::default();
                for (at, part) in parts.iter().enumerate() {
                    assert_eq!(part.header.is_some(), at + 1 == parts.len(), "only the last one has a header");
                    merged.kvs.extend(part.kvs.iter().cloned());
                    (merged.header, merged.more, merged.count) = (part.header, part.more, part.count);
                }
                assert_eq!(merged.header.map(|header| header.revision), Some(revision.0));
                assert_eq!(merged, whole, "{keys} keys, limit {limit}");
            }
        }
    }

    #[test]
    fn parts_grow_while_they_are_light_and_shrink_when_they_are_heavy() {
        let sizes = |keys, value| {
            let parts = parts(&mut filled(keys, value), all(0), |_| ()).expect("nothing is compacted");
            parts.iter().map(|part| part.kvs.len()).collect::<Vec<_>>()
        };
        assert_eq!(sizes(200, 1), [10, 20, 40, 80, 50]);
        assert_eq!(sizes(60, 50_000), [10, 20, 20, 10]);
        assert_eq!(sizes(20, 500_000), [10, 5, 5]);
    }

    #[test]
    fn a_part_walks_no_further_than_its_end() {
        let store = filled(10_000, 1);
        let stream = RangeStream::new(all(0)).expect("a request");
        let (turns, _) = read(&store, stream.command()).expect("a part");
        assert!(turns <= FIRST_PART_ROWS + 2, "{turns} visits");
    }

    #[test]
    fn a_compaction_that_passes_its_revision_ends_a_stream() {
        let mut store = filled(30, 1);
        let mut parts_begun = 0;
        let refused = parts(&mut store, all(0), |store| {
            parts_begun += 1;
            if parts_begun == 2 {
                put(store, "k00000".to_owned(), 1);
                let head = store.revision();
                store.apply(&Write::Compact(head), Time(0)).answer.expect("a compaction");
            }
        });
        assert_eq!(refused.err(), Some(Error::Compacted { asked: 31, compacted: Revision(32) }));
        assert_eq!(parts_begun, 2);
    }
}
