//! What a start refuses, each with one sentence about what is wrong.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

use crate::full;
use crate::proof::calls;
use crate::scene::{self, program, refused_start, tarsier};

#[test]
fn a_second_server_on_the_same_directory_is_refused() {
    let Some(program) = tarsier("a second server on one directory") else { return };
    scene::run(async {
        let server = program.start().await?;
        let words = refused_start(&program.path, &server.data());
        assert!(words.contains(&*server.data().to_string_lossy()), "the directory is named: {words}");
        // The first one does not notice.
        calls::header(&server.caller().await?).await.map(drop)
    });
}

/// Each has a directory of its own, so that nothing but the port tells them apart.
#[test]
fn of_two_servers_that_start_together_on_one_port_one_serves_and_the_other_says_why_not() {
    let Some(program) = tarsier("two servers on one port") else { return };
    let folder = scene::Folder::new("together");
    let url = format!("http://127.0.0.1:{}", program.port);
    let mut servers = ["one", "other"].map(|name| {
        let mut command = Command::new(&program.path);
        command.args(["--listen-client-urls", &url, "--log-level", "error", "--data-dir"]).arg(folder.path.join(name));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        command.spawn().expect("the binary starts")
    });
    // The one that finds the port taken tries again for two seconds.
    let begun = Instant::now();
    let mut ended = [None, None];
    while begun.elapsed() < Duration::from_secs(10) && ended == [None, None] {
        std::thread::sleep(Duration::from_millis(20));
        ended = servers.each_mut().map(|server| server.try_wait().expect("our own child can be waited for"));
    }
    let serves = TcpStream::connect(("127.0.0.1", program.port)).is_ok();
    let words = servers.map(|mut server| {
        // It may have ended.
        let _ = server.kill();
        let output = server.wait_with_output().expect("it has ended");
        String::from_utf8_lossy(&output.stderr).into_owned()
    });
    let refused: Vec<_> = words.iter().filter(|words| words.contains("another process does")).collect();
    assert!(refused.len() == 1 && serves, "{ended:?}: {words:?}");
}

/// A start may read a large log for minutes. The one of this test waits for a port that is taken, which takes two seconds.
#[test]
fn a_start_that_is_told_to_stop_ends_at_once_and_without_an_error() {
    let Some(program) = tarsier("the end of a start") else { return };
    let folder = scene::Folder::new("stopped");
    let taken = TcpListener::bind(("127.0.0.1", program.port)).expect("it was free a moment ago");
    let url = format!("http://127.0.0.1:{}", program.port);
    let mut command = Command::new(&program.path);
    command.args(["--listen-client-urls", &url, "--data-dir"]).arg(&folder.path);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut server = command.spawn().expect("the binary starts");
    let process = Pid::from_child(&server);
    while !catches(process, Signal::TERM) {
        std::thread::sleep(Duration::from_millis(1));
    }
    rustix::process::kill_process(process, Signal::TERM).expect("our own child runs");
    let begun = Instant::now();
    let status = server.wait().expect("our own child can be waited for");
    assert!(status.success() && begun.elapsed() < Duration::from_secs(1), "{status} after {:?}", begun.elapsed());
    drop(taken);
}

/// Whether a process has asked for a signal (proc(5), SigCgt). One that has ended has not.
fn catches(process: Pid, signal: Signal) -> bool {
    let status = fs::read_to_string(format!("/proc/{process}/status")).expect("our own child is there until we wait");
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:\t")).expect("a process that has not ended");
    u64::from_str_radix(caught, 16).expect("a mask in hexadecimal") & 1 << (signal.as_raw() - 1) != 0
}

#[test]
fn the_data_directory_of_an_etcd_is_refused_and_left_alone() {
    let Some(program) = tarsier("a data directory of etcd") else { return };
    let directory = scene::Folder::new("etcd-data");
    let database = directory.path.join("member/snap/db");
    fs::create_dir_all(directory.path.join("member/wal")).expect("the temporary directory is writable");
    fs::create_dir_all(directory.path.join("member/snap")).expect("the temporary directory is writable");
    fs::write(&database, b"bolt").expect("the temporary directory is writable");
    let words = refused_start(&program.path, &directory.path);
    assert!(words.contains("etcd"), "{words}");
    let left: Vec<_> =
        fs::read_dir(&directory.path).expect("it is there").flatten().map(|entry| entry.file_name()).collect();
    assert_eq!(left, ["member"], "nothing was added");
    assert_eq!(fs::read(&database).expect("it is there"), b"bolt");
}

/// Without its first files it could not even say that the disk is full.
#[test]
fn a_new_store_on_a_disk_without_room_is_refused_at_once() {
    let Some(program) = tarsier("a small disk") else { return };
    let Some(image) = full::image("small-disk", 20 << 20) else { return };
    let begun = Instant::now();
    let words = refused_start(&program.path, &image.mount.join("data"));
    assert!(begun.elapsed() < Duration::from_secs(5), "it took {:?}", begun.elapsed());
    assert!(words.contains("bytes and a new store takes 25165824: make room"), "{words}");
    let made = fs::read_dir(image.mount.join("data")).expect("the directory itself is made").count();
    assert_eq!(made, 0, "nothing is in the way of the next attempt");
}

#[test]
fn a_start_on_its_own_directory_is_no_news() {
    // The check of the two above: what they refuse is not simply every second start.
    let program = program();
    scene::run(async {
        let mut server = program.start().await?;
        for _ in 0..3 {
            let before = calls::header(&server.caller().await?).await?;
            server.kill();
            server.spawn_again()?;
            server.wait_until_ready().await?;
            let after = calls::header(&server.caller().await?).await?;
            assert_eq!((before.cluster_id, before.member_id), (after.cluster_id, after.member_id));
            let (before, after) = (before.raft_term, after.raft_term);
            assert!(after > before, "the term {before} was told, and is {after} after a restart without a write");
        }
        Ok(())
    });
}
