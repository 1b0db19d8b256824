//! The headers that open a call, and those of its response.
//!
//! Owns the rules of "PROTOCOL-HTTP2" of the gRPC specification for requests and what grpc-go answers to one that breaks
//! them; it knows neither a stream nor what the metadata means to a service.

use std::sync::Arc;
use std::time::Duration;

use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, Uri, header};

use super::status::{Code, Status};

/// What the headers of a call say.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Head {
    /// The `token` metadata, or else `authorization` without a leading `Bearer `.
    pub token: Option<Arc<str>>,
    pub requires_leader: bool,
    pub client_api_version_is_garbled: bool,
    pub timeout: Option<Duration>,
}

/// Why a request is no call, with the HTTP status that goes with it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refusal {
    pub http: StatusCode,
    pub status: Status,
}

impl Refusal {
    fn new(http: StatusCode, code: Code, message: impl Into<String>) -> Refusal {
        Refusal { http, status: Status::new(code, message.into()) }
    }
}

impl Head {
    /// # Errors
    /// When the request is not gRPC, or breaks its rules. The order of the checks is grpc-go's.
    pub fn read(parts: &Parts) -> Result<Head, Refusal> {
        check_content_type(&parts.headers)?;
        let timeout = timeout(&parts.headers)?;
        if parts.method != Method::POST {
            let message =
                format!("Received a HEADERS frame with :method {:?} which should be POST", parts.method.as_str());
            return Err(Refusal::new(StatusCode::METHOD_NOT_ALLOWED, Code::Internal, message));
        }
        // Of several, the last one counts.
        if let Some(encoding) = parts.headers.get_all("grpc-encoding").iter().next_back().map(HeaderValue::as_bytes)
            && encoding != b"identity"
        {
            let shown = String::from_utf8_lossy(encoding);
            let message = format!("grpc: Decompressor is not installed for grpc-encoding {shown:?}");
            return Err(Refusal::new(StatusCode::OK, Code::Unimplemented, message));
        }
        Ok(Head {
            token: token(&parts.headers),
            // The first value counts, and only in these letters: etcd compares the string.
            requires_leader: parts.headers.get("hasleader").is_some_and(|value| value == "true"),
            client_api_version_is_garbled: parts
                .headers
                .get("client-api-version")
                .is_some_and(|value| std::str::from_utf8(value.as_bytes()).is_err()),
            timeout,
        })
    }
}

/// What a call asks for: the whole `:path`, since grpc-go knows no query and takes one for a part of the method's name.
pub fn path(uri: &Uri) -> &str {
    uri.path_and_query().map_or("", PathAndQuery::as_str)
}

/// One of several is enough.
fn check_content_type(headers: &HeaderMap) -> Result<(), Refusal> {
    let mut last = &b""[..];
    for value in headers.get_all(header::CONTENT_TYPE) {
        last = value.as_bytes();
        if is_grpc(last) {
            return Ok(());
        }
    }
    let shown = String::from_utf8_lossy(last);
    let message = format!("invalid gRPC request content-type {shown:?}");
    Err(Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, Code::InvalidArgument, message))
}

/// `application/grpc`, alone or followed by `+proto` or by parameters. grpc-go knows it in these letters alone.
fn is_grpc(content_type: &[u8]) -> bool {
    let rest = content_type.strip_prefix(b"application/grpc");
    rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

/// Of several, the last one counts, and none may be malformed.
fn timeout(headers: &HeaderMap) -> Result<Option<Duration>, Refusal> {
    let mut last = None;
    for value in headers.get_all("grpc-timeout") {
        last = Some(read_timeout(value.as_bytes()).map_err(|reason| {
            Refusal::new(StatusCode::BAD_REQUEST, Code::Internal, format!("malformed grpc-timeout: {reason}"))
        })?);
    }
    Ok(last)
}

fn token(headers: &HeaderMap) -> Option<Arc<str>> {
    let text = |name: &str| headers.get(name).and_then(|value| std::str::from_utf8(value.as_bytes()).ok());
    let token = text("token").or_else(|| text("authorization"))?;
    Some(Arc::from(token.strip_prefix("Bearer ").unwrap_or(token)))
}

/// `grpc-timeout`: one to eight digits and a unit.
fn read_timeout(text: &[u8]) -> Result<Duration, String> {
    let shown = String::from_utf8_lossy(text);
    if text.len() < 2 {
        return Err(format!("transport: timeout string is too short: {shown:?}"));
    }
    if text.len() > 9 {
        return Err(format!("transport: timeout string is too long: {shown:?}"));
    }
    let (digits, unit) = text.split_at(text.len() - 1);
    let nanoseconds: u64 = match unit[0] {
        b'H' => 3_600_000_000_000,
        b'M' => 60_000_000_000,
        b'S' => 1_000_000_000,
        b'm' => 1_000_000,
        b'u' => 1_000,
        b'n' => 1,
        _ => return Err(format!("transport: timeout unit is not recognized: {shown:?}")),
    };
    if !digits.iter().all(u8::is_ascii_digit) {
        let digits = String::from_utf8_lossy(digits);
        return Err(format!("strconv.ParseUint: parsing {digits:?}: invalid syntax"));
    }
    let count = digits.iter().fold(0_u64, |count, digit| count * 10 + u64::from(digit - b'0'));
    // Eight digits of hours are more than 292 years; grpc-go stops there too.
    Ok(Duration::from_nanos(count.saturating_mul(nanoseconds).min(i64::MAX as u64)))
}

const CONTENT_TYPE: HeaderValue = HeaderValue::from_static("application/grpc");
const ACCEPT_ENCODING: HeaderName = HeaderName::from_static("grpc-accept-encoding");
const IDENTITY: HeaderValue = HeaderValue::from_static("identity");

/// The headers in front of the first message.
pub fn response() -> Response<()> {
    let mut response = Response::new(());
    let headers = response.headers_mut();
    headers.reserve(2);
    headers.insert(header::CONTENT_TYPE, CONTENT_TYPE);
    headers.insert(ACCEPT_ENCODING, IDENTITY);
    response
}

/// "Trailers-Only": the whole response of a call that ends without a message.
pub fn trailers_only(http: StatusCode, status: &Status) -> Response<()> {
    let mut response = response();
    *response.status_mut() = http;
    status.write(response.headers_mut());
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(fields: &[(&str, &[u8])]) -> Result<Head, Refusal> {
        let mut request = http::Request::builder().method("POST").uri("/a.B/C");
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        Head::read(&request.body(()).unwrap().into_parts().0)
    }

    const GRPC: (&str, &[u8]) = ("content-type", b"application/grpc");

    #[test]
    fn content_types_of_grpc_are_taken_and_others_are_415() {
        for good in ["application/grpc", "application/grpc+proto", "application/grpc;charset=x"] {
            assert!(read(&[("content-type", good.as_bytes())]).is_ok(), "{good}");
        }
        for bad in ["application/grpcx", "application/json", "application/grp", "Application/GRPC", ""] {
            let refusal = read(&[("content-type", bad.as_bytes())]).unwrap_err();
            assert_eq!(refusal.http, StatusCode::UNSUPPORTED_MEDIA_TYPE, "{bad}");
        }
        assert_eq!(read(&[]).unwrap_err().status.code, Code::InvalidArgument);
        let other = ("content-type", &b"text/plain"[..]);
        assert!(read(&[other, GRPC]).is_ok() && read(&[GRPC, other]).is_ok(), "one of several is enough");
    }

    #[test]
    fn a_query_is_a_part_of_the_path() {
        for text in ["/a.B/C", "/a.B/C?x=1", "/a.B/C?"] {
            assert_eq!(path(&text.parse().unwrap()), text);
        }
    }

    #[test]
    fn a_header_that_comes_again_counts_as_it_was_last_and_a_malformed_one_wherever_it_stands() {
        let fields = |name, values: [&'static str; 2]| values.map(|value: &str| (name, value.as_bytes()));
        let timeout = |values| read(&[&[GRPC], &fields("grpc-timeout", values)[..]].concat()).map(|head| head.timeout);
        assert_eq!(timeout(["1n", "5S"]), Ok(Some(Duration::from_secs(5))));
        for values in [["5S", "junk"], ["junk", "5S"]] {
            assert_eq!(timeout(values).unwrap_err().http, StatusCode::BAD_REQUEST, "{values:?}");
        }
        let encoded = |values| read(&[&[GRPC], &fields("grpc-encoding", values)[..]].concat());
        assert!(encoded(["gzip", "identity"]).is_ok());
        assert_eq!(encoded(["identity", "gzip"]).unwrap_err().status.code, Code::Unimplemented);
    }

    #[test]
    fn a_malformed_timeout_is_told_before_a_wrong_method() {
        let get = http::Request::builder().uri("/a.B/C").header("content-type", "application/grpc");
        let refused = |request: http::request::Builder| {
            Head::read(&request.body(()).unwrap().into_parts().0).unwrap_err().http.as_u16()
        };
        assert_eq!(refused(get), 405);
        let get = http::Request::builder().uri("/a.B/C").header("content-type", "application/grpc");
        assert_eq!(refused(get.header("grpc-timeout", "junk")), 400);
    }

    #[test]
    fn timeouts_have_six_units_and_malformed_ones_are_internal() {
        let timeout = |text: &str| read(&[GRPC, ("grpc-timeout", text.as_bytes())]).map(|head| head.timeout.unwrap());
        assert_eq!(timeout("2H"), Ok(Duration::from_secs(7_200)));
        assert_eq!(timeout("3M"), Ok(Duration::from_secs(180)));
        assert_eq!(timeout("99999999S"), Ok(Duration::from_secs(99_999_999)));
        assert_eq!(timeout("5m"), Ok(Duration::from_millis(5)));
        assert_eq!(timeout("6u"), Ok(Duration::from_micros(6)));
        assert_eq!(timeout("7n"), Ok(Duration::from_nanos(7)));
        assert_eq!(timeout("99999999H"), Ok(Duration::from_nanos(i64::MAX as u64)));
        for bad in ["", "1", "S", "1x", "xS", "-1S", "+1S", "999999999S"] {
            let refusal = timeout(bad).unwrap_err();
            assert_eq!((refusal.http, refusal.status.code), (StatusCode::BAD_REQUEST, Code::Internal), "{bad}");
            assert!(refusal.status.message.starts_with("malformed grpc-timeout: "), "{bad}");
        }
    }

    #[test]
    fn an_encoding_that_is_not_installed_is_unimplemented() {
        let refusal = read(&[GRPC, ("grpc-encoding", b"gzip")]).unwrap_err();
        assert_eq!(refusal.http, StatusCode::OK);
        assert_eq!(refusal.status.code, Code::Unimplemented);
        assert_eq!(refusal.status.message, "grpc: Decompressor is not installed for grpc-encoding \"gzip\"");
        assert!(read(&[GRPC, ("grpc-encoding", b"identity")]).is_ok());
    }

    #[test]
    fn the_token_is_read_as_etcd_reads_it() {
        let token =
            |fields: &[(&str, &[u8])]| read(&[&[GRPC], fields].concat()).unwrap().token.as_deref().map(str::to_owned);
        assert_eq!(token(&[]), None);
        assert_eq!(token(&[("authorization", b"Bearer abc")]).as_deref(), Some("abc"));
        assert_eq!(token(&[("authorization", b"x"), ("token", b"y.1")]).as_deref(), Some("y.1"));
    }

    #[test]
    fn only_the_first_hasleader_counts_and_garbled_versions_are_noticed() {
        let head =
            read(&[GRPC, ("hasleader", b"true"), ("hasleader", b"no"), ("client-api-version", b"3.7\xff")]).unwrap();
        assert!(head.requires_leader && head.client_api_version_is_garbled);
        let head = read(&[GRPC, ("hasleader", b"True"), ("client-api-version", b"3.7")]).unwrap();
        assert!(!head.requires_leader && !head.client_api_version_is_garbled);
    }
}
