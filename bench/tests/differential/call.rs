//! A gRPC client that can also be wrong: unary calls and watch streams over plain h2, with every header and byte of the
//! frame open to the caller.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use h2::client::{ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Method, Request};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// No answer of these scripts takes this long, however busy the machine is.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);
/// Flow control is not what these scripts are about.
const WINDOW_BYTES: u32 = 64 << 20;

/// One connection. Its driver runs as a task of its own until it is dropped.
pub struct Connection {
    sender: SendRequest<Bytes>,
    driver: JoinHandle<()>,
}

/// The head of a call; the default is the one every client sends.
pub struct Head {
    pub method: Method,
    pub path: String,
    pub headers: Vec<(String, String)>,
}

impl Head {
    pub fn grpc(path: &str) -> Head {
        let headers = [("content-type", "application/grpc"), ("te", "trailers")];
        let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
        Head { method: Method::POST, path: path.to_owned(), headers }
    }
}

/// What comes back on a stream, in order.
#[derive(Debug)]
pub enum Received {
    /// A response whose status or content type is not gRPC's.
    NotGrpc(String),
    /// The payload of one frame.
    Message(Bytes),
    /// A frame with the compressed flag, which this client never offers to take.
    Compressed,
    /// The end, with the status of the trailers.
    Status(i32, String),
    /// The end, without a status: a reset, a closed connection, a cut frame.
    Broken(String),
}

impl Connection {
    pub async fn open(address: SocketAddr) -> Connection {
        let socket = TcpStream::connect(address).await.expect("the server listens");
        socket.set_nodelay(true).expect("the socket is open");
        let mut builder = h2::client::Builder::new();
        builder.initial_window_size(WINDOW_BYTES).initial_connection_window_size(WINDOW_BYTES);
        let (sender, connection) = builder.handshake(socket).await.expect("the server speaks HTTP/2");
        // An error of the connection is seen by every call on it.
        let driver = tokio::spawn(async move { drop(connection.await) });
        Connection { sender, driver }
    }

    /// One call with one body, and all that came back.
    pub async fn call(&self, head: Head, body: Bytes) -> Vec<Received> {
        let mut stream = match self.start(head).await {
            Ok(stream) => stream,
            Err(error) => return vec![Received::Broken(error)],
        };
        stream.send(body, true);
        let mut all = Vec::new();
        loop {
            match timeout(ANSWER_WITHIN, stream.next()).await {
                Ok(Some(received)) => all.push(received),
                Ok(None) => return all,
                Err(_) => {
                    all.push(Received::Broken(format!("no end within {ANSWER_WITHIN:?}")));
                    return all;
                }
            }
        }
    }

    /// Opens a stream and leaves it open.
    pub async fn start(&self, head: Head) -> Result<Stream, String> {
        let mut sender = self.sender.clone().ready().await.map_err(|error| error.to_string())?;
        let mut request = Request::builder().method(head.method).uri(format!("http://localhost{}", head.path));
        for (name, value) in head.headers {
            request = request.header(name, value);
        }
        let request = request.body(()).map_err(|error| error.to_string())?;
        let (response, body) = sender.send_request(request, false).map_err(|error| error.to_string())?;
        let (to_reader, received) = mpsc::unbounded_channel();
        let reader = tokio::spawn(read(response, to_reader));
        Ok(Stream { body, received, reader })
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// One open call.
pub struct Stream {
    body: SendStream<Bytes>,
    received: mpsc::UnboundedReceiver<Received>,
    reader: JoinHandle<()>,
}

impl Stream {
    /// A stream that has already ended takes nothing more; the reader tells how it ended.
    pub fn send(&mut self, bytes: Bytes, end: bool) {
        let _ = self.body.send_data(bytes, end);
    }

    pub fn reset(&mut self) {
        self.body.send_reset(h2::Reason::CANCEL);
    }

    /// The next thing received, `None` after the end.
    pub async fn next(&mut self) -> Option<Received> {
        self.received.recv().await
    }

    /// The next thing that has already been received.
    pub fn next_at_hand(&mut self) -> Option<Received> {
        self.received.try_recv().ok()
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

/// A gRPC frame: flag, length, payload.
pub fn frame(flag: u8, payload: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(5 + payload.len());
    frame.put_u8(flag);
    frame.put_u32(u32::try_from(payload.len()).expect("no script writes 4 GiB"));
    frame.put_slice(payload);
    frame.freeze()
}

async fn read(response: ResponseFuture, to: mpsc::UnboundedSender<Received>) {
    let last = match read_all(response, &to).await {
        Ok(last) => last,
        Err(error) => Received::Broken(reason(&error)),
    };
    // The script may have ended before the stream did.
    let _ = to.send(last);
}

/// A reset by its name; all other errors of the connection are alike to a client.
fn reason(error: &h2::Error) -> String {
    match error.reason() {
        Some(reason) if error.is_reset() => format!("reset {reason:?}"),
        _ => "connection lost".to_owned(),
    }
}

async fn read_all(response: ResponseFuture, to: &mpsc::UnboundedSender<Received>) -> Result<Received, h2::Error> {
    let (head, mut body) = response.await?.into_parts();
    let content_type = head.headers.get("content-type").map(|value| String::from_utf8_lossy(value.as_bytes()));
    let content_type = content_type.as_deref().unwrap_or("none");
    if head.status != 200 || !content_type.starts_with("application/grpc") {
        let _ = to.send(Received::NotGrpc(format!("http {} content-type {content_type}", head.status.as_u16())));
    }
    if let Some(status) = status(&head.headers) {
        return Ok(status);
    }
    let mut buffer = BytesMut::new();
    while let Some(chunk) = body.data().await {
        let chunk = chunk?;
        body.flow_control().release_capacity(chunk.len())?;
        buffer.extend_from_slice(&chunk);
        while let Some(message) = cut_frame(&mut buffer) {
            let _ = to.send(message);
        }
    }
    if !buffer.is_empty() {
        return Ok(Received::Broken(format!("{} bytes of a frame that does not end", buffer.len())));
    }
    end(&mut body).await
}

async fn end(body: &mut RecvStream) -> Result<Received, h2::Error> {
    let trailers = body.trailers().await?;
    let status = trailers.as_ref().and_then(status);
    Ok(status.unwrap_or_else(|| Received::Broken("no grpc-status".to_owned())))
}

fn cut_frame(buffer: &mut BytesMut) -> Option<Received> {
    let head: [u8; 5] = buffer.get(..5)?.try_into().ok()?;
    let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
    if buffer.len() < 5 + length {
        return None;
    }
    let payload = buffer.split_to(5 + length).freeze().slice(5..);
    Some(if head[0] == 0 { Received::Message(payload) } else { Received::Compressed })
}

fn status(headers: &HeaderMap) -> Option<Received> {
    let code = headers.get("grpc-status")?.to_str().ok()?.parse().ok()?;
    let message = headers.get("grpc-message").map_or(&b""[..], |value| value.as_bytes());
    Some(Received::Status(code, percent_decoded(message)))
}

/// `grpc-message` is percent-encoded.
fn percent_decoded(text: &[u8]) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, tail)) = rest.split_first() {
        let digits = tail.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.filter(|_| byte == b'%').and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(decoded) => {
                bytes.push(decoded);
                rest = &tail[2..];
            }
            None => {
                bytes.push(byte);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
