//! The loads made of watches: watch, watch-latency, watch-get.
//!
//! An event that does not come ends the run with a sentence, and so does one more than was put if it comes before the last:
//! etcd's tool would wait for ever.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tarsier_proto::etcdserverpb as pb;
use tokio::task::JoinSet;

use super::calls::wait_for;
use super::keys::{key, random_bytes};
use super::pace::Pace;
use super::stream::{WatchStream, events};
use super::tally::Tally;
use super::{Common, SEED, WINDOWS, WatchArgs, WatchGetArgs, WatchLatencyArgs, mark_if_cut_short};
use crate::caller::Caller;
use crate::fault::{Fault, PATIENCE, Result, within};
use crate::random::Random;
use crate::tasks;
use crate::wire;

/// Tasks whose first fault ends the run.
type Tasks<T> = JoinSet<Result<T>>;

/// What all streams have received, and when the last of it came.
struct Received {
    count: Cell<u64>,
    last: Cell<Instant>,
}

impl Received {
    fn new() -> Rc<Received> {
        Rc::new(Received { count: Cell::new(0), last: Cell::new(Instant::now()) })
    }

    fn add(&self, count: u64) {
        self.count.set(self.count.get() + count);
        self.last.set(Instant::now());
    }

    /// Until so many have come; very many may take long, so what ends it is that none comes any more.
    async fn wait(&self, expected: u64) -> Result<()> {
        let begun = Instant::now();
        while self.count.get() < expected {
            tokio::time::sleep(Duration::from_millis(5)).await;
            if self.last.get().max(begun).elapsed() > PATIENCE {
                let waiting_for = format!("{} of {expected} events", expected - self.count.get());
                return Err(Fault::Stalled { waiting_for, seconds: PATIENCE.as_secs() });
            }
        }
        Ok(())
    }
}

pub async fn watch(common: &Common, args: WatchArgs) -> Result<()> {
    let callers = common.callers().await?;
    let mut random = Random::new(SEED);
    let space = u64::from(args.key_space_size);
    let watched = (0..u64::from(args.watched_key_total)).map(|at| {
        let number = if args.sequential_keys { at % space } else { random.below(space) };
        key(number, args.key_size)
    });
    let watched: Rc<[Bytes]> = watched.collect();
    let watches = u64::from(args.streams) * u64::from(args.watch_per_stream);
    let (streams, made) = make_watches(&callers, &args, watches, &watched).await?;
    println!("Watch creation summary:\n{}", made.0.text(made.1, common.form()));
    if args.put_total == 0 {
        println!("{watches} watches are held; an interrupt ends them");
        return tasks::all(&mut hold(streams)).await.map(drop);
    }

    let mut watchers: HashMap<&[u8], u64> = HashMap::new();
    for at in 0..watches {
        *watchers.entry(&watched[(at % watched.len() as u64) as usize]).or_default() += 1;
    }
    let of_put = |at: u64| watchers.get(&watched[(at % watched.len() as u64) as usize][..]).copied().unwrap_or(0);
    let expected: u64 = (0..args.put_total).map(of_put).sum();
    let (received, started) = (Received::new(), Instant::now());
    let mut readers: Tasks<()> = Tasks::new();
    for mut stream in streams {
        let received = received.clone();
        readers.spawn_local(async move {
            loop {
                stream
                    .next(|reply| {
                        received.add(events(reply)?);
                        Ok(())
                    })
                    .await?;
            }
        });
    }
    let puts = async {
        put_all(callers, &args, watched.clone()).await?;
        received.wait(expected).await
    };
    let outcome = tokio::select! {
        outcome = puts => outcome,
        fault = tasks::all(&mut readers) => fault.map(drop),
    };
    let events = received.count.get();
    let outcome = outcome.and_then(|()| match events == expected {
        true => Ok(()),
        false => Err(Fault::Broken(format!("{events} events came where {expected} were due"))),
    });
    mark_if_cut_short(&outcome);
    // Etcd's tool prints latencies here that begin when an event has come: they say how fast the tool is, so they are
    // left out.
    let seconds = received.last.get().saturating_duration_since(started).as_secs_f64();
    println!("Watch events received summary:\n\nSummary:\n  Total:\t{seconds:.4} secs.\n  Events:\t{events}");
    if events > 0 {
        println!("  Requests/sec:\t{:.4}", events as f64 / seconds);
    }
    outcome
}

/// Streams that create their watches one after the other, all streams at once, keys handed out in turn.
async fn make_watches(
    callers: &[Caller],
    args: &WatchArgs,
    watches: u64,
    watched: &Rc<[Bytes]>,
) -> Result<(Vec<WatchStream>, (Tally, Duration))> {
    let (next, tally) = (Rc::new(Cell::new(0u64)), Rc::new(RefCell::new(Tally::default())));
    let (started, mut makers) = (Instant::now(), Tasks::new());
    for stream in 0..args.streams {
        let caller = callers[stream as usize % callers.len()].clone();
        let (next, tally, watched) = (next.clone(), tally.clone(), watched.clone());
        makers.spawn_local(async move {
            let mut stream = WatchStream::open(&caller).await?;
            while next.get() < watches {
                let at = next.replace(next.get() + 1);
                let key = watched[(at % watched.len() as u64) as usize].clone();
                let begun = Instant::now();
                let request = pb::WatchCreateRequest { key, ..Default::default() };
                stream.create(request, unasked).await?;
                tally.borrow_mut().add(begun.elapsed());
            }
            Ok(stream)
        });
    }
    let streams = tasks::all(&mut makers).await?;
    let total = started.elapsed();
    Ok((streams, (tally.take(), total)))
}

/// Events to a key that nobody has put yet.
fn unasked(reply: &wire::WatchReply<'_>) -> Result<()> {
    match events(reply)? {
        0 => Ok(()),
        count => Err(Fault::Broken(format!("{count} events came before anything was put"))),
    }
}

fn hold(streams: Vec<WatchStream>) -> Tasks<()> {
    let mut tasks = Tasks::new();
    for mut stream in streams {
        // Somebody else may put meanwhile: that is what the watches are held for.
        tasks.spawn_local(async move {
            loop {
                stream.next(|_| Ok(())).await?;
            }
        });
    }
    tasks
}

async fn put_all(callers: Vec<Caller>, args: &WatchArgs, watched: Rc<[Bytes]>) -> Result<()> {
    let (next, pace) = (Rc::new(Cell::new(0u64)), Rc::new(RefCell::new(Pace::new(args.put_rate, 1))));
    let mut putters = Tasks::new();
    for caller in callers {
        let (next, pace, watched, total) = (next.clone(), pace.clone(), watched.clone(), args.put_total);
        putters.spawn_local(async move {
            while next.get() < total {
                let at = next.replace(next.get() + 1);
                wait_for(&pace).await;
                caller.put(&watched[(at % watched.len() as u64) as usize], b"data").await?;
            }
            Ok(())
        });
    }
    tasks::all(&mut putters).await.map(drop)
}

/// How long after its put has been answered an event comes; one that comes before counts as at once.
pub async fn watch_latency(common: &Common, args: WatchLatencyArgs) -> Result<()> {
    let callers = common.callers().await?;
    let (key, value) = (random_bytes(args.key_size), random_bytes(args.val_size));
    // By put: when it was answered.
    let answered = Rc::new(RefCell::new(Vec::<Instant>::new()));
    let latencies = Rc::new(RefCell::new(Tally::default()));
    let received = Received::new();
    let mut readers = Tasks::new();
    for stream in 0..args.streams {
        let mut stream = WatchStream::open(&callers[stream as usize % callers.len()]).await?;
        for _ in 0..args.watchers_per_stream {
            let request = pb::WatchCreateRequest { key: key.clone(), prev_kv: args.prevkv, ..Default::default() };
            stream.create(request, unasked).await?;
        }
        let (answered, latencies, received) = (answered.clone(), latencies.clone(), received.clone());
        let mut counts = vec![0u64; args.watchers_per_stream as usize];
        let mut missing = args.put_total * u64::from(args.watchers_per_stream);
        readers.spawn_local(async move {
            while missing > 0 {
                stream
                    .next(|reply| {
                        let now = Instant::now();
                        for _ in 0..events(reply)? {
                            let count =
                                counts.get_mut(reply.watch_id as usize).filter(|count| **count < args.put_total);
                            let count = count.ok_or_else(|| Fault::Broken("an event more than was put".to_owned()))?;
                            let put = answered.borrow().get(*count as usize).copied();
                            latencies.borrow_mut().add(put.map_or(Duration::ZERO, |put| now - put));
                            *count += 1;
                            missing -= 1;
                            received.add(1);
                        }
                        Ok(())
                    })
                    .await?;
            }
            Ok(())
        });
    }
    let putter = Caller::connect(callers[0].endpoint(), WINDOWS).await?;
    let (mut puts, puts_started, mut puts_total) = (Tally::default(), Instant::now(), Duration::ZERO);
    let pace = RefCell::new(Pace::new(args.put_rate, args.put_rate));
    let expected = args.put_total * u64::from(args.streams) * u64::from(args.watchers_per_stream);
    let run = async {
        for _ in 0..args.put_total {
            wait_for(&pace).await;
            let begun = Instant::now();
            putter.put(&key, &value).await?;
            answered.borrow_mut().push(Instant::now());
            puts.add(begun.elapsed());
            puts_total = puts_started.elapsed();
        }
        tokio::select! {
            outcome = received.wait(expected) => outcome,
            // They end when they have all, or with a fault.
            ended = tasks::all(&mut readers) => ended.map(drop),
        }
    };
    let outcome = run.await;
    mark_if_cut_short(&outcome);
    println!("\nPut summary:\n{}", puts.text(puts_total, common.form()));
    println!("\nWatch events summary:\n{}", latencies.borrow().text(puts_started.elapsed(), common.form()));
    outcome
}

/// How long a read takes while very many watches catch up.
pub async fn watch_get(common: &Common, args: WatchGetArgs) -> Result<()> {
    let callers = common.callers().await?;
    let watched = Bytes::from_static(b"watchkey");
    let mut first = None;
    for at in 0..args.events {
        let revision = callers[0].put(&watched, at.to_string().as_bytes()).await?;
        first.get_or_insert(revision);
    }
    let first = first.ok_or_else(|| Fault::Refused("--events must be above zero".to_owned()))?;
    let (begins, ends) = (Rc::new(tokio::sync::Notify::new()), Cell::new(false));
    let mut readers = Tasks::new();
    for stream in 0..args.streams {
        let share = |stream: u64| u64::from(args.watchers) * stream / u64::from(args.streams);
        let watches = share(u64::from(stream) + 1) - share(u64::from(stream));
        let mut stream = WatchStream::open(&callers[stream as usize % callers.len()]).await?;
        let (watched, begins) = (watched.clone(), begins.clone());
        readers.spawn_local(async move {
            let mut counts = vec![0u64; watches as usize];
            let missing = Cell::new(watches * args.events);
            let mut count = |reply: &wire::WatchReply<'_>| {
                let arrived = events(reply)?;
                let count = counts.get_mut(reply.watch_id as usize);
                let count = count.ok_or_else(|| Fault::Broken("an event for no watch".to_owned()))?;
                *count += arrived;
                if *count > args.events {
                    return Err(Fault::Broken("an event more than was put".to_owned()));
                }
                missing.set(missing.get() - arrived);
                Ok(())
            };
            for _ in 0..watches {
                let request =
                    pb::WatchCreateRequest { key: watched.clone(), start_revision: first, ..Default::default() };
                stream.create(request, &mut count).await?;
                begins.notify_one();
            }
            while missing.get() > 0 {
                within(PATIENCE, "the events of the past", stream.next(&mut count)).await?;
            }
            Ok(())
        });
    }
    let getter = Caller::connect(callers[0].endpoint(), WINDOWS).await?;
    let (mut tally, mut total) = (Tally::default(), Duration::ZERO);
    let gets = async {
        begins.notified().await;
        let started = Instant::now();
        while !ends.get() {
            let begun = Instant::now();
            let request = pb::RangeRequest { key: b"abc".as_slice().into(), serializable: true, ..Default::default() };
            getter.call_message(wire::PATH_RANGE, &request).await?;
            tally.add(begun.elapsed());
            total = started.elapsed();
        }
        Ok(())
    };
    let reads = async {
        let outcome = tasks::all(&mut readers).await.map(drop);
        ends.set(true);
        outcome
    };
    let outcome = tokio::try_join!(gets, reads).map(drop);
    mark_if_cut_short(&outcome);
    println!("Get during watch summary:\n{}", tally.text(total, common.form()));
    outcome
}
