//! What a connection keeps after a burst. h2's slabs never shrink, so what matters is how far a burst may grow them.

use std::io::Write;
use std::sync::OnceLock;

use super::stuck::{frame_of, stuck_peer};
use super::*;

/// What the server's thread holds once nothing moves any more.
async fn settled(server: &Running) -> i64 {
    let mut last = i64::MIN;
    loop {
        tokio::time::sleep(Duration::from_millis(60)).await;
        let held = server.held.load(Ordering::Relaxed);
        if held == last {
            return held;
        }
        last = held;
    }
}

/// A clock by which every turn is over whenever somebody looks at it.
fn clock_of_a_slow_machine() -> Instant {
    static START: OnceLock<Instant> = OnceLock::new();
    static LOOKS: AtomicU64 = AtomicU64::new(0);
    *START.get_or_init(Instant::now) + Duration::from_micros(250) * LOOKS.fetch_add(1, Ordering::Relaxed) as u32
}

/// What one connection keeps of a burst, and of the same burst three times more. Another connection has had one before, so that the
/// pools of the shard are filled.
fn kept(
    now: fn() -> Instant,
    burst: impl AsyncFn(&mut SendRequest<Bytes>, &mut (RecvStream, SendStream<Bytes>)),
) -> (i64, i64) {
    let server = start(move |config| config.now = now);
    let kept = run(async {
        let mut wide = h2::client::Builder::new();
        wide.initial_window_size(8 << 20).initial_connection_window_size(64 << 20);
        let open = async |client: &mut SendRequest<Bytes>| {
            let (response, send) = client.send_request(request("/test/Echo", &[]), false).unwrap();
            (response.await.unwrap().into_body(), send)
        };
        let mut first = connect_with(server.address, &wide).await;
        let mut stream = open(&mut first).await;
        burst(&mut first, &mut stream).await;
        let mut client = connect_with(server.address, &wide).await;
        let mut stream = open(&mut client).await;
        let before = settled(&server).await;
        burst(&mut client, &mut stream).await;
        let after = settled(&server).await;
        for _ in 0..3 {
            burst(&mut client, &mut stream).await;
        }
        (after - before, settled(&server).await - after)
    });
    server.end();
    kept
}

async fn echo_four_thousand_messages(_: &mut SendRequest<Bytes>, (recv, send): &mut (RecvStream, SendStream<Bytes>)) {
    // A DATA frame each, written in one go and answered in one go.
    let mut sent = 0;
    for number in 0..4_000_u32 {
        let message = framed(&number.to_be_bytes());
        sent += message.len();
        send.send_data(message, false).unwrap();
    }
    let mut got = 0;
    while got < sent {
        let data = recv.data().await.unwrap().unwrap();
        got += data.len();
        recv.flow_control().release_capacity(data.len()).unwrap();
    }
}

#[test]
fn thousands_of_messages_on_one_stream_leave_no_more_than_a_few_frames_room() {
    let (once, again) = kept(Instant::now, echo_four_thousand_messages);
    println!("4,000 messages leave {once} bytes, three times as many {again} more");
    assert!(once < 4_096 && again < 1_024, "{once} and {again}");
}

#[test]
fn turns_that_end_before_all_is_served_leave_no_more_than_a_few_frames_room() {
    let (once, again) = kept(clock_of_a_slow_machine, echo_four_thousand_messages);
    println!("4,000 messages leave {once} bytes, three times as many {again} more");
    assert!(once < 4_096 && again < 1_024, "{once} and {again}");
    let (once, again) = kept(clock_of_a_slow_machine, async |client, _| {
        // On many streams, so that a turn serves a part of those that are due.
        let mut streams = Vec::new();
        for _ in 0..50 {
            let (response, mut send) = client.send_request(request("/test/Echo", &[]), false).unwrap();
            for _ in 0..40 {
                send.send_data(framed(b"x"), false).unwrap();
            }
            send.send_data(Bytes::new(), true).unwrap();
            streams.push((response, send));
            *client = client.clone().ready().await.unwrap();
        }
        for (response, _send) in streams {
            assert_eq!(read_all(response.await.unwrap()).await.unwrap().body.len(), 40 * framed(b"x").len());
        }
    });
    println!("40 messages on 50 streams leave {once} bytes, three times as many {again} more");
    assert!(once < 50 * 900 && again < once / 5, "{once} and {again}");
}

#[test]
fn many_calls_at_once_leave_what_the_account_says_of_as_many_streams() {
    const CALLS: i64 = 400;
    let (once, again) = kept(Instant::now, async |client, _| {
        let mut calls = Vec::new();
        for _ in 0..CALLS {
            *client = client.clone().ready().await.unwrap();
            let (response, mut send) = client.send_request(request("/test/Late", &[]), false).unwrap();
            send.send_data(framed(&[7; 100]), true).unwrap();
            calls.push(response);
        }
        for response in calls {
            assert_eq!(read_all(response.await.unwrap()).await.unwrap().status().0, "0");
        }
    });
    let each = once / CALLS;
    println!("{CALLS} calls leave {once} bytes, {each} each, three times as many {again} more");
    assert!(each < 900, "{each}");
    // As many bytes again for the few calls by which a later burst has more open at once, and not for each burst.
    assert!(again < once / 5, "{again}");
}

#[test]
fn h2_keeps_no_frames_of_a_peer_that_takes_nothing() {
    let server = start(|_| {});
    let mut peer = stuck_peer(server.address);
    run(async {
        // Its socket is full once it is not asked for output any more.
        while server.reports.recv_timeout(Duration::from_millis(300)).is_ok() {}
        let before = settled(&server).await;
        peer.set_nonblocking(true).unwrap();
        let taken = peer.write(&frame_of(0, 0, 1, &framed(b"")).repeat(12_000)).unwrap();
        let kept = settled(&server).await - before;
        println!("of {taken} bytes sent, {kept} are kept");
        assert!(taken > 20_000, "frames of 14 bytes that took 280 each");
        assert!(kept < 100_000, "{kept}");
    });
    drop(peer);
    server.end();
}

#[test]
fn h2_keeps_no_frames_behind_the_one_request_of_a_call() {
    let server = start(|_| {});
    run(async {
        let client = &mut connect(server.address).await;
        let (_response, mut send) = client.send_request(request("/test/Never", &[]), false).unwrap();
        send_all(&mut send, framed(b"go"), false).await;
        let before = settled(&server).await;
        // More than two windows of it: what is not heard is not owed either.
        for _ in 0..30 {
            for _ in 0..1_000 {
                send.send_data(framed(b""), false).unwrap();
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        send_all(&mut send, Bytes::from(vec![0; 100_000]), false).await;
        let kept = settled(&server).await - before;
        println!("{kept} bytes are kept");
        assert!(kept < 50_000, "{kept}");
    });
    server.end();
}
