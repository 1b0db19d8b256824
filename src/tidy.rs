//! Tests only: the rules that we care about, held by reading the source.
//!
//! A module imports what lies downstream of it, so that the core can be run without its edges and a newcomer can read
//! it without them. Time, the ring and the generated messages each have one place, so that they can be replaced there.
//! A new module has to be drawn into [`LAYERS`] before anything may import it, or it anything.
//!
//! Code of tests is held to the leftovers and the length alone: a test may look at anything.

use std::fs;
use std::path::{Path, PathBuf};

/// Each module of the crate with what it may name of the others: a whole module, or a path into one. From the bottom
/// up.
const LAYERS: &[(&str, &[&str])] = &[
    ("types", &[]),
    ("grpc", &[]),
    ("heap", &[]),
    ("pb", &[]),
    ("store", &["types"]),
    ("watch", &["types"]),
    ("lease", &["types"]),
    ("auth", &["types"]),
    ("metrics", &[]),
    ("backend", &["auth", "lease", "store", "types", "watch"]),
    ("config", &["types"]),
    ("net", &["backend", "grpc", "heap", "metrics", "shard::clock", "types"]),
    // The log goes to the disk over the same ring.
    ("wal", &["metrics", "net::ring", "shard::clock", "types"]),
    // Of the connection's edge, a service knows the words for a call and for what it sends, and nothing that moves
    // bytes.
    (
        "service",
        &[
            "auth",
            "backend",
            "grpc",
            "lease",
            "metrics",
            "net::CallHead",
            "net::CallId",
            "net::CallKind",
            "net::Output",
            "pb",
            "store",
            "types",
            "watch",
        ],
    ),
    ("log", &["config", "shard::clock", "types"]),
    (
        "shard",
        &["auth", "backend", "config", "grpc", "lease", "metrics", "net", "service", "store", "types", "wal", "watch"],
    ),
    ("main", &["config", "heap", "log", "metrics", "shard", "wal::check", "wal::identity", "wal::salvage"]),
];

/// A word of the code with the only places that may use it.
const PLACES: &[(&str, &[&str])] = &[
    ("Instant::now", &["shard/clock.rs"]),
    ("SystemTime::now", &["shard/clock.rs"]),
    ("tokio_uring::", &["net/", "wal/"]),
    ("io_uring::", &["net/", "wal/"]),
    ("tarsier_proto::", &["pb.rs"]),
    ("pb::", &["service/", "pb.rs"]),
    // A panic names the reason why it cannot happen.
    (".unwrap()", &[]),
];

/// What work in progress leaves behind. Written in halves, so that this file does not break the rule it holds.
const LEFTOVERS: &[&str] = &[
    concat!("to", "do!"),
    concat!("unimple", "mented!"),
    concat!("db", "g!"),
    concat!("FIX", "ME"),
    concat!("XX", "X"),
    concat!("HA", "CK"),
];

const LINES_MAX: usize = 700;

/// A source file, its path below the folder that was asked for.
struct Source {
    path: String,
    text: String,
    /// Declared under `#[cfg(test)]`, or below a module that is.
    is_test: bool,
}

impl Source {
    /// The lines that are built into the binary: no tests, no comments.
    fn code(&self) -> Vec<(usize, &str)> {
        if self.is_test {
            return Vec::new();
        }
        let lines: Vec<&str> = self.text.lines().collect();
        let tests = lines.windows(2).position(|pair| pair[0] == "#[cfg(test)]" && pair[1].starts_with("mod tests"));
        let code = lines.iter().take(tests.unwrap_or(lines.len())).enumerate();
        code.map(|(at, line)| (at + 1, without_comment(line))).filter(|(_, line)| !line.trim().is_empty()).collect()
    }

    /// The module of the crate that the file belongs to.
    fn layer(&self) -> &str {
        self.path.split(['/', '.']).next().unwrap_or("")
    }

    /// The modules that the file declares for tests alone, as paths without their ending.
    fn test_modules(&self) -> Vec<String> {
        let folder = match self.path.rsplit_once('/') {
            Some((folder, "mod.rs")) => format!("{folder}/"),
            None if ["lib.rs", "main.rs"].contains(&&*self.path) => String::new(),
            _ => format!("{}/", self.path.trim_end_matches(".rs")),
        };
        let lines: Vec<&str> = self.text.lines().collect();
        let declared = lines.windows(2).filter(|pair| pair[0].trim() == "#[cfg(test)]").filter_map(|pair| {
            let name = pair[1].split_once("mod ")?.1.strip_suffix(';')?;
            Some(format!("{folder}{name}"))
        });
        declared.collect()
    }

    /// How far below the root of the crate its module lies.
    fn depth(&self) -> usize {
        let folders = self.path.matches('/').count();
        if self.path.ends_with("/mod.rs") { folders } else { folders + 1 }
    }
}

/// The line up to a comment. Slashes in a literal, as in a URL, do not start one after a colon or a quote.
fn without_comment(line: &str) -> &str {
    let starts = line.match_indices("//").map(|(at, _)| at);
    let comment = starts.into_iter().find(|&at| !line[..at].ends_with([':', '"', '/']));
    &line[..comment.unwrap_or(line.len())]
}

fn is_word(letter: char) -> bool {
    letter.is_alphanumeric() || letter == '_'
}

/// Paths that follow `crate::` in the code, groups in braces drawn out.
fn crate_paths(code: &str) -> Vec<String> {
    let mut paths = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        if !code[..at].ends_with(is_word) {
            expand(&code[at + "crate::".len()..], "", &mut paths);
        }
    }
    paths
}

/// Reads one path or group from the front of `rest` and returns what follows it.
fn expand<'a>(rest: &'a str, prefix: &str, paths: &mut Vec<String>) -> &'a str {
    let mut rest = rest.trim_start();
    if let Some(group) = rest.strip_prefix('{') {
        rest = group;
        while !rest.trim_start().is_empty() {
            rest = expand(rest, prefix, paths).trim_start();
            rest = rest.strip_prefix(',').unwrap_or(rest).trim_start();
            if let Some(after) = rest.strip_prefix('}') {
                return after;
            }
            if !rest.starts_with(|letter| is_word(letter) || letter == '{') {
                return rest;
            }
        }
        return rest;
    }
    let word = &rest[..rest.find(|letter| !is_word(letter)).unwrap_or(rest.len())];
    let path = if prefix.is_empty() { word.to_owned() } else { format!("{prefix}::{word}") };
    rest = &rest[word.len()..];
    match rest.strip_prefix("::") {
        Some(deeper) if deeper.starts_with(|letter| is_word(letter) || letter == '{') => expand(deeper, &path, paths),
        _ => {
            paths.push(path);
            let renamed =
                rest.trim_start().strip_prefix("as ").map(|name| name.trim_start().trim_start_matches(is_word));
            renamed.unwrap_or(rest)
        }
    }
}

/// Whether `path` is `allowed` or lies in it.
fn lies_in(path: &str, allowed: &str) -> bool {
    path.strip_prefix(allowed).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

fn upstream_imports(source: &Source) -> Vec<String> {
    let layer = source.layer();
    if layer == "lib" || source.code().is_empty() {
        return Vec::new();
    }
    let Some((_, allowed)) = LAYERS.iter().find(|(name, _)| *name == layer) else {
        return vec![format!("src/{}: the module {layer} is not drawn in LAYERS", source.path)];
    };
    let code: String = source.code().into_iter().flat_map(|(_, line)| [line, "\n"]).collect();
    // The binary names its own library from outside.
    let code = code.replace("tarsier::", "crate::");
    let mut found = Vec::new();
    for path in crate_paths(&code) {
        if !lies_in(&path, layer) && !allowed.iter().any(|allowed| lies_in(&path, allowed)) {
            found.push(format!("src/{}: {layer} may not name {path}", source.path));
        }
    }
    if code.contains(&"super::".repeat(source.depth())) {
        found.push(format!("src/{}: leaves its module by super::", source.path));
    }
    found
}

fn misplaced(source: &Source) -> Vec<String> {
    let mut found = Vec::new();
    for (number, line) in source.code() {
        for (word, places) in PLACES {
            let is_here =
                line.match_indices(word).any(|(at, _)| !line[..at].ends_with(is_word) || word.starts_with('.'));
            if is_here && !places.iter().any(|place| source.path.starts_with(place)) {
                found.push(format!("src/{}:{number}: {word} is for {places:?} alone", source.path));
            }
        }
    }
    found
}

fn leftovers(source: &Source) -> Vec<String> {
    let lines = source.text.lines().enumerate();
    let is_leftover = |line: &str| LEFTOVERS.iter().any(|leftover| line.contains(leftover));
    lines
        .filter(|(_, line)| is_leftover(line))
        .map(|(at, line)| format!("{}:{}: {line}", source.path, at + 1))
        .collect()
}

fn too_long(source: &Source) -> Vec<String> {
    let lines = source.text.lines().count();
    if lines > LINES_MAX { vec![format!("{}: {lines} lines", source.path)] } else { Vec::new() }
}

/// Every Rust file below a folder of the repository, in the order of their paths.
fn sources(folder: &str) -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let mut folders = vec![root.clone()];
    let mut files: Vec<PathBuf> = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            // What cargo builds for the clients of other workspaces is not ours.
            if path.is_dir() && path.file_name().is_some_and(|name| name != "target") {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    let source = |file: PathBuf| Source {
        path: file.strip_prefix(&root).unwrap().to_str().unwrap().to_owned(),
        text: fs::read_to_string(&file).unwrap(),
        is_test: false,
    };
    let mut sources: Vec<_> = files.into_iter().map(source).collect();
    mark_tests(&mut sources);
    sources
}

fn mark_tests(sources: &mut [Source]) {
    let modules: Vec<_> = sources.iter().flat_map(Source::test_modules).collect();
    let is_below =
        |path: &str, module: &str| path.strip_prefix(module).is_some_and(|rest| rest == ".rs" || rest.starts_with('/'));
    for source in sources {
        source.is_test = modules.iter().any(|module| is_below(&source.path, module));
    }
}

fn check(folders: &[&str], rule: fn(&Source) -> Vec<String>) {
    let sources: Vec<_> = folders.iter().flat_map(|folder| sources(folder)).collect();
    assert!(sources.len() > 10, "the source is not where it was");
    let found: Vec<_> = sources.iter().flat_map(rule).collect();
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

#[test]
fn a_module_names_only_what_lies_downstream_of_it() {
    check(&["src"], upstream_imports);
}

#[test]
fn time_the_ring_and_generated_messages_each_have_one_place() {
    check(&["src"], misplaced);
}

#[test]
fn nothing_is_left_over_from_work_in_progress() {
    check(&["src", "proto", "bench"], leftovers);
}

#[test]
fn a_file_that_outgrows_its_limit_is_split() {
    check(&["src", "proto", "bench"], too_long);
}

#[test]
fn the_layers_are_drawn_from_the_bottom_up() {
    for (at, (name, allowed)) in LAYERS.iter().enumerate() {
        for path in *allowed {
            let layer = path.split("::").next().unwrap();
            // The clock is a leaf that lies in the folder of the shards, where its readers are.
            let is_below = LAYERS[..at].iter().any(|(below, _)| *below == layer) || *path == "shard::clock";
            assert!(is_below, "{name} may name {path}, which is not below it");
        }
    }
}

fn planted_source(path: &str, text: &str) -> Source {
    Source { path: path.to_owned(), text: text.to_owned(), is_test: false }
}

fn planted(path: &str, text: &str, rule: fn(&Source) -> Vec<String>) -> usize {
    rule(&planted_source(path, text)).len()
}

#[test]
fn an_import_from_upstream_is_found_in_every_form() {
    for (path, text, expected) in [
        ("store/mod.rs", "use crate::types::Key;\nuse crate::store::command::Put;", 0),
        ("store/mod.rs", "use crate::watch::hub::Hub;", 1),
        ("store/mod.rs", "use crate::{types::Key, watch::hub, grpc::{frame, status as s}, backend};", 4),
        ("store/mod.rs", "fn f() { crate::shard::clock::now(); }", 1),
        ("store/mod.rs", "// crate::shard is far above", 0),
        ("store/mod.rs", "use super::watch;", 1),
        ("store/txn.rs", "use super::command;", 0),
        ("store/txn.rs", "use super::super::watch;", 1),
        ("store/txn.rs", "#[cfg(test)]\nmod tests {\n    use crate::pb;\n}", 0),
        ("net/mod.rs", "use crate::shard::clock;", 0),
        ("net/mod.rs", "use crate::shard::{clock, mesh};", 1),
        ("net/mod.rs", "use crate::shard::clockwork;", 1),
        ("service/mod.rs", "use crate::net::{\n    CallId,\n    ring::Ring,\n};", 1),
        ("attic/mod.rs", "use std::fmt;", 1),
        ("main.rs", "use tarsier::store::Store;", 1),
    ] {
        assert_eq!(planted(path, text, upstream_imports), expected, "{path}: {text}");
    }
}

#[test]
fn a_word_out_of_its_place_is_found() {
    for (path, text, expected) in [
        ("shard/clock.rs", "Instant::now()", 0),
        ("shard/mod.rs", "let now = std::time::Instant::now();", 1),
        ("shard/mod.rs", "use tokio_uring::spawn;", 1),
        ("net/ring.rs", "use tokio_uring::spawn;", 0),
        ("watch/hub.rs", "use crate::pb::mvccpb;", 1),
        ("watch/hub.rs", "#[cfg(test)]\nmod tests {\n    use crate::pb::mvccpb;\n}", 0),
        ("service/watch.rs", "use crate::pb::mvccpb;", 0),
        ("watch/hub.rs", "first.unwrap(); // because", 1),
        ("watch/hub.rs", "// first.unwrap()", 0),
    ] {
        assert_eq!(planted(path, text, misplaced), expected, "{path}: {text}");
    }
}

#[test]
fn leftovers_and_long_files_are_found() {
    for leftover in LEFTOVERS {
        assert_eq!(planted("store/mod.rs", &format!("fn f() {{}}\n// {leftover}"), leftovers), 1);
    }
    assert_eq!(planted("store/mod.rs", &"\n".repeat(LINES_MAX), too_long), 0);
    assert_eq!(planted("store/mod.rs", &"\n".repeat(LINES_MAX + 1), too_long), 1);
}

#[test]
fn modules_declared_for_tests_are_known_as_such() {
    let mut sources = [
        planted_source("lib.rs", "pub mod store;\n\n#[cfg(test)]\nmod sim;\n"),
        planted_source("sim/world.rs", ""),
        planted_source("simple.rs", ""),
        planted_source("store/mod.rs", "#[cfg(test)]\npub mod model;\nmod txn;"),
        planted_source("store/model.rs", ""),
        planted_source("store/txn.rs", "#[cfg(test)]\nmod tests;"),
        planted_source("store/txn/tests.rs", ""),
    ];
    mark_tests(&mut sources);
    let tests: Vec<_> = sources.iter().filter(|source| source.is_test).map(|source| &*source.path).collect();
    assert_eq!(tests, ["sim/world.rs", "store/model.rs", "store/txn/tests.rs"]);
}
