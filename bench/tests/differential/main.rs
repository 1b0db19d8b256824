//! Says the same things to the server as were said to a real etcd 3.7.3, and compares the answers field by field.
//!
//! The requests and etcd's answers stand together in the files of `script/`: a request, below it the lines that came back,
//! each behind a `=`. So the comparison needs no etcd, and a change of the list is reviewed with its answers:
//!
//! ```text
//! cargo test -p tarsier-bench --test differential              # against the tarsier of this workspace
//! TARSIER_BIN=/path/to/server cargo test -p tarsier-bench ...  # against another binary, a real etcd too
//! TARSIER_RECORD=/path/to/etcd cargo test -p tarsier-bench ... # writes the answers of this etcd into the files
//! ```
//!
//! Every file is played to a server of its own, from an empty store, so its revisions are known. Not compared are
//! `cluster_id`, `member_id` and `raft_term` (only whether a header has them). Where etcd leaves an order or a moment
//! open, `play` says how both sides are brought to one form. What tarsier answers otherwise on purpose is in
//! [`EXCEPTIONS`], each with its reason; all else is a failure.

mod call;
mod play;
#[path = "../server/mod.rs"]
mod server;
mod text;

use std::fs;
use std::path::{Path, PathBuf};

use play::{Player, Step};
use protox::prost_reflect::DescriptorPool;

/// A request that tarsier answers otherwise than etcd.
struct Exception {
    script: &'static str,
    /// The request as it stands in the script, or its beginning.
    request: &'static str,
    /// Which of the steps that ask so, from 0 on; `None` is all of them.
    at: Option<usize>,
    /// What tarsier answers, without the `= `.
    answer: &'static [&'static str],
    #[allow(dead_code, reason = "it is for the reader")]
    reason: &'static str,
}

const URLS_ARE_FIXED: &str =
    "status 12 tarsier is a single server: its peer URLs are those of the flag --initial-advertise-peer-urls";
const NO_WAY_BACK: &str = "status 12 tarsier is a single server: no etcd reads its data";

/// Everything that differs from etcd on purpose.
const EXCEPTIONS: &[Exception] = &[
    Exception {
        script: "malformed",
        request: r#"raw path: "/etcdserverpb.KV/Range" flag: 1 body: "\x0a\x01a" header { grpc-encoding: "gzip" }"#,
        at: None,
        answer: &["status 12 grpc: Decompressor is not installed for grpc-encoding \"gzip\""],
        reason: "No compression is served; code 12 is what gRPC asks for then.",
    },
    Exception {
        script: "malformed",
        request: r#"raw path: "/etcdserverpb.KV/Range" body: "\x0a\x01a" header { grpc-encoding: "gzip" }"#,
        at: None,
        answer: &["status 12 grpc: Decompressor is not installed for grpc-encoding \"gzip\""],
        reason: "As above. etcd answers compressed, since its gateway's library brings gzip along.",
    },
    Exception {
        script: "malformed",
        request: r#"raw path: "/etcdserverpb.KV/Range" body: "\x08\x01""#,
        at: None,
        answer: &["status 13 grpc: error unmarshalling request: proto: cannot parse invalid wire-format data"],
        reason: "A known field of another wire type is malformed here; etcd passes over it. No client library writes one.",
    },
    Exception {
        script: "malformed",
        request: r#"raw path: "/etcdserverpb.KV/Range" body: "\x0a\x01a\x1a\x01x""#,
        at: None,
        answer: &["status 13 grpc: error unmarshalling request: proto: cannot parse invalid wire-format data"],
        reason: "As above.",
    },
    Exception {
        script: "range_stream",
        request: r#"raw path: "/etcdserverpb.KV/RangeStream" bare: true"#,
        at: None,
        answer: &["status 2 EOF"],
        reason: "Whoever reads a call does not know which of them answer in parts; a unary call is told so by etcd too.",
    },
    Exception {
        script: "range_stream",
        request: r#"RangeStream key: "a" range_end: "b" limit: 3 sort_target: VERSION"#,
        at: None,
        answer: &[
            r#"range_response { header { ids revision: 14 } kvs { key: "a0000" create_revision: 2 mod_revision: 14 version: 2 value: "again" } kvs { key: "a0001" create_revision: 3 mod_revision: 3 version: 1 value: "v" } kvs { key: "a0005" create_revision: 7 mod_revision: 7 version: 1 value: "v" } more: true count: 8 }"#,
        ],
        reason: "etcd sorts each part by the target and loses the row that a part of ten rows leaves over.",
    },
    Exception {
        script: "cluster",
        request: "MemberUpdate ID: $member peerURLs: \"bad\"",
        at: None,
        answer: &[URLS_ARE_FIXED],
        reason: "The URLs of the member are what its flag says; nothing listens there.",
    },
    Exception {
        script: "cluster",
        request: "MemberUpdate ID: $member",
        at: Some(2),
        answer: &[URLS_ARE_FIXED],
        reason: "As above.",
    },
    Exception {
        script: "maintenance",
        request: "Downgrade version: \"3.06.0\"",
        at: None,
        answer: &[NO_WAY_BACK],
        reason: "Our data has a format of its own: whoever asks whether he may go back must not be told yes.",
    },
    Exception {
        script: "maintenance",
        request: "Downgrade version: \"3.6",
        at: None,
        answer: &[NO_WAY_BACK],
        reason: "As above.",
    },
    Exception {
        script: "watch_history",
        request: "read compacted",
        at: Some(5),
        answer: &["nothing"],
        reason: "A compaction ends a watch and frees its id, so a later cancel of it is one of an unknown watch: silence. \
                 In etcd the id stays taken until it is canceled.",
    },
    Exception {
        script: "watch_progress",
        request: "read f",
        at: Some(3),
        answer: &["header { ids revision: 7 }", "watch_id: -1"],
        reason: "As above: a watch that a compaction has ended does not hold back the progress of the others.",
    },
    Exception { script: "watch_progress", request: "read f", at: Some(4), answer: &["nothing"], reason: "As above." },
    Exception {
        script: "watch_history",
        request: "read compacted",
        at: Some(6),
        answer: &["nothing"],
        reason: "As above.",
    },
];

/// The whole list: fewer requests than this would mean that a file was lost.
const REQUESTS_MIN: usize = 400;

macro_rules! scripts {
    ($($test:ident $file:literal)*) => {
        const SCRIPTS: &[&str] = &[$($file),*];
        $(#[test]
        fn $test() {
            check($file);
        })*
    };
}

scripts! {
    ranges_are_answered_as_etcd_does "range"
    puts_and_deletes_are_answered_as_etcd_does "put_delete"
    transactions_are_answered_as_etcd_does "txn"
    compactions_are_answered_as_etcd_does "compact"
    malformed_calls_are_answered_as_etcd_does "malformed"
    large_requests_are_answered_as_etcd_does "size"
    a_killed_server_answers_as_a_killed_etcd_does "restart"
    watch_creates_and_cancels_are_answered_as_etcd_does "watch_create"
    events_are_told_as_etcd_tells_them "watch_events"
    history_is_told_as_etcd_tells_it "watch_history"
    alarms_are_raised_and_heeded_as_etcd_does "alarm"
    ranges_in_parts_are_answered_as_etcd_does "range_stream"
    a_single_member_answers_as_etcds_does "cluster"
    the_calls_for_leadership_and_downgrades_are_answered_as_etcd_does "maintenance"
    hashes_are_those_of_etcd "hash"
    leases_are_granted_kept_and_expire_as_etcds_do "lease"
    progress_is_told_as_etcd_tells_it "watch_progress"
    large_events_are_cut_as_etcd_cuts_them "watch_fragment"
    locks_and_elections_are_answered_as_etcd_does "election"
    whoever_waits_for_a_lock_is_answered_as_by_etcd "lock"
    whoever_campaigns_and_observes_is_answered_as_by_etcd "campaign"
}

#[test]
fn the_list_is_whole_and_every_exception_is_in_it() {
    let scripts: Vec<(&str, Vec<Step>)> = SCRIPTS.iter().map(|name| (*name, play::steps(&read(name)))).collect();
    let requests: usize = scripts.iter().flat_map(|(_, steps)| steps).filter(|step| step.is_request()).count();
    assert!(requests >= REQUESTS_MIN, "only {requests} requests");
    println!("{requests} requests");
    for exception in EXCEPTIONS {
        let is_meant = |(name, steps): &&(&str, Vec<Step>)| {
            *name == exception.script && steps.iter().any(|step| step.request.starts_with(exception.request))
        };
        assert!(scripts.iter().find(is_meant).is_some(), "{}: nobody asks {:?}", exception.script, exception.request);
    }
}

fn check(name: &str) {
    let steps = play::steps(&read(name));
    match std::env::var_os("TARSIER_RECORD") {
        Some(etcd) => record(name, steps, Path::new(&etcd)),
        None => compare(name, &steps, &server::binary_under_test()),
    }
}

fn record(name: &str, mut steps: Vec<Step>, etcd: &Path) {
    assert!(server::is_real_etcd(etcd), "{} is no etcd", etcd.display());
    let requests = steps.clone();
    let answers = block_on(Player::new(descriptors(), etcd, play::Pace::Record).play(&requests));
    for (step, answer) in steps.iter_mut().zip(answers) {
        step.answer = answer;
    }
    fs::write(path(name), play::file_text(&steps)).expect("the script can be written");
}

fn compare(name: &str, steps: &[Step], binary: &Path) {
    let mut expected = steps.to_vec();
    if !server::is_real_etcd(binary) {
        for exception in EXCEPTIONS.iter().filter(|exception| exception.script == name) {
            let asked = expected.iter_mut().filter(|step| step.request.starts_with(exception.request));
            for (at, step) in asked.enumerate() {
                if exception.at.is_none_or(|exception| exception == at) {
                    step.answer = exception.answer.iter().map(|line| (*line).to_owned()).collect();
                }
            }
        }
    }
    let answers = block_on(Player::new(descriptors(), binary, play::Pace::Compare).play(&expected));
    let mut differences = String::new();
    for (step, answer) in expected.iter().zip(&answers) {
        if step.answer != *answer {
            differences.push_str(&difference(step, answer));
        }
    }
    let count = expected.iter().zip(&answers).filter(|(step, answer)| step.answer != **answer).count();
    assert!(differences.is_empty(), "script {name}: {count} answers differ\n{differences}");
}

/// Only the lines that differ, and their neighbours' number: answers can be long.
fn difference(step: &Step, answer: &[String]) -> String {
    let mut text = format!("\nline {}: {}\n", step.line, step.request);
    let alike = step.answer.iter().zip(answer).take_while(|(a, b)| a == b).count();
    if alike > 0 {
        text.push_str(&format!("  ({alike} lines alike)\n"));
    }
    step.answer[alike..].iter().for_each(|line| text.push_str(&format!("  - etcd  {line}\n")));
    answer[alike..].iter().for_each(|line| text.push_str(&format!("  + here  {line}\n")));
    text
}

fn descriptors() -> DescriptorPool {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/../proto/proto");
    let mut compiler = protox::Compiler::new([directory]).expect("the .proto files are in the repository");
    let files = ["kv", "lease", "cluster", "maintenance", "watch"].map(|file| format!("etcdserverpb/{file}.proto"));
    compiler.open_files(files).expect("the .proto files compile");
    compiler.open_files(["v3lockpb/lock.proto", "v3electionpb/election.proto"]).expect("the .proto files compile");
    compiler.descriptor_pool()
}

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/differential/script").join(format!("{name}.txt"))
}

fn read(name: &str) -> String {
    fs::read_to_string(path(name)).unwrap_or_else(|error| panic!("script {name}: {error}"))
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime of one thread starts").block_on(future)
}
