//! A gRPC client over plain h2 that sends any bytes, reads when it likes, and vanishes when it likes.

use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use h2::client::SendRequest;
use h2::{RecvStream, SendStream};
use http::Request;
use prost::Message;
use tarsier_proto::etcdserverpb as pb;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// Nothing that must come takes longer, however busy the machine is.
pub const SOON: Duration = Duration::from_secs(20);
pub const WIDE: u32 = 64 << 20;

pub const WATCH: &str = "/etcdserverpb.Watch/Watch";
pub const PUT: &str = "/etcdserverpb.KV/Put";
pub const RANGE: &str = "/etcdserverpb.KV/Range";

/// One connection. Dropping it closes the socket at once, whatever is open on it.
pub struct Client {
    sender: SendRequest<Bytes>,
    driver: JoinHandle<()>,
    windows: mpsc::UnboundedSender<u32>,
}

impl Drop for Client {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// A message behind its prefix, as it should be.
pub fn framed(body: &[u8]) -> Bytes {
    let length = u32::try_from(body.len()).expect("no message of these tests has 4 GiB");
    [&[0][..], &length.to_be_bytes(), body].concat().into()
}

pub fn put(key: &str, value: &[u8]) -> Bytes {
    let put = pb::PutRequest { key: key.to_owned().into(), value: value.to_vec().into(), ..Default::default() };
    framed(&put.encode_to_vec())
}

pub fn watch(request: pb::watch_request::RequestUnion) -> Bytes {
    framed(&pb::WatchRequest { request_union: Some(request) }.encode_to_vec())
}

pub fn create(create: pb::WatchCreateRequest) -> Bytes {
    watch(pb::watch_request::RequestUnion::CreateRequest(create))
}

pub fn cancel(watch_id: i64) -> Bytes {
    watch(pb::watch_request::RequestUnion::CancelRequest(pb::WatchCancelRequest { watch_id }))
}

pub fn progress() -> Bytes {
    watch(pb::watch_request::RequestUnion::ProgressRequest(pb::WatchProgressRequest {}))
}

pub fn on_key(key: &str) -> pb::WatchCreateRequest {
    pb::WatchCreateRequest { key: key.to_owned().into(), ..Default::default() }
}

impl Client {
    /// `window_bytes` is what each stream may be sent unread.
    pub async fn connect(address: SocketAddr, window_bytes: u32) -> Client {
        let socket = TcpStream::connect(address).await.expect("the server listens");
        socket.set_nodelay(true).expect("the socket is open");
        let mut builder = h2::client::Builder::new();
        builder.initial_window_size(window_bytes).initial_connection_window_size(WIDE);
        builder.max_send_buffer_size(16 << 20);
        let (sender, connection) = builder.handshake(socket).await.expect("the server speaks HTTP/2");
        let (windows, mut changes) = mpsc::unbounded_channel();
        let mut connection = connection;
        let driver = tokio::spawn(poll_fn(move |context| {
            while let Poll::Ready(Some(bytes)) = changes.poll_recv(context) {
                connection.set_initial_window_size(bytes).expect("one change of the window at a time");
            }
            // An error of the connection is seen by every call on it.
            Pin::new(&mut connection).poll(context).map(drop)
        }));
        Client { sender, driver, windows }
    }

    /// What each stream of this connection may be sent unread from now on, those that are open too.
    pub fn set_window(&self, bytes: u32) {
        self.windows.send(bytes).expect("the driver lives as long as the client");
    }

    /// Begins a call with these bytes. What comes back is read through the stream, if anyone reads it.
    pub async fn start(&self, path: &str, body: Bytes, is_end: bool) -> Result<Stream, h2::Error> {
        let request = Request::post(format!("http://tarsier{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())
            .expect("the parts are valid");
        let mut sender = self.sender.clone().ready().await?;
        let (response, mut requests) = sender.send_request(request, false)?;
        requests.send_data(body, is_end)?;
        Ok(Stream { response: Some(response), requests, answers: None, buffer: BytesMut::new() })
    }

    /// A call with one request: its messages' bytes, prefixes included, and its status.
    pub async fn call(&self, path: &str, body: Bytes) -> Result<(Bytes, i32), h2::Error> {
        let mut stream = self.start(path, body, true).await?;
        timeout(SOON, stream.read_all()).await.unwrap_or_else(|_| panic!("no answer from {path}"))
    }

    /// A put that must be answered, and its revision.
    pub async fn put(&self, key: &str, value: &[u8]) -> i64 {
        let (body, status) = self.call(PUT, put(key, value)).await.expect("the connection lives");
        assert_eq!(status, 0, "a put of {key} is answered");
        let response = pb::PutResponse::decode(&body[5..]).expect("a whole response");
        response.header.expect("every response has a header").revision
    }
}

pub struct Stream {
    response: Option<h2::client::ResponseFuture>,
    pub requests: SendStream<Bytes>,
    answers: Option<RecvStream>,
    buffer: BytesMut,
}

#[allow(dead_code, reason = "each test binary uses its part of this module")]
impl Stream {
    pub fn send(&mut self, body: Bytes) {
        self.requests.send_data(body, false).expect("the stream is open");
    }

    pub fn half_close(&mut self) {
        self.requests.send_data(Bytes::new(), true).expect("the stream is open");
    }

    pub fn reset(&mut self) {
        self.requests.send_reset(h2::Reason::CANCEL);
    }

    async fn answers(&mut self) -> Result<&mut RecvStream, h2::Error> {
        if let Some(response) = self.response.take() {
            self.answers = Some(response.await?.into_body());
        }
        Ok(self.answers.as_mut().expect("the response came before"))
    }

    /// The next chunk; `None` at the end of the data.
    async fn chunk(&mut self) -> Result<Option<Bytes>, h2::Error> {
        let answers = self.answers().await?;
        let Some(data) = answers.data().await.transpose()? else { return Ok(None) };
        answers.flow_control().release_capacity(data.len())?;
        Ok(Some(data))
    }

    /// Everything that comes until the call ends, however long that takes, and its status.
    pub async fn read_all(&mut self) -> Result<(Bytes, i32), h2::Error> {
        if let Some(response) = self.response.take() {
            let response = response.await?;
            let status = status(response.headers());
            self.answers = Some(response.into_body());
            if let Some(status) = status {
                return Ok((Bytes::new(), status));
            }
        }
        let mut all = BytesMut::new();
        while let Some(data) = self.chunk().await? {
            all.extend_from_slice(&data);
        }
        let answers = self.answers().await?;
        let trailers = poll_fn(|context| answers.poll_trailers(context)).await?;
        let status = trailers.as_ref().and_then(status).expect("every call ends with a status");
        Ok((all.freeze(), status))
    }

    /// The next bytes of whatever the call answers.
    pub async fn next_bytes(&mut self) -> Bytes {
        let chunk = timeout(SOON, self.chunk()).await.expect("an answer is due").expect("the connection lives");
        chunk.expect("the call goes on")
    }

    /// The status that a stream ends with, whatever comes before it.
    pub async fn status(&mut self) -> Result<i32, h2::Error> {
        timeout(SOON, self.read_all()).await.expect("the call ends").map(|(_, status)| status)
    }

    /// The next response of a watch stream.
    pub async fn next(&mut self) -> pb::WatchResponse {
        self.try_next().await.expect("a watch stream does not end by itself")
    }

    /// As [`Stream::next`]; `None` when the stream ends instead.
    pub async fn try_next(&mut self) -> Option<pb::WatchResponse> {
        timeout(SOON, self.read_next()).await.expect("a response or the end is due").expect("the connection lives")
    }

    async fn read_next(&mut self) -> Result<Option<pb::WatchResponse>, h2::Error> {
        loop {
            if let Some(prefix) = self.buffer.first_chunk::<5>() {
                let length = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]) as usize;
                if self.buffer.len() >= 5 + length {
                    self.buffer.advance(5);
                    let body = self.buffer.split_to(length);
                    return Ok(Some(pb::WatchResponse::decode(body).expect("a whole response")));
                }
            }
            let Some(chunk) = self.chunk().await? else { return Ok(None) };
            self.buffer.extend_from_slice(&chunk);
        }
    }
}

fn status(headers: &http::HeaderMap) -> Option<i32> {
    headers.get("grpc-status")?.to_str().ok()?.parse().ok()
}
