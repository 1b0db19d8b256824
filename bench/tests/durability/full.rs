//! A disk without space, a quota without room, a disk that has become read-only: what goes on, and how writes come back.
//!
//! The disk is an ext4 in a file on a loop device, which needs root; where the machine does not allow it, the test says
//! so and is left out.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use tarsier_proto::etcdserverpb as pb;

use crate::caller::Caller;
use crate::disk::Disk;
use crate::fault::{Fault, Result};
use crate::link::Windows;
use crate::proof::calls::{self, PATIENCE, says};
use crate::proof::history::{History, KEYS, Mark, Operation, Told, Write};
use crate::proof::image::Image;
use crate::proof::watches::{self, AllSeen, Scope, Watches};
use crate::scene::{self, program, say, tarsier, with_log};
use crate::server::{Program, Server};

const NO_SPACE: &str = "etcdserver: mvcc: database space exceeded";
const IMAGE_BYTES: u64 = 160 << 20;
const VALUE_BYTES: u32 = 60_000;
/// What is left for puts when the ballast is in.
const LEFT_BYTES: u64 = 20 << 20;

const ALARM: &str = "/etcdserverpb.Maintenance/Alarm";
const DEFRAGMENT: &str = "/etcdserverpb.Maintenance/Defragment";

/// One client that does one write after the other, so that the history is known exactly.
struct Alone {
    server: Server,
    caller: Caller,
    history: History,
    seen: AllSeen,
    watches: Watches,
    number: u64,
}

impl Alone {
    async fn start(program: &Program) -> Result<Alone> {
        let server = program.start().await?;
        let seen = watches::seen(&[Scope::All], 1);
        let watches = Watches::open(&server.endpoint, &seen).await?;
        let caller = Caller::connect(&server.endpoint, Windows::WIDE).await?;
        Ok(Alone { server, caller, history: History::new(), seen, watches, number: 0 })
    }

    async fn put(&mut self) -> Result<()> {
        self.number += 1;
        let mark = Mark { number: self.number, bytes: VALUE_BYTES };
        self.write(Operation::Put((self.number % u64::from(KEYS)) as u16, mark)).await
    }

    async fn delete(&mut self) -> Result<()> {
        let first = self.history.at(self.history.revision)[0].key;
        self.write(Operation::Delete(first)).await
    }

    async fn write(&mut self, operation: Operation) -> Result<()> {
        let write: Write = vec![operation];
        let (revision, _) = calls::write(&self.caller, &write).await?;
        let told = match operation {
            Operation::Put(key, mark) => self.history.put(key, mark),
            Operation::Delete(key) => Told { key, put: None },
        };
        self.history.apply(&[told]).map_err(Fault::Broken)?;
        assert_eq!(revision, self.history.revision, "the revisions go on one by one");
        Ok(())
    }

    /// Puts until the server says that there is no space.
    async fn fill(&mut self, puts_max: u64) -> Result<u64> {
        for puts in 0..puts_max {
            match self.put().await {
                Err(fault) if says(&fault, NO_SPACE) => return Ok(puts),
                outcome => outcome?,
            }
        }
        Err(Fault::Broken(format!("{puts_max} puts of {VALUE_BYTES} bytes fit")))
    }

    /// The last line of the server's log with these words.
    fn logged(&self, words: &str) -> String {
        let log = self.server.log();
        log.lines().rfind(|line| line.contains(words)).unwrap_or_default().to_owned()
    }

    async fn put_is_refused(&mut self) -> Result<()> {
        match self.put().await {
            Err(fault) if says(&fault, NO_SPACE) => Ok(()),
            Err(fault) => Err(fault),
            Ok(()) => Err(Fault::Broken("a put is answered where no space is left".to_owned())),
        }
    }

    /// A read of everything is what was answered, and the watch of everything has been told the same.
    async fn is_whole(&mut self) -> Result<()> {
        let revision = self.history.revision;
        for at in [0, revision] {
            let rows = calls::rows(&self.caller, at).await?;
            assert!(rows == Some(self.history.at(revision)), "a read at {at} shows what was answered");
        }
        self.watches.wait(&self.seen, &[revision]).await?;
        let seen = self.seen.borrow();
        let told: Vec<i64> = seen[0].fresh.keys().copied().collect();
        let all: Vec<i64> = (2..=revision).collect();
        assert!(told == all, "{:?} is told every revision", Scope::All);
        Ok(())
    }

    async fn restart_after_kill(&mut self) -> Result<()> {
        self.server.kill();
        self.watches.ended().await?;
        self.server.spawn_again()?;
        let ready = self.server.wait_until_ready().await;
        with_log(&self.server, ready)?;
        self.caller = Caller::connect(&self.server.endpoint, Windows::WIDE).await?;
        self.watches = Watches::open(&self.server.endpoint, &self.seen).await?;
        Ok(())
    }

    /// What etcd's operators do: forget history, give its space back, take the alarm back.
    async fn runbook(&mut self) -> Result<()> {
        let alarms = self.alarm(pb::alarm_request::AlarmAction::Get, 0).await?;
        let [alarm] = &alarms[..] else { panic!("one alarm is raised: {alarms:?}") };
        assert_eq!(alarm.alarm, pb::AlarmType::Nospace as i32);
        // A second compaction of the same revision is refused; the revision goes on with a delete.
        self.delete().await?;
        calls::compact(&self.caller, self.history.revision, true).await?;
        calls::call::<pb::DefragmentResponse>(&self.caller, DEFRAGMENT, &pb::DefragmentRequest {}).await?;
        // An alarm is taken back from the member that has raised it, as etcdctl does.
        self.alarm(pb::alarm_request::AlarmAction::Deactivate, alarm.member_id).await?;
        let alarms = self.alarm(pb::alarm_request::AlarmAction::Get, 0).await?;
        assert!(alarms.is_empty(), "the alarm is gone: {alarms:?}");
        Ok(())
    }

    async fn alarm(&self, action: pb::alarm_request::AlarmAction, member_id: u64) -> Result<Vec<pb::AlarmMember>> {
        let request = pb::AlarmRequest { action: action as i32, member_id, alarm: pb::AlarmType::Nospace as i32 };
        calls::call::<pb::AlarmResponse>(&self.caller, ALARM, &request).await.map(|response| response.alarms)
    }

    /// Reads, watches, deletes and compactions go on, before and after a kill; then the runbook brings puts back.
    async fn live_without_space(&mut self, make_space: impl FnOnce()) -> Result<()> {
        self.put_is_refused().await?;
        self.is_whole().await?;
        self.delete().await?;
        self.is_whole().await?;
        calls::compact(&self.caller, self.history.revision / 2, false).await?;
        self.restart_after_kill().await?;
        self.is_whole().await?;
        self.put_is_refused().await?;
        self.delete().await?;
        self.is_whole().await?;
        make_space();
        self.runbook().await?;
        for put in 0..10 {
            match self.put().await {
                Err(fault) if says(&fault, NO_SPACE) => {
                    let alarms = self.alarm(pb::alarm_request::AlarmAction::Get, 0).await?;
                    let text = format!("put {put} behind the runbook is refused: {fault}; alarms: {alarms:?}");
                    return Err(Fault::Broken(text));
                }
                outcome => outcome?,
            }
        }
        self.is_whole().await?;
        self.restart_after_kill().await?;
        self.is_whole().await
    }
}

#[test]
fn a_quota_without_room_refuses_puts_until_the_runbook_is_done() {
    let mut program = program();
    program.flags = vec!["--quota-backend-bytes".to_owned(), (16 << 20).to_string()];
    scene::run(async {
        let mut alone = Alone::start(&program).await?;
        let puts = alone.fill(2_000).await?;
        say(&format!("a quota of 16 MiB took {puts} puts of {VALUE_BYTES} bytes"));
        let raised = alone.logged("alarm raised");
        assert!(
            raised.contains("the space quota is reached: ") && raised.contains(" of the 16777216 bytes"),
            "{raised}"
        );
        let lived = alone.live_without_space(|| {}).await;
        with_log(&alone.server, lived)?;
        let stands = alone.logged("an alarm stands");
        assert!(
            stands.contains("bytes of the quota are used") || stands.contains("the space quota is reached"),
            "{stands}"
        );
        assert!(stands.contains("bytes are free in") && stands.contains("etcdctl alarm disarm"), "{stands}");
        Ok(())
    });
}

/// A disk for this test, or `None` with a word about it.
pub fn image(test: &str, bytes: u64) -> Option<Image> {
    let folder = std::env::temp_dir().join(format!("tarsier-durability-{}-{test}", std::process::id()));
    match Image::new(&folder, bytes) {
        Ok(image) => Some(image),
        Err(reason) => {
            say(&format!("{test}: skipped, this machine mounts no image: {reason}"));
            None
        }
    }
}

#[test]
fn a_disk_without_space_refuses_puts_until_the_runbook_is_done() {
    let Some(mut program) = tarsier("full-disk") else { return };
    let Some(image) = image("full-disk", IMAGE_BYTES) else { return };
    program.data_root = image.mount.clone();
    scene::run(async {
        let mut alone = Alone::start(&program).await?;
        alone.put().await?;
        let ballast = image.mount.join("ballast");
        let bytes = free_bytes(&image.mount).saturating_sub(LEFT_BYTES);
        let zeros = vec![0u8; bytes as usize];
        fs::write(&ballast, zeros).expect("the ballast fits");
        let puts = alone.fill(IMAGE_BYTES / u64::from(VALUE_BYTES) * 2).await;
        let puts = with_log(&alone.server, puts)?;
        say(&format!(
            "the full disk took {puts} puts of {VALUE_BYTES} bytes; {} bytes are free",
            free_bytes(&image.mount)
        ));
        let raised = alone.logged("alarm raised");
        assert!(raised.contains("the disk is full: ") && raised.contains(&*image.mount.to_string_lossy()), "{raised}");
        // Whatever is left, somebody else takes it.
        let rest = image.mount.join("rest");
        // It fails where the blocks that a file needs for itself are counted as free.
        let _ = fs::write(&rest, vec![1u8; free_bytes(&image.mount) as usize]);
        let lived = alone.live_without_space(|| fs::remove_file(&ballast).expect("the ballast is there")).await;
        with_log(&alone.server, lived)
    });
}

/// Bytes that files may still take.
fn free_bytes(mount: &Path) -> u64 {
    let stat = rustix::fs::statvfs(mount).expect("the image is mounted");
    stat.f_bavail * stat.f_frsize
}

/// Lets the file system find an error, upon which it turns read-only.
fn turn_read_only(mount: &Path) -> std::io::Result<()> {
    let device = Disk::under(mount).expect("the image is on a device").name;
    fs::write(Path::new("/sys/fs/ext4").join(device).join("trigger_fs_error"), "a test")
}

/// ext4 turns itself read-only when told that it has found an error, here by the kernel's switch for tests of that; a
/// plain remount is refused while files are open for writing.
#[test]
fn a_disk_that_turns_read_only_leaves_reads_and_watches() {
    let Some(mut program) = tarsier("read-only-disk") else { return };
    let Some(image) = image("read-only-disk", IMAGE_BYTES) else { return };
    program.data_root = image.mount.clone();
    scene::run(async {
        let mut alone = Alone::start(&program).await?;
        for _ in 0..20 {
            alone.put().await?;
        }
        if let Err(reason) = turn_read_only(&image.mount) {
            say(&format!("read-only-disk: skipped, this kernel has no switch for it: {reason}"));
            return Ok(());
        }
        let begun = Instant::now();
        // The server may notice with its first write or with one of the next.
        while begun.elapsed() < PATIENCE {
            match alone.put().await {
                Ok(()) => tokio::time::sleep(Duration::from_millis(5)).await,
                Err(fault) => {
                    // Refused, not lost: the process goes on.
                    alone.server.check_alive()?;
                    say(&format!("a put on a read-only disk: {fault}"));
                    break;
                }
            }
        }
        let whole = alone.is_whole().await;
        with_log(&alone.server, whole)?;
        assert!(alone.put().await.is_err(), "no put is answered");
        alone.server.check_alive()
    });
}

/// With room there is nothing to wait for: the thread that does it is woken, and so is the one that answers.
#[test]
fn a_defragmentation_of_an_empty_store_is_answered_at_once() {
    let program = program();
    scene::run(async {
        let server = program.start().await?;
        let caller = server.caller().await?;
        let mut times = Vec::new();
        for _ in 0..5 {
            let begun = Instant::now();
            calls::call::<pb::DefragmentResponse>(&caller, DEFRAGMENT, &pb::DefragmentRequest {}).await?;
            times.push(begun.elapsed());
        }
        // Others may use the machine.
        assert!(times.iter().any(|time| *time < Duration::from_millis(250)), "{times:?}");
        Ok(())
    });
}
