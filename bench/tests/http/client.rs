//! A client of HTTP/1.1 that sends what it is given and reads whole answers.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Longer than any answer takes on a busy machine.
const SOON: Duration = Duration::from_secs(30);

pub struct Client(BufReader<TcpStream>);

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    /// Each with a name in small letters.
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

impl Client {
    pub fn connect(address: SocketAddr) -> Client {
        let socket = TcpStream::connect(address).expect("the server listens");
        socket.set_read_timeout(Some(SOON)).expect("the socket is open");
        Client(BufReader::new(socket))
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.get_mut().write_all(bytes.as_ref()).expect("the connection lives");
    }

    /// One request without a body.
    pub fn request(&mut self, method: &str, target: &str) -> Answer {
        self.send(format!("{method} {target} HTTP/1.1\r\nHost: test\r\n\r\n"));
        self.answer(method == "HEAD")
    }

    pub fn answer(&mut self, is_to_head: bool) -> Answer {
        let first = self.line().expect("an answer begins");
        let status = first.split(' ').nth(1).and_then(|status| status.parse().ok());
        let status = status.unwrap_or_else(|| panic!("a status line: {first:?}"));
        let mut headers = Vec::new();
        loop {
            let line = self.line().expect("the headers end");
            let Some((name, value)) = line.split_once(':') else { break };
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        let mut answer = Answer { status, headers, body: String::new() };
        if is_to_head {
            return answer;
        }
        if answer.header("transfer-encoding") == Some("chunked") {
            answer.body = self.chunks();
        } else if let Some(length) = answer.header("content-length") {
            answer.body = self.bytes(length.parse().expect("a length is a number"));
        }
        answer
    }

    fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        let read = self.0.read_line(&mut line).expect("the connection lives");
        (read > 0).then(|| line.trim_end().to_owned())
    }

    fn bytes(&mut self, count: usize) -> String {
        let mut bytes = vec![0; count];
        self.0.read_exact(&mut bytes).expect("the body is whole");
        String::from_utf8(bytes).expect("pages are text")
    }

    fn chunks(&mut self) -> String {
        let mut body = String::new();
        loop {
            let length = self.line().expect("a chunk follows");
            let length = usize::from_str_radix(&length, 16).expect("a length in hexadecimal");
            let chunk = self.bytes(length + 2);
            body += &chunk[..length];
            if length == 0 {
                return body;
            }
        }
    }

    /// The first bytes of what comes next. False when the connection ends before.
    pub fn peek(&mut self, first: &mut [u8]) -> bool {
        while self.0.buffer().len() < first.len() {
            match self.0.fill_buf() {
                Ok(bytes) if bytes.len() >= first.len() => {}
                // A part of them, or a refusal: neither is what an answer begins with.
                Ok(_) | Err(_) => return false,
            }
        }
        first.copy_from_slice(&self.0.buffer()[..first.len()]);
        true
    }

    /// The server has closed the connection, with nothing more to say.
    pub fn is_at_end(&mut self) -> bool {
        self.line().is_none()
    }
}
