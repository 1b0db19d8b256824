//! Logical clients in a closed loop: each sends its next call when the last is answered.
//!
//! The clients share connections, as the goroutines of one process do, and the connections share few threads. The run
//! that started the load reads the counter at the beginning and the end of its window. Latencies are those of the calls that
//! were begun in the window, whenever they ended: connecting and warming up do not count, and the calls that the end of the
//! window finds under way, of which the slow ones are more than their share, do.

use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use http::Request;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use crate::fault::{Fault, PATIENCE, Result, within};
use crate::latency::{latencies, record};
use crate::link::{self, Answer, Calls, Link, Piece, Turn, Windows};
use crate::random::Random;
use crate::tasks;
use crate::threads;
use crate::wire::Deframer;
use crate::work::Work;

/// How many clients, over what.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub connections: u32,
    pub clients: u32,
    pub threads: u32,
}

#[derive(Default)]
struct Shared {
    completed: AtomicU64,
    window_is_open: AtomicBool,
    stops: AtomicBool,
    has_failed: AtomicBool,
}

/// A running load.
pub struct Load {
    shared: Arc<Shared>,
    threads: Vec<oneshot::Receiver<Result<Histogram<u64>>>>,
}

impl Load {
    pub fn launch(endpoint: &Arc<str>, shape: Shape, work: Work) -> Result<Load> {
        let head = link::call_head(endpoint, work.path())?;
        let mut load = Load { shared: Arc::default(), threads: Vec::new() };
        let count = shape.threads.clamp(1, shape.connections);
        for thread in 0..count {
            let start = |thread: u32| shape.connections * thread / count;
            let crew = Crew {
                endpoint: endpoint.clone(),
                shape,
                work: work.clone(),
                head: head.clone(),
                shared: load.shared.clone(),
                connections: start(thread)..start(thread + 1),
                latency: RefCell::new(latencies()),
            };
            load.threads.push(threads::on_thread(&format!("load-{thread}"), move || crew.run())?);
        }
        Ok(load)
    }

    pub fn completed(&self) -> u64 {
        self.shared.completed.load(Ordering::Relaxed)
    }

    pub fn open_window(&self) {
        self.shared.window_is_open.store(true, Ordering::Relaxed);
    }

    /// A thread has ended with a fault, which [`finish`](Self::finish) gives.
    pub fn has_failed(&self) -> bool {
        self.shared.has_failed.load(Ordering::Relaxed)
    }

    /// Lets the calls under way finish; gives the latencies of those that were begun in the window. Whoever waits here holds up nothing else: a server
    /// that does not answer must not keep an interrupt from being heard.
    pub async fn finish(self) -> Result<Histogram<u64>> {
        self.finish_within(PATIENCE).await
    }

    async fn finish_within(mut self, patience: Duration) -> Result<Histogram<u64>> {
        self.shared.window_is_open.store(false, Ordering::Relaxed);
        self.shared.stops.store(true, Ordering::Relaxed);
        let mut sum = latencies();
        let all = async {
            for thread in self.threads.drain(..) {
                let of_thread = threads::finished(thread).await?;
                sum.add(of_thread).expect("all histograms have the same bounds");
            }
            Ok(())
        };
        within(patience, "answers to the calls under way", all).await?;
        Ok(sum)
    }
}

impl Drop for Load {
    /// The threads see the flag at their next answer; nobody waits for them here.
    fn drop(&mut self) {
        self.shared.stops.store(true, Ordering::Relaxed);
    }
}

struct Crew {
    endpoint: Arc<str>,
    shape: Shape,
    work: Work,
    head: Request<()>,
    shared: Arc<Shared>,
    connections: Range<u32>,
    latency: RefCell<Histogram<u64>>,
}

impl Crew {
    async fn run(self) -> Result<Histogram<u64>> {
        let crew = Rc::new(self);
        let mut connections = JoinSet::new();
        for connection in crew.connections.clone() {
            connections.spawn_local(drive(crew.clone(), connection));
        }
        let outcome = tasks::all(&mut connections).await;
        crew.shared.has_failed.fetch_or(outcome.is_err(), Ordering::Relaxed);
        outcome.map(|_| crew.latency.borrow().clone())
    }
}

async fn drive(crew: Rc<Crew>, connection: u32) -> Result<()> {
    let share = |connection: u32| crew.shape.clients * connection / crew.shape.connections;
    let clients = share(connection + 1) - share(connection);
    if clients == 0 {
        return Ok(());
    }
    let mut link = Link::open(&crew.endpoint, Windows::SMALL, clients).await?;
    let clients = (0..clients).map(|_| None).collect();
    let mut loops = Loops { random: Random::new(u64::from(connection) + 1), crew, clients, busy: 0 };
    link.drive(&mut loops).await
}

/// The clients of one connection.
struct Loops {
    crew: Rc<Crew>,
    random: Random,
    /// By slot: the call under way.
    clients: Box<[Option<Call>]>,
    busy: u32,
}

struct Call {
    answer: Answer,
    deframer: Deframer,
    begun: Instant,
    /// It was begun in the window.
    counts: bool,
    answered: bool,
}

impl Calls for Loops {
    fn poll_slot(&mut self, turn: &mut Turn<'_>, slot: u32, cx: &mut Context<'_>) -> Result<()> {
        let crew = self.crew.clone();
        let path = crew.work.path();
        loop {
            let Some(call) = &mut self.clients[slot as usize] else {
                if crew.shared.stops.load(Ordering::Relaxed) || !self.begin(turn, slot, cx)? {
                    return Ok(());
                }
                continue;
            };
            match call.answer.poll_piece(&crew.endpoint, path, cx) {
                Poll::Pending => return Ok(()),
                Poll::Ready(Err(fault)) => return Err(fault),
                Poll::Ready(Ok(Piece::Data(data))) => call.deframer.feed(&data, |body| {
                    call.answered = true;
                    crew.work.check(body)
                })?,
                Poll::Ready(Ok(Piece::End)) if !call.answered => return Err(Fault::NoAnswer { path }),
                Poll::Ready(Ok(Piece::End)) => {
                    if call.counts {
                        record(&mut crew.latency.borrow_mut(), call.begun.elapsed());
                    }
                    crew.shared.completed.fetch_add(1, Ordering::Relaxed);
                    self.clients[slot as usize] = None;
                    self.busy -= 1;
                }
            }
        }
    }

    fn is_done(&self) -> bool {
        self.busy == 0 && self.crew.shared.stops.load(Ordering::Relaxed)
    }
}

impl Loops {
    fn begin(&mut self, turn: &mut Turn<'_>, slot: u32, cx: &mut Context<'_>) -> Result<bool> {
        let http = |cause| Fault::Http { endpoint: self.crew.endpoint.to_string(), cause };
        let opened = turn.open(slot, &self.crew.head, false, cx).map_err(http)?;
        let Some((response, mut send)) = opened else { return Ok(false) };
        let request = self.crew.work.request(&mut self.random).freeze();
        let (begun, counts) = (Instant::now(), self.crew.shared.window_is_open.load(Ordering::Relaxed));
        send.send_data(request, true).map_err(http)?;
        let (answer, deframer) = (Answer::Head(response), Deframer::default());
        let call = Call { answer, deframer, begun, counts, answered: false };
        self.clients[slot as usize] = Some(call);
        self.busy += 1;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use tarsier_proto::etcdserverpb as pb;
    use tokio::task::LocalSet;

    use crate::wire;

    /// Answers each read when it is told to.
    async fn answer_late(listener: tokio::net::TcpListener, told: Rc<tokio::sync::Notify>) {
        let mut connection = h2::server::handshake(listener.accept().await.unwrap().0).await.unwrap();
        let found = pb::RangeResponse { kvs: vec![Default::default()], count: 1, ..Default::default() };
        let body: Bytes = wire::framed(&found);
        while let Some(Ok((_, mut respond))) = connection.accept().await {
            let (body, told) = (body.clone(), told.clone());
            tokio::task::spawn_local(async move {
                told.notified().await;
                let mut send = respond.send_response(http::Response::new(()), false).unwrap();
                send.send_data(body, false).unwrap();
                let mut trailers = http::HeaderMap::new();
                trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
                send.send_trailers(trailers).unwrap();
            });
        }
    }

    #[test]
    fn a_call_counts_when_it_was_begun_in_the_window_whenever_it_ends() {
        let runtime = threads::event_loop().unwrap();
        let latency = LocalSet::new().block_on(&runtime, async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let endpoint = listener.local_addr().unwrap().to_string().into();
            let told = Rc::new(tokio::sync::Notify::new());
            tokio::task::spawn_local(answer_late(listener, told.clone()));
            let shape = Shape { connections: 1, clients: 1, threads: 1 };
            let load = Load::launch(&endpoint, shape, Work::Read { key: b"key".to_vec() }).unwrap();
            // One before the window, one within it, and one that its end finds under way.
            let pause = async |milliseconds| tokio::time::sleep(Duration::from_millis(milliseconds)).await;
            pause(50).await;
            load.open_window();
            for _ in 0..2 {
                told.notify_one();
                pause(50).await;
            }
            let answer = async {
                pause(200).await;
                told.notify_one();
            };
            tokio::join!(load.finish(), answer).0.unwrap()
        });
        assert_eq!(latency.len(), 2);
        assert!(latency.max() >= 190_000, "{} us", latency.max());
    }

    #[test]
    fn a_load_that_is_not_answered_ends_with_the_patience() {
        // It takes connections, by the kernel, and says nothing on them.
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = silent.local_addr().unwrap().to_string().into();
        let runtime = threads::event_loop().unwrap();
        let outcome = LocalSet::new().block_on(&runtime, async {
            let shape = Shape { connections: 2, clients: 4, threads: 2 };
            let load = Load::launch(&endpoint, shape, Work::Read { key: b"key".to_vec() }).unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
            assert!(!load.has_failed());
            load.finish_within(Duration::from_millis(50)).await
        });
        let text = outcome.unwrap_err().to_string();
        assert_eq!(text, "nothing moved for 0 s; missing: answers to the calls under way");
    }
}
