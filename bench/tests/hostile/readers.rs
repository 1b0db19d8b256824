//! Clients that do not read, or much later; and the end of the server while calls are under way.

use std::time::{Duration, Instant};

use prost::Message;
use rustix::process::{Pid, Signal, kill_process};
use tarsier_proto::etcdserverpb as pb;
use tokio::time::timeout;

use crate::client::{Client, RANGE, SOON, WATCH, WIDE, create, framed, on_key};
use crate::scene::among_bystanders;
use crate::server::{self, Server};

#[test]
fn a_client_that_reads_nothing_for_long_then_reads_everything_in_order() {
    among_bystanders(async |server| {
        let client = Client::connect(server.address(), 0).await;
        let all: Vec<u8> = (0..200).flat_map(|_| create(on_key("x"))).collect();
        let mut watch = client.start(WATCH, all.into(), false).await.expect("a watch begins");
        let writer = Client::connect(server.address(), WIDE).await;
        // The answers to the creates cannot be read yet: an account shows that they are there.
        let deadline = Instant::now() + SOON;
        while server.account()["backlog"].bytes == 0 {
            assert!(Instant::now() < deadline, "no create was taken");
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
        let mut revisions = Vec::new();
        for _ in 0..500 {
            revisions.push(writer.put("x", &[7; 500]).await);
        }
        assert!(server.account()["backlog"].bytes < 1 << 20, "a client that does not read is not saved up for");
        client.set_window(WIDE);
        for id in 0..200 {
            let response = watch.next().await;
            assert!(response.created && response.watch_id == id, "{response:?}");
        }
        let mut told = vec![Vec::new(); 200];
        while told.iter().any(|told| told.len() < revisions.len()) {
            let response = watch.next().await;
            let events = response.events.iter().map(|event| event.kv.as_ref().expect("a key").mod_revision);
            told[response.watch_id as usize].extend(events);
        }
        assert!(told.iter().all(|told| *told == revisions), "each watch has every event once and in order");
    });
}

#[test]
fn a_client_that_asks_and_never_reads_is_stopped_by_its_window() {
    among_bystanders(async |server| {
        let client = Client::connect(server.address(), 0).await;
        // Refused, with an answer several times as long as the request.
        let request = create(pb::WatchCreateRequest { start_revision: -1, ..on_key("x") });
        let requests: Vec<u8> = request.repeat(100_000);
        let _watch = client.start(WATCH, requests.into(), false).await.expect("a watch begins");
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(2) {
            let backlog = server.account()["backlog"].bytes;
            assert!(backlog < 1 << 20, "{backlog} bytes wait for a client that reads nothing");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
}

#[test]
fn answers_that_are_never_read_are_given_up_with_their_client() {
    among_bystanders(async |server| {
        let writer = Client::connect(server.address(), WIDE).await;
        for number in 0..200 {
            writer.put(&format!("x/{number}"), &[7; 10_000]).await;
        }
        let range = pb::RangeRequest { key: "x".into(), range_end: "y".into(), ..Default::default() };
        for window in [0, 100, 20_000] {
            let client = Client::connect(server.address(), window).await;
            let mut unread = Vec::new();
            for number in 0..100 {
                unread.push(client.start(RANGE, framed(&range.encode_to_vec()), true).await.expect("it lives"));
                if number % 10 == 9 {
                    unread.swap_remove(0).reset();
                }
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
            assert!(writer.put("x/0", b"").await > 0);
        }
    });
}

/// Clients of one shard wait for another shard's replies, and either may have nothing to wait for itself: so each server has
/// one client, on whichever shard the kernel gave it to.
#[test]
fn puts_under_way_are_answered_when_the_server_is_told_to_stop() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    runtime.expect("a runtime starts").block_on(async {
        for round in 0..8 {
            let mut server = Server::start(&server::binary_under_test());
            let client = Client::connect(server.address(), WIDE).await;
            client.put("warm", b"").await;
            let putter = tokio::spawn(put_until_goodbye(client));
            tokio::time::sleep(Duration::from_millis(50)).await;
            let process = Pid::from_raw(server.process() as i32).expect("a process has a number");
            kill_process(process, Signal::TERM).expect("the server runs");
            let cut = timeout(SOON, putter).await.expect("all calls end").expect("a putter ends by itself");
            assert_eq!(cut, 0, "round {round}: puts that the server had taken are answered");
            let deadline = Instant::now() + SOON;
            while server.ended().is_none() {
                assert!(Instant::now() < deadline, "the server does not end");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    });
}

/// Many puts at once until the server says goodbye. Gives how many were neither answered nor refused as too late.
async fn put_until_goodbye(client: Client) -> usize {
    loop {
        let puts = (0..1_000).map(|_| client.call(crate::client::PUT, crate::client::put("x", b"v")));
        let answers = join_all(puts).await;
        let cut = answers.iter().filter(|answer| answer.as_ref().is_err_and(|error| !is_goodbye(error))).count();
        if cut > 0 || answers.iter().any(Result::is_err) {
            return cut;
        }
    }
}

/// A call above the last stream that a GOAWAY names was not taken (RFC 9113, section 6.8); neither was one that never left.
fn is_goodbye(error: &h2::Error) -> bool {
    error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR)
}

async fn join_all<F: Future>(futures: impl Iterator<Item = F>) -> Vec<F::Output> {
    let mut futures: Vec<_> = futures.map(Box::pin).collect();
    let mut outputs: Vec<Option<F::Output>> = futures.iter().map(|_| None).collect();
    std::future::poll_fn(|context| {
        for (future, output) in futures.iter_mut().zip(&mut outputs) {
            if output.is_none()
                && let std::task::Poll::Ready(value) = future.as_mut().poll(context)
            {
                *output = Some(value);
            }
        }
        if outputs.iter().all(Option::is_some) { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
    outputs.into_iter().flatten().collect()
}
