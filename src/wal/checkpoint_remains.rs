//! What is left of a checkpoint that is damaged, read page by page and without redb, which may panic over such a file.
//!
//! Each branch names its children with their checksums, so that a tree proves itself from its root down. From a damaged
//! leaf the rows are taken that fit their own checksums. Under a damaged branch only what fits counts: a page that does not may
//! be another one, with rows of the past.
//!
//! Where the roots are, the leaf of the tree of tables says. Every page is looked at for one, so that a damaged header hides
//! nothing. The file has some of earlier commits too, and may have one that a crash interrupted: what counts is the one that the
//! header names, or else the newest of which all is there, as the number and the sum in its record tell.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::io;

use crate::types::{ChangeId, LeaseId, Row, StoredLease};

use super::checkpoint::{META_KEY, META_TABLE};
use super::checkpoint_leases::LEASES_TABLE;
use super::checkpoint_pages::{
    BRANCH, DEPTH_MAX, LEAF, Node, PAGE_BYTES, ROW_WIDTHS, ROWS_TABLE, Table, Widths, change_id, children, is_whole,
    pairs, roots_in, slots, tables_of,
};
use super::checkpoint_rows::{self, Meta, decode_lease, decode_row, row_sum};
use super::disk::DiskFile;

const LEASE_WIDTHS: Widths = Widths { key: Some(8), value: None };
/// Bytes that are read at once in a look at every page.
const SCAN_BYTES: usize = 1 << 20;
/// Commits whose rows are read, from the newest on. The pages of those before are soon used again.
const TRIES_MAX: usize = 8;

#[derive(Debug)]
pub struct Remains {
    /// The header says so. Else it is not known what came behind it.
    pub is_last_commit: bool,
    pub meta: Meta,
    pub rows: BTreeMap<ChangeId, Row>,
    /// Rows that do not fit their checksums.
    pub lost: BTreeSet<ChangeId>,
    /// None: they are not all there.
    pub leases: Option<BTreeMap<LeaseId, StoredLease>>,
}

/// Reads what is whole. None: not even a record.
///
/// # Errors
/// What the disk says.
pub fn read<F: DiskFile>(file: &F) -> io::Result<Option<Remains>> {
    let mut reader = Reader { file, length: file.len()?, pages: 0 };
    let mut newest = None;
    for commit in reader.commits()?.into_iter().take(TRIES_MAX) {
        let is_named = commit.named.is_some();
        let remains = reader.remains(commit)?;
        if is_named || remains.are_complete() {
            return Ok(Some(remains));
        }
        newest.get_or_insert(remains);
    }
    Ok(newest)
}

impl Remains {
    fn are_complete(&self) -> bool {
        let sum = self.rows.values().map(row_sum).fold(0, u64::wrapping_add);
        (self.rows.len() as u64, sum) == (self.meta.rows, self.meta.sum) && self.leases.is_some()
    }

    fn take_rows(&mut self, leaf: &[u8]) {
        for (key, bytes) in pairs(leaf, ROW_WIDTHS).into_iter().flatten() {
            let Some(id) = change_id(key) else { continue };
            match Some(bytes).filter(|bytes| checkpoint_rows::is_whole(id, bytes)).and_then(|row| decode_row(id, row)) {
                Some(row) => drop(self.rows.insert(id, row)),
                None => drop(self.lost.insert(id)),
            }
        }
    }
}

struct Commit {
    meta: Meta,
    tables: Vec<Table>,
    /// The header names it, and says by a checksum that the tables are where they are said to be.
    named: Option<Named>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Named {
    Last,
    Before,
}

fn root_of(tables: &[Table], name: &[u8], widths: Widths) -> Option<Node> {
    tables.iter().find(|table| table.name == name && table.widths == widths).map(|table| table.root)
}

/// What is done with each leaf.
type OnLeaf<'a> = dyn FnMut(&[u8], bool) + 'a;

struct Reader<'a, F> {
    file: &'a F,
    length: u64,
    /// Pages that may still be looked at in this tree. It has no more of them than the file, whatever its branches say.
    pages: u64,
}

impl<F: DiskFile> Reader<'_, F> {
    /// The last one first if the header names it, then the newest.
    fn commits(&mut self) -> io::Result<Vec<Commit>> {
        let roots = self.named_roots()?;
        let mut commits = Vec::new();
        let mut bytes = vec![0; SCAN_BYTES];
        let mut offset = PAGE_BYTES;
        while offset < self.length {
            let piece = &mut bytes[..SCAN_BYTES.min((self.length - offset) as usize)];
            self.file.read_at(offset, piece)?;
            for (at, page) in (offset..).step_by(PAGE_BYTES as usize).zip(piece.chunks(PAGE_BYTES as usize)) {
                let Some(tables) = Some(page).filter(|page| page[0] == LEAF).and_then(tables_of) else { continue };
                let Some(meta) = self.meta(&tables)? else { continue };
                let is_root = |root: &Node| {
                    let lies_here = root.page.range_in(self.length) == Some(at..at + PAGE_BYTES);
                    lies_here && is_whole(page, root.checksum, Widths::NONE)
                };
                let named = roots.iter().find(|(root, _)| is_root(root)).map(|(_, named)| *named);
                commits.push(Commit { meta, tables, named });
            }
            offset += piece.len() as u64;
        }
        // Of commits that took nothing from the log, a later one has fewer rows.
        commits
            .sort_by_key(|Commit { meta, named, .. }| (*named != Some(Named::Last), Reverse(meta.position), meta.rows));
        Ok(commits)
    }

    /// What the header names, as far as its checksums fit.
    fn named_roots(&self) -> io::Result<Vec<(Node, Named)>> {
        let mut header = [0; 320];
        if self.length < 2 * PAGE_BYTES {
            return Ok(Vec::new());
        }
        self.file.read_at(0, &mut header)?;
        let named = slots(&header).into_iter().zip([Named::Last, Named::Before]);
        Ok(named.filter_map(|(slot, named)| Some((roots_in(slot)?[0]?, named))).collect())
    }

    fn remains(&mut self, commit: Commit) -> io::Result<Remains> {
        let leases = self.leases(&commit)?;
        let Commit { meta, tables, named } = commit;
        let is_last_commit = named == Some(Named::Last);
        let mut remains = Remains { is_last_commit, meta, rows: BTreeMap::new(), lost: BTreeSet::new(), leases };
        if let Some(root) = root_of(&tables, ROWS_TABLE, ROW_WIDTHS) {
            self.walk(root, ROW_WIDTHS, named.is_some(), &mut |leaf, _| remains.take_rows(leaf))?;
        }
        Ok(remains)
    }

    /// The record, if its page is whole and it is too.
    fn meta(&mut self, tables: &[Table]) -> io::Result<Option<Meta>> {
        let mut meta = None;
        if let Some(root) = root_of(tables, META_TABLE.as_bytes(), Widths::NONE) {
            self.walk(root, Widths::NONE, false, &mut |leaf, is_whole| {
                let mut records = pairs(leaf, Widths::NONE).filter(|_| is_whole).into_iter().flatten();
                let record = records.find(|(key, _)| *key == META_KEY.as_bytes());
                meta = record.and_then(|(_, record)| Meta::decode(record).ok());
            })?;
        }
        Ok(meta)
    }

    fn leases(&mut self, commit: &Commit) -> io::Result<Option<BTreeMap<LeaseId, StoredLease>>> {
        let mut leases = BTreeMap::new();
        if let Some(root) = root_of(&commit.tables, LEASES_TABLE.as_bytes(), LEASE_WIDTHS) {
            self.walk(root, LEASE_WIDTHS, commit.named.is_some(), &mut |leaf, _| {
                for (key, row) in pairs(leaf, LEASE_WIDTHS).into_iter().flatten() {
                    let Some(id) = key.first_chunk().map(|id| LeaseId(i64::from_le_bytes(*id))) else { continue };
                    leases.extend(decode_lease(id, row).map(|stored| (id, stored)));
                }
            })?;
        }
        let mut counted = Meta::new(0, 0);
        leases.values().for_each(|stored| counted.add_lease(stored.lease));
        Ok(((counted.leases, counted.lease_sum) == (commit.meta.leases, commit.meta.lease_sum)).then_some(leases))
    }

    /// Shows the leaves of a tree, and of each whether it is whole. `is_named` when the root is known to be the tree's.
    fn walk(&mut self, root: Node, widths: Widths, is_named: bool, show: &mut OnLeaf<'_>) -> io::Result<()> {
        self.pages = self.length / PAGE_BYTES;
        self.walk_below(root, widths, is_named, 0, show)
    }

    fn walk_below(
        &mut self,
        node: Node,
        widths: Widths,
        is_named: bool,
        depth: usize,
        show: &mut OnLeaf<'_>,
    ) -> io::Result<()> {
        let Some(range) = node.page.range_in(self.length).filter(|_| depth < DEPTH_MAX) else { return Ok(()) };
        let Some(pages) = self.pages.checked_sub((range.end - range.start) / PAGE_BYTES) else { return Ok(()) };
        self.pages = pages;
        let mut page = vec![0; (range.end - range.start) as usize];
        self.file.read_at(range.start, &mut page)?;
        let is_whole = is_whole(&page, node.checksum, widths);
        if !is_whole && !is_named {
            return Ok(());
        }
        match page[0] {
            LEAF => show(&page, is_whole),
            BRANCH => {
                let children = children(&page).unwrap_or_default();
                drop(page);
                for child in children {
                    self.walk_below(child, widths, is_whole, depth + 1, show)?;
                }
            }
            _ => {}
        }
        Ok(())
    }
}
