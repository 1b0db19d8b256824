//! A day's work with the `etcd-client` crate: every call's options, transactions, several watches on one stream, resume,
//! progress, cancel, a compaction, leases, locks, elections, and watches through restarts of the server. The first thing
//! that is not as promised ends it with its reason.
//!
//! Whoever runs it restarts the server when it prints "restart SIGNAL", and then types "serving" to it.

use std::process::ExitCode;
use std::time::Duration;

use etcd_client::{
    Client, CompactionOptions, Compare, CompareOp, DeleteOptions, Error, Event, EventType, GetOptions, PutOptions,
    SortOrder, SortTarget, Txn, TxnOp, TxnOpResponse, WatchFilterType, WatchOptions, WatchResponse, WatchStream,
};

/// A step's own word or an error of the library; it may come from another task.
type Failure = Box<dyn std::error::Error + Send + Sync>;
type Outcome = Result<(), Failure>;

/// No single answer takes this long.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// Ends the program's step when something is not as promised.
macro_rules! ensure {
    ($condition:expr, $($what:tt)*) => {
        if !$condition {
            return Err(format!($($what)*).into());
        }
    };
}

mod contests;
mod restarts;

#[tokio::main]
async fn main() -> ExitCode {
    let Some(endpoint) = std::env::args().nth(1) else {
        eprintln!("usage: rust-client ENDPOINT");
        return ExitCode::from(2);
    };
    match day(&endpoint).await {
        Ok(()) => {
            println!("verified");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("rust-client: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn day(endpoint: &str) -> Outcome {
    let mut client = Client::connect([endpoint], None).await?;
    puts_and_deletes(&mut client).await?;
    reads(&mut client).await?;
    transactions(&mut client).await?;
    refusals(&mut client).await?;
    watches_on_one_stream(&mut client).await?;
    previous_pairs_and_filters(&mut client).await?;
    resume_by_revision(&mut client).await?;
    compacted_history(&mut client).await?;
    maintenance(&mut client).await?;
    contests::leases(&mut client).await?;
    contests::keep_alive_and_expiry(&mut client).await?;
    contests::locks(&mut client).await?;
    contests::elections(&mut client).await?;
    restarts::restarts(&mut client).await
}

async fn puts_and_deletes(client: &mut Client) -> Outcome {
    let first = client.put("put", "1", Some(PutOptions::new().with_prev_key())).await?;
    ensure!(first.prev_key().is_none(), "a new key has a previous value");
    let second = client.put("put", "2", Some(PutOptions::new().with_prev_key())).await?;
    let previous = second.prev_key().ok_or("no previous value")?;
    ensure!(previous.value() == b"1" && previous.version() == 1, "previous value {previous:?}");
    client.put("put", "", Some(PutOptions::new().with_ignore_value())).await?;
    let got = client.get("put", None).await?;
    let kv = got.kvs().first().ok_or("the key is gone")?;
    ensure!(kv.value() == b"2" && kv.version() == 3, "a put that keeps the value: {kv:?}");
    ensure!(kv.create_revision() == previous.create_revision(), "a put changed the creation: {kv:?}");

    let deleted = client.delete("put", Some(DeleteOptions::new().with_prev_key())).await?;
    ensure!(deleted.deleted() == 1 && deleted.prev_kvs().len() == 1, "delete: {deleted:?}");
    let again = client.delete("put", None).await?;
    ensure!(again.deleted() == 0, "deleted twice: {again:?}");
    let (once, twice) = (deleted.header().ok_or("no header")?, again.header().ok_or("no header")?);
    ensure!(once.revision() == twice.revision(), "a delete of nothing made a revision");
    Ok(())
}

async fn reads(client: &mut Client) -> Outcome {
    let mut revisions = Vec::new();
    for key in ["r/c", "r/a", "r/d", "r/b"] {
        let put = client.put(key, key, None).await?;
        revisions.push(put.header().ok_or("no header")?.revision());
    }
    let prefix = || GetOptions::new().with_prefix();
    let cases = [
        ("prefix", prefix(), "abcd", 4, false),
        ("range", GetOptions::new().with_range("r/c"), "ab", 2, false),
        ("limit", prefix().with_limit(3), "abc", 4, true),
        ("descending", prefix().with_sort(SortTarget::Key, SortOrder::Descend), "dcba", 4, false),
        ("by creation", prefix().with_sort(SortTarget::Create, SortOrder::Ascend), "cadb", 4, false),
        ("at a revision", prefix().with_revision(revisions[1]), "ac", 2, false),
        ("created later", prefix().with_min_create_revision(revisions[2]), "bd", 4, false),
        ("changed earlier", prefix().with_max_mod_revision(revisions[1]), "ac", 4, false),
        ("serializable", prefix().with_serializable(), "abcd", 4, false),
        ("count only", prefix().with_count_only(), "", 4, false),
        ("keys only", prefix().with_keys_only(), "abcd", 4, false),
    ];
    for (name, options, keys, count, more) in cases {
        let got = client.get(if name == "range" { "r/a" } else { "r/" }, Some(options)).await?;
        let found: String = got.kvs().iter().filter_map(|kv| kv.key().last().map(|byte| *byte as char)).collect();
        ensure!(found == keys, "{name}: {found}, not {keys}");
        ensure!(got.count() == count && got.more() == more, "{name}: count {}, more {}", got.count(), got.more());
        let has_values = got.kvs().iter().all(|kv| kv.value() == kv.key());
        ensure!(has_values == (name != "keys only"), "{name}: values {:?}", got.kvs());
    }
    Ok(())
}

async fn transactions(client: &mut Client) -> Outcome {
    let create = || {
        Txn::new()
            .when([Compare::create_revision("t", CompareOp::Equal, 0)])
            .and_then([TxnOp::put("t", "1", None), TxnOp::put("u", "1", None), TxnOp::get("t", None)])
            .or_else([TxnOp::get("t", None)])
    };
    let created = client.txn(create()).await?;
    let revision = created.header().ok_or("no header")?.revision();
    ensure!(created.succeeded() && created.op_responses().len() == 3, "create: {created:?}");
    let TxnOpResponse::Get(inside) = &created.op_responses()[2] else { return Err("the third is no read".into()) };
    ensure!(inside.kvs()[0].mod_revision() == revision, "a transaction does not see its own put: {inside:?}");

    let again = client.txn(create()).await?;
    ensure!(!again.succeeded() && again.op_responses().len() == 1, "create again: {again:?}");

    let nested = Txn::new().when([Compare::value("t", CompareOp::Equal, "1")]).and_then([TxnOp::txn(
        Txn::new()
            .when([Compare::version("u", CompareOp::Greater, 1)])
            .or_else([TxnOp::delete("u", None), TxnOp::put("t", "2", None)]),
    )]);
    let nested = client.txn(nested).await?;
    let outer = nested.op_responses();
    let [TxnOpResponse::Txn(inner)] = &outer[..] else { return Err("not one nested answer".into()) };
    ensure!(nested.succeeded() && !inner.succeeded(), "nested: {nested:?}");
    ensure!(client.get("u", None).await?.count() == 0, "the nested deletion is not done");
    Ok(())
}

async fn refusals(client: &mut Client) -> Outcome {
    told(client.put("", "x", None).await.map(drop), 3, "etcdserver: key is not provided")?;
    let keep = Some(PutOptions::new().with_ignore_value());
    told(client.put("none", "", keep).await.map(drop), 3, "etcdserver: key not found")?;
    let lease = Some(PutOptions::new().with_lease(77));
    told(client.put("t", "x", lease).await.map(drop), 5, "etcdserver: requested lease not found")?;
    let future = Some(GetOptions::new().with_revision(1 << 40));
    told(client.get("t", future).await.map(drop), 11, "etcdserver: mvcc: required revision is a future revision")?;
    let twice = Txn::new().and_then([TxnOp::put("t", "1", None), TxnOp::put("t", "2", None)]);
    told(client.txn(twice).await.map(drop), 3, "etcdserver: duplicate key given in txn request")
}

/// Checks that a call was refused, with this code and this text.
fn told(result: Result<(), Error>, code: i32, text: &str) -> Outcome {
    let Err(Error::GRpcStatus(status)) = result else { return Err(format!("not refused: {text}").into()) };
    ensure!(status.code() as i32 == code && status.message() == text, "{text}: got {status:?}");
    Ok(())
}

/// The next message of the stream, within the time every answer has.
async fn next(stream: &mut WatchStream) -> Result<WatchResponse, Failure> {
    let message = tokio::time::timeout(ANSWER_WITHIN, stream.message()).await;
    message.map_err(|_| "no message on a watch stream")??.ok_or_else(|| "the watch stream ended".into())
}

fn texts(events: &[Event]) -> Vec<String> {
    let text = |event: &Event| {
        let kv = event.kv().expect("every event has a pair");
        let what = if event.event_type() == EventType::Put { "put" } else { "delete" };
        format!("{what} {}={}", String::from_utf8_lossy(kv.key()), String::from_utf8_lossy(kv.value()))
    };
    events.iter().map(text).collect()
}

async fn watches_on_one_stream(client: &mut Client) -> Outcome {
    let mut stream = client.watch("w/", Some(WatchOptions::new().with_prefix())).await?;
    let created = next(&mut stream).await?;
    ensure!(created.created() && created.watch_id() == 0, "first watch: {created:?}");
    stream.watch("w/1", None).await?;
    let created = next(&mut stream).await?;
    ensure!(created.created() && created.watch_id() == 1, "second watch: {created:?}");
    stream.watch("w/2", Some(WatchOptions::new().with_watch_id(42))).await?;
    let created = next(&mut stream).await?;
    ensure!(created.created() && created.watch_id() == 42, "third watch: {created:?}");

    let put = client.put("w/1", "x", None).await?;
    let revision = put.header().ok_or("no header")?.revision();
    let mut told = Vec::new();
    for _ in 0..2 {
        let message = next(&mut stream).await?;
        ensure!(message.header().ok_or("no header")?.revision() == revision, "another revision: {message:?}");
        ensure!(texts(message.events()) == ["put w/1=x"], "events: {:?}", message.events());
        told.push(message.watch_id());
    }
    told.sort_unstable();
    ensure!(told == [0, 1], "told were {told:?}");

    stream.request_progress().await?;
    let progress = next(&mut stream).await?;
    ensure!(progress.watch_id() == -1 && progress.events().is_empty(), "progress: {progress:?}");
    ensure!(progress.header().ok_or("no header")?.revision() == revision, "progress: {progress:?}");

    stream.cancel(0).await?;
    let canceled = next(&mut stream).await?;
    ensure!(canceled.canceled() && canceled.watch_id() == 0, "cancel: {canceled:?}");
    client.put("w/2", "y", None).await?;
    let message = next(&mut stream).await?;
    ensure!(message.watch_id() == 42 && texts(message.events()) == ["put w/2=y"], "after the cancel: {message:?}");
    Ok(())
}

async fn previous_pairs_and_filters(client: &mut Client) -> Outcome {
    let all = WatchOptions::new().with_prefix().with_prev_key();
    let mut stream = client.watch("p/", Some(all)).await?;
    next(&mut stream).await?;
    let deletions = WatchOptions::new().with_prefix().with_filters([WatchFilterType::NoPut]);
    let mut filtered = client.watch("p/", Some(deletions)).await?;
    next(&mut filtered).await?;

    client.put("p/1", "1", None).await?;
    client.txn(Txn::new().and_then([TxnOp::put("p/1", "2", None), TxnOp::put("p/2", "2", None)])).await?;
    client.delete("p/", Some(DeleteOptions::new().with_prefix())).await?;

    let mut messages = Vec::new();
    for _ in 0..3 {
        messages.push(next(&mut stream).await?);
    }
    let before =
        |message: usize, event: usize| messages[message].events()[event].prev_kv().map(|kv| kv.value().to_vec());
    ensure!(texts(messages[1].events()) == ["put p/1=2", "put p/2=2"], "one message for a transaction: {messages:?}");
    ensure!(texts(messages[2].events()) == ["delete p/1=", "delete p/2="], "one message for a range: {messages:?}");
    ensure!(before(0, 0).is_none() && before(1, 1).is_none(), "a new key has a previous pair: {messages:?}");
    ensure!(before(1, 0).as_deref() == Some(b"1"), "previous pair of an update: {messages:?}");
    ensure!(before(2, 1).as_deref() == Some(b"2"), "previous pair of a deletion: {messages:?}");

    let only = next(&mut filtered).await?;
    ensure!(texts(only.events()) == ["delete p/1=", "delete p/2="], "filtered: {only:?}");
    Ok(())
}

/// Reads until so many events are there. A replay may come in any number of messages.
async fn gather(stream: &mut WatchStream, count: usize) -> Result<Vec<(i64, String)>, Failure> {
    let mut gathered = Vec::new();
    while gathered.len() < count {
        let message = next(stream).await?;
        for (event, text) in message.events().iter().zip(texts(message.events())) {
            gathered.push((event.kv().expect("every event has a pair").mod_revision(), text));
        }
    }
    Ok(gathered)
}

async fn resume_by_revision(client: &mut Client) -> Outcome {
    let mut stream = client.watch("s", None).await?;
    next(&mut stream).await?;
    for number in 0..1500 {
        client.put("s", number.to_string(), None).await?;
    }
    let first = gather(&mut stream, 700).await?;
    drop(stream);
    let last = first.last().ok_or("no events")?.0;
    let mut resumed = client.watch("s", Some(WatchOptions::new().with_start_revision(last + 1))).await?;
    let second = gather(&mut resumed, 1500 - first.len()).await?;
    let all: Vec<String> = first.iter().chain(&second).map(|(_, text)| text.clone()).collect();
    let expected: Vec<String> = (0..1500).map(|number| format!("put s={number}")).collect();
    ensure!(all == expected, "the resumed watch has a gap, a double or another order");
    let grows = first.iter().chain(&second).map(|(revision, _)| revision).is_sorted_by(|a, b| a < b);
    ensure!(grows, "revisions do not grow");
    Ok(())
}

async fn compacted_history(client: &mut Client) -> Outcome {
    let now = client.put("c", "1", None).await?.header().ok_or("no header")?.revision();
    client.compact(now, Some(CompactionOptions::new().with_physical())).await?;
    let mut stream = client.watch("c", Some(WatchOptions::new().with_start_revision(now - 1))).await?;
    let created = next(&mut stream).await?;
    ensure!(created.created() && !created.canceled(), "below the compaction: {created:?}");
    let canceled = next(&mut stream).await?;
    ensure!(canceled.canceled() && canceled.compact_revision() == now, "below the compaction: {canceled:?}");
    let mut stream = client.watch("c", Some(WatchOptions::new().with_start_revision(now))).await?;
    let events = gather(&mut stream, 1).await?;
    ensure!(events == [(now, "put c=1".to_owned())], "at the compaction: {events:?}");
    Ok(())
}

async fn maintenance(client: &mut Client) -> Outcome {
    let members = client.member_list().await?;
    let [member] = members.members() else { return Err(format!("not one member: {members:?}").into()) };
    let status = client.status().await?;
    ensure!(status.leader() == member.id() && status.version().starts_with("3."), "status: {status:?}");
    ensure!(status.db_size() > 0, "size: {status:?}");
    client.defragment().await?;
    let (one, other) = (client.hash_kv(0).await?.hash(), client.hash_kv(0).await?.hash());
    ensure!(one == other, "two hashes of one state: {one}, {other}");
    Ok(())
}
