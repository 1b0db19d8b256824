//! Watch streams that ask for what they may not, go on after their half-close, or are gone in the middle.

use tarsier_proto::etcdserverpb as pb;

use crate::client::{Client, WATCH, WIDE, cancel, create, framed, on_key, progress};
use crate::random::Random;
use crate::scene::among_bystanders;

fn numbered(watch_id: i64) -> pb::WatchCreateRequest {
    pb::WatchCreateRequest { watch_id, ..on_key("x") }
}

#[test]
fn creates_and_cancels_that_make_no_sense_are_refused_one_by_one() {
    among_bystanders(async |server| {
        let client = Client::connect(server.address(), WIDE).await;
        let mut watch = client.start(WATCH, create(on_key("x")), false).await.expect("a watch begins");
        assert!(watch.next().await.created);
        for id in [7, i64::MAX, -1, i64::MIN] {
            watch.send(create(numbered(id)));
            watch.send(create(numbered(id)));
            let first = watch.next().await;
            assert!(first.created && !first.canceled && first.watch_id == id, "{first:?}");
            let second = watch.next().await;
            assert!(second.created && second.canceled && second.watch_id == -1, "{second:?}");
        }
        for (key, range_end, start_revision) in [("x", "a", 0), ("x", "x", 0), ("x", "", -1), ("x", "", i64::MIN)] {
            let (key, range_end) = (key.into(), range_end.into());
            watch.send(create(pb::WatchCreateRequest { key, range_end, start_revision, ..Default::default() }));
            assert!(watch.next().await.canceled, "{range_end:?} {start_revision}", range_end = "");
        }
        watch.send(create(pb::WatchCreateRequest { start_revision: i64::MAX, ..on_key("x") }));
        assert!(watch.next().await.created);
        for id in 0..10_000 {
            watch.send(cancel(id * 3_000_000_019 - 20_000));
        }
        // An unknown id gets no answer, so the next one is to this.
        watch.send(create(numbered(8)));
        assert_eq!(watch.next().await.watch_id, 8);
        for _ in 0..100 {
            watch.send(framed(&[]));
        }
        watch.send(cancel(8));
        assert!(watch.next().await.canceled);
    });
}

#[test]
fn a_half_closed_watch_stream_goes_on() {
    among_bystanders(async |server| {
        let client = Client::connect(server.address(), WIDE).await;
        let mut watch = client.start(WATCH, create(on_key("x")), false).await.expect("a watch begins");
        assert!(watch.next().await.created);
        watch.half_close();
        for round in 0..100_u8 {
            let revision = client.put("x", &[round]).await;
            let response = watch.next().await;
            assert_eq!(response.events[0].kv.as_ref().map(|kv| kv.mod_revision), Some(revision));
        }
    });
}

#[test]
fn five_thousand_creates_in_one_write_are_all_answered_in_order() {
    among_bystanders(async |server| {
        let client = Client::connect(server.address(), WIDE).await;
        let all: Vec<u8> = (0..5_000).flat_map(|number| create(on_key(&format!("x/{number}")))).collect();
        let mut watch = client.start(WATCH, all.into(), false).await.expect("a watch begins");
        for number in 0..5_000 {
            let response = watch.next().await;
            assert!(response.created && !response.canceled && response.watch_id == number, "{response:?}");
        }
        let revision = client.put("x/4999", b"").await;
        let response = watch.next().await;
        assert_eq!((response.watch_id, response.events[0].kv.as_ref().unwrap().mod_revision), (4_999, revision));
    });
}

#[test]
fn streams_that_are_reset_and_connections_that_vanish_amid_creates_and_events_leave_nothing() {
    among_bystanders(async |server| {
        let writer = Client::connect(server.address(), WIDE).await;
        for seed in 0..60 {
            let mut random = Random::new(seed);
            let client = Client::connect(server.address(), if seed % 3 == 0 { 0 } else { 1_000 }).await;
            let mut streams = Vec::new();
            for _ in 0..1 + random.below(6) {
                let mut requests = Vec::new();
                for _ in 0..random.below(700) {
                    requests.extend_from_slice(&match random.below(6) {
                        0 => cancel(random.below(50) as i64),
                        1 => progress(),
                        2 => create(pb::WatchCreateRequest { start_revision: 1, prev_kv: true, ..on_key("x") }),
                        3 => create(pb::WatchCreateRequest { start_revision: 1 << 40, ..on_key("x") }),
                        4 => create(pb::WatchCreateRequest { progress_notify: true, ..on_key("x") }),
                        _ => create(pb::WatchCreateRequest { range_end: "y".into(), ..on_key("x") }),
                    });
                }
                streams.push(client.start(WATCH, requests.into(), random.below(4) == 0).await.expect("it lives"));
                writer.put("x", &vec![7; random.below(3_000) as usize]).await;
                if random.below(3) == 0 {
                    let at = random.below(streams.len() as u64) as usize;
                    streams.swap_remove(at).reset();
                }
            }
            if seed % 2 == 0 {
                writer.put("x", b"in flight").await;
            }
        }
    });
}
