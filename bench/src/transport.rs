//! What lies between h2 and the socket: it gives the memory of h2's buffers back once a connection has been silent for a while.
//! What the client takes is not there for the server beside it.
//!
//! h2 owns a [`Transport`]; whoever drives the connection keeps the [`Silence`], the other handle on the same state. The rules
//! by which a buffer is known to be dead are the server's, in [`idle`](crate::idle). It is asked to give back by
//! [`Silence::drive`] alone, right behind the poll of h2's connection that has told it of the buffers: none of h2's code runs in
//! between.
//!
//! The page of the read buffer that is in use stays. The server has h2 take a new buffer in its place; the allocator of this
//! client would keep the old one's page, and nothing would be won.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep};

use crate::idle::Buffers;

/// A connection without traffic for so long is silent. Shorter would give back what the next event takes again.
const SILENCE: Duration = Duration::from_secs(2);
/// What h2 writes before its write buffer exists (RFC 9113, section 3.4).
const PREFACE_BYTES: usize = 24;

/// h2's half.
pub struct Transport {
    socket: TcpStream,
    state: Rc<RefCell<State>>,
}

#[derive(Default)]
struct State {
    buffers: Buffers,
    preface_written: usize,
    /// Bytes that have come and gone.
    traffic: u64,
}

/// The half of whoever drives the connection.
pub struct Silence {
    state: Rc<RefCell<State>>,
    pub after: Duration,
    /// The next look at whether anything has come or gone; none while the buffers are given back.
    look: Option<Pin<Box<Sleep>>>,
    /// At the last look.
    traffic: u64,
    /// The last look found nothing.
    is_due: bool,
    #[cfg(test)]
    pub trial: Trial,
}

/// What tests do with it.
#[cfg(test)]
#[derive(Default)]
pub struct Trial {
    /// Overwrites the buffers whenever they could be given back.
    pub poisons: bool,
    pub given_back: u64,
}

pub fn open(socket: TcpStream) -> (Transport, Silence) {
    let state = Rc::<RefCell<State>>::default();
    let silence = Silence {
        state: state.clone(),
        after: SILENCE,
        look: None,
        traffic: 0,
        is_due: false,
        #[cfg(test)]
        trial: Trial::default(),
    };
    (Transport { socket, state }, silence)
}

impl Silence {
    /// Lets h2 run by way of `poll`, and gives its buffers back when that is due.
    pub fn drive<T>(&mut self, poll: impl FnOnce() -> Poll<T>) -> Poll<T> {
        self.state.borrow_mut().buffers.forget();
        let polled = poll();
        // When it has ended, its buffers are gone with it.
        if polled.is_pending() {
            self.rest();
        }
        polled
    }

    fn rest(&mut self) {
        let state = &mut *self.state.borrow_mut();
        #[cfg(test)]
        if self.trial.poisons {
            state.buffers.poison();
        }
        if std::mem::take(&mut self.is_due) && self.traffic == state.traffic {
            let _has_given_back = state.buffers.give_back();
            #[cfg(test)]
            (self.trial.given_back += u64::from(_has_given_back));
        }
        if self.traffic != state.traffic && self.look.is_none() {
            self.traffic = state.traffic;
            self.look = Some(Box::pin(sleep(self.after)));
        }
    }

    /// Whether the connection has fallen silent: it is to be driven once more then, and the buffers go.
    pub fn has_begun(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(look) = &mut self.look else { return false };
        let traffic = self.state.borrow().traffic;
        // Twice at most, unless the silence is shorter than a turn: a look that has come is put off until the next.
        while look.as_mut().poll(cx).is_ready() {
            if self.traffic == traffic {
                self.look = None;
                self.is_due = true;
                return true;
            }
            self.traffic = traffic;
            look.as_mut().reset(Instant::now() + self.after);
        }
        false
    }
}

impl Drop for Transport {
    /// h2 is gone, and its buffers with it.
    fn drop(&mut self) {
        self.state.borrow_mut().buffers.forget();
    }
}

impl AsyncRead for Transport {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Transport { socket, state } = self.get_mut();
        let state = &mut *state.borrow_mut();
        let before = into.filled().len();
        if let Poll::Ready(outcome) = Pin::new(socket).poll_read(cx, into) {
            state.traffic += (into.filled().len() - before) as u64;
            state.buffers.read_goes_on();
            return Poll::Ready(outcome);
        }
        state.buffers.read_waits(into);
        Poll::Pending
    }
}

impl AsyncWrite for Transport {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let Transport { socket, state } = self.get_mut();
        let state = &mut *state.borrow_mut();
        state.buffers.write_begins();
        let taken = ready!(Pin::new(socket).poll_write_vectored(cx, slices))?;
        state.traffic += taken as u64;
        if state.preface_written < PREFACE_BYTES {
            state.preface_written += taken;
            assert!(state.preface_written <= PREFACE_BYTES, "h2 writes its preface alone");
        } else {
            state.buffers.wrote(slices, taken);
        }
        Poll::Ready(Ok(taken))
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Transport { socket, state } = self.get_mut();
        state.borrow_mut().buffers.flushed();
        Pin::new(socket).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    use bytes::{Bytes, BytesMut};
    use h2::SendStream;
    use tokio::net::TcpListener;
    use tokio::task::LocalSet;

    use crate::fault::{Fault, Result};
    use crate::link::{self, Answer, Calls, Link, Piece, Turn, Windows};
    use crate::random::Random;

    const PATH: &str = "/test/Echo";

    /// Sends back what comes on each stream, as it comes.
    async fn echo(socket: TcpStream) {
        let mut connection = h2::server::handshake(socket).await.unwrap();
        while let Some(Ok((request, mut respond))) = connection.accept().await {
            tokio::task::spawn_local(async move {
                let mut body = request.into_body();
                let mut send = respond.send_response(http::Response::new(()), false).unwrap();
                while let Some(data) = body.data().await {
                    let data = data.unwrap();
                    body.flow_control().release_capacity(data.len()).unwrap();
                    send.send_data(data, false).unwrap();
                }
                let mut trailers = http::HeaderMap::new();
                trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
                send.send_trailers(trailers).unwrap();
            });
        }
    }

    /// Exchanges of all sizes on a few streams, with pauses of all lengths.
    struct Exchange {
        endpoint: Arc<str>,
        random: Random,
        calls: Vec<Option<Call>>,
        left: u32,
        /// Whoever is woken for it begins the next call.
        pause: Option<Pin<Box<Sleep>>>,
    }

    struct Call {
        answer: Answer,
        _send: SendStream<Bytes>,
        sent: Bytes,
        got: BytesMut,
    }

    impl Calls for Exchange {
        fn poll_slot(&mut self, turn: &mut Turn<'_>, slot: u32, cx: &mut Context<'_>) -> Result<()> {
            let slot = slot as usize;
            loop {
                if let Some(call) = &mut self.calls[slot] {
                    match call.answer.poll_piece(&self.endpoint, PATH, cx) {
                        Poll::Pending => return Ok(()),
                        Poll::Ready(Ok(Piece::Data(data))) => call.got.extend_from_slice(&data),
                        Poll::Ready(Ok(Piece::End)) => {
                            assert_eq!(call.got, call.sent);
                            self.calls[slot] = None;
                            self.left -= 1;
                            let pause = Duration::from_millis(self.random.below(12));
                            self.pause = (self.random.below(4) == 0).then(|| Box::pin(sleep(pause)));
                        }
                        Poll::Ready(Err(fault)) => return Err(fault),
                    }
                    continue;
                }
                if let Some(pause) = &mut self.pause
                    && pause.as_mut().poll(cx).is_pending()
                {
                    return Ok(());
                }
                self.pause = None;
                let http = |cause| Fault::Http { endpoint: self.endpoint.to_string(), cause };
                let head = link::call_head(&self.endpoint, PATH)?;
                let Some((response, mut send)) = turn.open(slot as u32, &head, false, cx).map_err(http)? else {
                    return Ok(());
                };
                let bytes = [0, 1, 30, 200, 300, 3_000, 9_000, 40_000][self.random.below(8) as usize];
                let sent: Bytes = vec![self.random.below(256) as u8; bytes].into();
                send.send_data(sent.clone(), true).map_err(http)?;
                let (answer, got) = (Answer::Head(response), BytesMut::new());
                self.calls[slot] = Some(Call { answer, _send: send, sent, got });
            }
        }

        fn is_done(&self) -> bool {
            self.left == 0
        }
    }

    fn exchange(seed: u64, calls: u32, silence: Duration) -> u64 {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        LocalSet::new().block_on(&runtime, async move {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let endpoint: Arc<str> = listener.local_addr().unwrap().to_string().into();
            tokio::task::spawn_local(async move {
                let socket = listener.accept().await.unwrap().0;
                // Otherwise each end would wait for the other's acknowledgement.
                socket.set_nodelay(true).unwrap();
                echo(socket).await;
            });
            let mut link = Link::open(&endpoint, Windows::SMALL, 1).await.unwrap();
            (link.silence.after, link.silence.trial.poisons) = (silence, true);
            let (random, left) = (Random::new(seed), calls);
            let mut exchange = Exchange { endpoint, random, calls: vec![None], left, pause: None };
            link.drive(&mut exchange).await.unwrap();
            link.silence.trial.given_back
        })
    }

    #[test]
    fn a_long_exchange_with_silences_survives_the_loss_of_all_buffers() {
        for seed in 0..8 {
            let given_back = exchange(seed, 200, Duration::from_millis(1));
            assert!(given_back > 10, "seed {seed}: the buffers were given back {given_back} times");
        }
    }

    #[test]
    fn a_connection_that_is_in_use_keeps_its_buffers() {
        assert_eq!(exchange(1, 200, Duration::from_secs(60)), 0);
    }
}
