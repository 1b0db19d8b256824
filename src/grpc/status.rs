//! Status codes and the trailers that carry them.
//!
//! Owns the words of gRPC's status: the numbers, and how a message is written into a header (percent-encoded, as
//! "Status-Message" of the gRPC over HTTP/2 specification). It knows neither a stream nor the texts of any service.

use std::borrow::Cow;

use http::{HeaderMap, HeaderName, HeaderValue};

/// The codes of gRPC, as numbered by its specification.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Code {
    Ok = 0,
    Canceled = 1,
    Unknown = 2,
    InvalidArgument = 3,
    DeadlineExceeded = 4,
    NotFound = 5,
    AlreadyExists = 6,
    PermissionDenied = 7,
    ResourceExhausted = 8,
    FailedPrecondition = 9,
    Aborted = 10,
    OutOfRange = 11,
    Unimplemented = 12,
    Internal = 13,
    Unavailable = 14,
    DataLoss = 15,
    Unauthenticated = 16,
}

/// How a call ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Status {
    pub code: Code,
    pub message: Cow<'static, str>,
}

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

impl Status {
    pub fn new(code: Code, message: impl Into<Cow<'static, str>>) -> Status {
        Status { code, message: message.into() }
    }

    pub fn ok() -> Status {
        Status::new(Code::Ok, "")
    }

    /// The trailers of a call that ends so.
    pub fn trailers(&self) -> HeaderMap {
        let mut map = HeaderMap::with_capacity(2);
        self.write(&mut map);
        map
    }

    /// Adds the two fields to headers: a call that fails before its first message has its trailers there.
    pub fn write(&self, map: &mut HeaderMap) {
        map.insert(GRPC_STATUS, HeaderValue::from(self.code as u16));
        if !self.message.is_empty() {
            let message = HeaderValue::from_bytes(&percent_encode(&self.message));
            map.insert(GRPC_MESSAGE, message.expect("percent-encoded text is visible ASCII"));
        }
    }
}

/// "Percent-Encoded" of the specification: what is not printable ASCII, and `%` itself, becomes `%XX`.
fn percent_encode(text: &str) -> Cow<'_, [u8]> {
    let plain = |byte: u8| (b' '..=b'~').contains(&byte) && byte != b'%';
    if text.bytes().all(plain) {
        return Cow::Borrowed(text.as_bytes());
    }
    let mut encoded = Vec::with_capacity(text.len() + 16);
    for byte in text.bytes() {
        if plain(byte) {
            encoded.push(byte);
        } else {
            const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
            encoded.extend([b'%', DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
        }
    }
    Cow::Owned(encoded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_becomes_two_fields_and_an_empty_message_none() {
        let trailers = Status::new(Code::NotFound, "etcdserver: key not found").trailers();
        assert_eq!(trailers["grpc-status"], "5");
        assert_eq!(trailers["grpc-message"], "etcdserver: key not found");
        assert!(!Status::ok().trailers().contains_key("grpc-message"));
    }

    #[test]
    fn what_is_not_printable_ascii_is_percent_encoded() {
        let trailers = Status::new(Code::Internal, "100% \u{e4}\n").trailers();
        assert_eq!(trailers["grpc-message"], "100%25 %C3%A4%0A");
    }
}
