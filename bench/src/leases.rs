//! Leases: what very many of them take, and how late they go once their time is over.
//!
//! A lease is due one time to live behind the moment at which its grant was asked for. The server began to count later, so
//! what is seen gone before that went too early, and the lateness that is measured is never too small. Leases with a key are
//! seen one by one, as the deletions of their keys. Those without are counted: the server says how many it has revoked, and
//! since they go in the order of their time, the first of them are those that are gone.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use hdrhistogram::Histogram;
use tarsier_proto::etcdserverpb as pb;

use crate::caller::Caller;
use crate::fault::{Fault, Result};
use crate::harm::{WatchCall, Witness};
use crate::lanes::in_lanes;
use crate::latency::{latencies, record};
use crate::link::Windows;
use crate::meter::{Meter, Spent};
use crate::quick::Quick;
use crate::report::Measured;
use crate::screen::count;
use crate::server::{Server, Side};
use crate::wire;

const CONNECTIONS: u32 = 8;
const LANES_A_CONNECTION: u32 = 32;
const PREFIX: &str = "leased/";
const PREFIX_END: &[u8] = b"leased0";
/// Long enough that none of those that are only held expires.
const HELD_TTL: Duration = Duration::from_secs(7_200);
/// What both servers call the number of leases that were revoked, expired ones as well.
const REVOKED: &str = "etcd_debugging_lease_revoked_total";
const LOOK: Duration = Duration::from_millis(25);

#[derive(Args, Clone, Debug)]
pub struct LeaseArgs {
    /// Leases that are held [default: 1,000,000, or a tenth with --quick]
    #[arg(long)]
    held_leases: Option<u32>,
    /// Leases without keys that expire at a time [default: 1,000,000, or a tenth with --quick]
    #[arg(long)]
    expiring_leases: Option<u32>,
    /// The same for etcd, which revokes at most 1,000 a second [default: 20,000, or a tenth with --quick]
    #[arg(long)]
    expiring_leases_etcd: Option<u32>,
    /// Leases with a key each that expire at a time [default: 100,000, or a tenth with --quick]
    #[arg(long)]
    expiring_keys: Option<u32>,
    /// The same for etcd [default: 5,000, or a tenth with --quick]
    #[arg(long)]
    expiring_keys_etcd: Option<u32>,
    /// Time to live of those that expire, in seconds: all must be granted before the first is due
    #[arg(long, default_value_t = 60)]
    lease_ttl: u32,
}

/// How large the scenes are.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    held: u32,
    expiring: u32,
    expiring_keys: u32,
    ttl: Duration,
    /// Length of the quiet control.
    window: Duration,
    patience: Duration,
    puts_a_second: u32,
}

impl LeaseArgs {
    pub fn sizes(&self, side: Side, quick: Quick, window: Duration, patience: Duration, puts_a_second: u32) -> Sizes {
        let of_side = |etcd, tarsier| quick.size_of_side(side, etcd, tarsier);
        Sizes {
            held: quick.size(self.held_leases, 1_000_000),
            expiring: of_side((self.expiring_leases_etcd, 20_000), (self.expiring_leases, 1_000_000)),
            expiring_keys: of_side((self.expiring_keys_etcd, 5_000), (self.expiring_keys, 100_000)),
            ttl: Duration::from_secs(u64::from(self.lease_ttl.max(2))),
            window,
            patience,
            puts_a_second,
        }
    }
}

/// The memory of leases that are granted and held; wants a fresh server.
pub async fn held(server: &mut Server, sizes: Sizes) -> Result<Measured> {
    let scene = format!("{} leases held", count(u64::from(sizes.held)));
    server.wait_until_quiet().await?;
    let (empty, meter) = (server.process.memory()?, Meter::start(server.process)?);
    grant(&server.endpoint, sizes.held, HELD_TTL).await?;
    let spent = meter.read()?;
    // What a server keeps only while it is busy is no part of what the leases take.
    server.wait_until_quiet().await?;
    tokio::time::sleep(sizes.window).await;
    let full = server.process.memory()?;
    let mut measured = Measured::default();
    let bytes = full.resident.saturating_sub(empty.resident) as f64;
    measured.add(&scene, "VmRSS more than empty, MB", bytes / 1e6);
    measured.add(&scene, "VmRSS a lease, bytes", bytes / f64::from(sizes.held));
    spent.figures(&format!("{scene}: grant"), u64::from(sizes.held), &mut measured);
    Ok(measured)
}

/// Leases of one time to live that expire together beside a modest client: without keys as fast as they were granted, with
/// a key each, and without keys all at the same moment, which a restart brings about. Wants a fresh server.
pub async fn expiry(server: &mut Server, sizes: Sizes) -> Result<Measured> {
    let mut measured = Measured::default();
    without_keys(server, sizes, &mut measured).await?;
    with_keys(server, sizes, &mut measured).await?;
    behind_a_start(server, sizes, &mut measured).await?;
    Ok(measured)
}

async fn without_keys(server: &mut Server, sizes: Sizes, measured: &mut Measured) -> Result<()> {
    let scene = format!("{} leases without keys", count(u64::from(sizes.expiring)));
    let base = server.number(REVOKED).await?;
    let begun = Instant::now();
    let asked = grant(&server.endpoint, sizes.expiring, sizes.ttl).await?;
    measured.add(&scene, "granted within, s", begun.elapsed().as_secs_f64());
    let beside = Beside::start(server, sizes, &asked, Look::AskedFor).await?;
    let mut seen = Seen::new(due(&asked, sizes.ttl));
    watch_the_count(server, base, &mut seen, sizes.patience).await?;
    beside.finish(server, &scene, sizes.expiring, measured).await?;
    seen.add(measured, &scene);
    Ok(())
}

async fn with_keys(server: &mut Server, sizes: Sizes, measured: &mut Measured) -> Result<()> {
    let scene = format!("{} leases with a key each", count(u64::from(sizes.expiring_keys)));
    let mut watch = WatchCall::open(&Caller::connect(&server.endpoint, Windows::SMALL).await?).await?;
    let asked = grant(&server.endpoint, sizes.expiring_keys, sizes.ttl).await?;
    put_keys(&server.endpoint, sizes.expiring_keys).await?;
    watch.watch(PREFIX.as_bytes(), PREFIX_END, 0).await?;
    let beside = Beside::start(server, sizes, &asked, Look::Told).await?;
    let mut seen = Seen::new(due(&asked, sizes.ttl));
    let mut last = Instant::now();
    while !seen.is_complete() {
        let wait = sizes.patience.saturating_sub(last.elapsed());
        let each = |reply: &wire::WatchReply<'_>| {
            last = Instant::now();
            reply.events().try_for_each(|event| seen.deleted(event?.key, last))
        };
        let waited = tokio::time::timeout(wait, watch.read(each)).await;
        waited.map_err(|_| seen.stalled(sizes.patience))??;
    }
    beside.finish(server, &scene, sizes.expiring_keys, measured).await?;
    seen.add(measured, &scene);
    Ok(())
}

async fn behind_a_start(server: &mut Server, sizes: Sizes, measured: &mut Measured) -> Result<()> {
    let scene = format!("{} leases without keys, all due at one moment", count(u64::from(sizes.expiring)));
    grant(&server.endpoint, sizes.expiring, sizes.ttl).await?;
    server.kill();
    let begun = Instant::now();
    server.spawn_again()?;
    measured.add(&scene, "s until the first answer", server.wait_until_ready().await?.as_secs_f64());
    let base = server.number(REVOKED).await?;
    let beside = Beside::start(server, sizes, &[Instant::now()], Look::AskedFor).await?;
    let mut seen = Seen::new(vec![begun + sizes.ttl; sizes.expiring as usize]);
    watch_the_count(server, base, &mut seen, sizes.patience).await?;
    beside.finish(server, &scene, sizes.expiring, measured).await?;
    // The moment itself is the server's; it lies between the start and the first to go.
    measured.add(&scene, "first to last gone, s", seen.took().as_secs_f64());
    Ok(())
}

fn due(asked: &[Instant], ttl: Duration) -> Vec<Instant> {
    asked.iter().map(|asked| *asked + ttl).collect()
}

/// Grants leases of the ids from 1 on. Gives when each was asked for, which rises with the id.
pub async fn grant(endpoint: &Arc<str>, leases: u32, ttl: Duration) -> Result<Vec<Instant>> {
    let asked = Rc::new(RefCell::new(Vec::with_capacity(leases as usize)));
    let begin = {
        let asked = asked.clone();
        move |caller: Caller, id: u32| {
            asked.borrow_mut().push(Instant::now());
            let request = pb::LeaseGrantRequest { ttl: ttl.as_secs() as i64, id: i64::from(id) };
            async move {
                match caller.ask::<pb::LeaseGrantResponse>(wire::PATH_LEASE_GRANT, &request).await?.ttl {
                    granted if granted == request.ttl => Ok(()),
                    other => Err(Fault::Refused(format!("{} s were asked for and {other} granted", request.ttl))),
                }
            }
        }
    };
    for_each_id(endpoint, leases, begin).await?;
    let asked = asked.take();
    match asked.first().is_some_and(|first| first.elapsed() >= ttl) {
        true => Err(Fault::Refused(format!("the first of {leases} leases is due before the last is granted"))),
        false => Ok(asked),
    }
}

/// Puts a key of each lease.
async fn put_keys(endpoint: &Arc<str>, leases: u32) -> Result<()> {
    let begin = |caller: Caller, id: u32| {
        let key = format!("{PREFIX}{id:09}").into_bytes().into();
        let request = pb::PutRequest { key, value: "v".into(), lease: i64::from(id), ..Default::default() };
        async move { caller.call_message(wire::PATH_PUT, &request).await.map(drop) }
    };
    for_each_id(endpoint, leases, begin).await
}

/// One call for each id of a lease, from 1 on, begun in their order, many at a time.
async fn for_each_id<F, W>(endpoint: &Arc<str>, leases: u32, mut begin: F) -> Result<()>
where
    F: FnMut(Caller, u32) -> W + 'static,
    W: Future<Output = Result<()>> + 'static,
{
    let mut callers = Vec::new();
    for _ in 0..CONNECTIONS {
        callers.push(Caller::connect(endpoint, Windows::SMALL).await?);
    }
    in_lanes(&callers, LANES_A_CONNECTION, leases, move |caller, at| begin(caller, at + 1)).await
}

/// The modest client beside an expiry: first alone, then from the first due time on.
struct Beside {
    witness: Witness,
    /// Of the time in which it was alone.
    control: Spent,
    meter: Meter,
}

/// How the ends of the leases are seen.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Look {
    /// The server is asked again and again how many it has revoked: in the control too, since it takes the server's time.
    AskedFor,
    Told,
}

impl Beside {
    /// Waits until the first lease is due.
    async fn start(server: &Server, sizes: Sizes, asked: &[Instant], look: Look) -> Result<Beside> {
        let first_due = asked.first().map_or_else(Instant::now, |asked| *asked + sizes.ttl);
        // The log of the grants and puts goes where the server keeps it; that is not what is measured.
        let control = (first_due - Duration::from_millis(500)).saturating_duration_since(Instant::now());
        tokio::time::sleep(control.saturating_sub(sizes.window)).await;
        let (witness, meter) = (Witness::start(&server.endpoint, sizes.puts_a_second)?, Meter::start(server.process)?);
        let until = first_due - Duration::from_millis(100);
        while look == Look::AskedFor && Instant::now() + LOOK < until {
            server.number(REVOKED).await?;
            tokio::time::sleep(LOOK).await;
        }
        tokio::time::sleep_until(until.into()).await;
        witness.next_phase();
        Ok(Beside { witness, control: meter.read()?, meter: Meter::start(server.process)? })
    }

    async fn finish(self, server: &mut Server, scene: &str, leases: u32, measured: &mut Measured) -> Result<()> {
        let spent = self.meter.read()?;
        self.witness.next_phase();
        server.check_alive()?;
        let tails = self.witness.finish().await?;
        let cpu = spent.cpu_beyond(&self.control).as_secs_f64();
        measured.add(scene, "server CPU beyond the quiet control's, us each", cpu * 1e6 / f64::from(leases));
        let control = format!("{scene}: quiet control");
        measured.add(&control, "server CPU, % of a core", self.control.cpu_per_cent());
        tails[0].add(measured, &control);
        tails[1].add(measured, &format!("{scene}: witness beside the expiry"));
        Ok(())
    }
}

/// Reads how many are revoked until all are.
async fn watch_the_count(server: &mut Server, base: u64, seen: &mut Seen, patience: Duration) -> Result<()> {
    let mut last = Instant::now();
    while !seen.is_complete() {
        let revoked = server.number(REVOKED).await?.saturating_sub(base);
        if seen.counted(revoked as usize, Instant::now())? {
            last = Instant::now();
        } else if last.elapsed() > patience {
            return Err(seen.stalled(patience));
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}

/// Which leases are gone, and how late they went.
struct Seen {
    /// By id less 1; rising.
    due: Vec<Instant>,
    is_gone: Vec<bool>,
    gone: usize,
    late: Histogram<u64>,
    first: Option<Instant>,
    last: Option<Instant>,
}

impl Seen {
    fn new(due: Vec<Instant>) -> Seen {
        Seen { is_gone: vec![false; due.len()], due, gone: 0, late: latencies(), first: None, last: None }
    }

    fn is_complete(&self) -> bool {
        self.gone == self.due.len()
    }

    fn goes(&mut self, at: usize, now: Instant) -> Result<()> {
        let (Some(due), Some(is_gone)) = (self.due.get(at), self.is_gone.get_mut(at)) else {
            return Err(Fault::Refused(format!("{} leases were granted, and a further one is gone", self.due.len())));
        };
        if std::mem::replace(is_gone, true) {
            return Err(Fault::Refused(format!("lease {} is gone twice", at + 1)));
        }
        let early = due.saturating_duration_since(now);
        if early > Duration::ZERO {
            return Err(Fault::Refused(format!("lease {} is gone {early:?} before its time", at + 1)));
        }
        record(&mut self.late, now - *due);
        self.gone += 1;
        self.first.get_or_insert(now);
        self.last = Some(now);
        Ok(())
    }

    /// So many are gone by now, in the order of their time. False: no more than before.
    fn counted(&mut self, gone: usize, now: Instant) -> Result<bool> {
        let before = self.gone;
        (before..gone).try_for_each(|at| self.goes(at, now))?;
        Ok(self.gone > before)
    }

    /// The key of a lease is deleted.
    fn deleted(&mut self, key: &[u8], now: Instant) -> Result<()> {
        let id = key.strip_prefix(PREFIX.as_bytes()).and_then(|id| std::str::from_utf8(id).ok()?.parse::<usize>().ok());
        let at = id.and_then(|id| id.checked_sub(1));
        self.goes(at.ok_or(Fault::Refused("a key is gone that nobody put".to_owned()))?, now)
    }

    fn took(&self) -> Duration {
        self.first.zip(self.last).map_or(Duration::ZERO, |(first, last)| last - first)
    }

    fn stalled(&self, patience: Duration) -> Fault {
        let waiting_for = format!("the end of {} leases", self.due.len() - self.gone);
        Fault::Stalled { waiting_for, seconds: patience.as_secs() }
    }

    fn add(&self, measured: &mut Measured, scene: &str) {
        measured.tail_of(scene, "gone behind its time, ", &self.late);
        measured.add(scene, "first to last gone, s", self.took().as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(now: Instant) -> Seen {
        Seen::new((0..4).map(|at| now + Duration::from_secs(at)).collect())
    }

    #[test]
    fn lateness_counts_from_the_time_of_each_lease() {
        let now = Instant::now();
        let mut seen = seen(now);
        assert!(!seen.counted(0, now).unwrap());
        assert!(seen.counted(2, now + Duration::from_secs(3)).unwrap());
        assert!((2_990_000..3_010_000).contains(&seen.late.max()), "the first of the two waited longer");
        seen.counted(4, now + Duration::from_secs(4)).unwrap();
        assert!(seen.is_complete());
        assert_eq!((seen.late.len(), seen.took()), (4, Duration::from_secs(1)));
    }

    #[test]
    fn what_goes_early_twice_or_unasked_is_a_fault_and_no_figure() {
        let now = Instant::now();
        let early = seen(now).counted(2, now).unwrap_err().to_string();
        assert!(early.contains("before its time"), "{early}");
        let mut seen = seen(now);
        seen.deleted(b"leased/000000001", now).unwrap();
        for key in [&b"leased/000000001"[..], b"leased/000000005", b"leased/000000000", b"leased/x", b"other"] {
            assert!(seen.deleted(key, now + Duration::from_secs(9)).is_err(), "{key:?}");
        }
    }
}
