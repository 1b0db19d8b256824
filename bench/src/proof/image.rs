//! A file system of our own in a file, on a loop device: a disk that can be filled to the brim, and whose power can be cut.
//!
//! A copy of the file while it is mounted is the disk without the page cache: what no sync has asked for is absent. It is
//! a moment only if nothing is written meanwhile, so the server is halted first and the device's counters must stand
//! still over the copy.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::disk::Disk;
use crate::fault::{Fault, Result};
use crate::server::Server;

/// The loop device and the journal may still be busy when the server is halted; in the end they rest.
const COPIES_MAX: u32 = 50;
/// How long a file system may be in use after its server is gone.
const BUSY_MAX: Duration = Duration::from_secs(5);

pub struct Image {
    folder: PathBuf,
    pub mount: PathBuf,
}

impl Image {
    /// Makes and mounts one; the error is the reason why this machine does not allow it.
    pub fn new(folder: &Path, bytes: u64) -> Result<Image> {
        let image = Image { folder: folder.to_owned(), mount: folder.join("mount") };
        let refused = |cause| Fault::Refused(format!("{} cannot be made: {cause}", folder.display()));
        fs::create_dir_all(&image.mount).map_err(refused)?;
        let file = fs::File::create(image.file()).map_err(refused)?;
        file.set_len(bytes).map_err(refused)?;
        // Without a reserve for root: full is full.
        run(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).arg(image.file()))?;
        image.mount()?;
        Ok(image)
    }

    fn file(&self) -> PathBuf {
        self.folder.join("image")
    }

    fn mount(&self) -> Result<()> {
        run(Command::new("mount").args(["-o", "loop,errors=remount-ro"]).arg(self.file()).arg(&self.mount))
    }

    /// The kernel closes the files of a killed ring a moment after its process is gone.
    fn unmount(&self) -> Result<()> {
        let begun = Instant::now();
        loop {
            match run(Command::new("umount").arg(&self.mount)) {
                Err(_) if begun.elapsed() < BUSY_MAX => std::thread::sleep(Duration::from_millis(20)),
                outcome => return outcome,
            }
        }
    }

    /// Cuts the power of the disk under a running server; the server is dead afterwards, the disk mounted again.
    pub fn cut_power(&self, server: &mut Server) -> Result<()> {
        server.signal(rustix::process::Signal::STOP);
        let copied = self.copy_a_moment();
        server.kill();
        copied?;
        self.unmount()?;
        let refused = |cause| Fault::Refused(format!("the image cannot be exchanged: {cause}"));
        fs::rename(self.folder.join("copy"), self.file()).map_err(refused)?;
        self.mount()
    }

    fn copy_a_moment(&self) -> Result<()> {
        let disk = Disk::under(&self.mount)?;
        for _ in 0..COPIES_MAX {
            let before = disk.counts()?;
            if before.in_flight == 0 {
                run(Command::new("cp").arg("--sparse=always").arg(self.file()).arg(self.folder.join("copy")))?;
                let during = disk.counts()?.since(before);
                if during.writes == 0 && during.in_flight == 0 {
                    return Ok(());
                }
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Err(Fault::Stalled { waiting_for: format!("{} to rest", disk.name), seconds: 0 })
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        if let Err(fault) = self.unmount().and_then(|()| {
            let remains = |cause| Fault::Refused(format!("{} remains: {cause}", self.folder.display()));
            fs::remove_dir_all(&self.folder).map_err(remains)
        }) {
            eprintln!("{fault}");
        }
    }
}

fn run(command: &mut Command) -> Result<()> {
    let shown = format!("{command:?}");
    let output = command.stdin(Stdio::null()).output();
    let output = output.map_err(|cause| Fault::Refused(format!("{shown} does not start: {cause}")))?;
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr).trim().replace('\n', " ");
    Err(Fault::Refused(format!("{shown} ended with {}: {words}", output.status)))
}
