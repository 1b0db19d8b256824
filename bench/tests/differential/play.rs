//! Plays a script to a server and writes down what comes back.
//!
//! A script is a list of steps; a line that begins with a space continues the one before, `#` and empty lines are kept:
//!
//! ```text
//! Put key: "a" value: "1"           a method of any service but Watch, and its request
//! times 100 Put key: "k$i"          the same a hundred times; the last answer counts
//! raw path: "/x.Y/Z" body: "\x0a"   a call in which everything can be said wrong, see `raw_call`
//! open w                            a watch stream
//! send w create_request { ... }     a message on it; `times` may stand before it
//! send-raw w flag: 1 body: "..."    a frame on it that need not be a message
//! half-close w                      ends the sending side, and only that
//! start w Lock name: "n"            calls a method and does not wait for its answer
//! reset w                           cancels the stream or the call
//! read w                            what has come on it: a line for each field, a blank `=` between messages
//! read-merged w                     the same, where etcd is free to cut messages as it likes: see `Form`
//! pause 300                         waits so many milliseconds, where etcd needs time and does not tell when it is done
//! stop                              asks the server to end and starts it again on its data
//! kill                              kills the server and starts it again on its data
//! ```
//!
//! `$member`, `$peer` and `$client` stand for the id and the URLs of the server that is asked, in requests and in answers.
//!
//! Nothing tells a reader that a server has nothing more to say. Recording reads until the stream was silent for a long
//! while; comparing reads until the recorded answer is complete, then a short while longer, and what comes later still
//! stands in the way of the next `read`; the end of the script reads every open stream once more.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor, Value};
use protox::prost_reflect;
use tokio::time::{Instant, timeout};

use crate::call::{self, Connection, Head, Received, Stream};
use crate::server::Server;
use crate::text::{self, Field, Node};

/// A request and what was answered to it.
#[derive(Clone, Debug)]
pub struct Step {
    /// Comments and empty lines above the request.
    above: Vec<String>,
    /// The request, lines joined.
    pub request: String,
    /// The request as written.
    written: Vec<String>,
    /// The answer's lines, without their `= `.
    pub answer: Vec<String>,
    /// Where the request stands in its file.
    pub line: usize,
}

impl Step {
    /// Whether something is asked of the server, as opposed to a `read` of what has been asked before.
    pub fn is_request(&self) -> bool {
        let word = self.request.split(' ').next().unwrap_or_default();
        !["", "open", "read", "read-merged", "pause", "kill", "stop"].contains(&word)
    }
}

/// Cuts a file into steps. The last one may have no request: what stands below the last answer.
pub fn steps(file: &str) -> Vec<Step> {
    let empty = |line| Step { above: vec![], request: String::new(), written: vec![], answer: vec![], line };
    let mut steps = vec![empty(1)];
    for (number, line) in file.lines().enumerate() {
        let step = steps.last_mut().expect("it begins with one step");
        if let Some(answer) = line.strip_prefix('=') {
            step.answer.push(answer.strip_prefix(' ').unwrap_or(answer).to_owned());
        } else if line.starts_with(' ') {
            step.written.push(line.to_owned());
        } else {
            let has_request = !step.written.is_empty();
            if has_request {
                steps.push(empty(number + 1));
            }
            let step = steps.last_mut().expect("it begins with one step");
            step.line = number + 1;
            let kept = line.is_empty() || line.starts_with('#');
            if kept { &mut step.above } else { &mut step.written }.push(line.to_owned());
        }
    }
    for step in &mut steps {
        step.request = step.written.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" ");
    }
    steps
}

/// The opposite of [`steps`].
pub fn file_text(steps: &[Step]) -> String {
    let mut text = String::new();
    for step in steps {
        for line in step.above.iter().chain(&step.written) {
            text.push_str(&format!("{line}\n"));
        }
        for line in &step.answer {
            text.push_str(format!("= {line}").trim_end());
            text.push('\n');
        }
    }
    text
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    Record,
    Compare,
}

impl Pace {
    /// How long a stream must be silent before it is taken to have no more to say. A real etcd looks for watches that
    /// are behind every 100 ms.
    fn silence(self) -> Duration {
        match self {
            Pace::Record => Duration::from_millis(700),
            Pace::Compare => Duration::from_millis(60),
        }
    }
}

/// A recorded answer is not waited for any longer.
const COMPLETE_WITHIN: Duration = Duration::from_secs(5);

/// One server, one connection, the streams of one script.
pub struct Player {
    pool: DescriptorPool,
    server: Server,
    connection: Option<Connection>,
    streams: BTreeMap<String, Open>,
    /// What the server calls itself, and what the script calls that. Learned when a script speaks of it.
    own_names: Vec<(String, &'static str)>,
    pace: Pace,
}

/// A watch stream, or a call whose answer takes its time.
struct Open {
    stream: Stream,
    /// Of what comes on it.
    messages: MessageDescriptor,
    /// What came later than the `read` it belonged to.
    received: Vec<Received>,
}

impl Player {
    pub fn new(pool: DescriptorPool, binary: &Path, pace: Pace) -> Player {
        let (server, streams, own_names) = (Server::start(binary), BTreeMap::new(), Vec::new());
        Player { pool, server, connection: None, streams, own_names, pace }
    }

    /// Plays all steps; the answers are in their order.
    pub async fn play(mut self, steps: &[Step]) -> Vec<Vec<String>> {
        self.connection = Some(Connection::open(self.server.address()).await);
        if steps.iter().any(|step| step.request.contains("$member")) {
            self.own_names = self.learn_own_names().await;
        }
        let mut answers = Vec::new();
        for step in steps {
            let answer = self.step(step).await;
            answers.push(answer.unwrap_or_else(|error| panic!("line {}: {}: {error}", step.line, step.request)));
        }
        if let Some(last) = answers.last_mut() {
            last.extend(self.rest_of_streams().await);
        }
        answers
    }

    async fn step(&mut self, step: &Step) -> Result<Vec<String>, String> {
        let Some(repeated) = step.request.strip_prefix("times ") else {
            return self.one(&step.request, &step.answer).await;
        };
        let (count, request) = repeated.split_once(' ').ok_or("nothing to do")?;
        let count: usize = count.parse().map_err(|_| "not a count")?;
        let mut answer = Vec::new();
        for turn in 0..count {
            answer = self.one(&request.replace("$i", &format!("{turn:04}")), &step.answer).await?;
        }
        Ok(answer)
    }

    async fn one(&mut self, request: &str, expected: &[String]) -> Result<Vec<String>, String> {
        let (word, rest) = request.split_once(' ').unwrap_or((request, ""));
        let (name, message) = rest.split_once(' ').unwrap_or((rest, ""));
        match word {
            "" => return Ok(Vec::new()),
            "raw" => return self.raw_call(rest).await,
            "open" => {
                let head = Head::grpc("/etcdserverpb.Watch/Watch");
                let stream = self.connection().start(head).await?;
                let messages = self.descriptor("WatchResponse")?;
                self.streams.insert(name.to_owned(), Open { stream, messages, received: Vec::new() });
            }
            "start" => {
                let (method, message) = message.split_once(' ').unwrap_or((message, ""));
                let (head, request, messages) = self.request(method, message)?;
                let mut stream = self.connection().start(head).await?;
                stream.send(request, true);
                self.streams.insert(name.to_owned(), Open { stream, messages, received: Vec::new() });
            }
            "send" => {
                let request = text::message(&self.descriptor("WatchRequest")?, &text::parse(message)?)?;
                self.stream(name)?.stream.send(call::frame(0, &request.encode_to_vec()), false);
            }
            "send-raw" => {
                let frame = Raw::parse(message)?.frame();
                self.stream(name)?.stream.send(frame, false);
            }
            "half-close" => self.stream(name)?.stream.send(Bytes::new(), true),
            "reset" => self.stream(name)?.stream.reset(),
            "read" => return self.read(name, Form::AsSent, expected).await,
            "read-merged" => return self.read(name, Form::Merged, expected).await,
            "pause" => {
                let milliseconds = rest.parse().map_err(|_| "not a number of milliseconds")?;
                tokio::time::sleep(Duration::from_millis(milliseconds)).await;
            }
            "kill" | "stop" => {
                self.streams.clear();
                if word == "kill" {
                    self.server.restart_after_kill();
                } else {
                    self.server.restart_after_stop();
                }
                self.connection = Some(Connection::open(self.server.address()).await);
            }
            method => return self.call(method, rest).await,
        }
        Ok(Vec::new())
    }

    async fn learn_own_names(&self) -> Vec<(String, &'static str)> {
        let head = Head::grpc("/etcdserverpb.Cluster/MemberList");
        let received = self.connection().call(head, call::frame(0, &[])).await;
        let descriptor = self.descriptor("MemberListResponse").expect("the file of the service is read");
        let list = decoded(&received[0], &descriptor).expect("every server lists its members");
        let members = list.get_field_by_name("members").expect("the message has this field").into_owned();
        let [Value::Message(member)] = members.as_list().expect("it is repeated") else { panic!("one member") };
        let text = |name: &str| {
            let field = member.get_field_by_name(name).expect("the message has this field").into_owned();
            match field {
                Value::List(texts) => texts[0].as_str().expect("a URL is a text").to_owned(),
                other => other.as_u64().expect("an id is a number").to_string(),
            }
        };
        vec![(text("ID"), "$member"), (text("peerURLs"), "$peer"), (text("clientURLs"), "$client")]
    }

    fn with_own_names(&self, request: &str) -> String {
        self.own_names.iter().fold(request.to_owned(), |text, (own, name)| text.replace(name, own))
    }

    fn without_own_names(&self, lines: Vec<String>) -> Vec<String> {
        let plain = |line: String| self.own_names.iter().fold(line, |text, (own, name)| text.replace(own, name));
        lines.into_iter().map(plain).collect()
    }

    fn connection(&self) -> &Connection {
        self.connection.as_ref().expect("it is opened before the first step")
    }

    fn stream(&mut self, name: &str) -> Result<&mut Open, String> {
        self.streams.get_mut(name).ok_or_else(|| format!("stream {name:?} is not open"))
    }

    fn descriptor(&self, name: &str) -> Result<MessageDescriptor, String> {
        let descriptor = self.pool.get_message_by_name(&format!("etcdserverpb.{name}"));
        descriptor.ok_or_else(|| format!("no message {name}"))
    }

    async fn call(&mut self, method: &str, request: &str) -> Result<Vec<String>, String> {
        let (head, request, answer) = self.request(method, request)?;
        let received = self.connection().call(head, request).await;
        Ok(self.without_own_names(text::fold(answer_lines(&received, &answer))))
    }

    /// The head and the frame of a request, and what is answered to it.
    fn request(&self, method: &str, request: &str) -> Result<(Head, Bytes, MessageDescriptor), String> {
        let services = self.pool.services().filter(|service| service.name() != "Watch");
        let method =
            services.flat_map(|service| service.methods().collect::<Vec<_>>()).find(|known| known.name() == method);
        let method = method.ok_or("neither a step nor a method")?;
        let request = text::message(&method.input(), &text::parse(&self.with_own_names(request))?)?;
        let head = Head::grpc(&format!("/{}/{}", method.parent_service().full_name(), method.name()));
        Ok((head, call::frame(0, &request.encode_to_vec()), method.output()))
    }

    /// Fields: `path`, `method`, `header { name: value }` (an empty value removes one of the usual headers), and those
    /// of [`Raw`].
    async fn raw_call(&mut self, request: &str) -> Result<Vec<String>, String> {
        let raw = Raw::parse(request)?;
        let mut head = Head::grpc(&raw.text("path").unwrap_or_default());
        if let Some(method) = raw.text("method") {
            head.method = method.parse().map_err(|_| "not an HTTP method")?;
        }
        for field in raw.fields.iter().filter(|field| field.name == "header") {
            let Node::Block(headers) = &field.node else { return Err("header is a block".to_owned()) };
            // In place of the usual ones; one that stands here twice is sent twice.
            head.headers.retain(|(known, _)| headers.iter().all(|field| field.name != *known));
            for Field { name, node } in headers {
                let Node::Text(value) = node else { return Err("a header is a text".to_owned()) };
                let value = String::from_utf8_lossy(value).into_owned();
                if !value.is_empty() {
                    head.headers.push((name.clone(), value));
                }
            }
        }
        let answer = raw.text("answer").unwrap_or_else(|| "RangeResponse".to_owned());
        let received = self.connection().call(head, raw.frame()).await;
        Ok(text::fold(answer_lines(&received, &self.descriptor(&answer)?)))
    }

    async fn read(&mut self, name: &str, form: Form, expected: &[String]) -> Result<Vec<String>, String> {
        let pace = self.pace;
        let stream = self.stream(name)?;
        let descriptor = stream.messages.clone();
        let deadline = Instant::now() + COMPLETE_WITHIN;
        loop {
            stream.received.extend(std::iter::from_fn(|| stream.stream.next_at_hand()));
            let lines = form.lines(&stream.received, &descriptor);
            let expected = expected.split(|line| line.starts_with(UNREAD)).next().unwrap_or_default();
            let complete = pace == Pace::Record || lines == expected || expected.is_empty();
            let wait = if complete { pace.silence() } else { deadline.saturating_duration_since(Instant::now()) };
            match timeout(wait, stream.stream.next()).await {
                Ok(Some(received)) => stream.received.push(received),
                // The end has been read, or it was silent long enough.
                Ok(None) | Err(_) => {
                    stream.received.clear();
                    return Ok(lines);
                }
            }
        }
    }

    /// What nobody has read is an answer too.
    async fn rest_of_streams(&mut self) -> Vec<String> {
        let mut lines = Vec::new();
        let names: Vec<String> = self.streams.keys().cloned().collect();
        for name in names {
            let unread = self.read(&name, Form::AsSent, &[]).await.expect("the stream is open");
            if unread != [NOTHING] {
                lines.extend(unread.into_iter().map(|line| format!("{UNREAD}{name}: {line}").trim_end().to_owned()));
            }
        }
        lines
    }
}

/// A frame that need not be a message. Fields: `body` (its bytes), `flag` (the compression flag), `length` (the one that
/// is claimed), `bare: true` (no frame head at all), `count` (how many times it is sent).
struct Raw {
    fields: Vec<Field>,
}

impl Raw {
    fn parse(text: &str) -> Result<Raw, String> {
        Ok(Raw { fields: text::parse(text)? })
    }

    fn node(&self, name: &str) -> Option<&Node> {
        self.fields.iter().find(|field| field.name == name).map(|field| &field.node)
    }

    fn text(&self, name: &str) -> Option<String> {
        match self.node(name)? {
            Node::Text(text) => Some(String::from_utf8_lossy(text).into_owned()),
            Node::Word(word) => Some(word.clone()),
            Node::Block(_) => None,
        }
    }

    fn number(&self, name: &str) -> Option<u32> {
        self.text(name)?.parse().ok()
    }

    fn frame(&self) -> Bytes {
        let body = match self.node("body") {
            Some(Node::Text(body)) => body.clone(),
            _ => Vec::new(),
        };
        if self.node("bare").is_some() {
            return body.into();
        }
        let flag = self.number("flag").and_then(|flag| u8::try_from(flag).ok()).unwrap_or(0);
        let mut frame = call::frame(flag, &body).to_vec();
        if let Some(length) = self.number("length") {
            frame[1..5].copy_from_slice(&length.to_be_bytes());
        }
        frame.repeat(self.number("count").unwrap_or(1) as usize).into()
    }
}

/// The lines of a unary answer. An OK status behind a message goes without saying.
fn answer_lines(received: &[Received], descriptor: &MessageDescriptor) -> Vec<String> {
    let mut lines = Vec::new();
    let messages = received.iter().filter(|received| matches!(received, Received::Message(_))).count();
    for (number, received) in received.iter().enumerate() {
        if number > 0 && matches!(received, Received::Message(_)) {
            lines.push(String::new());
        }
        match received {
            Received::Status(0, _) if messages > 0 => {}
            received => lines.extend(received_lines(received, descriptor)),
        }
    }
    lines
}

fn received_lines(received: &Received, descriptor: &MessageDescriptor) -> Vec<String> {
    match received {
        Received::Message(bytes) => match DynamicMessage::decode(descriptor.clone(), bytes.clone()) {
            Ok(message) => text::lines(&message),
            Err(error) => vec![format!("not a {}: {error}", descriptor.name())],
        },
        Received::Compressed => vec!["a compressed message".to_owned()],
        Received::NotGrpc(head) => vec![head.clone()],
        Received::Status(code, message) => vec![format!("status {code} {message}").trim_end().to_owned()],
        Received::Broken(how) => vec![how.clone()],
    }
}

/// What stands before a line that no `read` has asked for.
const UNREAD: &str = "unread on ";

/// What a `read` says when nothing came.
const NOTHING: &str = "nothing";

/// How the messages of a watch stream are written down.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    /// In the order they came, save that events of one revision for several watches stand in the order of their watch
    /// ids: etcd walks a hash map of watches.
    AsSent,
    /// Watch by watch, and the event messages of a watch as if they were one, without their headers: how many
    /// revisions a replay puts into a message, and which revision its header names, depends on when etcd's loop for
    /// watches that are behind comes by. That no revision is split is checked, not compared: `split` stands at the
    /// first event of a revision that the message before has begun.
    Merged,
}

impl Form {
    fn lines(self, received: &[Received], descriptor: &MessageDescriptor) -> Vec<String> {
        if received.is_empty() {
            return vec![NOTHING.to_owned()];
        }
        let groups = match self {
            Form::AsSent => as_sent(received, descriptor),
            Form::Merged => merged(received, descriptor),
        };
        // A blank line behind each message makes messages of one kind alike, the last one included.
        let ended = groups.into_iter().flat_map(|mut lines| {
            lines.push(String::new());
            lines
        });
        let mut lines = text::fold(ended.collect());
        lines.pop_if(|last| last.is_empty());
        lines
    }
}

fn decoded(received: &Received, descriptor: &MessageDescriptor) -> Option<DynamicMessage> {
    match received {
        Received::Message(bytes) => DynamicMessage::decode(descriptor.clone(), bytes.clone()).ok(),
        _ => None,
    }
}

/// What a message is sorted by among its neighbours; a message without events keeps its place.
struct Place {
    event_revision: Option<i64>,
    watch: i64,
}

fn as_sent(received: &[Received], descriptor: &MessageDescriptor) -> Vec<Vec<String>> {
    let mut groups: Vec<(Place, Vec<String>)> = Vec::new();
    for one in received {
        let message = decoded(one, descriptor);
        let event_revision = message.as_ref().filter(|message| !events(message).is_empty()).map(header_revision);
        let watch = message.as_ref().map_or(0, watch_id);
        groups.push((Place { event_revision, watch }, received_lines(one, descriptor)));
    }
    for run in groups.chunk_by_mut(|a, b| a.0.event_revision.is_some() && a.0.event_revision == b.0.event_revision) {
        run.sort_by_key(|(place, _)| place.watch);
    }
    groups.into_iter().map(|(_, lines)| lines).collect()
}

fn merged(received: &[Received], descriptor: &MessageDescriptor) -> Vec<Vec<String>> {
    let mut watches: BTreeMap<i64, Vec<Vec<String>>> = BTreeMap::new();
    let mut last_revision: BTreeMap<i64, i64> = BTreeMap::new();
    for one in received {
        let message = decoded(one, descriptor);
        let watch = message.as_ref().map_or(i64::MAX, watch_id);
        let groups = watches.entry(watch).or_default();
        let events = message.as_ref().map(events).unwrap_or_default();
        if events.is_empty() {
            groups.push(received_lines(one, descriptor));
            last_revision.remove(&watch);
            continue;
        }
        let first = event_revision(&events[0]);
        let begun = last_revision.insert(watch, event_revision(&events[events.len() - 1]));
        if begun.is_none() {
            groups.push(vec![format!("watch_id: {watch}")]);
        }
        let lines = groups.last_mut().expect("a group was begun");
        if begun == Some(first) {
            lines.push("split".to_owned());
        }
        lines.extend(events.iter().map(|event| format!("events {{ {} }}", text::one_line(event))));
    }
    watches.into_values().flatten().collect()
}

fn watch_id(message: &DynamicMessage) -> i64 {
    integer(message, "watch_id")
}

fn header_revision(message: &DynamicMessage) -> i64 {
    let header = message.get_field_by_name("header");
    header.and_then(|header| header.as_message().map(|header| integer(header, "revision"))).unwrap_or(0)
}

fn events(message: &DynamicMessage) -> Vec<DynamicMessage> {
    let events = message.get_field_by_name("events");
    let list = events.as_deref().and_then(Value::as_list).unwrap_or_default();
    list.iter().filter_map(|event| event.as_message().cloned()).collect()
}

fn event_revision(event: &DynamicMessage) -> i64 {
    let kv = event.get_field_by_name("kv");
    kv.and_then(|kv| kv.as_message().map(|kv| integer(kv, "mod_revision"))).unwrap_or(0)
}

fn integer(message: &DynamicMessage, name: &str) -> i64 {
    message.get_field_by_name(name).and_then(|value| value.as_i64()).unwrap_or(0)
}
