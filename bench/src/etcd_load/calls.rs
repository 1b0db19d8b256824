//! The loads made of single calls: put, range, txn-put, txn-mixed, lease-keepalive.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Instant;

use bytes::Bytes;
use tarsier_proto::etcdserverpb as pb;

use super::keys::{Keys, random_bytes};
use super::pace::Pace;
use super::tally::{Form, Tally};
use super::{Common, Consistency, LeaseArgs, PutArgs, RangeArgs, SEED, TxnMixedArgs, TxnPutArgs, mark_as_cut_short};
use crate::caller::Caller;
use crate::fault::{Fault, Result};
use crate::random::Random;
use crate::tasks;
use crate::wire::{self, framed, operation};

/// Keys of one page of `range --paginate`.
const PAGE_KEYS: i64 = 10_000;
const LEASE_SECONDS: i64 = 100;

/// `total` calls by one worker for each of `callers`, each beginning its next when the last is answered. `begin` is told
/// the worker and the number of the call, and gives which of the `names` it counts under.
pub async fn closed_loop<F, W>(
    common: &Common,
    callers: Vec<Caller>,
    total: u64,
    pace: Pace,
    names: &'static [&'static str],
    begin: F,
) -> Result<()>
where
    F: FnMut(Caller, usize, u64) -> (usize, W) + 'static,
    W: Future<Output = Result<()>> + 'static,
{
    let tallies: Tallies = Rc::new(RefCell::new(names.iter().map(|_| Tally::default()).collect()));
    let (next, pace, begin) = (Rc::new(Cell::new(0)), Rc::new(RefCell::new(pace)), Rc::new(RefCell::new(begin)));
    let (started, form) = (Instant::now(), common.form());
    let mut workers = tokio::task::JoinSet::new();
    for (worker, caller) in callers.into_iter().enumerate() {
        let (tallies, next, pace, begin) = (tallies.clone(), next.clone(), pace.clone(), begin.clone());
        workers.spawn_local(async move {
            while next.get() < total {
                let number = next.replace(next.get() + 1);
                wait_for(&pace).await;
                let (kind, work) = (*begin.borrow_mut())(caller.clone(), worker, number);
                let begun = Instant::now();
                let outcome = work.await;
                tallies.borrow_mut()[kind].add_outcome(begun.elapsed(), outcome)?;
            }
            Ok(())
        });
    }
    // Declared last, so that it is dropped before the workers.
    let mut report = Report { names, tallies: tallies.clone(), started, form, is_whole: false };
    let outcome = tasks::all(&mut workers).await.map(drop);
    // After a fault the others would only find the same; what was measured so far is printed.
    workers.abort_all();
    report.is_whole = outcome.is_ok();
    drop(report);
    let refused: u64 = tallies.borrow().iter().map(Tally::errors).sum();
    match outcome {
        Ok(()) if refused > 0 => Err(Fault::Refused(format!("{refused} calls were refused"))),
        outcome => outcome,
    }
}

/// By the names of what is counted.
type Tallies = Rc<RefCell<Vec<Tally>>>;

/// What the calls took, printed when this is dropped: an interrupt drops a run where it stands, and what an hour has measured
/// must not go with it.
struct Report {
    names: &'static [&'static str],
    tallies: Tallies,
    started: Instant,
    form: Form,
    /// All calls have ended.
    is_whole: bool,
}

impl Drop for Report {
    fn drop(&mut self) {
        if !self.is_whole {
            mark_as_cut_short();
        }
        let total = self.started.elapsed();
        for (name, tally) in self.names.iter().zip(self.tallies.borrow().iter()) {
            if !name.is_empty() {
                println!("\n{name}:");
            }
            print!("{}", tally.text(total, self.form));
        }
        println!(
            "\nClosed loop: each client waits for an answer before it asks again, so a stall counts once a client."
        );
    }
}

pub async fn wait_for(pace: &RefCell<Pace>) {
    let at = pace.borrow_mut().reserve(tokio::time::Instant::now());
    if let Some(at) = at {
        tokio::time::sleep_until(at).await;
    }
}

/// One call whose answer is only waited for.
async fn call(caller: Caller, path: &'static str, framed: Bytes) -> Result<()> {
    caller.call(path, framed).await.map(drop)
}

pub fn put_request(key: Bytes, value: &Bytes) -> pb::PutRequest {
    pb::PutRequest { key, value: value.clone(), ..Default::default() }
}

pub async fn put(common: &Common, args: PutArgs) -> Result<()> {
    let value = random_bytes(args.writes.val_size);
    let (mut keys, mut random) = (Keys::reused(args.writes.key_size), Random::new(SEED));
    let (space, upkeep, callers) = (u64::from(args.writes.key_space_size), args.upkeep, common.callers().await?);
    let beside = callers[0].clone();
    let begin = move |caller: Caller, _, number: u64| {
        let number = if args.sequential_keys { number % space } else { random.below(space) };
        let key = [args.prefix.as_bytes(), &keys.write(number)].concat();
        (0, call(caller, wire::PATH_PUT, framed(&put_request(key.into(), &value))))
    };
    let puts = closed_loop(common, callers, args.writes.total, Pace::new(args.writes.rate, 1), &[""], begin);
    tokio::select! {
        outcome = puts => outcome?,
        refused = upkeep.compact(&beside) => match refused? {},
    }
    upkeep.print_hash(&beside).await
}

pub async fn txn_put(common: &Common, args: TxnPutArgs) -> Result<()> {
    if args.writes.key_space_size < args.txn_ops {
        // A transaction may put a key once.
        return Err(Fault::Refused("--key-space-size must be at least --txn-ops".to_owned()));
    }
    let (value, mut keys) = (random_bytes(args.writes.val_size), Keys::reused(args.writes.key_size));
    let (space, each) = (u64::from(args.writes.key_space_size), u64::from(args.txn_ops));
    let begin = move |caller: Caller, _, number: u64| {
        let puts = (0..each).map(|at| put_request(keys.write((number * each + at) % space), &value));
        let success = puts.map(|put| operation(pb::request_op::Request::RequestPut(put))).collect();
        let request = pb::TxnRequest { success, ..Default::default() };
        (0, call(caller, wire::PATH_TXN, framed(&request)))
    };
    closed_loop(common, common.callers().await?, args.writes.total, Pace::new(args.writes.rate, 1), &[""], begin).await
}

pub async fn txn_mixed(common: &Common, args: TxnMixedArgs) -> Result<()> {
    let (value, mut keys) = (random_bytes(args.writes.val_size), Keys::reused(args.writes.key_size));
    let (space, mut random) = (u64::from(args.writes.key_space_size), Random::new(SEED));
    // Every key, whatever --end-key and the argument say: in etcd's tool the prefix "" replaces them.
    let read = pb::RangeRequest {
        key: Bytes::from_static(b"\0"),
        range_end: Bytes::from_static(b"\0"),
        limit: args.limit,
        serializable: args.consistency == Consistency::Serializable,
        ..Default::default()
    };
    let reads_part = args.rw_ratio / (1.0 + args.rw_ratio);
    let begin = move |caller: Caller, _, number: u64| {
        let reads = random.below(1 << 32) as f64 / (1u64 << 32) as f64;
        let is_read = reads < reads_part;
        let request = if is_read {
            pb::request_op::Request::RequestRange(read.clone())
        } else {
            pb::request_op::Request::RequestPut(put_request(keys.write(number % space), &value))
        };
        let request = pb::TxnRequest { success: vec![operation(request)], ..Default::default() };
        (usize::from(!is_read), call(caller, wire::PATH_TXN, framed(&request)))
    };
    let names = &["Total Read Ops", "Total Write Ops"];
    closed_loop(common, common.callers().await?, args.writes.total, Pace::new(args.writes.rate, 1), names, begin).await
}

pub async fn range(common: &Common, args: RangeArgs) -> Result<()> {
    let mut request = pb::RangeRequest {
        key: args.key.clone().into_bytes().into(),
        range_end: args.end.clone().unwrap_or_default().into_bytes().into(),
        limit: args.limit,
        serializable: args.consistency == Consistency::Serializable,
        count_only: args.count_only,
        keys_only: args.keys_only,
        ..Default::default()
    };
    if args.prefix {
        request.range_end = after_prefix(&request.key);
        if request.key.is_empty() {
            request.key = Bytes::from_static(b"\0");
        }
    }
    if args.paginate {
        request.limit = PAGE_KEYS;
    }
    let path = if args.stream { wire::PATH_RANGE_STREAM } else { wire::PATH_RANGE };
    let paginate = args.paginate;
    let begin = move |caller: Caller, _, _| {
        let request = request.clone();
        (0, async move {
            if paginate { pages(&caller, request).await } else { caller.call(path, framed(&request)).await.map(drop) }
        })
    };
    closed_loop(common, common.callers().await?, args.total, Pace::new(args.rate, 1), &[""], begin).await
}

/// The whole range, page by page at the newest revision of each, as one unit of work.
async fn pages(caller: &Caller, mut request: pb::RangeRequest) -> Result<()> {
    let path = wire::PATH_RANGE;
    loop {
        let page: pb::RangeResponse = caller.ask(path, &request).await?;
        match page.kvs.last() {
            // The next page begins at the smallest key above the last one, so this ends.
            Some(last) if page.more => request.key = [&last.key[..], b"\0"].concat().into(),
            _ => return Ok(()),
        }
    }
}

/// The first key past all that begin with `prefix`; a zero byte where there is none.
pub fn after_prefix(prefix: &[u8]) -> Bytes {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            return end.into();
        }
    }
    Bytes::from_static(b"\0")
}

/// One lease a client; each unit is a call of its own with one request, as `KeepAliveOnce` of etcd's client makes them.
pub async fn lease_keepalive(common: &Common, args: LeaseArgs) -> Result<()> {
    let callers = common.callers().await?;
    let mut leases = Vec::with_capacity(callers.len());
    for caller in &callers {
        leases.push(caller.grant(LEASE_SECONDS).await?);
    }
    let begin = move |caller: Caller, worker: usize, _| {
        let lease = leases[worker];
        (0, async move { caller.keep_alive(lease).await })
    };
    closed_loop(common, callers, args.total, Pace::new(0, 1), &[""], begin).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_prefix_is_the_first_key_past_it() {
        assert_eq!(after_prefix(b"ab"), "ac");
        assert_eq!(after_prefix(b"a\xff\xff"), "b");
        assert_eq!(after_prefix(b"\xff"), "\0");
        assert_eq!(after_prefix(b""), "\0");
    }
}
