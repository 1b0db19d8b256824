//! One watch call that is written and read by hand: it can stop reading, which a fleet never does.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::{Bytes, BytesMut};
use h2::SendStream;
use tarsier_proto::etcdserverpb as pb;

use crate::caller::Caller;
use crate::fault::{Fault, PATIENCE, Result, within};
use crate::link::{Answer, Piece, Windows};
use crate::screen::count;
use crate::wire::{self, Deframer, WatchReply};

pub struct WatchCall {
    endpoint: Arc<str>,
    answer: Answer,
    send: SendStream<Bytes>,
    deframer: Deframer,
    unsent: BytesMut,
}

impl WatchCall {
    pub async fn open(caller: &Caller) -> Result<WatchCall> {
        let (send, answer) = caller.open(wire::PATH_WATCH).await?;
        let (endpoint, deframer) = (caller.endpoint().clone(), Deframer::default());
        Ok(WatchCall { endpoint, answer, send, deframer, unsent: BytesMut::new() })
    }

    /// Asks for a watch with the next [`flush`](Self::flush).
    pub fn create(&mut self, key: &[u8], range_end: &[u8], start_revision: u64) {
        wire::watch_create(&mut self.unsent, key, range_end, start_revision);
    }

    /// Ends a watch with the next flush.
    pub fn cancel(&mut self, watch_id: i64) {
        let union = pb::watch_request::RequestUnion::CancelRequest(pb::WatchCancelRequest { watch_id });
        let request = pb::WatchRequest { request_union: Some(union) };
        wire::encode(&mut self.unsent, &request);
    }

    pub fn flush(&mut self) -> Result<()> {
        let http = |cause| Fault::Http { endpoint: self.endpoint.to_string(), cause };
        self.send.send_data(self.unsent.split().freeze(), false).map_err(http)
    }

    /// Waits for bytes and hands over what messages they complete. What is not read gives the server no new credit.
    pub async fn read(&mut self, mut each: impl FnMut(&WatchReply<'_>) -> Result<()>) -> Result<()> {
        let (answer, endpoint) = (&mut self.answer, &self.endpoint);
        match poll_fn(|cx| answer.poll_piece(endpoint, wire::PATH_WATCH, cx)).await? {
            Piece::End => Err(Fault::NoAnswer { path: wire::PATH_WATCH }),
            Piece::Data(data) => self.deframer.feed(&data, |message| each(&WatchReply::decode(message)?)),
        }
    }

    /// The same where an answer is due.
    pub async fn read_answer(&mut self, each: impl FnMut(&WatchReply<'_>) -> Result<()>) -> Result<()> {
        within(PATIENCE, "an answer of a watch stream", self.read(each)).await
    }

    /// Watches these keys and waits for the answer.
    pub async fn watch(&mut self, key: &[u8], range_end: &[u8], start_revision: u64) -> Result<()> {
        self.create(key, range_end, start_revision);
        self.flush()?;
        self.wait_until_created().await
    }

    async fn wait_until_created(&mut self) -> Result<()> {
        let mut is_created = false;
        while !is_created {
            self.read_answer(|reply| {
                is_created |= reply.created;
                not_canceled(reply)
            })
            .await?;
        }
        Ok(())
    }

    /// Reads what has come and was left unread, which the windows bound, and waits for nothing.
    ///
    /// # Errors
    /// When that says that the stream, or a watch on it, has ended.
    fn check_held(&mut self) -> Result<()> {
        let mut cx = Context::from_waker(Waker::noop());
        loop {
            match self.answer.poll_piece(&self.endpoint, wire::PATH_WATCH, &mut cx) {
                Poll::Pending => return Ok(()),
                Poll::Ready(Ok(Piece::Data(data))) => {
                    self.deframer.feed(&data, |message| not_canceled(&WatchReply::decode(message)?))?;
                }
                Poll::Ready(Ok(Piece::End)) => return Err(Fault::NoAnswer { path: wire::PATH_WATCH }),
                Poll::Ready(Err(fault)) => return Err(fault),
            }
        }
    }
}

fn not_canceled(reply: &WatchReply<'_>) -> Result<()> {
    if !reply.canceled {
        return Ok(());
    }
    let reason = String::from_utf8_lossy(reply.cancel_reason).into_owned();
    Err(Fault::Canceled { watch: reply.watch_id.max(0) as u64, reason })
}

/// Every key there is, as a watch or a range names them.
pub const EVERYTHING: (&[u8], &[u8]) = (b"\0", b"\0");

const STREAMS_A_CONNECTION: u32 = 100;

/// Streams that watch everything from a revision on (0: from now on) and never read again once the watch is created, spread
/// over few connections.
pub async fn deaf_streams(
    endpoint: &Arc<str>,
    streams: u32,
    windows: Windows,
    start_revision: u64,
) -> Result<Vec<WatchCall>> {
    // Else the events of the first streams would keep the answers of the others from coming.
    assert!(u64::from(windows.stream_bytes) * u64::from(STREAMS_A_CONNECTION) <= u64::from(windows.connection_bytes));
    let mut deaf = Vec::with_capacity(streams as usize);
    while (deaf.len() as u32) < streams {
        let caller = Caller::connect(endpoint, windows).await?;
        let first = deaf.len();
        for _ in 0..STREAMS_A_CONNECTION.min(streams - first as u32) {
            let mut call = WatchCall::open(&caller).await?;
            call.create(EVERYTHING.0, EVERYTHING.1, start_revision);
            call.flush()?;
            deaf.push(call);
        }
        // One behind the other, ten thousand of them would take minutes beside a load, which goes on meanwhile.
        for call in &mut deaf[first..] {
            call.wait_until_created().await?;
        }
    }
    Ok(deaf)
}

/// Why what was measured beside deaf streams is void: a server that has ended some of them was spared their load. They are read
/// here, so they are of no more use.
pub fn ended_among<'a>(streams: &str, deaf: impl IntoIterator<Item = &'a mut WatchCall>) -> Option<String> {
    let (mut all, mut ended, mut first) = (0, 0, None);
    for call in deaf {
        all += 1;
        if let Err(fault) = call.check_held() {
            ended += 1;
            first.get_or_insert(fault);
        }
    }
    first.map(|first| format!("{} of {} {streams} have ended; the first of them: {first}", count(ended), count(all)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::threads;
    use tokio::net::TcpListener;
    use tokio::task::LocalSet;

    /// Answers the head of every call and holds its stream, but for the second, which it refuses.
    async fn serve(listener: TcpListener) {
        let (socket, _) = listener.accept().await.unwrap();
        let mut connection = h2::server::handshake(socket).await.unwrap();
        let mut held = Vec::new();
        while let Some(call) = connection.accept().await {
            let (request, mut respond) = call.unwrap();
            let (mut answer, is_refused) = (http::Response::new(()), held.len() == 1);
            if is_refused {
                answer.headers_mut().insert("grpc-status", http::HeaderValue::from_static("14"));
            }
            held.push((request, respond.send_response(answer, is_refused).unwrap()));
        }
    }

    #[test]
    fn a_deaf_stream_that_has_ended_makes_the_figure_void() {
        let runtime = threads::event_loop().unwrap();
        LocalSet::new().block_on(&runtime, async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let endpoint = listener.local_addr().unwrap().to_string().into();
            tokio::task::spawn_local(serve(listener));
            let caller = Caller::connect(&endpoint, Windows::SMALL).await.unwrap();
            let mut deaf = Vec::new();
            for _ in 0..3 {
                deaf.push(WatchCall::open(&caller).await.unwrap());
            }
            assert_eq!(ended_among("streams", &mut deaf), None, "nothing has come yet");
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            let reason = ended_among("streams", &mut deaf).unwrap();
            assert!(reason.starts_with("1 of 3 streams have ended; the first of them: "), "{reason}");
            assert!(reason.contains("status 14"), "{reason}");
        });
    }
}
