//! Ten watches on one stream of one client see a counter go up while the server is restarted under them: each number once.
//!
//! The library ends the stream with the connection; who reads it begins again at the revision behind the last one seen, as
//! its users must.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use etcd_client::{Client, LeaseTimeToLiveOptions, PutOptions, WatchOptions, WatchStream};
use tokio::sync::watch;

use crate::contests::{SHORT_LEASE, deletions};
use crate::{Failure, Outcome};

const COUNTER: &str = "count/er";
const COUNTER_PREFIX: &str = "count/";
const WATCHES: usize = 10;

/// The puts on each side of a restart.
const PUTS_BETWEEN: usize = 100;

/// No restart takes this long, with all that comes behind it.
const CAUGHT_UP_WITHIN: Duration = Duration::from_secs(30);

/// What one watch has seen. The counter goes up by one with each put, so a lost, doubled or exchanged event shows as a wrong
/// number or as a revision that does not grow.
#[derive(Clone, Default)]
struct Seen {
    next: usize,
    revision: i64,
}

pub async fn restarts(client: &mut Client) -> Outcome {
    let kept = client.lease_grant(30, None).await?.id();
    client.put("kept", "1", Some(PutOptions::new().with_lease(kept))).await?;
    let forgotten = client.lease_grant(SHORT_LEASE, None).await?.id();
    let put = client.put("forgotten", "1", Some(PutOptions::new().with_lease(forgotten))).await?;
    let since = put.header().ok_or("no header")?.revision();

    let (over, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let writer = tokio::spawn(count_up(client.clone(), over.clone(), acknowledged.clone()));
    let (least, mut seen_by_all) = watch::channel(0);
    let watching = tokio::spawn(follow(client.clone(), since, least));
    for signal in ["TERM", "KILL"] {
        until_all_have(&mut seen_by_all, acknowledged.load(Ordering::SeqCst) + PUTS_BETWEEN, &watching).await?;
        tokio::task::spawn_blocking(move || ask_for_restart(signal)).await??;
    }
    until_all_have(&mut seen_by_all, acknowledged.load(Ordering::SeqCst) + PUTS_BETWEEN, &watching).await?;
    over.store(true, Ordering::SeqCst);
    writer.await??;
    until_all_have(&mut seen_by_all, acknowledged.load(Ordering::SeqCst), &watching).await?;
    watching.abort();

    let told = client.lease_time_to_live(kept, Some(LeaseTimeToLiveOptions::new().with_keys())).await?;
    ensure!((1..=30).contains(&told.ttl()) && told.keys() == [b"kept"], "a lease after the restarts: {told:?}");
    client.lease_revoke(kept).await?;
    ensure!(client.get("kept", None).await?.count() == 0, "the key of a revoked lease is there");
    deletions(client, "forgotten", since, 1).await.map(drop)
}

/// Has whoever runs the program restart the server by a signal, and returns when it serves again.
fn ask_for_restart(signal: &str) -> Result<(), Failure> {
    println!("restart {signal}");
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    ensure!(answer.trim_end() == "serving", "the answer to a restart: {answer:?}");
    Ok(())
}

async fn until_all_have(
    seen_by_all: &mut watch::Receiver<usize>,
    number: usize,
    watching: &tokio::task::JoinHandle<Outcome>,
) -> Outcome {
    let have = seen_by_all.wait_for(|seen| *seen >= number);
    let waited = tokio::time::timeout(CAUGHT_UP_WITHIN, have).await.map(|have| have.map(drop));
    ensure!(!watching.is_finished(), "the watches gave up");
    waited.map_err(|_| format!("not all watches have seen {number} events"))??;
    Ok(())
}

/// Opens the stream again and again, until it is aborted or something is wrong.
async fn follow(mut client: Client, start: i64, least: watch::Sender<usize>) -> Outcome {
    let mut seen = vec![Seen { next: 0, revision: start }; WATCHES];
    loop {
        if let Ok(mut stream) = open(&mut client, &seen).await {
            while let Ok(Some(message)) = stream.message().await {
                let which = usize::try_from(message.watch_id())?;
                ensure!(!message.canceled(), "watch {which} is canceled: {message:?}");
                for event in message.events() {
                    let kv = event.kv().ok_or("an event without a pair")?;
                    take(&mut seen[which], which, kv).inspect_err(|error| eprintln!("rust-client: {error}"))?;
                }
                least.send_replace(seen.iter().map(|seen| seen.next).min().unwrap_or(0));
            }
        }
        // Nothing tells when the server is back; trying does.
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// One stream with all the watches, each of which goes on behind the last event that it has seen.
async fn open(client: &mut Client, seen: &[Seen]) -> Result<WatchStream, etcd_client::Error> {
    let watch = |which: usize| {
        let options = WatchOptions::new().with_start_revision(seen[which].revision + 1);
        if which.is_multiple_of(2) { (COUNTER, options) } else { (COUNTER_PREFIX, options.with_prefix()) }
    };
    let (key, options) = watch(0);
    let mut stream = client.watch(key, Some(options)).await?;
    for which in 1..seen.len() {
        let (key, options) = watch(which);
        // The server counts up the ids of a stream, from 0.
        stream.watch(key, Some(options)).await?;
    }
    Ok(stream)
}

fn take(seen: &mut Seen, which: usize, kv: &etcd_client::KeyValue) -> Result<(), Failure> {
    let number: usize = kv.value_str()?.parse()?;
    ensure!(kv.key_str()? == COUNTER, "watch {which}: {kv:?}");
    ensure!(number == seen.next, "watch {which}: expected event {}, got {number}", seen.next);
    ensure!(kv.mod_revision() > seen.revision, "watch {which}: expected a revision above {}: {kv:?}", seen.revision);
    *seen = Seen { next: number + 1, revision: kv.mod_revision() };
    Ok(())
}

async fn count_up(mut client: Client, over: Arc<AtomicBool>, acknowledged: Arc<AtomicUsize>) -> Outcome {
    let mut number = 0;
    while !over.load(Ordering::SeqCst) {
        number = match client.put(COUNTER, number.to_string(), None).await {
            Ok(_) => number + 1,
            Err(_) => next_number(&mut client, number).await?,
        };
        acknowledged.store(number, Ordering::SeqCst);
    }
    Ok(())
}

/// A put that was not answered may have happened or not; the key says which.
async fn next_number(client: &mut Client, number: usize) -> Result<usize, Failure> {
    loop {
        let Ok(got) = client.get(COUNTER, None).await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let after_stored = match got.kvs().first() {
            Some(kv) => kv.value_str()?.parse::<usize>()? + 1,
            None => 0,
        };
        ensure!(after_stored == number || after_stored == number + 1, "a write was lost: {got:?}, put was {number}");
        return Ok(after_stored);
    }
}
