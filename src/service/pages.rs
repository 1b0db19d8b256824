//! The pages of plain HTTP: which request asks for which, and what each says.
//!
//! Values in, values out, as the other services: [`asked`] reads a request, the shard finds out what the page is about, and
//! [`health`], [`checks`] and their like make the answer. Paths, codes and texts are etcd's, since probes and tools match
//! on them.

use std::borrow::Cow;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, HOST};
use http::request::Parts;
use http::{HeaderName, HeaderValue, Method, Response, StatusCode, Version};

use crate::backend::Command;
use crate::service::maintenance::STORAGE_VERSION;
use crate::store::command::{Range, Read, SortOrder, SortTarget};
use crate::types::{Alarm, AlarmKind, ETCD_API_VERSION, KeyRange};

/// What a request asks for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Asked {
    Version,
    Metrics,
    Variables,
    /// Whether it asks for a serializable read makes no difference: the one member always leads, and every read is of
    /// what is committed.
    Health {
        excluded: Vec<AlarmKind>,
    },
    Checks {
        checks: Vec<Check>,
        is_verbose: bool,
    },
}

/// One question of `/livez` or `/readyz`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Check {
    DataCorruption,
    SerializableRead,
    LinearizableRead,
    NonLearner,
    /// Ours: every shard has turned of late. A thread that hangs takes the connections of its shard with it, while those
    /// of the others are served.
    Shards,
}

impl Check {
    pub const LIVEZ: [Check; 2] = [Check::SerializableRead, Check::Shards];
    pub const READYZ: [Check; 4] =
        [Check::DataCorruption, Check::SerializableRead, Check::LinearizableRead, Check::NonLearner];

    pub fn name(self) -> &'static str {
        match self {
            Check::DataCorruption => "data_corruption",
            Check::SerializableRead => "serializable_read",
            Check::LinearizableRead => "linearizable_read",
            Check::NonLearner => "non_learner",
            Check::Shards => "shards",
        }
    }
}

/// What the process found out about itself.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Findings {
    pub alarms: Vec<Alarm>,
    /// Why the alarms are not known.
    pub alarms_failed: Option<String>,
    /// Why a key could not be read.
    pub read_failed: Option<String>,
    /// A shard that has not turned for so long.
    pub hangs: Option<(usize, Duration)>,
}

impl Findings {
    /// Why a check fails.
    pub fn failure(&self, check: Check) -> Option<Cow<'_, str>> {
        match check {
            Check::DataCorruption if self.alarms.iter().any(|alarm| alarm.kind == AlarmKind::Corrupt) => {
                Some("alarm activated: CORRUPT".into())
            }
            Check::DataCorruption => self.alarms_failed.as_deref().map(Cow::from),
            Check::SerializableRead | Check::LinearizableRead => self.read_failed.as_deref().map(Cow::from),
            // The only member votes.
            Check::NonLearner => None,
            Check::Shards => {
                self.hangs.map(|(shard, time)| format!("shard {shard} has not turned for {} s", time.as_secs()).into())
            }
        }
    }
}

/// Reads a request that came through the listener for clients, or through one `for_pages_alone`.
///
/// # Errors
/// The answer to a request that asks for no page.
#[allow(clippy::result_large_err, reason = "a page is asked for once in some seconds")]
pub fn asked(request: &Parts, for_pages_alone: bool) -> Result<Asked, Response<Bytes>> {
    if let Some(flaw) = flaw_of_host(request) {
        return Err(text(StatusCode::BAD_REQUEST, flaw));
    }
    let path = request.uri.path();
    let query = request.uri.query().unwrap_or("");
    let page = match path {
        "/metrics" => return Ok(Asked::Metrics),
        "/health" => {
            Asked::Health { excluded: values(query, "exclude").filter_map(|name| alarm_kind(&name)).collect() }
        }
        "/version" if !for_pages_alone => Asked::Version,
        "/debug/vars" if !for_pages_alone => Asked::Variables,
        _ => checks_of(path, query).ok_or_else(not_found)?,
    };
    if request.method == Method::GET { Ok(page) } else { Err(method_not_allowed()) }
}

/// As Go's `net/http` looks at it.
fn flaw_of_host(request: &Parts) -> Option<&'static str> {
    let mut hosts = request.headers.get_all(HOST).iter();
    match (hosts.next(), hosts.next()) {
        (None, _) if request.version == Version::HTTP_11 => Some("400 Bad Request: missing required Host header"),
        (None, _) => None,
        (Some(_), Some(_)) => Some("400 Bad Request"),
        (Some(host), None) => {
            let may_stand = |byte: &u8| byte.is_ascii_alphanumeric() || b"!$%&'()*+,-.:;=[]_~".contains(byte);
            let is_host = host.as_bytes().iter().all(may_stand);
            (!is_host).then_some("400 Bad Request: malformed Host header")
        }
    }
}

fn checks_of(path: &str, query: &str) -> Option<Asked> {
    let (all, rest) = match path.strip_prefix("/livez") {
        Some(rest) => (&Check::LIVEZ[..], rest),
        None => (&Check::READYZ[..], path.strip_prefix("/readyz")?),
    };
    let excluded: Vec<_> = values(query, "exclude").collect();
    let checks: Vec<Check> = match rest.strip_prefix('/') {
        // One that is asked for by name is not excluded.
        Some(name) => vec![*all.iter().find(|check| check.name() == name)?],
        None if rest.is_empty() => {
            all.iter().copied().filter(|check| !excluded.iter().any(|name| name == check.name())).collect()
        }
        None => return None,
    };
    Some(Asked::Checks { checks, is_verbose: values(query, "verbose").next().is_some() })
}

/// The read by which a check finds out whether keys can be read. Which key it is makes no difference, nor whether it is there.
pub fn probe() -> Command {
    Command::Read(Read::Range(Range {
        range: KeyRange::One("health".into()),
        revision: 0,
        limit: 1,
        order: SortOrder::None,
        target: SortTarget::Key,
        keys_only: true,
        count_only: false,
        min_mod_revision: 0,
        max_mod_revision: 0,
        min_create_revision: 0,
        max_create_revision: 0,
    }))
}

fn alarm_kind(name: &str) -> Option<AlarmKind> {
    [AlarmKind::NoSpace, AlarmKind::Corrupt].into_iter().find(|kind| alarm_name(*kind) == name)
}

fn alarm_name(kind: AlarmKind) -> &'static str {
    match kind {
        AlarmKind::NoSpace => "NOSPACE",
        AlarmKind::Corrupt => "CORRUPT",
    }
}

/// The values of one key of a query string, in their order.
fn values<'a>(query: &'a str, key: &'a str) -> impl Iterator<Item = String> + 'a {
    let pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    pairs.filter(move |(name, _)| unescaped(name) == key).map(|(_, value)| unescaped(value))
}

/// `%41` is `A`, and `+` a space. What is no escape stays as it is.
fn unescaped(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, behind)) = rest.split_first() {
        let escape = behind.get(..2).filter(|_| first == b'%').and_then(|digits| std::str::from_utf8(digits).ok());
        let escape = escape.filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()));
        match escape.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &behind[2..];
            }
            None => {
                bytes.push(if first == b'+' { b' ' } else { first });
                rest = behind;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
const NO_SNIFFING: (HeaderName, HeaderValue) =
    (HeaderName::from_static("x-content-type-options"), HeaderValue::from_static("nosniff"));

fn answer(status: StatusCode, kind: HeaderValue, body: impl Into<Bytes>) -> Response<Bytes> {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Bytes> {
    let mut response = answer(status, TEXT, body);
    response.headers_mut().insert(NO_SNIFFING.0, NO_SNIFFING.1);
    response
}

fn not_found() -> Response<Bytes> {
    text(StatusCode::NOT_FOUND, "404 page not found\n")
}

fn method_not_allowed() -> Response<Bytes> {
    let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed\n");
    response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET"));
    response
}

/// `/version`. Tools split each of the three at its points and expect numbers.
pub fn version() -> Response<Bytes> {
    let cluster = STORAGE_VERSION;
    let body = format!(
        "{{\"etcdserver\":\"{ETCD_API_VERSION}\",\"etcdcluster\":\"{cluster}\",\"storage\":\"{STORAGE_VERSION}\"}}"
    );
    answer(StatusCode::OK, HeaderValue::from_static("application/json"), body)
}

/// `/debug/vars`: of what Go's servers tell there, what has a meaning here.
pub fn variables(arguments: &[String], descriptors_max: u64) -> Response<Bytes> {
    let arguments = serde_json::Value::from(arguments);
    let body = format!("{{\n\"cmdline\": {arguments},\n\"file_descriptor_limit\": {descriptors_max}\n}}\n");
    answer(StatusCode::OK, HeaderValue::from_static("application/json; charset=utf-8"), body)
}

/// `/metrics`, in the text format of Prometheus.
pub fn metrics(exposition: String) -> Response<Bytes> {
    answer(StatusCode::OK, HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"), exposition)
}

/// Why `/health` is not well. Alarms come first; the one member always leads.
pub fn illness(findings: &Findings, excluded: &[AlarmKind]) -> Option<String> {
    let alarm = findings.alarms.iter().find(|alarm| !excluded.contains(&alarm.kind));
    alarm.map(|alarm| format!("ALARM {}", alarm_name(alarm.kind))).or_else(|| {
        let failed = findings.alarms_failed.as_ref().or(findings.read_failed.as_ref());
        failed.map(|error| format!("RANGE ERROR:{error}"))
    })
}

/// `/health`.
pub fn health(illness: Option<&str>) -> Response<Bytes> {
    match illness {
        None => answer(StatusCode::OK, TEXT, r#"{"health":"true","reason":""}"#),
        Some(reason) => {
            let reason = serde_json::Value::from(reason);
            let body = format!("{{\"health\":\"false\",\"reason\":{reason}}}\n");
            text(StatusCode::SERVICE_UNAVAILABLE, body)
        }
    }
}

/// `/livez` and `/readyz`. What failed is always told, what is well only when it is asked for.
pub fn checks(findings: &Findings, checks: &[Check], is_verbose: bool) -> Response<Bytes> {
    let mut report = String::new();
    let mut is_well = true;
    for check in checks {
        let name = check.name();
        match findings.failure(*check) {
            None => report += &format!("[+]{name} ok\n"),
            Some(error) => {
                is_well = false;
                report += &format!("[-]{name} failed: {error}\n");
            }
        }
    }
    if !is_well {
        return text(StatusCode::SERVICE_UNAVAILABLE, report + "\n");
    }
    if !is_verbose {
        report.clear();
    }
    text(StatusCode::OK, report + "ok\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(method: &str, target: &str, for_pages_alone: bool) -> Result<Asked, u16> {
        let request = http::Request::builder().method(method).uri(target).header("host", "x");
        let parts = request.body(()).unwrap().into_parts().0;
        asked(&parts, for_pages_alone).map_err(|answer| answer.status().as_u16())
    }

    fn get(target: &str) -> Result<Asked, u16> {
        ask("GET", target, false)
    }

    fn shown(answer: &Response<Bytes>) -> (u16, &str) {
        (answer.status().as_u16(), std::str::from_utf8(answer.body()).unwrap())
    }

    fn alarm(kind: AlarmKind) -> Alarm {
        Alarm { member: 7, kind }
    }

    #[test]
    fn paths_are_etcds_and_all_others_are_404() {
        assert_eq!(get("/version"), Ok(Asked::Version));
        assert_eq!(get("/metrics?x=y"), Ok(Asked::Metrics));
        assert_eq!(ask("GET", "/metrics", true), Ok(Asked::Metrics));
        assert_eq!(get("/debug/vars"), Ok(Asked::Variables));
        for path in ["/", "/health/", "/metrics/", "/livez/", "/livez/non_learner", "/readyzz", "/v3/kv/range", "*"] {
            assert_eq!(get(path), Err(404), "{path}");
        }
        for path in ["/version", "/debug/vars"] {
            assert_eq!(ask("GET", path, true), Err(404), "{path} is for the clients' listener");
        }
    }

    #[test]
    fn a_method_but_get_is_405_and_names_what_is_allowed_except_for_metrics() {
        for method in ["POST", "PUT", "HEAD", "OPTIONS", "FOO"] {
            for path in ["/health", "/version", "/livez", "/readyz/non_learner", "/debug/vars"] {
                assert_eq!(ask(method, path, false), Err(405), "{method} {path}");
            }
            assert_eq!(ask(method, "/metrics", false), Ok(Asked::Metrics), "etcd answers any method");
            assert_eq!(ask(method, "/nope", false), Err(404));
        }
        let refusal = method_not_allowed();
        assert_eq!(
            (shown(&refusal), &refusal.headers()["allow"]),
            ((405, "Method Not Allowed\n"), &"GET".parse().unwrap())
        );
    }

    #[test]
    fn a_request_of_http_1_1_names_its_host() {
        for (version, expected) in [(Version::HTTP_11, Err(400)), (Version::HTTP_10, Ok(Asked::Version))] {
            let request = http::Request::builder().version(version).uri("/version").body(()).unwrap();
            let answered = asked(&request.into_parts().0, false).map_err(|answer| answer.status().as_u16());
            assert_eq!(answered, expected);
        }
    }

    #[test]
    fn a_request_names_one_host_and_one_that_can_be_one() {
        for (hosts, status) in [
            (&["a"][..], 200),
            (&["a:2379"], 200),
            (&["[::1]:2379"], 200),
            (&[""], 200),
            (&["a", "b"], 400),
            (&["a", "a"], 400),
            (&["a b"], 400),
            (&["a/b"], 400),
        ] {
            let named = |request: http::request::Builder, host: &&str| request.header("host", *host);
            let request = hosts.iter().fold(http::Request::builder().uri("/version"), named).body(()).unwrap();
            let answered =
                asked(&request.into_parts().0, false).map_or_else(|answer| answer.status().as_u16(), |_| 200);
            assert_eq!(answered, status, "{hosts:?}");
        }
    }

    #[test]
    fn queries_are_read_as_go_reads_them() {
        let health = |excluded: &[AlarmKind]| Ok(Asked::Health { excluded: excluded.to_vec() });
        assert_eq!(get("/health"), health(&[]));
        assert_eq!(get("/health?serializable=true"), health(&[]));
        let both = health(&[AlarmKind::NoSpace, AlarmKind::Corrupt]);
        assert_eq!(get("/health?exclude=NOSPACE&exclude=CORRUPT&exclude=&exclude=OTHER"), both);
        assert_eq!(get("/health?e%78clude=NO%53PACE"), health(&[AlarmKind::NoSpace]));
        for (text, expected) in [("%41+%2", "A %2"), ("%", "%"), ("%+1", "% 1"), ("%e4", "\u{fffd}"), ("", "")] {
            assert_eq!(unescaped(text), expected, "{text}");
        }
    }

    #[test]
    fn checks_are_excluded_named_and_told_at_length() {
        let checks = |checks: &[Check], is_verbose| Ok(Asked::Checks { checks: checks.to_vec(), is_verbose });
        assert_eq!(get("/livez"), checks(&Check::LIVEZ, false));
        assert_eq!(get("/readyz?verbose"), checks(&Check::READYZ, true));
        assert_eq!(get("/readyz?verbose=false"), checks(&Check::READYZ, true), "the word alone counts");
        assert_eq!(get("/livez?exclude=shards&exclude=nope"), checks(&[Check::SerializableRead], false));
        let named = checks(&[Check::LinearizableRead], false);
        assert_eq!(get("/readyz/linearizable_read?exclude=linearizable_read"), named);
    }

    #[test]
    fn health_tells_alarms_first_and_then_reads() {
        let mut findings = Findings::default();
        let told = |findings: &Findings, excluded: &[AlarmKind]| {
            let answer = health(illness(findings, excluded).as_deref());
            let (status, body) = shown(&answer);
            (status, body.to_owned())
        };
        assert_eq!(told(&findings, &[]), (200, r#"{"health":"true","reason":""}"#.to_owned()));
        findings.read_failed = Some("etcdserver: request timed out".to_owned());
        let expected = "{\"health\":\"false\",\"reason\":\"RANGE ERROR:etcdserver: request timed out\"}\n";
        assert_eq!(told(&findings, &[]), (503, expected.to_owned()));
        findings.alarms = vec![alarm(AlarmKind::NoSpace)];
        let expected = "{\"health\":\"false\",\"reason\":\"ALARM NOSPACE\"}\n";
        assert_eq!(told(&findings, &[]), (503, expected.to_owned()));
        findings.read_failed = None;
        assert_eq!(told(&findings, &[AlarmKind::NoSpace]).0, 200);
        findings.alarms = vec![alarm(AlarmKind::NoSpace), alarm(AlarmKind::Corrupt)];
        assert_eq!(illness(&findings, &[AlarmKind::NoSpace]).as_deref(), Some("ALARM CORRUPT"));
    }

    #[test]
    fn a_failed_check_is_told_in_etcds_lines() {
        let mut findings = Findings::default();
        assert_eq!(shown(&checks(&findings, &Check::READYZ, false)), (200, "ok\n"));
        let verbose = "[+]serializable_read ok\n[+]shards ok\nok\n";
        assert_eq!(shown(&checks(&findings, &Check::LIVEZ, true)), (200, verbose));
        findings.hangs = Some((1, Duration::from_millis(7_900)));
        let hanging = "[+]serializable_read ok\n[-]shards failed: shard 1 has not turned for 7 s\n\n";
        assert_eq!(shown(&checks(&findings, &Check::LIVEZ, false)), (503, hanging));
        findings.alarms = vec![alarm(AlarmKind::Corrupt)];
        let corrupt = "[-]data_corruption failed: alarm activated: CORRUPT\n\n";
        assert_eq!(shown(&checks(&findings, &[Check::DataCorruption], true)), (503, corrupt));
    }

    #[test]
    fn the_version_is_what_tools_can_take_apart() {
        let answer = version();
        let value: serde_json::Value = serde_json::from_slice(answer.body()).unwrap();
        for key in ["etcdserver", "etcdcluster", "storage"] {
            let parts: Vec<u32> = value[key].as_str().unwrap().split('.').map(|part| part.parse().unwrap()).collect();
            assert_eq!(parts.len(), 3, "{key}");
        }
    }
}
