//! How long a start takes and how many bytes a commit writes, on a real disk. Run by hand, in release mode:
//! `cargo test --release --lib wal::checkpoint::measure -- --ignored --nocapture`.

use std::time::Instant;

use super::*;
use crate::random::Random;
use crate::sim::Folder;
use crate::store::Store;
use crate::store::command::{Put, PutLease, PutValue, Write};
use crate::store::restore::{Damage, Restore};
use crate::types::{LeaseId, Time};
use crate::wal::file_disk::FileDisk;

#[derive(Debug)]
struct Refused(#[expect(dead_code, reason = "it is printed")] String);

impl From<CheckpointError> for Refused {
    fn from(error: CheckpointError) -> Refused {
        Refused(error.to_string())
    }
}

impl From<Damage> for Refused {
    fn from(damage: Damage) -> Refused {
        Refused(damage.to_string())
    }
}

fn folder(name: &str) -> (Folder, Arc<FileDisk>) {
    let folder = Folder::new(&format!("measure-{name}"));
    std::fs::create_dir(&folder.0).unwrap();
    let disk = Arc::new(FileDisk::open(&folder.0).unwrap());
    (folder, disk)
}

fn put(store: &mut Store, key: u64) -> Entry {
    let (value, lease) = (PutValue::Set(vec![b'v'; 256].into()), PutLease::Set(LeaseId::NONE));
    let key = format!("/registry/pods/default/{:012x}", key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 16).into();
    let write = Write::Put(Put { key, value, lease, prev_kv: false });
    store.apply(&write, Time(1)).entry.unwrap()
}

fn device_sectors_written() -> u64 {
    let stat = std::fs::read_to_string("/sys/block/vda/stat").unwrap_or_default();
    stat.split_whitespace().nth(6).map_or(0, |sectors| sectors.parse().unwrap())
}

/// Puts keys of a space in groups, and commits whenever so many bytes were gathered. Returns the bytes of the device a put.
fn fill(
    checkpoint: &mut Checkpoint<FileDisk>,
    store: &mut Store,
    puts: u64,
    keys: Option<u64>,
    commit_bytes: usize,
) -> f64 {
    let mut random = Random::new(7);
    let mut gathered = Gathered::default();
    rustix::fs::sync();
    let before = device_sectors_written();
    let (own_before, mut commits, mut longest) = (checkpoint.written_bytes(), 0, 0.0_f64);
    for at in 0..puts {
        let key = keys.map_or(at, |keys| random.below(keys));
        let position = checkpoint.meta().position.0 + at;
        gathered.add(Position(position + 1), vec![put(store, key)]);
        if gathered.bytes() >= commit_bytes || at + 1 == puts {
            let start = Instant::now();
            checkpoint.commit(&mut gathered, true).unwrap();
            longest = longest.max(start.elapsed().as_secs_f64());
            commits += 1;
        }
    }
    rustix::fs::sync();
    let device = (device_sectors_written() - before) as f64 * 512.0 / puts as f64;
    let own = (checkpoint.written_bytes() - own_before) as f64 / puts as f64;
    println!(
        "{puts} puts, {commits} commits of {commit_bytes}: {device:.0} device bytes a put, {own:.0} to the file, longest commit {longest:.2} s"
    );
    device
}

fn load(checkpoint: &Checkpoint<FileDisk>) -> Store {
    let meta = checkpoint.meta();
    let start = Instant::now();
    let mut restore = Restore::new(meta.revision, meta.compacted, meta.rows as usize);
    checkpoint.load(|row| restore.row(row).map_err(Refused::from)).unwrap();
    let read = start.elapsed().as_secs_f64();
    let (store, superseded) = restore.finish().unwrap();
    let all = start.elapsed().as_secs_f64();
    println!(
        "{} rows ({} superseded): read {read:.2} s, index {:.2} s, {:.0} rows/s, file {} MiB",
        meta.rows,
        superseded.len(),
        all - read,
        meta.rows as f64 / all,
        checkpoint.file_bytes().unwrap() >> 20
    );
    store
}

#[test]
#[ignore = "it is a measurement: seconds of release code and GBs of disk"]
fn a_start_from_a_gigabyte() {
    for (keys, compacted) in [(1_000_000, true), (3_300_000, true), (1_000_000, false)] {
        let (_folder, disk) = folder("load");
        let mut checkpoint = Checkpoint::create(disk.clone(), Meta::new(1, 2)).unwrap();
        let mut store = Store::new();
        fill(&mut checkpoint, &mut store, keys, None, 32 << 20);
        if compacted {
            let mut gathered = Gathered::default();
            let position = checkpoint.meta().position.next();
            gathered.add(position, vec![Entry::Compaction(store.revision())]);
            checkpoint.commit(&mut gathered, true).unwrap();
        }
        println!("{keys} keys, compacted: {compacted}, {:?}", store.bytes());
        drop((checkpoint, store));
        for _ in 0..2 {
            let start = Instant::now();
            let checkpoint = Checkpoint::open(disk.clone()).unwrap();
            println!("open with every page checked: {:.2} s", start.elapsed().as_secs_f64());
            let store = load(&checkpoint);
            println!("serves after {:.2} s", start.elapsed().as_secs_f64());
            assert_eq!(store.keys() as u64, keys);
        }
    }
}

#[test]
#[ignore = "it is a measurement: seconds of release code and GBs of disk"]
fn bytes_of_the_device_a_put() {
    for commit_bytes in [1 << 20, 8 << 20, 32 << 20] {
        let (_folder, disk) = folder("written");
        let mut checkpoint = Checkpoint::create(disk.clone(), Meta::new(1, 2)).unwrap();
        fill(&mut checkpoint, &mut Store::new(), 300_000, Some(1_000_000), commit_bytes);
    }
    // Steady: every put supersedes a row at a random place.
    let (_folder, disk) = folder("steady");
    let mut checkpoint = Checkpoint::create(disk.clone(), Meta::new(1, 2)).unwrap();
    let mut store = Store::new();
    fill(&mut checkpoint, &mut store, 1_000_000, None, 32 << 20);
    for share in [4, 2] {
        let (mut puts, mut forgets) = (0_u64, 0);
        rustix::fs::sync();
        let before = device_sectors_written();
        let own_before = checkpoint.written_bytes();
        let mut gathered = Gathered::default();
        let mut random = Random::new(9);
        while forgets < 3 {
            let mut entries: Vec<Entry> = (0..80_000).map(|_| put(&mut store, random.below(1_000_000))).collect();
            puts += 80_000;
            store.replay_compaction(store.revision()).unwrap();
            entries.push(Entry::Compaction(store.revision()));
            let position = checkpoint.meta().position.next();
            gathered.add(position, entries);
            while store.compact_step(10_000, None) == crate::store::CompactProgress::More {}
            gathered.remove(store.take_removed());
            let forget = gathered.removed() as u64 >= checkpoint.meta().rows / share;
            checkpoint.commit(&mut gathered, forget).unwrap();
            forgets += u64::from(forget);
        }
        rustix::fs::sync();
        let device = (device_sectors_written() - before) as f64 * 512.0 / puts as f64;
        let own = (checkpoint.written_bytes() - own_before) as f64 / puts as f64;
        println!(
            "forgetting 1/{share}: {puts} puts, {device:.0} device bytes a put, {own:.0} to the file, file {} MiB",
            checkpoint.file_bytes().unwrap() >> 20
        );
    }
}
