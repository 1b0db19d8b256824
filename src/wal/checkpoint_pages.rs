//! The pages of the checkpoint's file: their checksums looked at on both cores, and its rows read from them.
//!
//! redb can check every page when it opens a file. It does so on one core, reads all of them a second time to find out
//! which are free, though the last commit says so (quick repair), and a third time when the rows are loaded, each page
//! through its cache: half of a start. What is written here about its format (version 3, `docs/design.md` of redb) is
//! enough to do the first and the last of these beside it.
//!
//! ```text
//! file   4096 bytes of header, then pages of 4096 bytes and powers of two of these
//! header  0  9  magic, then flags, page size, and how regions of pages lie in the file
//!        64     a commit slot of 128 bytes; 192 a second one. A flag says which counts
//! slot    0  3  version; is there a tree of tables; is there one of redb's own tables
//!         8 32  root of the tables: page number, checksum, length; 40 32 root of redb's own
//!       112 16  checksum of the slot up to here
//! leaf    0  4  1, then how many pairs in the last two; ends of keys; ends of values; keys; values. Ends of what has a
//!               fixed width are left out
//! branch  0  8  2, then how many keys in bytes 2 and 3; checksums of children, one more; page numbers of children; ends of
//!               keys; keys
//! ```
//!
//! A file that it finds whole is one that redb's own check would find whole, and one with a page that does not fit its checksum
//! is damaged by both: a commit in two phases leaves no such page, whenever the power goes. Whatever else it meets (a flag, a
//! table of a kind it does not know, a file that was not closed with quick repair) is no verdict: then redb's own check has
//! the word, in its words, and takes its time. Over pages that contradict each other it panics.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use xxhash_rust::xxh3::xxh3_128;

use crate::types::{ChangeId, Revision};

use super::checkpoint_backend::CheckpointError;
use super::disk::DiskFile;

pub(super) const PAGE_BYTES: u64 = 4_096;
const MAGIC: [u8; 9] = *b"redb\x1a\x0a\xa9\x0d\x0a";
const FORMAT_VERSION: u8 = 3;
/// Flags in the header: which slot counts; that the file was not closed; that the slot was written in two phases, so that
/// the other one is not to be looked at.
const SECOND_SLOT: u8 = 1;
const NOT_CLOSED: u8 = 2;
const TWO_PHASES: u8 = 4;
/// A file is cut into regions of so many pages.
const REGION_PAGES: u64 = 1 << 20;
const PAGE_ORDER_MAX: u64 = 20;
pub(super) const LEAF: u8 = 1;
pub(super) const BRANCH: u8 = 2;
pub(super) const DEPTH_MAX: usize = 32;
/// Bytes of what stands for a child in a branch: checksum and page number.
const CHILD_BYTES: usize = 24;
/// redb's kind of a table that has one value a key.
const PLAIN_TABLE: u8 = 3;
pub(super) const ROWS_TABLE: &[u8] = b"rows";
/// A key is a revision and a sub revision.
pub(super) const ROW_WIDTHS: Widths = Widths { key: Some(12), value: None };
/// While it has rows, trees of the past count as well.
const SAVEPOINTS_TABLE: &[u8] = b"persistent_savepoints";
/// Pages that lie one behind the other are read at once, up to so many bytes.
const READ_BYTES_MAX: u64 = 256 << 10;
/// The tree is cut in at least so many parts, which two threads take by turns.
const PARTS_MIN: usize = 64;
/// In a smaller file a second thread costs more than it saves.
pub(super) const TWO_THREADS_BYTES_MIN: u64 = 4 << 20;

/// The number of a page as redb writes it: where it lies, and how large it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Page(u64);

impl Page {
    fn order(self) -> u64 {
        self.0 >> 59
    }

    fn bytes(self) -> u64 {
        PAGE_BYTES << self.order()
    }

    fn offset(self) -> u64 {
        let region = (self.0 >> 20) & 0xf_ffff;
        let at = self.0 & (0xf_ffff >> self.order());
        PAGE_BYTES + region * REGION_PAGES * PAGE_BYTES + at * self.bytes()
    }

    /// Where it lies in a file of this length. None: outside.
    pub(super) fn range_in(self, length: u64) -> Option<Range<u64>> {
        (self.order() <= PAGE_ORDER_MAX).then(|| self.range()).filter(|range| range.end <= length)
    }

    fn range(self) -> Range<u64> {
        self.offset()..self.offset() + self.bytes()
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Node {
    pub page: Page,
    pub checksum: u128,
}

/// How wide the keys and values of a tree are, where they all are the same.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Widths {
    pub key: Option<usize>,
    pub value: Option<usize>,
}

impl Widths {
    pub const NONE: Widths = Widths { key: None, value: None };
}

/// Why there is no verdict.
#[derive(Debug)]
enum Stop {
    Unknown,
    /// The page at this place is not what was written.
    Damaged(u64),
    Io(io::Error),
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Stop {
        Stop::Io(error)
    }
}

/// What is done with each leaf.
type OnLeaf<'a> = dyn FnMut(Page, &[u8]) -> Result<(), Stop> + 'a;

fn known<T>(value: Option<T>) -> Result<T, Stop> {
    value.ok_or(Stop::Unknown)
}

/// Reads every page that counts. The leaves of the table of rows, in order, if all are whole; none without a verdict.
///
/// # Errors
/// What the disk says, and when a page is damaged.
pub fn check<F: DiskFile>(file: &F) -> Result<Option<Vec<Page>>, CheckpointError> {
    match check_all(file) {
        Ok(leaves) => Ok(Some(leaves)),
        Err(Stop::Unknown) => Ok(None),
        Err(Stop::Damaged(at)) => Err(CheckpointError::Damaged(format!("the page at {at} does not fit its checksum"))),
        Err(Stop::Io(error)) => Err(CheckpointError::io(error)),
    }
}

fn check_all<F: DiskFile>(file: &F) -> Result<Vec<Page>, Stop> {
    let length = file.len()?;
    if length < 2 * PAGE_BYTES {
        return Err(Stop::Unknown);
    }
    let mut header = [0; 320];
    file.read_at(0, &mut header)?;
    let [tables, own_tables] = known(roots(&header, length))?;
    let walk = || Walk::new(file, length);
    let mut rows = Vec::new();
    for table in known(tables)?.tables(&mut walk())? {
        let leaves = two_threads(file, length, table.root, table.widths)?;
        if table.name == ROWS_TABLE {
            if table.widths != ROW_WIDTHS {
                return Err(Stop::Unknown);
            }
            rows = leaves;
        }
    }
    for table in known(own_tables)?.tables(&mut walk())? {
        if table.name == SAVEPOINTS_TABLE {
            return Err(Stop::Unknown);
        }
        walk().nodes(&[table.root], table.widths, 0, &mut |_, _| Ok(()))?;
    }
    Ok(rows)
}

/// The roots of the trees of tables. None: the header is not one of a file that was left in order.
fn roots(header: &[u8; 320], length: u64) -> Option<[Option<Node>; 2]> {
    let number = |at: usize| u64::from(u32_at(header, at).unwrap_or(u32::MAX));
    let flags = header[9];
    if header[..9] != MAGIC || flags & TWO_PHASES == 0 || flags & !(SECOND_SLOT | NOT_CLOSED | TWO_PHASES) != 0 {
        return None;
    }
    // What of the header has no checksum is only taken for what it must be. A region has had no header since version 3.
    let (page_bytes, header_pages, region_pages) = (number(12), number(16), number(20));
    let pages = number(24) * REGION_PAGES + number(28);
    if (page_bytes, header_pages, region_pages) != (PAGE_BYTES, 0, REGION_PAGES)
        || number(28) >= REGION_PAGES
        || (pages + 1) * PAGE_BYTES != length
    {
        return None;
    }
    let [slot, other] = slots(header);
    if other[0] != FORMAT_VERSION {
        return None;
    }
    roots_in(slot)
}

/// The commit slot that counts, and the other one.
pub(super) fn slots(header: &[u8; 320]) -> [&[u8]; 2] {
    let (first, second) = (&header[64..192], &header[192..320]);
    if header[9] & SECOND_SLOT == 0 { [first, second] } else { [second, first] }
}

/// The roots in a commit slot whose checksum fits.
pub(super) fn roots_in(slot: &[u8]) -> Option<[Option<Node>; 2]> {
    if slot[0] != FORMAT_VERSION || u128_at(slot, 112)? != xxh3_128(&slot[..112]) {
        return None;
    }
    let root = |is_there: u8, at: usize| (is_there != 0).then(|| node(slot, at)).flatten();
    Some([root(slot[1], 8), root(slot[2], 40)])
}

fn node(bytes: &[u8], at: usize) -> Option<Node> {
    Some(Node { page: Page(u64_at(bytes, at)?), checksum: u128_at(bytes, at + 8)? })
}

fn u16_at(bytes: &[u8], at: usize) -> Option<usize> {
    Some(usize::from(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?)))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u128_at(bytes: &[u8], at: usize) -> Option<u128> {
    Some(u128::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

pub(super) struct Table {
    pub name: Vec<u8>,
    pub root: Node,
    pub widths: Widths,
}

/// The tables that a leaf of them names and that hold anything. None: it is no such leaf, or has a table of another kind.
pub(super) fn tables_of(leaf: &[u8]) -> Option<Vec<Table>> {
    let mut tables = Vec::new();
    for (name, definition) in pairs(leaf, Widths::NONE)? {
        if definition.first()? != &PLAIN_TABLE {
            return None;
        }
        let width = |at: usize| -> Option<Option<usize>> {
            Some((*definition.get(at)? != 0).then_some(u32_at(definition, at + 1)? as usize))
        };
        let widths = Widths { key: width(42)?, value: width(47)? };
        if *definition.get(9)? != 0 {
            tables.push(Table { name: name.to_vec(), root: node(definition, 10)?, widths });
        }
    }
    Some(tables)
}

impl Node {
    /// The tables that a tree of them names and that hold anything.
    fn tables<F: DiskFile>(self, walk: &mut Walk<'_, F>) -> Result<Vec<Table>, Stop> {
        let mut tables = Vec::new();
        walk.nodes(&[self], Widths::NONE, 0, &mut |_, leaf| {
            tables.append(&mut known(tables_of(leaf))?);
            Ok(())
        })?;
        Ok(tables)
    }
}

/// The keys and values of a leaf.
pub(super) fn pairs(leaf: &[u8], widths: Widths) -> Option<impl Iterator<Item = (&[u8], &[u8])>> {
    let ends = Ends::new(leaf, widths)?;
    // Looked at once and for all: no end lies before its beginning or outside of the page.
    let (mut key_before, mut value_before) = (ends.keys_at, ends.key(ends.count - 1)?);
    for at in 0..ends.count {
        let (key, value) = (ends.key(at)?, ends.value(at)?);
        if key < key_before || value < value_before || value > leaf.len() {
            return None;
        }
        (key_before, value_before) = (key, value);
    }
    let (mut key_before, mut value_before) = (ends.keys_at, ends.key(ends.count - 1)?);
    Some((0..ends.count).map_while(move |at| {
        let (key, value) = (key_before..ends.key(at)?, value_before..ends.value(at)?);
        (key_before, value_before) = (key.end, value.end);
        Some((leaf.get(key)?, leaf.get(value)?))
    }))
}

/// Where the keys and values of a leaf end.
#[derive(Clone, Copy)]
struct Ends<'a> {
    leaf: &'a [u8],
    count: usize,
    widths: Widths,
    /// Where the ends of values stand, and where the keys begin.
    value_ends_at: usize,
    keys_at: usize,
}

impl Ends<'_> {
    /// None: there is no pair.
    fn new(leaf: &[u8], widths: Widths) -> Option<Ends<'_>> {
        let count = u16_at(leaf, 2).filter(|&count| count > 0)?;
        let bytes = |width: Option<usize>| if width.is_some() { 0 } else { 4 * count };
        let value_ends_at = 4 + bytes(widths.key);
        Some(Ends { leaf, count, widths, value_ends_at, keys_at: value_ends_at + bytes(widths.value) })
    }

    fn key(&self, at: usize) -> Option<usize> {
        match self.widths.key {
            Some(width) => width.checked_mul(at + 1)?.checked_add(self.keys_at),
            None => Some(u32_at(self.leaf, 4 + 4 * at)? as usize),
        }
    }

    fn value(&self, at: usize) -> Option<usize> {
        match self.widths.value {
            Some(width) => width.checked_mul(at + 1)?.checked_add(self.key(self.count - 1)?),
            None => Some(u32_at(self.leaf, self.value_ends_at + 4 * at)? as usize),
        }
    }
}

/// The children of a branch.
pub(super) fn children(branch: &[u8]) -> Option<Vec<Node>> {
    let count = u16_at(branch, 2)? + 1;
    let page = |at: usize| u64_at(branch, 8 + 16 * count + 8 * at).map(Page);
    (0..count).map(|at| Some(Node { checksum: u128_at(branch, 8 + 16 * at)?, page: page(at)? })).collect()
}

/// The part of a page that its checksum covers.
fn covered(page: &[u8], widths: Widths) -> Option<&[u8]> {
    let end = match *page.first()? {
        LEAF => {
            let ends = Ends::new(page, widths)?;
            ends.value(ends.count - 1)?
        }
        BRANCH => {
            let keys = u16_at(page, 2).filter(|&keys| keys > 0)?;
            let behind_children = 8 + CHILD_BYTES * (keys + 1);
            match widths.key {
                Some(width) => width.checked_mul(keys)?.checked_add(behind_children)?,
                None => u32_at(page, behind_children + 4 * (keys - 1))? as usize,
            }
        }
        _ => return None,
    };
    page.get(..end)
}

pub(super) fn is_whole(page: &[u8], checksum: u128, widths: Widths) -> bool {
    covered(page, widths).is_some_and(|covered| xxh3_128(covered) == checksum)
}

/// Reads the pages of trees.
struct Walk<'a, F> {
    file: &'a F,
    length: u64,
    /// Pages that may still be looked at. A tree has no more of them than the file.
    pages: u64,
    /// One a level, to be used again.
    buffers: Vec<Vec<u8>>,
}

impl<'a, F: DiskFile> Walk<'a, F> {
    fn new(file: &'a F, length: u64) -> Walk<'a, F> {
        Walk { file, length, pages: length / PAGE_BYTES, buffers: Vec::new() }
    }

    /// Reads pages that lie one behind the other.
    fn read(&mut self, range: Range<u64>, into: &mut Vec<u8>) -> Result<(), Stop> {
        if range.end > self.length {
            return Err(Stop::Unknown);
        }
        into.resize((range.end - range.start) as usize, 0);
        Ok(self.file.read_at(range.start, into)?)
    }

    /// Checks the trees under nodes of one level, and shows their leaves in order.
    fn nodes(&mut self, nodes: &[Node], widths: Widths, depth: usize, show: &mut OnLeaf<'_>) -> Result<(), Stop> {
        if depth == DEPTH_MAX || nodes.iter().any(|node| node.page.order() > PAGE_ORDER_MAX) {
            return Err(Stop::Unknown);
        }
        self.pages = known(self.pages.checked_sub(nodes.len() as u64))?;
        if self.buffers.len() <= depth {
            self.buffers.resize_with(depth + 1, Vec::new);
        }
        let mut buffer = std::mem::take(&mut self.buffers[depth]);
        let mut rest = nodes;
        while !rest.is_empty() {
            let pages = run(rest.iter().map(|node| node.page));
            let (now, later) = rest.split_at(pages);
            rest = later;
            let range = now[0].page.offset()..now[pages - 1].page.range().end;
            self.read(range.clone(), &mut buffer)?;
            for node in now {
                let page = node.page.range();
                let page = &buffer[(page.start - range.start) as usize..(page.end - range.start) as usize];
                if !is_whole(page, node.checksum, widths) {
                    return Err(Stop::Damaged(node.page.offset()));
                }
                if page[0] == BRANCH {
                    let children = known(children(page))?;
                    self.nodes(&children, widths, depth + 1, show)?;
                } else {
                    show(node.page, page)?;
                }
            }
        }
        self.buffers[depth] = buffer;
        Ok(())
    }

    /// The children of a branch. None: it is a leaf.
    fn children(&mut self, node: Node, widths: Widths) -> Result<Option<Vec<Node>>, Stop> {
        let mut page = Vec::new();
        if node.page.order() > PAGE_ORDER_MAX {
            return Err(Stop::Unknown);
        }
        self.read(node.page.range(), &mut page)?;
        if !is_whole(&page, node.checksum, widths) {
            return Err(Stop::Damaged(node.page.offset()));
        }
        if page[0] == BRANCH { known(children(&page)).map(Some) } else { Ok(None) }
    }
}

/// How many of the first pages lie one behind the other and may be read at once.
fn run(pages: impl Iterator<Item = Page>) -> usize {
    let mut pages = pages.map(Page::range);
    let Some(first) = pages.next() else { return 0 };
    let (mut end, mut count) = (first.end, 1);
    for page in pages {
        if page.start != end || page.end - first.start > READ_BYTES_MAX {
            break;
        }
        (end, count) = (page.end, count + 1);
    }
    count
}

/// Checks a tree, each thread some parts of it, and returns its leaves in order.
fn two_threads<F: DiskFile>(file: &F, length: u64, root: Node, widths: Widths) -> Result<Vec<Page>, Stop> {
    let parts = parts(file, length, root, widths)?;
    let next = AtomicUsize::new(0);
    let take = || -> Result<Vec<(usize, Vec<Page>)>, Stop> {
        let mut walk = Walk::new(file, length);
        let mut taken = Vec::new();
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(part) = parts.get(at) else { return Ok(taken) };
            let mut leaves = Vec::new();
            walk.nodes(&[*part], widths, 0, &mut |page, _| {
                leaves.push(page);
                Ok(())
            })?;
            taken.push((at, leaves));
        }
    };
    let mut taken = if length < TWO_THREADS_BYTES_MIN {
        take()?
    } else {
        std::thread::scope(|scope| {
            let other = scope.spawn(take);
            let mut taken = take()?;
            taken.append(&mut other.join().expect("a panic of ours stops the process")?);
            Ok::<_, Stop>(taken)
        })?
    };
    taken.sort_unstable_by_key(|(part, _)| *part);
    Ok(taken.into_iter().flat_map(|(_, leaves)| leaves).collect())
}

/// Nodes whose trees, one behind the other, are the whole tree. The branches above them are whole.
fn parts<F: DiskFile>(file: &F, length: u64, root: Node, widths: Widths) -> Result<Vec<Node>, Stop> {
    let mut walk = Walk::new(file, length);
    let mut parts = vec![root];
    // Each round goes one level down.
    for _ in 0..DEPTH_MAX {
        if parts.len() >= PARTS_MIN {
            break;
        }
        let mut below = Vec::new();
        let mut has_branch = false;
        for node in parts {
            match walk.children(node, widths)? {
                Some(mut children) => {
                    has_branch = true;
                    below.append(&mut children);
                }
                None => below.push(node),
            }
        }
        parts = below;
        if !has_branch {
            break;
        }
    }
    Ok(parts)
}

/// Cuts leaves into pieces of at most so many bytes, or of one leaf.
pub fn pieces(leaves: &[Page], bytes_max: u64) -> impl Iterator<Item = &[Page]> {
    let mut rest = leaves;
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fit = rest.iter().take_while(|page| {
            bytes += page.bytes();
            bytes <= bytes_max
        });
        let count = fit.count().max(1).min(rest.len());
        let (piece, later) = rest.split_at(count);
        rest = later;
        (count > 0).then_some(piece)
    })
}

/// Shows the rows of some leaves, which follow each other. `buffer` is for the pages.
///
/// # Errors
/// What the disk says, or that a leaf is none, or what `show` refuses with.
pub fn rows<F: DiskFile>(
    file: &F,
    leaves: &[Page],
    buffer: &mut Vec<u8>,
    mut show: impl FnMut(ChangeId, &[u8]) -> Result<(), CheckpointError>,
) -> Result<(), CheckpointError> {
    let mut rest = leaves;
    while !rest.is_empty() {
        let (now, later) = rest.split_at(run(rest.iter().copied()));
        rest = later;
        let start = now[0].range().start;
        buffer.resize((now[now.len() - 1].range().end - start) as usize, 0);
        file.read_at(start, buffer).map_err(CheckpointError::io)?;
        for page in now.iter().map(|page| page.range()) {
            let leaf = &buffer[(page.start - start) as usize..(page.end - start) as usize];
            // It was whole when the file was opened, and nobody has written since.
            let changed = || CheckpointError::Damaged(format!("the page at {} changes between two looks", page.start));
            for (key, row) in Some(leaf).filter(|leaf| leaf[0] == LEAF).and_then(row_pairs).ok_or_else(changed)? {
                show(change_id(key).ok_or_else(changed)?, row)?;
            }
        }
    }
    Ok(())
}

/// What a key of the table of rows says.
pub(super) fn change_id(key: &[u8]) -> Option<ChangeId> {
    let (revision, sub) = u64_at(key, 0).zip(u32_at(key, 8))?;
    Some(ChangeId { revision: Revision(revision as i64), sub })
}

fn row_pairs(leaf: &[u8]) -> Option<impl Iterator<Item = (&[u8], &[u8])>> {
    pairs(leaf, ROW_WIDTHS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    #[test]
    fn no_bytes_make_a_reader_of_pages_panic() {
        let mut random = Random::new(1);
        for _ in 0..50_000 {
            let length = random.below(200) as usize;
            let small = random.one_in(2);
            let mut bytes: Vec<u8> =
                (0..length).map(|_| if small { random.below(3) as u8 } else { random.next() as u8 }).collect();
            if let Some(kind) = bytes.first_mut() {
                *kind = 1 + random.below(2) as u8;
            }
            let widths = *random.pick(&[Widths::NONE, ROW_WIDTHS, Widths { key: Some(8), value: Some(usize::MAX) }]);
            let _ = covered(&bytes, widths);
            let _ = children(&bytes);
            if let Some(pairs) = pairs(&bytes, widths) {
                assert!(pairs.count() > 0);
            }
        }
    }

    #[test]
    fn a_page_lies_where_its_number_says() {
        let page = |region: u64, at: u64, order: u64| Page(order << 59 | region << 20 | at);
        assert_eq!(page(0, 0, 0).range(), 4_096..8_192);
        assert_eq!(page(0, 3, 2).range(), 4_096 * 13..4_096 * 17);
        assert_eq!(page(2, 1, 1).range(), (8 << 30) + 4_096 * 3..(8 << 30) + 4_096 * 5);
    }

    #[test]
    fn pages_that_follow_each_other_are_read_at_once() {
        let page = |at: u64, order: u64| Page(order << 59 | at);
        assert_eq!(run([page(3, 0), page(4, 0), page(6, 0)].into_iter()), 2);
        assert_eq!(run([page(3, 0), page(2, 1), page(6, 0)].into_iter()), 3);
        assert_eq!(run((0..100).map(|at| page(at, 0))), 64);
        assert_eq!(run([page(0, 9), page(512, 0)].into_iter()), 1, "one that is larger is read alone");
        let all: Vec<Page> = (0..100).map(|at| page(2 * at, 0)).chain([page(1, 9), page(3, 0)]).collect();
        let pieces: Vec<&[Page]> = pieces(&all, 256 << 10).collect();
        assert_eq!(pieces.iter().map(|piece| piece.len()).collect::<Vec<_>>(), [64, 36, 1, 1]);
        assert_eq!(pieces.concat(), all);
    }
}
