//! A disk in memory that does what disks and file systems do on their worst day.
//!
//! Reads and writes go to a page cache. Only a sync puts a file's sectors on the medium, and only a sync of the directory
//! its names. When the power goes, any subset of the sectors that were written and not synced is kept, a file has its old
//! or its new length, and of the names made, renamed and removed since the last sync each file keeps the first few. Between
//! two syncs any sector may reach the medium early, as the kernel likes.
//!
//! A sync that fails leaves its sectors clean without having written them, as ext4 does: reads show what the medium
//! lacks, and the next sync of the same file succeeds without curing it. Only writing them again does.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::random::Random;
use crate::wal::disk::{Disk, DiskFile, SegmentDisk};

/// What the medium writes whole or not at all.
pub const SECTOR_BYTES: usize = 512;
/// What a file system takes space in.
const BLOCK_BYTES: u64 = 4_096;

/// One directory. Clones are handles on the same disk.
#[derive(Clone, Debug)]
pub struct FakeDisk(Arc<Mutex<State>>);

/// One open file. It fails once the power has gone, as its process would have.
#[derive(Clone, Debug)]
pub struct FakeFile {
    disk: FakeDisk,
    file: usize,
    life: u64,
}

/// When the disk is to fail. Calls that change something or sync are counted from 1; looking is free and never fails.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// This call fails with EIO, having done a part of its work.
    pub fail_call: Option<u64>,
    /// It says that there is no space instead, which a sync may as well.
    pub fails_for_space: bool,
    /// The power goes in the middle of this call. It and all later ones fail, until [`FakeDisk::power_cut`].
    pub cut_call: Option<u64>,
    /// The files together may take no more than this.
    pub capacity_bytes: Option<u64>,
    /// The file system has turned read-only.
    pub is_read_only: bool,
    /// It turns so with the call that fails.
    pub turns_read_only: bool,
}

struct State {
    random: Random,
    faults: Faults,
    calls: u64,
    /// Counts power cuts.
    life: u64,
    files: Vec<File>,
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    name_changes: Vec<NameChange>,
}

#[derive(Clone, Default)]
struct File {
    cached: Contents,
    durable: Contents,
    /// Sectors that were written since the last sync.
    dirty: BTreeSet<usize>,
    /// The shortest that it was since the last sync, if it was cut.
    cut_to: Option<usize>,
    blocks: BTreeSet<u64>,
}

/// The bytes of a file. The zeros at its end take no memory, so that what is only reserved costs nothing.
#[derive(Clone, Default)]
struct Contents {
    bytes: Vec<u8>,
    len: usize,
}

#[derive(Clone)]
enum NameChange {
    Made { name: String, file: usize },
    Renamed { from: String, to: String, file: usize },
    Removed { name: String, file: usize },
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State").field("names", &self.names).field("calls", &self.calls).finish()
    }
}

fn error(errno: rustix::io::Errno) -> io::Error {
    io::Error::from_raw_os_error(errno.raw_os_error())
}

impl FakeDisk {
    pub fn new(seed: u64) -> FakeDisk {
        FakeDisk(Arc::new(Mutex::new(State {
            random: Random::new(seed ^ 0xd15c),
            faults: Faults::default(),
            calls: 0,
            life: 0,
            files: Vec::new(),
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            name_changes: Vec::new(),
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// Sets the faults and counts calls from 1 again.
    pub fn set_faults(&self, faults: Faults) {
        let mut state = self.state();
        state.faults = faults;
        state.calls = 0;
    }

    /// How many calls there were since the faults were set.
    pub fn calls(&self) -> u64 {
        self.state().calls
    }

    /// The power goes and comes back: what was not synced is kept or lost, and every open file is stale.
    pub fn power_cut(&self) {
        let state = &mut *self.state();
        state.life += 1;
        state.faults = Faults::default();
        state.calls = 0;
        let changes = std::mem::take(&mut state.name_changes);
        let mut is_lost = BTreeSet::new();
        for change in changes {
            let file = change.file();
            if is_lost.contains(&file) || state.random.chance(50) {
                is_lost.insert(file);
                continue;
            }
            change.apply(&mut state.durable_names);
        }
        state.names = state.durable_names.clone();
        for file in &mut state.files {
            file.power_cut(&mut state.random);
        }
    }

    /// The process ends and starts again while the machine stays up: the page cache survives, open files do not.
    pub fn restart(&self) {
        let mut state = self.state();
        state.life += 1;
        state.faults = Faults::default();
        state.calls = 0;
    }

    /// The kernel writes some sectors back on its own account.
    pub fn write_back(&self) {
        let state = &mut *self.state();
        for file in &mut state.files {
            let chosen: Vec<usize> = file.dirty.iter().copied().filter(|_| state.random.chance(30)).collect();
            for sector in chosen {
                file.keep(sector);
                file.dirty.remove(&sector);
            }
        }
    }

    /// Damages the medium: the bits of one byte, in what is cached as well.
    pub fn flip(&self, name: &str, offset: u64, bits: u8) {
        let mut state = self.state();
        let file = state.names[name];
        let file = &mut state.files[file];
        for contents in [&mut file.cached, &mut file.durable] {
            let at = offset as usize;
            if at < contents.len {
                let byte = contents.read(at, 1)[0] ^ bits;
                contents.write(at, &[byte]);
            }
        }
    }

    /// What a read of a whole file shows.
    pub fn contents(&self, name: &str) -> Vec<u8> {
        let state = self.state();
        let cached = &state.files[state.names[name]].cached;
        cached.read(0, cached.len)
    }

    /// Puts a file on the medium as it is, names and all.
    pub fn plant(&self, name: &str, contents: &[u8]) {
        let mut state = self.state();
        let file = state.files.len();
        let blocks = (0..(contents.len() as u64).div_ceil(BLOCK_BYTES)).collect();
        let contents = Contents { bytes: contents.to_vec(), len: contents.len() };
        state.files.push(File { cached: contents.clone(), durable: contents, blocks, ..File::default() });
        state.names.insert(name.to_owned(), file);
        state.durable_names.insert(name.to_owned(), file);
    }

    /// What the files with a name take.
    pub fn used_bytes(&self) -> u64 {
        self.state().used_bytes()
    }

    /// An independent disk with the same contents, cached and durable.
    pub fn copy(&self, seed: u64) -> FakeDisk {
        let state = self.state();
        FakeDisk(Arc::new(Mutex::new(State {
            random: Random::new(seed ^ 0xd15c),
            faults: Faults::default(),
            calls: 0,
            life: 0,
            files: state.files.clone(),
            names: state.names.clone(),
            durable_names: state.durable_names.clone(),
            name_changes: state.name_changes.clone(),
        })))
    }
}

/// How a call that is counted ends.
enum Fate {
    Succeeds,
    /// It does a part of its work and fails.
    Fails(io::Error),
}

impl State {
    fn used_bytes(&self) -> u64 {
        let files: BTreeSet<usize> = self.names.values().copied().collect();
        files.into_iter().map(|file| self.files[file].blocks.len() as u64 * BLOCK_BYTES).sum()
    }

    fn is_off(&self) -> bool {
        self.faults.cut_call.is_some_and(|cut| self.calls >= cut)
    }

    fn call(&mut self) -> Result<Fate, io::Error> {
        if self.is_off() {
            return Err(error(rustix::io::Errno::NODEV));
        }
        self.calls += 1;
        if self.is_off() {
            return Ok(Fate::Fails(error(rustix::io::Errno::NODEV)));
        }
        if self.faults.fail_call == Some(self.calls) {
            self.faults.is_read_only |= self.faults.turns_read_only;
            let errno = if self.faults.fails_for_space { rustix::io::Errno::NOSPC } else { rustix::io::Errno::IO };
            return Ok(Fate::Fails(error(errno)));
        }
        Ok(Fate::Succeeds)
    }

    fn change(&mut self) -> Result<Fate, io::Error> {
        if self.faults.is_read_only {
            return Err(error(rustix::io::Errno::ROFS));
        }
        self.call()
    }

    fn change_name(&mut self, change: NameChange) -> io::Result<()> {
        match self.change()? {
            Fate::Succeeds => {}
            Fate::Fails(error) => {
                if self.random.chance(50) {
                    change.apply(&mut self.names);
                    self.name_changes.push(change);
                }
                return Err(error);
            }
        }
        change.apply(&mut self.names);
        self.name_changes.push(change);
        Ok(())
    }

    /// Takes space for `from..to` of a file.
    fn take_space(&mut self, file: usize, from: u64, to: u64) -> io::Result<()> {
        let blocks = from / BLOCK_BYTES..to.div_ceil(BLOCK_BYTES);
        let new: Vec<u64> = blocks.filter(|block| !self.files[file].blocks.contains(block)).collect();
        let needed = self.used_bytes() + new.len() as u64 * BLOCK_BYTES;
        if !new.is_empty() && self.faults.capacity_bytes.is_some_and(|capacity| needed > capacity) {
            return Err(error(rustix::io::Errno::NOSPC));
        }
        self.files[file].blocks.extend(new);
        Ok(())
    }
}

impl Contents {
    fn set_len(&mut self, len: usize) {
        self.bytes.truncate(len);
        self.len = len;
    }

    fn write(&mut self, offset: usize, bytes: &[u8]) {
        let end = offset + bytes.len();
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        self.bytes[offset..end].copy_from_slice(bytes);
        self.len = self.len.max(end);
    }

    /// What lies there, of which all must be inside.
    fn read_into(&self, offset: usize, into: &mut [u8]) {
        let held = self.bytes.get(offset..).unwrap_or_default();
        let (front, back) = into.split_at_mut(held.len().min(into.len()));
        front.copy_from_slice(&held[..front.len()]);
        back.fill(0);
    }

    fn read(&self, offset: usize, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.read_into(offset, &mut bytes);
        bytes
    }
}

impl File {
    /// A sector reaches the medium.
    fn keep(&mut self, sector: usize) {
        let start = sector * SECTOR_BYTES;
        let end = (start + SECTOR_BYTES).min(self.cached.len);
        if start < end {
            let mut bytes = [0; SECTOR_BYTES];
            self.cached.read_into(start, &mut bytes[..end - start]);
            self.durable.write(start, &bytes[..end - start]);
        }
    }

    fn write(&mut self, offset: usize, bytes: &[u8]) {
        self.cached.write(offset, bytes);
        self.dirty.extend(offset / SECTOR_BYTES..(offset + bytes.len()).div_ceil(SECTOR_BYTES));
    }

    fn set_len(&mut self, len: usize) {
        if len < self.cached.len {
            self.cut_to = Some(self.cut_to.unwrap_or(len).min(len));
        }
        self.cached.set_len(len);
        self.dirty.retain(|&sector| sector * SECTOR_BYTES < len);
        self.blocks.retain(|&block| block * BLOCK_BYTES < len as u64);
    }

    /// The medium learns of what was cut off.
    fn keep_cut(&mut self) {
        if let Some(cut_to) = self.cut_to.take() {
            self.durable.set_len(cut_to.min(self.durable.len));
        }
    }

    fn sync(&mut self) {
        self.keep_cut();
        for sector in std::mem::take(&mut self.dirty) {
            self.keep(sector);
        }
        self.durable.set_len(self.cached.len);
    }

    fn power_cut(&mut self, random: &mut Random) {
        let mut len = self.durable.len;
        if random.chance(50) {
            len = self.cached.len;
            self.keep_cut();
        }
        self.cut_to = None;
        let dirty = std::mem::take(&mut self.dirty);
        // Most cuts lose few sectors or keep few; a fair coin a sector alone would hardly ever keep a large record.
        let kept_percent = *random.pick(&[0, 10, 50, 90, 97, 100]);
        for sector in dirty {
            if random.chance(kept_percent) {
                self.keep(sector);
            }
        }
        self.durable.set_len(len);
        self.cached = self.durable.clone();
    }
}

impl NameChange {
    fn file(&self) -> usize {
        match self {
            NameChange::Made { file, .. } | NameChange::Renamed { file, .. } | NameChange::Removed { file, .. } => {
                *file
            }
        }
    }

    /// Does nothing where an earlier change that it builds on was lost.
    fn apply(&self, names: &mut BTreeMap<String, usize>) {
        match self {
            NameChange::Made { name, file } => {
                names.insert(name.clone(), *file);
            }
            NameChange::Renamed { from, to, file } if names.get(from) == Some(file) => {
                names.remove(from);
                names.insert(to.clone(), *file);
            }
            NameChange::Removed { name, file } if names.get(name) == Some(file) => {
                names.remove(name);
            }
            NameChange::Renamed { .. } | NameChange::Removed { .. } => {}
        }
    }
}

impl Disk for FakeDisk {
    type File = FakeFile;

    fn names(&self) -> io::Result<Vec<String>> {
        Ok(self.state().names.keys().cloned().collect())
    }

    fn open(&self, name: &str) -> io::Result<FakeFile> {
        let state = self.state();
        let file = *state.names.get(name).ok_or(error(rustix::io::Errno::NOENT))?;
        Ok(FakeFile { disk: self.clone(), file, life: state.life })
    }

    fn create(&self, name: &str) -> io::Result<FakeFile> {
        let mut state = self.state();
        if state.names.contains_key(name) {
            return Err(error(rustix::io::Errno::EXIST));
        }
        let file = state.files.len();
        state.files.push(File::default());
        state.change_name(NameChange::Made { name: name.to_owned(), file })?;
        Ok(FakeFile { disk: self.clone(), file, life: state.life })
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.state();
        let file = *state.names.get(from).ok_or(error(rustix::io::Errno::NOENT))?;
        state.change_name(NameChange::Renamed { from: from.to_owned(), to: to.to_owned(), file })
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.state();
        let file = *state.names.get(name).ok_or(error(rustix::io::Errno::NOENT))?;
        state.change_name(NameChange::Removed { name: name.to_owned(), file })
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let state = self.state();
        Ok(state.faults.capacity_bytes.map_or(u64::MAX, |capacity| capacity.saturating_sub(state.used_bytes())))
    }

    fn file_system(&self) -> io::Result<u64> {
        Ok(Arc::as_ptr(&self.0).addr() as u64)
    }

    fn fsync(&self) -> io::Result<()> {
        let mut state = self.state();
        match state.call()? {
            Fate::Succeeds => {}
            Fate::Fails(error) => return Err(error),
        }
        state.durable_names = state.names.clone();
        state.name_changes.clear();
        Ok(())
    }
}

impl SegmentDisk for FakeDisk {
    type Segment = FakeFile;

    fn open_segment(&self, name: &str) -> io::Result<FakeFile> {
        self.open(name)
    }
}

impl FakeFile {
    fn state(&self) -> io::Result<MutexGuard<'_, State>> {
        let state = self.disk.state();
        if state.life != self.life || state.is_off() { Err(error(rustix::io::Errno::NODEV)) } else { Ok(state) }
    }
}

impl DiskFile for FakeFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.state()?.files[self.file].cached.len as u64)
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        let mut state = self.state()?;
        if let Fate::Fails(error) = state.change()? {
            return Err(error);
        }
        state.files[self.file].set_len(bytes as usize);
        Ok(())
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        let mut state = self.state()?;
        if let Fate::Fails(error) = state.change()? {
            return Err(error);
        }
        state.take_space(self.file, 0, bytes)?;
        let cached = &mut state.files[self.file].cached;
        cached.len = cached.len.max(bytes as usize);
        Ok(())
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let state = self.state()?;
        let cached = &state.files[self.file].cached;
        if offset as usize + into.len() > cached.len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        cached.read_into(offset as usize, into);
        Ok(())
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.state()?;
        let fate = state.change()?;
        state.take_space(self.file, offset, offset + bytes.len() as u64)?;
        let (written, result) = match fate {
            Fate::Succeeds => (bytes.len(), Ok(())),
            Fate::Fails(error) => (state.random.below(bytes.len() as u64 + 1) as usize, Err(error)),
        };
        state.files[self.file].write(offset as usize, &bytes[..written]);
        result
    }

    fn fdatasync(&self) -> io::Result<()> {
        let state = &mut *self.state()?;
        let fate = state.call()?;
        let is_off = state.is_off();
        let file = &mut state.files[self.file];
        match fate {
            Fate::Succeeds => {
                file.sync();
                Ok(())
            }
            // Some of it got there. Without power it is for the cut to say what else did.
            Fate::Fails(error) => {
                let chosen: Vec<usize> = file.dirty.iter().copied().filter(|_| state.random.chance(50)).collect();
                chosen.into_iter().for_each(|sector| file.keep(sector));
                if !is_off {
                    file.dirty.clear();
                }
                Err(error)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk_with_file(seed: u64) -> (FakeDisk, FakeFile) {
        let disk = FakeDisk::new(seed);
        let file = disk.create("a").unwrap();
        file.write_at(0, &[1; 2 * SECTOR_BYTES]).unwrap();
        file.sync_data().unwrap();
        disk.sync_names().unwrap();
        (disk, file)
    }

    #[test]
    fn what_is_synced_survives_and_the_rest_in_any_subset() {
        let mut seen = BTreeSet::new();
        for seed in 0..200 {
            let (disk, file) = disk_with_file(seed);
            file.write_at(0, &[2; 2 * SECTOR_BYTES]).unwrap();
            disk.power_cut();
            assert!(file.len().is_err(), "a handle does not outlive its machine");
            let contents = disk.contents("a");
            seen.insert((contents[0], contents[SECTOR_BYTES]));
        }
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), [(1, 1), (1, 2), (2, 1), (2, 2)]);
    }

    #[test]
    fn a_failed_sync_is_not_cured_by_the_next_and_by_writing_again_it_is() {
        for rewrites in [false, true] {
            let mut lost = 0;
            for seed in 0..50 {
                let (disk, file) = disk_with_file(seed);
                file.write_at(0, &[2; SECTOR_BYTES]).unwrap();
                disk.set_faults(Faults { fail_call: Some(1), ..Faults::default() });
                assert!(file.sync_data().is_err());
                assert_eq!(disk.contents("a")[0], 2, "the cache shows what the medium may lack");
                if rewrites {
                    file.write_at(0, &[2; SECTOR_BYTES]).unwrap();
                }
                file.sync_data().unwrap();
                disk.power_cut();
                lost += u32::from(disk.contents("a")[0] == 1);
            }
            let expected = if rewrites { 0..1 } else { 10..40 };
            assert!(expected.contains(&lost), "{lost} of 50 lost");
        }
    }

    #[test]
    fn what_was_cut_off_reads_as_zeros_when_the_file_grows_again() {
        let (disk, file) = disk_with_file(1);
        file.set_len(10).unwrap();
        file.set_len(3 * SECTOR_BYTES as u64).unwrap();
        file.sync_data().unwrap();
        disk.power_cut();
        let mut expected = vec![0; 3 * SECTOR_BYTES];
        expected[..10].fill(1);
        assert_eq!(disk.contents("a"), expected);
    }

    #[test]
    fn names_that_were_not_synced_may_be_lost() {
        let mut seen = BTreeSet::new();
        for seed in 0..200 {
            let (disk, _) = disk_with_file(seed);
            disk.rename("a", "b").unwrap();
            disk.create("c").unwrap();
            disk.power_cut();
            seen.insert(disk.names().unwrap().join(" "));
        }
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), ["a", "a c", "b", "b c"]);
    }

    #[test]
    fn a_full_or_read_only_disk_says_so() {
        let (disk, file) = disk_with_file(1);
        disk.set_faults(Faults { capacity_bytes: Some(2 * BLOCK_BYTES), ..Faults::default() });
        file.write_at(BLOCK_BYTES, &[1; SECTOR_BYTES]).unwrap();
        assert_eq!(file.write_at(2 * BLOCK_BYTES, &[1]).unwrap_err().kind(), io::ErrorKind::StorageFull);
        disk.set_faults(Faults { is_read_only: true, ..Faults::default() });
        assert_eq!(file.write_at(0, &[1]).unwrap_err().kind(), io::ErrorKind::ReadOnlyFilesystem);
    }
}
