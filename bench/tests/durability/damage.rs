//! A log that is not as it was written: rot in its middle is refused and told, an end that is cut off is cut.
//!
//! The records are found by the values in them, so these tests know nothing of the format but that a segment is a file
//! `wal/*.wal` of the data directory, and that a record begins at a multiple of 4 KiB.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::caller::Caller;
use crate::fault::Result;
use crate::proof::calls;
use crate::proof::history::{History, Mark, Operation, Row};
use crate::scene::{self, refused_start, tarsier};
use crate::server::{Program, Server};

const BLOCK: u64 = 4096;
/// Each in a record of its own, since each waits for the answer to the last.
const PUTS: u64 = 200;
const VALUE_BYTES: u32 = 100;

fn mark(number: u64) -> Mark {
    Mark { number, bytes: VALUE_BYTES }
}

/// A killed server with so many answered puts, to ten keys in turn, and what it must hold at each revision.
async fn killed_after_puts(program: &Program) -> Result<(Server, History)> {
    let mut server = program.start().await?;
    let (caller, mut history) = (server.caller().await?, History::new());
    for number in 1..=PUTS {
        let (key, mark) = ((number % 10) as u16, mark(number));
        let (revision, _) = calls::write(&caller, &vec![Operation::Put(key, mark)]).await?;
        history.apply(&[history.put(key, mark)]).expect("it follows");
        assert_eq!(revision, history.revision);
    }
    server.kill();
    Ok((server, history))
}

/// Where the newest copy of a value lies: the file and the offset in it. A value may be in the log once.
fn find(data: &Path, mark: Mark) -> (PathBuf, u64) {
    let files = fs::read_dir(data.join("wal")).expect("the log is a folder of the data directory").flatten();
    let value = mark.value();
    let found = files
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|end| end == "wal"))
        .find_map(|path| {
            let bytes = fs::read(&path).expect("a segment is readable");
            let at = bytes.windows(value.len()).position(|window| window == value)?;
            Some((path, at as u64))
        });
    found.unwrap_or_else(|| panic!("no segment holds the value of put {}", mark.number))
}

fn flip_a_byte(path: &Path, at: u64) {
    let file = fs::File::options().read(true).write(true).open(path).expect("a segment is writable");
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("the offset lies in the segment");
    file.write_all_at(&[byte[0] ^ 0x10], at).expect("a segment is writable");
}

/// A sentence about damage names the segment and where its record begins.
fn names_the_place(words: &str, path: &Path, at: u64) {
    let name = path.file_name().expect("a segment has a name").to_string_lossy();
    assert!(words.contains(&*name), "the file {name} is not named: {words}");
    let record = at / BLOCK * BLOCK;
    let numbers = words.split(|c: char| !c.is_ascii_alphanumeric());
    let is_named = |word: &str| word == record.to_string() || word == format!("{record:#x}");
    assert!(numbers.into_iter().any(is_named), "the offset {record} is not named: {words}");
}

async fn rows(server: &Server) -> Result<(i64, Vec<Row>)> {
    let caller = Caller::connect(&server.endpoint, crate::link::Windows::WIDE).await?;
    let revision = calls::header(&caller).await?.revision;
    Ok((revision, calls::rows(&caller, 0).await?.expect("now is never compacted")))
}

#[test]
fn a_flipped_byte_in_the_middle_of_the_log_is_refused_told_and_salvaged() {
    let Some(program) = tarsier("a flipped byte in the log") else { return };
    scene::run(async {
        let (server, history) = killed_after_puts(&program).await?;
        let middle = PUTS / 2;
        let (path, at) = find(&server.data(), mark(middle));
        flip_a_byte(&path, at + 50);
        names_the_place(&refused_start(&program.path, &server.data()), &path, at);

        let check = Command::new(&program.path).arg("check").arg(server.data()).output().expect("it starts");
        let words = String::from_utf8_lossy(&[check.stdout, check.stderr].concat()).into_owned();
        assert_eq!(check.status.code(), Some(1), "{words}");
        names_the_place(&words, &path, at);

        // What was before the damage is revision `middle`: the first put made revision 2.
        let saved = program.start_salvaged(&server.data()).await?;
        let (revision, rows) = rows(&saved).await?;
        assert!(revision >= middle as i64, "only revision {revision} was salvaged");
        assert_eq!(rows, history.at(revision), "what was salvaged is what was written up to its revision");
        Ok(())
    });
}

#[test]
fn a_record_that_is_cut_off_at_the_end_of_the_log_is_cut_away() {
    let Some(program) = tarsier("a cut tail") else { return };
    scene::run(async {
        // The whole record, and only its end: a segment has its full length from the beginning, so no file is shorter.
        for is_torn in [false, true] {
            let (mut server, history) = killed_after_puts(&program).await?;
            let (path, at) = find(&server.data(), mark(PUTS));
            let record = at / BLOCK * BLOCK;
            let (from, until) = (if is_torn { at + 50 } else { record }, record + BLOCK);
            let file = fs::File::options().write(true).open(&path).expect("a segment is writable");
            file.write_all_at(&vec![0; (until - from) as usize], from).expect("a segment is writable");
            server.spawn_again()?;
            let ready = server.wait_until_ready().await.map(drop);
            scene::with_log(&server, ready)?;
            let (revision, rows) = rows(&server).await?;
            assert_eq!(revision, PUTS as i64, "all but the last put is there");
            assert_eq!(rows, history.at(revision));
            // It goes on behind the cut, and over the next start.
            let caller = server.caller().await?;
            let (next, _) = calls::write(&caller, &vec![Operation::Put(50, mark(PUTS + 1))]).await?;
            assert_eq!(next, revision + 1);
            server.kill();
            server.spawn_again()?;
            server.wait_until_ready().await?;
            assert_eq!(calls::header(&server.caller().await?).await?.revision, next);
        }
        Ok(())
    });
}
