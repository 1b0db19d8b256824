//! Answers to bytes.
//!
//! A [`Response`] is one gRPC message, prefix included, that is given away in pieces. The prefix holds the length of
//! the whole, and each nested message that of its own, so the lengths come first: [`Response::prepare`] walks the rows
//! in turns, then [`Response::next`] encodes them in turns. A row is let go as it is encoded, since to drop a million
//! of them at once would stall everybody else on the core. Nothing is built in between: the answer is flattened into
//! items, one for each message that starts or ends and one for each operation's result, and a reply without rows is a
//! single small buffer.
//!
//! Header rules of etcd: ids and term stand in the outermost header only, an operation of a transaction has a header
//! with a revision alone, and a nested transaction one that is present and empty.

use std::cell::Cell;
use std::rc::Rc;
use std::vec;

use bytes::{BufMut, Bytes};
use prost::encoding::{encode_varint, encoded_len_varint};

use crate::backend::Identity;
use crate::grpc::status::Status;
use crate::service::errors::response_too_large;
use crate::store::command::{Answer, Outcome, Rows, Show, TxnOutcome};
use crate::types::{KeyValue, LeaseId, Revision};

/// What gRPC lets etcd send in one message.
pub const MESSAGE_BYTES_MAX: u64 = i32::MAX as u64;

/// The compression flag and the length before each gRPC message.
const PREFIX_BYTES: usize = 5;

/// Length-delimited fields by number: the key on the wire.
const fn message_key(number: u8) -> u8 {
    number << 3 | 2
}

const TXN_RESPONSES: u8 = message_key(3);
const RANGE_ROWS: u8 = message_key(2);
const PUT_PREVIOUS: u8 = message_key(2);
const DELETE_RANGE_PREVIOUS: u8 = message_key(3);
const LEASES: u8 = message_key(2);

/// Everything but a row takes less than this: a header at most 46 bytes, a number 11.
const SMALL_ITEM_BYTES: usize = 64;

/// One response on its way out: prepared in turns, then encoded in turns.
#[derive(Debug)]
pub struct Response {
    items: vec::IntoIter<Item>,
    /// Bytes of the message that are measured and not yet encoded, the gRPC prefix included.
    bytes: u64,
    state: State,
    scratch: Option<Scratch>,
}

/// What a response takes as long as it lives, in a sum that others look at.
#[derive(Debug)]
pub struct Scratch {
    sum: Rc<Cell<usize>>,
    bytes: usize,
}

impl Scratch {
    pub fn new(sum: &Rc<Cell<usize>>, bytes: usize) -> Scratch {
        sum.set(sum.get() + bytes);
        Scratch { sum: Rc::clone(sum), bytes }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        self.sum.set(self.sum.get() - self.bytes);
    }
}

#[derive(Debug)]
enum State {
    /// Which item, and which row of it, is measured next, and the nested messages that are open around it.
    Measuring {
        item: usize,
        row: usize,
        open: Vec<usize>,
    },
    /// The length is known and the prefix not yet written.
    Measured,
    Encoding,
}

/// All responses of the service are the same shape: a header, a number, rows, two numbers. What one of them lacks is 0
/// or empty, and so is not on the wire.
#[derive(Debug)]
enum Item {
    /// A nested message starts: its key, and the length that measuring finds out.
    Open {
        key: u8,
        bytes: u64,
    },
    /// The innermost open message ends.
    Close,
    /// Field 1 of every response; field 2 is `deleted` of a DeleteRangeResponse, `succeeded` of a TxnResponse.
    Head {
        header: Header,
        second: u64,
    },
    Rows {
        key: u8,
        show: Show,
        rows: vec::IntoIter<KeyValue>,
    },
    /// Field 2 of a LeaseLeasesResponse: messages of an id alone.
    Leases(vec::IntoIter<LeaseId>),
    /// Fields 3 and 4 of a RangeResponse.
    Tail {
        more: bool,
        count: u64,
    },
}

#[derive(Clone, Copy, Debug, Default)]
struct Header {
    cluster_id: u64,
    member_id: u64,
    revision: u64,
    raft_term: u64,
}

impl Response {
    pub fn new(answer: Answer, identity: Identity) -> Response {
        let mut items = Vec::with_capacity(3);
        flatten(answer.result, Header::of(identity, answer.revision), &mut items);
        Response::of(items)
    }

    /// A list of all leases.
    pub fn of_leases(leases: Vec<LeaseId>, revision: Revision, identity: Identity) -> Response {
        let header = Header::of(identity, revision);
        Response::of(vec![Item::Head { header, second: 0 }, Item::Leases(leases.into_iter())])
    }

    /// A part of a range that is not the last one: its rows alone.
    pub fn part(rows: Rows) -> Response {
        Response::wrapped(vec![Item::Rows { key: RANGE_ROWS, show: rows.show, rows: rows.rows.into_iter() }])
    }

    /// The last part of a range.
    pub fn last_part(rows: Rows, revision: Revision, identity: Identity) -> Response {
        let mut items = Vec::with_capacity(5);
        flatten(Outcome::Range(rows), Header::of(identity, revision), &mut items);
        Response::wrapped(items)
    }

    /// A message whose only field, the first, is the one that these items make.
    fn wrapped(mut items: Vec<Item>) -> Response {
        items.insert(0, Item::Open { key: message_key(1), bytes: 0 });
        items.push(Item::Close);
        Response::of(items)
    }

    fn of(items: Vec<Item>) -> Response {
        let state = State::Measuring { item: 0, row: 0, open: Vec::new() };
        Response { items: items.into_iter(), bytes: PREFIX_BYTES as u64, state, scratch: None }
    }

    /// Adds what it takes to a sum for as long as it lives: its rows, whose versions are the store's.
    pub fn counted_in(mut self, sum: &Rc<Cell<usize>>) -> Response {
        let rows = self.items.as_slice().iter().map(|item| match item {
            Item::Rows { rows, .. } => rows.len() * size_of::<KeyValue>(),
            Item::Leases(leases) => leases.len() * size_of::<LeaseId>(),
            _ => 0,
        });
        let bytes = rows.sum::<usize>() + self.items.len() * size_of::<Item>();
        self.scratch = Some(Scratch::new(sum, bytes));
        self
    }

    /// Measures some of the message, at most `steps_max` rows and items of it, and says whether that was the rest.
    ///
    /// # Errors
    /// Once the message is known to be larger than gRPC lets etcd send. Then nothing may be encoded; the rows go with
    /// [`Response::discard`].
    pub fn prepare(&mut self, steps_max: usize) -> Result<bool, Status> {
        let State::Measuring { item, row, open } = &mut self.state else { return Ok(true) };
        let items = self.items.as_mut_slice();
        let mut steps_left = steps_max;
        while *item < items.len() {
            if steps_left == 0 {
                return Ok(false);
            }
            let mut ends = true;
            let mut measure = |rows: usize, bytes: &dyn Fn(std::ops::Range<usize>) -> u64| {
                let some = *row..rows.min(row.saturating_add(steps_left));
                *row = some.end;
                ends = *row == rows;
                // One step is counted below for the item itself.
                steps_left -= some.len().saturating_sub(1);
                bytes(some)
            };
            let bytes = match &items[*item] {
                Item::Open { .. } => 0,
                Item::Close => closed_bytes(&items[open.pop().expect("each close has an open item before it")]),
                Item::Head { header, second } => header.field_bytes() + number_bytes(*second),
                Item::Tail { more, count } => number_bytes(u64::from(*more)) + number_bytes(*count),
                Item::Rows { show, rows, .. } => measure(rows.len(), &|some| {
                    rows.as_slice()[some].iter().map(|kv| row_bytes(kv, *show) as u64).sum()
                }),
                Item::Leases(leases) => {
                    measure(leases.len(), &|some| leases.as_slice()[some].iter().map(|id| lease_bytes(*id)).sum())
                }
            };
            match open.last() {
                Some(&around) => grow(&mut items[around], bytes),
                None => self.bytes += bytes,
            }
            steps_left -= 1;
            if ends {
                if matches!(items[*item], Item::Open { .. }) {
                    open.push(*item);
                }
                *item += 1;
                *row = 0;
            }
        }
        let bytes = self.bytes - PREFIX_BYTES as u64;
        if bytes > MESSAGE_BYTES_MAX {
            return Err(response_too_large(bytes, MESSAGE_BYTES_MAX));
        }
        self.state = State::Measured;
        Ok(true)
    }

    /// What is still to be encoded, in bytes. Known once the response is prepared.
    pub fn remaining_bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether all of it is prepared and given away.
    pub fn is_finished(&self) -> bool {
        self.bytes == 0
    }

    /// The next piece of the message; none once all of it is given away. A piece is no longer than `bytes_max`, unless
    /// a single row is, or `bytes_max` is less than a header takes.
    ///
    /// # Panics
    /// When the response is not prepared: its length, which stands at its beginning, is not known then.
    pub fn next(&mut self, bytes_max: usize) -> Option<Bytes> {
        assert!(!matches!(self.state, State::Measuring { .. }), "a response is encoded once it is prepared");
        if self.bytes == 0 {
            return None;
        }
        let capacity = usize::try_from(self.bytes).map_or(bytes_max, |bytes| bytes.min(bytes_max));
        let mut piece = Vec::with_capacity(capacity);
        if matches!(self.state, State::Measured) {
            piece.put_u8(0);
            let bytes = u32::try_from(self.bytes - PREFIX_BYTES as u64).expect("preparing has bounded the length");
            piece.put_u32(bytes);
            self.state = State::Encoding;
        }
        while let Some(item) = self.items.as_mut_slice().first_mut() {
            if !item.encode(&mut piece, bytes_max) {
                break;
            }
            self.items.next();
        }
        self.bytes = self.bytes.checked_sub(piece.len() as u64).expect("no more is encoded than was measured");
        assert!(self.items.len() > 0 || self.bytes == 0, "no less is encoded than was measured");
        Some(piece.into())
    }

    /// Lets go of some of the rows, at most `rows_max` of them, and says whether those were the last. For a client that
    /// goes away: dropping a response drops all that it holds at once.
    pub fn discard(&mut self, rows_max: usize) -> bool {
        let mut left = rows_max;
        self.bytes = 0;
        self.state = State::Encoding;
        while let Some(item) = self.items.as_mut_slice().first_mut() {
            if let Item::Rows { rows, .. } = item {
                left -= rows.by_ref().take(left).map(drop).count();
                if rows.len() > 0 {
                    return false;
                }
            }
            self.items.next();
        }
        true
    }
}

/// Draws an answer out into items. The recursion is as deep as its transactions nest, which `scan` has bounded.
fn flatten(outcome: Outcome, header: Header, items: &mut Vec<Item>) {
    match outcome {
        Outcome::Range(found) => {
            items.push(Item::Head { header, second: 0 });
            items.push(Item::Rows { key: RANGE_ROWS, show: found.show, rows: found.rows.into_iter() });
            items.push(Item::Tail { more: found.more, count: found.count });
        }
        Outcome::Put { previous } => {
            items.push(Item::Head { header, second: 0 });
            if let Some(previous) = previous {
                items.push(Item::Rows { key: PUT_PREVIOUS, show: Show::All, rows: vec![previous].into_iter() });
            }
        }
        Outcome::DeleteRange { deleted, previous } => {
            items.push(Item::Head { header, second: deleted });
            items.push(Item::Rows { key: DELETE_RANGE_PREVIOUS, show: Show::All, rows: previous.into_iter() });
        }
        Outcome::Txn(txn) => flatten_txn(txn, header, items),
        Outcome::Compact => items.push(Item::Head { header, second: 0 }),
        Outcome::Alarm(_) | Outcome::Hash(_) => {
            unreachable!("the answer to an alarm or a hash is not one of this service")
        }
    }
}

fn flatten_txn(txn: TxnOutcome, header: Header, items: &mut Vec<Item>) {
    items.push(Item::Head { header, second: u64::from(txn.succeeded) });
    for answer in txn.answers {
        let number = match &answer.result {
            Outcome::Range(_) => 1,
            Outcome::Put { .. } => 2,
            Outcome::DeleteRange { .. } => 3,
            Outcome::Txn(_) => 4,
            Outcome::Compact | Outcome::Alarm(_) | Outcome::Hash(_) => unreachable!("a transaction asks only for keys"),
        };
        items.push(Item::Open { key: TXN_RESPONSES, bytes: 0 });
        items.push(Item::Open { key: message_key(number), bytes: 0 });
        let header = Header { revision: answer.revision.0 as u64, ..Header::default() };
        flatten(answer.result, header, items);
        items.extend([Item::Close, Item::Close]);
    }
}

/// What a nested message takes in the message around it, now that all of it is measured.
fn closed_bytes(open: &Item) -> u64 {
    let Item::Open { bytes, .. } = open else { unreachable!("only open items are remembered as such") };
    1 + encoded_len_varint(*bytes) as u64 + bytes
}

fn grow(open: &mut Item, by: u64) {
    let Item::Open { bytes, .. } = open else { unreachable!("only open items are remembered as such") };
    *bytes += by;
}

impl Item {
    /// Appends the item, or the rows of it that fit, and says whether that was all of it. A piece that is empty takes
    /// one item or row whatever its length.
    fn encode(&mut self, piece: &mut Vec<u8>, bytes_max: usize) -> bool {
        if let Item::Rows { key, show, rows } = self {
            return encode_rows(*key, *show, rows, piece, bytes_max);
        }
        if let Item::Leases(leases) = self {
            return encode_leases(leases, piece, bytes_max);
        }
        if !piece.is_empty() && piece.len() + SMALL_ITEM_BYTES > bytes_max {
            return false;
        }
        match self {
            Item::Open { key, bytes } => {
                piece.put_u8(*key);
                encode_varint(*bytes, piece);
            }
            Item::Close | Item::Rows { .. } | Item::Leases(_) => {}
            Item::Head { header, second } => {
                header.encode(piece);
                put_number(piece, 2, *second);
            }
            Item::Tail { more, count } => {
                put_number(piece, 3, u64::from(*more));
                put_number(piece, 4, *count);
            }
        }
        true
    }
}

fn encode_rows(key: u8, show: Show, rows: &mut vec::IntoIter<KeyValue>, piece: &mut Vec<u8>, bytes_max: usize) -> bool {
    while let Some(kv) = rows.as_slice().first() {
        let bytes = key_value_bytes(kv, show);
        if !piece.is_empty() && piece.len() + 1 + encoded_len_varint(bytes as u64) + bytes > bytes_max {
            return false;
        }
        piece.put_u8(key);
        encode_varint(bytes as u64, piece);
        put_key_value(piece, kv, show);
        rows.next();
    }
    true
}

fn encode_leases(leases: &mut vec::IntoIter<LeaseId>, piece: &mut Vec<u8>, bytes_max: usize) -> bool {
    while let Some(id) = leases.as_slice().first() {
        if !piece.is_empty() && piece.len() + SMALL_ITEM_BYTES > bytes_max {
            return false;
        }
        piece.put_u8(LEASES);
        encode_varint(number_bytes(id.0 as u64), piece);
        put_number(piece, 1, id.0 as u64);
        leases.next();
    }
    true
}

/// A lease as a field of the message around it; its length is one byte.
fn lease_bytes(id: LeaseId) -> u64 {
    2 + number_bytes(id.0 as u64)
}

impl Header {
    fn of(identity: Identity, revision: Revision) -> Header {
        let Identity { cluster_id, member_id, raft_term } = identity;
        Header { cluster_id, member_id, revision: revision.0 as u64, raft_term }
    }

    fn bytes(&self) -> u64 {
        [self.cluster_id, self.member_id, self.revision, self.raft_term].map(number_bytes).iter().sum()
    }

    /// Present even if it is empty, so that a client finds a header in every response.
    fn field_bytes(&self) -> u64 {
        2 + self.bytes()
    }

    fn encode(&self, piece: &mut Vec<u8>) {
        piece.put_u8(message_key(1));
        // Four numbers of at most 11 bytes: the length is one byte.
        encode_varint(self.bytes(), piece);
        put_number(piece, 1, self.cluster_id);
        put_number(piece, 2, self.member_id);
        put_number(piece, 3, self.revision);
        put_number(piece, 4, self.raft_term);
    }
}

/// A number field takes nothing when it is 0.
fn number_bytes(number: u64) -> u64 {
    if number == 0 { 0 } else { 1 + encoded_len_varint(number) as u64 }
}

fn put_number(piece: &mut Vec<u8>, field: u8, number: u64) {
    if number != 0 {
        piece.put_u8(field << 3);
        encode_varint(number, piece);
    }
}

/// A row as a field of the message around it.
fn row_bytes(kv: &KeyValue, show: Show) -> usize {
    let bytes = key_value_bytes(kv, show);
    1 + encoded_len_varint(bytes as u64) + bytes
}

/// The fields of a version that are shown: value and lease may be left out.
fn shown(kv: &KeyValue, show: Show) -> (&[u8], LeaseId) {
    match show {
        Show::All => (kv.value(), kv.lease()),
        Show::WithoutValue => (&[], kv.lease()),
        Show::WithoutValueAndLease => (&[], LeaseId::NONE),
    }
}

/// The length of the `mvccpb.KeyValue` that [`put_key_value`] writes.
fn key_value_bytes(kv: &KeyValue, show: Show) -> usize {
    let (value, lease) = shown(kv, show);
    let numbers = [kv.create_revision().0, kv.mod_revision().0, kv.version(), lease.0];
    let numbers: u64 = numbers.iter().map(|&number| number_bytes(number as u64)).sum();
    numbers as usize + slice_bytes(kv.key()) + slice_bytes(value)
}

fn put_key_value(piece: &mut Vec<u8>, kv: &KeyValue, show: Show) {
    let (value, lease) = shown(kv, show);
    put_slice(piece, 1, kv.key());
    put_number(piece, 2, kv.create_revision().0 as u64);
    put_number(piece, 3, kv.mod_revision().0 as u64);
    put_number(piece, 4, kv.version() as u64);
    put_slice(piece, 5, value);
    put_number(piece, 6, lease.0 as u64);
}

/// A bytes field takes nothing when it is empty.
fn slice_bytes(slice: &[u8]) -> usize {
    if slice.is_empty() { 0 } else { 1 + encoded_len_varint(slice.len() as u64) + slice.len() }
}

fn put_slice(piece: &mut Vec<u8>, field: u8, slice: &[u8]) {
    if !slice.is_empty() {
        piece.put_u8(message_key(field));
        encode_varint(slice.len() as u64, piece);
        piece.put_slice(slice);
    }
}

#[cfg(test)]
mod tests;
