//! Watch streams that ask for very much: a million of something, or keys and spans as large as they may be.

use tarsier_proto::etcdserverpb as pb;

use crate::client::{Client, Stream, WATCH, WIDE, cancel, create, on_key};
use crate::scene::among_bystanders;
use crate::server::Server;

const MILLION: i64 = 1_000_000;
/// Requests of one write.
const BATCH: i64 = 10_000;
/// What may wait for a client that asks for much and reads its answers.
const BACKLOG_BYTES_MAX: u64 = 8 << 20;

async fn begin(server: &Server) -> (Client, Stream) {
    let client = Client::connect(server.address(), WIDE).await;
    let mut watch = client.start(WATCH, create(on_key("x")), false).await.expect("a watch begins");
    assert!(watch.next().await.created);
    (client, watch)
}

#[test]
fn a_million_cancels_of_the_unknown_are_passed_over_and_the_stream_goes_on() {
    among_bystanders(async |server| {
        let (client, mut watch) = begin(server).await;
        for batch in 0..MILLION / BATCH {
            let cancels: Vec<u8> = (1..=BATCH).flat_map(|number| cancel(batch * BATCH + number)).collect();
            watch.send(cancels.into());
            // This one is answered, so that the client does not run ahead of the server.
            watch.send(create(pb::WatchCreateRequest { watch_id: -2 - batch, ..on_key("y") }));
            let response = watch.next().await;
            assert!(response.created && response.watch_id == -2 - batch, "{response:?}");
        }
        let revision = client.put("x", b"").await;
        let response = watch.next().await;
        assert_eq!((response.watch_id, response.events[0].kv.as_ref().unwrap().mod_revision), (0, revision));
    });
}

#[test]
fn a_stream_with_a_million_watches_on_one_key_is_answered_and_each_cancel_is_quick() {
    among_bystanders(async |server| {
        let (client, mut watch) = begin(server).await;
        for batch in 0..MILLION / BATCH {
            watch.send(create(on_key("million")).repeat(BATCH as usize).into());
            for number in 1..=BATCH {
                let response = watch.next().await;
                assert!(response.created && !response.canceled, "{response:?}");
                assert_eq!(response.watch_id, batch * BATCH + number);
            }
        }
        assert!(server.account()["backlog"].bytes < BACKLOG_BYTES_MAX);
        // Were a cancel as long as its group, these would take a thousand times as long as the test may wait.
        let canceled = 100_000;
        for first in (1..=canceled).step_by(BATCH as usize) {
            let cancels: Vec<u8> = (first..first + BATCH).flat_map(cancel).collect();
            watch.send(cancels.into());
            for id in first..first + BATCH {
                let response = watch.next().await;
                assert!(response.canceled && response.watch_id == id, "{response:?}");
            }
        }
        let revision = client.put("million", b"").await;
        let mut told = vec![false; MILLION as usize + 1];
        for _ in canceled..MILLION {
            let response = watch.next().await;
            assert_eq!(response.events[0].kv.as_ref().unwrap().mod_revision, revision);
            let told = &mut told[response.watch_id as usize];
            assert!(response.watch_id > canceled && !*told, "{response:?}");
            *told = true;
        }
    });
}

#[test]
fn keys_of_a_mebibyte_are_watched_and_told_of() {
    among_bystanders(async |server| {
        let (client, mut watch) = begin(server).await;
        for number in 0..20 {
            let key = format!("{number:02}{}", "k".repeat((1 << 20) - 2));
            watch.send(create(on_key(&key)));
            let response = watch.next().await;
            assert!(response.created && !response.canceled, "{}", response.cancel_reason);
            let revision = client.put(&key, b"").await;
            let response = watch.next().await;
            let told = response.events[0].kv.as_ref().unwrap();
            assert!(told.key == key && told.mod_revision == revision, "number {number}");
        }
        assert!(server.account()["backlog"].bytes < BACKLOG_BYTES_MAX);
    });
}

#[test]
fn spans_that_all_overlap_are_each_told_of_what_they_hold() {
    const SPANS: i64 = 20_000;
    among_bystanders(async |server| {
        let (client, mut watch) = begin(server).await;
        // Each holds all that come behind it, so a key in the middle lies in the first half of them.
        let name = |number: i64| format!("span/{number:08}");
        let span = |number| pb::WatchCreateRequest { range_end: "span0".into(), ..on_key(&name(number)) };
        let creates: Vec<u8> = (0..SPANS).flat_map(|number| create(span(number))).collect();
        watch.send(creates.into());
        for id in 1..=SPANS {
            let response = watch.next().await;
            assert!(response.created && response.watch_id == id, "{response:?}");
        }
        for middle in [0, SPANS / 2, SPANS - 1] {
            let revision = client.put(&name(middle), b"").await;
            let mut told = Vec::new();
            for _ in 0..=middle {
                let response = watch.next().await;
                assert_eq!(response.events[0].kv.as_ref().unwrap().mod_revision, revision);
                told.push(response.watch_id);
            }
            told.sort_unstable();
            assert!(told.into_iter().eq(1..=middle + 1), "the put in span {middle}");
        }
    });
}
