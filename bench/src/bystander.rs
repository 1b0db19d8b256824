//! The bystander: what a modest client feels while others ask for everything.
//!
//! The store holds many keys. One client reads all of them in one unary range, again and again; another writes very many
//! revisions and compacts them. Beside them a third puts at a fixed rate. It sends on a schedule and counts from the time
//! at which a put was due, so a stall counts with all the puts that it delayed. Each of the three has a thread of its
//! own: reading a hundred megabytes must not look like a slow put.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use hdrhistogram::Histogram;
use tarsier_proto::etcdserverpb as pb;
use tokio::sync::{mpsc, oneshot};

use crate::caller::Caller;
use crate::fault::{Fault, Result};
use crate::lanes::in_lanes;
use crate::latency::{latencies, milliseconds, record};
use crate::link::Windows;
use crate::meter::Meter;
use crate::open_loop::{begin_when_due, start_pacer};
use crate::report::Measured;
use crate::screen::count;
use crate::server::{Server, Side};
use crate::threads::{finished, on_preferred_thread, on_thread};
use crate::wire;

/// Puts of one transaction while the keys are loaded; etcd allows 128 operations.
const PUTS_A_TXN: u32 = 100;
const LOADS_IN_FLIGHT: u32 = 16;
const WRITES_IN_FLIGHT: u32 = 64;
/// What the server logs of a scrub, and how long one may take here.
const SCRUB_BEGINS: &str = "begin to read the whole checkpoint";
const SCRUB_ENDS: &str = "the whole checkpoint is what was written";
const SCRUB_PATIENCE: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug)]
pub struct Bystander {
    pub keys: u32,
    pub revisions: u32,
    pub puts_a_second: u32,
    /// How long the bystander is alone before the others come.
    pub alone: Duration,
}

/// Keys of 24 bytes in index order.
pub fn key(index: u32) -> Vec<u8> {
    format!("load/{index:019}").into_bytes()
}

pub async fn run(server: &mut Server, sizes: Bystander) -> Result<Measured> {
    let endpoint = server.endpoint.clone();
    load(&endpoint, sizes.keys, b"value").await?;
    server.wait_until_quiet().await?;
    let mut measured = Measured::default();
    let scene = format!("puts, {} a second, beside {} idle keys", sizes.puts_a_second, count(u64::from(sizes.keys)));
    let stops = Arc::new(AtomicBool::new(false));
    let putter = start_putter(&endpoint, sizes, &stops)?;
    tokio::time::sleep(sizes.alone).await;
    stops.store(true, Ordering::Relaxed);
    measured.tail(&scene, &finished(putter).await?);

    let stops = Arc::new(AtomicBool::new(false));
    let meter = Meter::start(server.process)?;
    let ranger = {
        let (endpoint, stops) = (endpoint.clone(), stops.clone());
        on_thread("ranger", move || range_all(endpoint, sizes.keys, stops))?
    };
    let writer = {
        let endpoint = endpoint.clone();
        on_thread("writer", move || write_and_compact(endpoint, sizes))?
    };
    let putter = start_putter(&endpoint, sizes, &stops)?;
    let written = finished(writer).await;
    stops.store(true, Ordering::Relaxed);
    let (tail, ranges, written) = (finished(putter).await?, finished(ranger).await?, written?);
    let spent = meter.read()?;

    let scene = format!("{scene}: others range, write and compact");
    measured.tail(&scene, &tail);
    measured.add(&scene, "ranges of all keys done", ranges.len() as f64);
    measured.add(&scene, "one range, s (median)", milliseconds(&ranges, 2.0) / 1e3);
    measured.add(&scene, "revisions written a second", f64::from(sizes.revisions) / written.writing.as_secs_f64());
    measured.add(&scene, "compaction, s", written.compacting.as_secs_f64());
    measured.add(&scene, "server CPU, s", spent.cpu.as_secs_f64());
    Ok(measured)
}

/// The same puts beside what a server does behind its answers: first while the revisions just written go where it keeps
/// them, then while they are compacted, then while it reads its files in search of damage. Nobody else asks for anything
/// meanwhile.
pub async fn beside_upkeep(server: &mut Server, sizes: Bystander) -> Result<Measured> {
    let endpoint = server.endpoint.clone();
    load(&endpoint, sizes.keys, b"value").await?;
    server.wait_until_quiet().await?;
    let mut measured = Measured::default();
    let scene = format!("puts, {} a second", sizes.puts_a_second);
    let quiet = beside(&endpoint, sizes, async { Ok(()) }).await?;
    measured.tail(&format!("{scene}: quiet control"), &quiet);

    let revisions = count(u64::from(sizes.revisions));
    let newest = finished({
        let endpoint = endpoint.clone();
        on_thread("writer", move || write(endpoint, sizes))?
    })
    .await?;
    let kept = beside(&endpoint, sizes, async { Ok(()) }).await?;
    measured.tail(&format!("{scene}: right behind {revisions} revisions"), &kept);

    server.wait_until_quiet().await?;
    let caller = Caller::connect(&endpoint, Windows::SMALL).await?;
    let scene = format!("{scene}: beside a compaction of {revisions} revisions");
    let begun = Instant::now();
    let mut compacting = Duration::ZERO;
    let compact = async {
        caller.compact(newest).await?;
        compacting = begun.elapsed();
        Ok(())
    };
    let compacted = beside(&endpoint, sizes, compact).await?;
    measured.tail(&scene, &compacted);
    measured.add(&scene, "compaction, s", compacting.as_secs_f64());
    if server.side == Side::Tarsier {
        // It reads its checkpoint once a day; here, again and again.
        server.kill();
        server.spawn_again_with("--scrub-interval=1s")?;
        server.wait_until_ready().await?;
        let scene = format!("puts, {} a second: beside a scrub", sizes.puts_a_second);
        let mut ended = Vec::new();
        let scrubbed = beside(&endpoint, sizes, async {
            ended = wait_for_scrub(server).await?;
            Ok(())
        });
        measured.tail(&scene, &scrubbed.await?);
        measured.add(&scene, "scrubs that ended meanwhile", ended.len() as f64);
        measured.add(&scene, "the longest of them, s", ended.iter().max().map_or(0.0, |longest| *longest as f64 / 1e3));
    }
    Ok(measured)
}

/// Waits until a scrub that begins behind this call has ended. Gives the milliseconds of all that ended meanwhile.
async fn wait_for_scrub(server: &Server) -> Result<Vec<u64>> {
    let ends = |log: &str| -> Vec<u64> { log.lines().filter_map(scrub_milliseconds).collect() };
    let begun = server.log().matches(SCRUB_BEGINS).count();
    let (before, waited) = (ends(&server.log()).len(), Instant::now());
    loop {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let mut ended = ends(&server.log());
        if ended.len() > begun {
            return Ok(ended.split_off(before));
        }
        if waited.elapsed() > SCRUB_PATIENCE {
            let waiting_for = "the end of a scrub".to_owned();
            return Err(Fault::Stalled { waiting_for, seconds: SCRUB_PATIENCE.as_secs() });
        }
    }
}

/// How long a scrub took, of the line in the log that tells its end.
fn scrub_milliseconds(line: &str) -> Option<u64> {
    let (_, rest) = line.contains(SCRUB_ENDS).then_some(line)?.split_once("\"milliseconds\":")?;
    rest.split(|letter: char| !letter.is_ascii_digit()).next()?.parse().ok()
}

/// Puts on schedule until the work is done, and at least for the time of a control.
async fn beside(
    endpoint: &Arc<str>,
    sizes: Bystander,
    work: impl Future<Output = Result<()>>,
) -> Result<Histogram<u64>> {
    let stops = Arc::new(AtomicBool::new(false));
    let putter = start_putter(endpoint, sizes, &stops)?;
    let (done, ()) = tokio::join!(work, tokio::time::sleep(sizes.alone));
    stops.store(true, Ordering::Relaxed);
    let tail = finished(putter).await?;
    done.map(|()| tail)
}

/// Puts every key once, many to a transaction.
pub async fn load(endpoint: &Arc<str>, keys: u32, value: &'static [u8]) -> Result<()> {
    let caller = Caller::connect(endpoint, Windows::SMALL).await?;
    let begin = move |caller: Caller, txn: u32| {
        let first = txn * PUTS_A_TXN;
        let puts = (first..keys.min(first.saturating_add(PUTS_A_TXN))).map(|index| {
            let put = pb::PutRequest { key: key(index).into(), value: value.into(), ..Default::default() };
            wire::operation(pb::request_op::Request::RequestPut(put))
        });
        let request = pb::TxnRequest { success: puts.collect(), ..Default::default() };
        async move { caller.call_message(wire::PATH_TXN, &request).await.map(drop) }
    };
    in_lanes(&[caller], LOADS_IN_FLIGHT, keys.div_ceil(PUTS_A_TXN), begin).await
}

/// Reads all keys until told to stop; each range must hold them all.
async fn range_all(endpoint: Arc<str>, keys: u32, stops: Arc<AtomicBool>) -> Result<Histogram<u64>> {
    let caller = Caller::connect(&endpoint, Windows::WIDE).await?;
    let mut latency = latencies();
    while !stops.load(Ordering::Relaxed) {
        let mut request = BytesMut::new();
        wire::range(&mut request, &key(0), &key(keys));
        let begun = Instant::now();
        let body = caller.call(wire::PATH_RANGE, request.freeze()).await?;
        record(&mut latency, begun.elapsed());
        let malformed = |cause| Fault::Malformed { path: wire::PATH_RANGE, cause };
        let found = wire::range_counts(&body).map_err(malformed)?;
        if found != (u64::from(keys), u64::from(keys)) {
            let (shown, counted) = found;
            return Err(Fault::Refused(format!("a range over {keys} keys gave {shown} and counted {counted}")));
        }
    }
    Ok(latency)
}

struct Written {
    writing: Duration,
    compacting: Duration,
}

/// Writes the revisions and compacts them all, waiting until what is forgotten is gone.
async fn write_and_compact(endpoint: Arc<str>, sizes: Bystander) -> Result<Written> {
    let begun = Instant::now();
    let revision = write(endpoint.clone(), sizes).await?;
    let writing = begun.elapsed();
    let caller = Caller::connect(&endpoint, Windows::SMALL).await?;
    let begun = Instant::now();
    caller.compact(revision).await?;
    Ok(Written { writing, compacting: begun.elapsed() })
}

/// Writes the revisions, one a put; gives the newest.
async fn write(endpoint: Arc<str>, sizes: Bystander) -> Result<i64> {
    let caller = Caller::connect(&endpoint, Windows::SMALL).await?;
    let newest = Rc::new(Cell::new(0i64));
    let noted = newest.clone();
    let begin = move |caller: Caller, put: u32| {
        let newest = noted.clone();
        async move {
            let revision = caller.put(&key(put % sizes.keys), b"value").await?;
            newest.set(revision.max(newest.get()));
            Ok(())
        }
    };
    in_lanes(&[caller], WRITES_IN_FLIGHT, sizes.revisions, begin).await?;
    Ok(newest.get())
}

/// Starts the bystander.
fn start_putter(
    endpoint: &Arc<str>,
    sizes: Bystander,
    stops: &Arc<AtomicBool>,
) -> Result<oneshot::Receiver<Result<Histogram<u64>>>> {
    let schedule = start_pacer(sizes.puts_a_second, stops)?;
    let endpoint = endpoint.clone();
    on_preferred_thread("putter", move || put_and_time(endpoint, schedule))
}

async fn put_and_time(endpoint: Arc<str>, schedule: mpsc::UnboundedReceiver<Instant>) -> Result<Histogram<u64>> {
    let latency = Rc::new(RefCell::new(latencies()));
    let timed = |due: Instant| {
        let latency = latency.clone();
        move |_| record(&mut latency.borrow_mut(), due.elapsed())
    };
    put_on_schedule(&endpoint, schedule, "by/", timed).await?;
    Ok(latency.replace(latencies()))
}

/// Puts when each put is due, whether or not the last one is answered. `due` is asked at that time for what takes the
/// revision of the put later.
pub async fn put_on_schedule<A: FnOnce(i64) + 'static>(
    endpoint: &Arc<str>,
    schedule: mpsc::UnboundedReceiver<Instant>,
    prefix: &'static str,
    due: impl Fn(Instant) -> A,
) -> Result<()> {
    let caller = Caller::connect(endpoint, Windows::SMALL).await?;
    let begin = |at: Instant, number: u64| {
        let (caller, answered) = (caller.clone(), due(at));
        async move {
            answered(caller.put(format!("{prefix}{:017}", number % 1_000).as_bytes(), &[b'v'; 64]).await?);
            Ok(())
        }
    };
    begin_when_due(schedule, begin).await
}
