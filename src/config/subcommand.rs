//! The words that ask for something else than serving: `check` and `salvage`, which work on a data directory offline.
//!
//! They take no setting of the server, neither as a flag nor from the environment: an operator who looks at a damaged
//! directory names it.

use std::ffi::OsString;
use std::path::PathBuf;

use super::{Asked, ConfigError};

pub const CHECK_USAGE: &str = "tarsier check DIR [--wal-dir WAL]";
pub const SALVAGE_USAGE: &str = "tarsier salvage DIR NEW [--wal-dir WAL]";

/// What the command line asks for when its first word is one of these; `None` when it is a server's.
pub fn read(args: &[OsString]) -> Option<Result<Asked, ConfigError>> {
    let (word, rest) = args.split_first()?;
    match word.to_str()? {
        "check" => Some(check(rest)),
        "salvage" => Some(salvage(rest)),
        _ => None,
    }
}

fn check(args: &[OsString]) -> Result<Asked, ConfigError> {
    let words = Words::read(args, CHECK_USAGE)?;
    if words.help {
        return Ok(Asked::Help(format!(
            "Reads a data directory of a server that is stopped, and says what of it is whole. It changes nothing.\n\n\
             Usage: {CHECK_USAGE}"
        )));
    }
    match <[PathBuf; 1]>::try_from(words.directories) {
        Ok([dir]) => Ok(Asked::Check { dir, wal_dir: words.wal_dir }),
        Err(directories) => Err(wrong_count("check", "one directory", directories.len(), CHECK_USAGE)),
    }
}

fn salvage(args: &[OsString]) -> Result<Asked, ConfigError> {
    let words = Words::read(args, SALVAGE_USAGE)?;
    if words.help {
        return Ok(Asked::Help(format!(
            "Writes what of a damaged data directory can be proven whole into a new one, and says what was left out. The \
             old one stays as it is.\n\nUsage: {SALVAGE_USAGE}"
        )));
    }
    match <[PathBuf; 2]>::try_from(words.directories) {
        Ok([dir, new]) if dir == new => {
            Err(usage("salvage writes into a new directory, and the old one was named twice", SALVAGE_USAGE))
        }
        Ok([dir, new]) => Ok(Asked::Salvage { dir, new, wal_dir: words.wal_dir }),
        Err(directories) => Err(wrong_count("salvage", "two directories", directories.len(), SALVAGE_USAGE)),
    }
}

#[derive(Default)]
struct Words {
    directories: Vec<PathBuf>,
    wal_dir: Option<PathBuf>,
    help: bool,
}

impl Words {
    fn read(args: &[OsString], usage_line: &'static str) -> Result<Words, ConfigError> {
        let mut words = Words::default();
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            // A path need not be text; whatever begins with a dash is a flag.
            let Some(flag) = arg.to_str().filter(|text| text.starts_with('-')) else {
                words.directories.push(arg.into());
                continue;
            };
            let (name, value) = flag.split_once('=').map_or((flag, None), |(name, value)| (name, Some(value.into())));
            match name.trim_start_matches('-') {
                "wal-dir" => {
                    let value = value.or_else(|| args.next().cloned()).filter(|value| !value.is_empty());
                    words.wal_dir = Some(value.ok_or_else(|| usage("--wal-dir needs a directory", usage_line))?.into());
                }
                "help" | "h" if value.is_none() => words.help = true,
                _ => return Err(usage(&format!("unknown flag {flag}"), usage_line)),
            }
        }
        if words.directories.iter().any(|directory| directory.as_os_str().is_empty()) {
            return Err(usage("a directory has no name", usage_line));
        }
        Ok(words)
    }
}

fn wrong_count(word: &str, wanted: &str, given: usize, usage_line: &'static str) -> ConfigError {
    usage(&format!("{word} takes {wanted}, not {given}"), usage_line)
}

fn usage(reason: &str, usage: &'static str) -> ConfigError {
    ConfigError::Usage { reason: reason.to_owned(), usage }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(line: &str) -> Result<Asked, String> {
        let args: Vec<OsString> = line.split_whitespace().map(OsString::from).collect();
        read(&args).expect("a subcommand").map_err(|error| error.to_string())
    }

    #[test]
    fn check_takes_a_directory_and_perhaps_that_of_the_log() {
        let (dir, wal_dir) = (PathBuf::from("/a"), Some(PathBuf::from("/w")));
        assert_eq!(asked("check /a"), Ok(Asked::Check { dir: dir.clone(), wal_dir: None }));
        for line in ["check /a --wal-dir /w", "check --wal-dir=/w /a", "check -wal-dir /w /a"] {
            assert_eq!(asked(line), Ok(Asked::Check { dir: dir.clone(), wal_dir: wal_dir.clone() }), "{line}");
        }
    }

    #[test]
    fn salvage_takes_the_old_directory_and_the_new_one() {
        let (dir, new) = (PathBuf::from("a"), PathBuf::from("b"));
        assert_eq!(
            asked("salvage a b --wal-dir w"),
            Ok(Asked::Salvage { dir: dir.clone(), new: new.clone(), wal_dir: Some("w".into()) })
        );
        assert_eq!(asked("salvage a b"), Ok(Asked::Salvage { dir, new, wal_dir: None }));
    }

    #[test]
    fn what_is_wrong_is_said_with_the_usage() {
        for (line, text) in [
            ("check", "check takes one directory, not 0; usage: tarsier check DIR [--wal-dir WAL]"),
            ("check a b", "check takes one directory, not 2; usage: tarsier check DIR [--wal-dir WAL]"),
            ("check a --wal-dir", "--wal-dir needs a directory; usage: tarsier check DIR [--wal-dir WAL]"),
            ("check a --wal-dir=", "--wal-dir needs a directory; usage: tarsier check DIR [--wal-dir WAL]"),
            ("check a --name=x", "unknown flag --name=x; usage: tarsier check DIR [--wal-dir WAL]"),
            ("salvage a", "salvage takes two directories, not 1; usage: tarsier salvage DIR NEW [--wal-dir WAL]"),
            (
                "salvage a a",
                "salvage writes into a new directory, and the old one was named twice; usage: tarsier salvage DIR NEW \
                 [--wal-dir WAL]",
            ),
        ] {
            assert_eq!(asked(line), Err(text.to_owned()), "{line}");
        }
    }

    #[test]
    fn each_has_a_help_of_its_own_and_a_servers_line_is_none_of_them() {
        assert!(matches!(asked("check --help"), Ok(Asked::Help(text)) if text.contains(CHECK_USAGE)));
        assert!(matches!(asked("salvage a -h"), Ok(Asked::Help(text)) if text.contains(SALVAGE_USAGE)));
        for line in ["", "--name check", "gateway", "checks a"] {
            let args: Vec<OsString> = line.split_whitespace().map(OsString::from).collect();
            assert!(read(&args).is_none(), "{line}");
        }
    }
}
