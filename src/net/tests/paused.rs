//! Streams that nobody hears for a while, and what they may do to the others of their connection.

use super::*;

/// As much as the window of a stream lets a client send, as messages of one size.
fn windowful(message_bytes: usize) -> Bytes {
    let message = framed(&vec![7; message_bytes]);
    message.repeat(65_535 / message.len()).into()
}

/// Begins a call that is not heard behind its first message, and sends all of this.
async fn hold(client: &mut SendRequest<Bytes>, body: Bytes) -> (h2::client::ResponseFuture, SendStream<Bytes>) {
    let (response, mut send) = client.send_request(request("/test/Hold", &[]), false).unwrap();
    send_all(&mut send, body, false).await;
    (response, send)
}

#[test]
fn streams_that_are_not_heard_leave_their_connection_to_the_others() {
    let server = start(|_| {});
    run(async {
        // Room for the answers of all held streams, which are read one after the other.
        let mut wide = h2::client::Builder::new();
        wide.initial_connection_window_size(16 << 20);
        let client = &mut connect_with(server.address, &wide).await;
        let mut held = Vec::new();
        for message_bytes in [10, 1_000, 60_000] {
            let body = windowful(message_bytes);
            let (response, send) = hold(client, body.clone()).await;
            held.push((response, send, body));
            let other = framed(&vec![9; 300_000]);
            let answer = call(client, request("/test/Unary", &[]), other.clone()).await;
            assert!(answer.body == other, "beside {} held streams", held.len());
        }
        let answer = call(client, request("/test/Resume", &[]), framed(b"")).await;
        assert_eq!(answer.status().0, "0");
        for (response, mut send, body) in held {
            // The windows are as open as before.
            send_all(&mut send, body.clone(), true).await;
            let answer = read_all(response.await.unwrap()).await.unwrap();
            assert!(answer.body == [&body[..], &body[..]].concat(), "every message, in order");
            assert_eq!(answer.status().0, "0");
        }
    });
    server.end();
}

#[test]
fn a_held_stream_that_leaves_gives_its_window_back() {
    let server = start(|_| {});
    run(async {
        let client = &mut connect(server.address).await;
        for _ in 0..20 {
            let (_response, mut send) = hold(client, windowful(1_000)).await;
            send.send_reset(h2::Reason::CANCEL);
            let (_response, mut send) = hold(client, windowful(1_000)).await;
            send.send_data(Bytes::new(), true).unwrap();
            let answer = call(client, request("/test/Resume", &[]), framed(b"")).await;
            assert_eq!(answer.status().0, "0");
        }
        let other = framed(&vec![9; 300_000]);
        let answer = call(client, request("/test/Unary", &[]), other.clone()).await;
        assert!(answer.body == other);
    });
    assert_eq!(server.end().partial, 0);
}

#[test]
fn what_streams_hold_that_nobody_hears_is_bounded_over_all_of_them() {
    let server = start(|config| config.partial_bytes_max = 200_000);
    run(async {
        let client = &mut connect(server.address).await;
        let mut held = Vec::new();
        for _ in 0..3 {
            held.push(hold(client, windowful(1_000)).await);
        }
        let (response, _send) = hold(client, windowful(1_000)).await;
        let answer = read_all(response.await.unwrap()).await.unwrap();
        assert_eq!(answer.status(), ("8".into(), "too many requests are arriving at once".into()));
        let answer = call(client, request("/test/Resume", &[]), framed(b"")).await;
        assert_eq!(answer.status().0, "0");
    });
    server.end();
}
