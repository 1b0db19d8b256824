//! The services: which call is which, wire types to core types and back.
//!
//! [`Services`] holds the calls of one shard that wait for the backend or for their peer. It is values in, values out: a
//! message becomes a command for the backend, a reply becomes bytes for the peer. Watch streams are not kept here: they are
//! rows of the watch hub, and [`watch`] only translates for them.

pub mod cluster;
pub mod errors;
pub mod health;
pub mod kv;
pub mod lease;
pub mod maintenance;
pub mod pages;
pub mod recipes;
pub mod watch;
pub mod watch_request;

mod downgrade;
mod message;
mod wire;

#[cfg(test)]
mod random;

use std::cell::Cell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use slab::Slab;

use crate::backend::{Command, Identity, LeaseAnswer, LeaseOutcome, Reply};
use crate::grpc::status::{Code, Status};
use crate::metrics;
use crate::net::{CallHead, CallId, CallKind, Output};
use crate::pb;
use crate::store::command::{Answer, Outcome};
use crate::types::Revision;

use cluster::ClusterMethod;
use errors::Refusal;
use health::HealthMethod;
use kv::decode::KvMethod;
use kv::encode::{Response, Scratch};
use kv::range_stream::RangeStream;
use lease::{Answers, LeaseMethod};
use maintenance::MaintenanceMethod;
use recipes::Recipe;
use recipes::announcement::Announcer;
use recipes::awaited::Awaited;
use recipes::course::Course;

pub use cluster::Member;
pub use kv::decode::Limits;

/// Rows of a large answer that are measured before the next answer has its turn: some 50 us of work.
const PREPARE_ROWS_PER_TURN: usize = 2_000;

/// Room for so many calls is kept while there is none.
const IDLE_CALLS_MAX: usize = 1_024;

/// Which service takes a call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Route {
    Unary(Method),
    Watch,
}

/// The calls that the services answer themselves: with one request, but for a stream of keep-alives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Method {
    Kv(KvMethod),
    RangeStream,
    Lease(LeaseMethod),
    Cluster(ClusterMethod),
    Maintenance(MaintenanceMethod),
    Health(HealthMethod),
    Recipe(Recipe),
}

impl Method {
    /// A watch of the health goes on until its client or the server ends, a stream of keep-alives until its client does.
    pub fn kind(self) -> CallKind {
        match self {
            Method::Health(HealthMethod::Watch) | Method::Lease(LeaseMethod::KeepAlive) => CallKind::RequestStream,
            Method::Kv(_)
            | Method::RangeStream
            | Method::Lease(_)
            | Method::Cluster(_)
            | Method::Maintenance(_)
            | Method::Health(_) => CallKind::OneRequest,
            Method::Recipe(recipe) => recipe.kind(),
        }
    }
}

impl Route {
    /// The service for a path, or the status that gRPC gives a path nobody serves. The KV and Watch paths come first: they
    /// are what a watch server is asked for.
    pub fn of(path: &str) -> Result<Route, Status> {
        match path {
            "/etcdserverpb.KV/Range" => Ok(Route::Unary(Method::Kv(KvMethod::Range))),
            "/etcdserverpb.KV/Put" => Ok(Route::Unary(Method::Kv(KvMethod::Put))),
            "/etcdserverpb.KV/Txn" => Ok(Route::Unary(Method::Kv(KvMethod::Txn))),
            "/etcdserverpb.KV/DeleteRange" => Ok(Route::Unary(Method::Kv(KvMethod::DeleteRange))),
            "/etcdserverpb.KV/Compact" => Ok(Route::Unary(Method::Kv(KvMethod::Compact))),
            "/etcdserverpb.Watch/Watch" => Ok(Route::Watch),
            "/etcdserverpb.KV/RangeStream" => Ok(Route::Unary(Method::RangeStream)),
            _ => Route::of_others(path).ok_or_else(|| errors::unknown_path(path)),
        }
    }
}

impl Route {
    fn of_others(path: &str) -> Option<Route> {
        let (service, name) = path.strip_prefix('/')?.split_once('/')?;
        Some(Route::Unary(match service {
            "etcdserverpb.Lease" => Method::Lease(LeaseMethod::of(name)?),
            "etcdserverpb.Maintenance" => Method::Maintenance(MaintenanceMethod::of(name)?),
            "etcdserverpb.Cluster" => Method::Cluster(ClusterMethod::of(name)?),
            "grpc.health.v1.Health" => Method::Health(HealthMethod::of(name)?),
            "v3lockpb.Lock" => Method::Recipe(Recipe::of_lock(name)?),
            "v3electionpb.Election" => Method::Recipe(Recipe::of_election(name)?),
            _ => return None,
        }))
    }
}

/// What becomes of a request that is in order.
pub enum Asked {
    Backend(Command),
    /// It can be answered without the backend, with this message.
    Answer(Bytes),
}

/// The number by which calls of a path are counted: its place in the table of all methods.
pub fn method_number(path: &str) -> Option<u8> {
    let at = pb::METHODS.binary_search_by_key(&path, |method| method.path).ok()?;
    u8::try_from(at).ok()
}

/// The path of a method by its number.
pub fn method_path(number: u8) -> &'static str {
    pb::METHODS.get(usize::from(number)).map_or("", |method| method.path)
}

/// All methods in the order of their numbers, as metrics label them. What is not served yet is there too: boards take sums
/// over all of them.
pub fn methods() -> Vec<metrics::Method> {
    let kind = |method: &pb::Method| match method.kind() {
        pb::Kind::Unary => "unary",
        pb::Kind::ServerStream => "server_stream",
        pb::Kind::ClientStream => "client_stream",
        pb::Kind::Bidi => "bidi_stream",
    };
    let method =
        |row: &'static pb::Method| metrics::Method { service: row.service(), name: row.name(), kind: kind(row) };
    pb::METHODS.iter().map(method).collect()
}

/// Where a unary call stands.
enum Unary {
    /// The request is on its way: from the peer, or at the backend.
    Waiting,
    /// The length of a large answer is being computed, in turns.
    Preparing(Response),
    Answering(Response),
    /// A short answer, encoded as a whole.
    Short(Bytes),
    /// The first message of a call that goes on, until it was taken.
    Subscribed(Option<Bytes>),
    /// Requests are heard one after the other, and answered in their order.
    KeepingAlive(Box<Answers>),
    /// It goes through several steps, and may wait between them.
    Course(Box<Course>),
    /// The peer of a course has gone, and what it leaves behind shows with a reply.
    Left(Box<Course>),
    Failed(Status),
    /// The peer has gone; the reply that is still to come is thrown away with the slot.
    Abandoned,
}

struct Call {
    id: CallId,
    method: Method,
    /// What is still to be told of an answer in parts.
    parts: Option<Box<RangeStream>>,
    state: Unary,
    /// Requests at the backend: as many replies will come for this slot. Two, when a peer goes that has asked.
    under_way: u8,
    /// What its answer takes until the peer has taken it, where no [`Response`] counts that.
    scratch: Option<Scratch>,
}

/// The calls of one shard, its watch streams aside.
pub struct Services {
    identity: Identity,
    member: Arc<Member>,
    limits: Limits,
    calls: Slab<Call>,
    preparing: VecDeque<u32>,
    /// Answers that nobody waits for any more. To drop a million rows at once would stall everybody else.
    discarding: VecDeque<Response>,
    /// What the answers on their way out hold.
    scratch_bytes: Rc<Cell<usize>>,
    /// The courses that wait for a change of a key.
    awaited: Awaited,
    /// What those who observe a leader are told.
    announcer: Announcer,
    /// What courses ask of the backend.
    asked: VecDeque<(u32, Command)>,
    /// What calls keep of their requests beside their rows.
    request_bytes: usize,
}

impl Services {
    /// Every batch behind the revision `at` will be shown to it.
    pub fn new(identity: Identity, member: Arc<Member>, limits: Limits, at: Revision) -> Services {
        let scratch_bytes = Rc::default();
        Services {
            identity,
            member,
            limits,
            calls: Slab::new(),
            preparing: VecDeque::new(),
            discarding: VecDeque::new(),
            awaited: Awaited::new(at),
            announcer: Announcer::new(Rc::clone(&scratch_bytes)),
            scratch_bytes,
            asked: VecDeque::new(),
            request_bytes: 0,
        }
    }

    /// What etcd's interceptors check before any service sees the call.
    pub fn admit(head: &CallHead<'_>) -> Result<(), Status> {
        // `hasleader` is always satisfied: a single member leads as long as it serves.
        if head.client_api_version_is_garbled {
            return Err(Status::new(Code::InvalidArgument, "etcdserver: invalid client api version"));
        }
        Ok(())
    }

    /// Begins a unary call. Its index is the handle of the call and the token of its request.
    pub fn open(&mut self, id: CallId, method: Method) -> u32 {
        let state = match method {
            Method::Lease(LeaseMethod::KeepAlive) => Unary::KeepingAlive(Box::default()),
            _ => Unary::Waiting,
        };
        let index = self.calls.insert(Call { id, method, parts: None, state, under_way: 0, scratch: None });
        u32::try_from(index).expect("a shard has fewer than 4 G calls, since each holds a stream")
    }

    /// The request of a call: a command for the backend, or an answer that is at hand.
    pub fn request(&mut self, handle: u32, message: Bytes) -> Option<Command> {
        let call = &mut self.calls[handle as usize];
        let asked = match call.method {
            Method::Health(method) => {
                // Nobody reads a second request of a watch.
                if matches!(call.state, Unary::Waiting) {
                    call.state = match (method, health::answer(method, message)) {
                        (HealthMethod::Watch, Ok(message)) => Unary::Subscribed(Some(message)),
                        (HealthMethod::Check | HealthMethod::List, Ok(message)) => Unary::Short(message),
                        (_, Err(status)) => Unary::Failed(status),
                    };
                }
                return None;
            }
            Method::Kv(method) => kv::decode::decode(method, message, &self.limits).map(Asked::Backend),
            Method::RangeStream => kv::range_stream::decode(message).map(|stream| {
                let command = stream.command();
                self.request_bytes += stream.bytes();
                call.parts = Some(Box::new(stream));
                Asked::Backend(command)
            }),
            Method::Lease(method) => lease::decode(method, message).map(Asked::Backend),
            Method::Maintenance(method) => maintenance::decode(method, message, self.identity),
            Method::Recipe(recipe) => self.begin_recipe(handle, recipe, message),
            Method::Cluster(method) => cluster::answer(method, message, self.identity, &self.member).map(Asked::Answer),
        };
        let call = &mut self.calls[handle as usize];
        match asked {
            Ok(Asked::Backend(command)) => {
                call.under_way += 1;
                Some(command)
            }
            Ok(Asked::Answer(message)) => {
                call.state = Unary::Short(message);
                None
            }
            Err(status) => {
                match &mut call.state {
                    Unary::KeepingAlive(answers) => answers.end(status),
                    state => *state = Unary::Failed(status),
                }
                None
            }
        }
    }

    /// How much a call may keep of a request of so many bytes while its client waits for the answer, or does not take it. What
    /// only passes is 0.
    pub fn kept_of_request(&self, handle: u32, bytes: usize) -> usize {
        match self.calls[handle as usize].method {
            // Both ends of the range.
            Method::RangeStream => bytes,
            // The name stands with the call and as both ends of what is waited for, or with a key below it.
            Method::Recipe(recipe) if recipe.kind() == CallKind::LongAnswer => 3 * bytes,
            _ => 0,
        }
    }

    /// There is no memory for the request of a call.
    pub fn refuse(&mut self, handle: u32, refusal: Refusal) {
        self.calls[handle as usize].state = Unary::Failed(refusal.into());
    }

    /// Whether a call hears a further request now. One that does not is named again when it does.
    pub fn can_take_requests(&self, handle: u32) -> bool {
        let call = &self.calls[handle as usize];
        match &call.state {
            Unary::KeepingAlive(answers) => call.under_way == 0 && answers.has_room(),
            _ => true,
        }
    }

    /// The client has half-closed. A call that goes on and was never asked anything ends as grpc-go ends it.
    pub fn end_of_requests(&mut self, handle: u32) {
        let call = &mut self.calls[handle as usize];
        if let Unary::KeepingAlive(answers) = &mut call.state {
            answers.end(Status::ok());
        } else if call.method.kind() == CallKind::RequestStream && matches!(call.state, Unary::Waiting) {
            call.state = Unary::Failed(Status::new(Code::Unknown, "EOF"));
        }
    }

    /// The backend's reply to the request of a call. Names the call when it has something to send.
    pub fn reply(&mut self, handle: u32, reply: Reply) -> Option<CallId> {
        let call = &mut self.calls[handle as usize];
        call.under_way -= 1;
        match &mut call.state {
            Unary::Abandoned => {
                self.reply_to_nobody(handle, reply);
                return None;
            }
            Unary::Left(_) => {
                let state = std::mem::replace(&mut call.state, Unary::Abandoned);
                let Unary::Left(course) = state else { unreachable!("the state was matched above") };
                self.course_left(handle, course, reply);
                return None;
            }
            Unary::Course(_) => return self.step(handle, |course, around| course.reply(reply, around)),
            _ => {}
        }
        call.state = match reply {
            Reply::Answer(answer) if let Method::Recipe(recipe) = call.method => {
                recipes::single::answer(recipe, answer, self.identity).map_or_else(Unary::Failed, Unary::Short)
            }
            Reply::Answer(Ok(Answer { revision, result: Outcome::Alarm(listed) })) => {
                Unary::Short(maintenance::alarms(self.identity, revision, listed.as_slice()))
            }
            Reply::Answer(Ok(Answer { revision, result: Outcome::Hash(hash) })) => {
                let header = message::header(self.identity, revision);
                Unary::Short(match call.method {
                    Method::Maintenance(MaintenanceMethod::HashKv) => maintenance::hash_kv(header, &hash),
                    _ => maintenance::hash(header, &hash),
                })
            }
            Reply::Answer(Ok(answer)) => {
                let response = match &mut call.parts {
                    Some(parts) => {
                        self.request_bytes -= parts.bytes();
                        let response = parts.part(answer, self.identity);
                        self.request_bytes += parts.bytes();
                        response
                    }
                    None => Response::new(answer, self.identity),
                };
                Unary::Preparing(response.counted_in(&self.scratch_bytes))
            }
            Reply::Answer(Err(error)) => match &mut call.state {
                // What was answered before leaves first.
                Unary::KeepingAlive(answers) => {
                    answers.end(error.into());
                    return Some(call.id);
                }
                _ => Unary::Failed(error.into()),
            },
            Reply::Lease(LeaseAnswer { revision, outcome: LeaseOutcome::List(leases) }) => {
                let response = Response::of_leases(leases, revision, self.identity);
                Unary::Preparing(response.counted_in(&self.scratch_bytes))
            }
            Reply::Lease(answer) => {
                match (lease::encode(answer, self.identity), &mut call.state) {
                    (Ok(message), Unary::KeepingAlive(answers)) => {
                        answers.push(&message);
                        return Some(call.id);
                    }
                    (Ok(message), _) => {
                        // The keys of a lease may be very many.
                        call.scratch = Some(Scratch::new(&self.scratch_bytes, message.len()));
                        Unary::Short(message)
                    }
                    (Err(status), _) => Unary::Failed(status),
                }
            }
            Reply::Alarms { revision, alarms } => Unary::Short(maintenance::alarms(self.identity, revision, &alarms)),
            Reply::Status(status) => Unary::Short(match call.method {
                Method::Maintenance(MaintenanceMethod::Downgrade) => {
                    downgrade::canceled(self.identity, status.revision)
                }
                _ => maintenance::status(self.identity, &status),
            }),
            Reply::Defragmented(Ok(())) => Unary::Short(maintenance::defragmented()),
            Reply::Defragmented(Err(reason)) => Unary::Failed(errors::defragment_failed(reason)),
            Reply::History(_) => unreachable!("the shard keeps history for its hub"),
        };
        self.prepare_call(handle)
    }

    /// The call is over, and its handle goes to another one.
    fn free(&mut self, handle: u32) -> Call {
        let call = self.calls.remove(handle as usize);
        self.request_bytes -= call.parts.as_ref().map_or(0, |parts| parts.bytes());
        // After a mass exit the slab would stay as large as ever.
        if self.calls.is_empty() && self.calls.capacity() > IDLE_CALLS_MAX {
            self.calls = Slab::new();
        }
        call
    }

    fn reply_to_nobody(&mut self, handle: u32, reply: Reply) {
        if let Reply::Answer(Ok(answer)) = reply
            && matches!(answer.result, Outcome::Range(_) | Outcome::DeleteRange { .. } | Outcome::Txn(_))
        {
            self.discarding.push_back(Response::new(answer, self.identity).counted_in(&self.scratch_bytes));
        }
        self.free_if_abandoned(handle);
    }

    /// The slot of a call whose peer has gone is free once nothing will name it any more.
    fn free_if_abandoned(&mut self, handle: u32) {
        let call = &self.calls[handle as usize];
        if matches!(call.state, Unary::Abandoned) && call.under_way == 0 {
            self.free(handle);
        }
    }

    fn prepare_call(&mut self, handle: u32) -> Option<CallId> {
        let call = &mut self.calls[handle as usize];
        if let Unary::Preparing(response) = &mut call.state {
            match response.prepare(PREPARE_ROWS_PER_TURN) {
                Ok(false) => {
                    self.preparing.push_back(handle);
                    return None;
                }
                Ok(true) => {
                    let state = std::mem::replace(&mut call.state, Unary::Waiting);
                    let Unary::Preparing(response) = state else { return None };
                    if let Some(parts) = &mut call.parts {
                        parts.weighed(response.remaining_bytes());
                    }
                    call.state = Unary::Answering(response);
                }
                Err(status) => {
                    let state = std::mem::replace(&mut call.state, Unary::Failed(status));
                    self.discard(state);
                    return Some(self.calls[handle as usize].id);
                }
            }
        }
        Some(call.id)
    }

    /// A bounded piece of the work on large answers; names a call that became ready.
    pub fn turn(&mut self) -> Option<CallId> {
        if let Some(response) = self.discarding.front_mut()
            && response.discard(PREPARE_ROWS_PER_TURN)
        {
            self.discarding.pop_front();
        }
        let handle = self.preparing.pop_front()?;
        if matches!(self.calls[handle as usize].state, Unary::Abandoned) {
            self.free(handle);
            return None;
        }
        self.prepare_call(handle)
    }

    pub fn has_work(&self) -> bool {
        !self.preparing.is_empty() || !self.discarding.is_empty()
    }

    fn discard(&mut self, state: Unary) {
        if let Unary::Preparing(response) | Unary::Answering(response) = state {
            self.discarding.push_back(response);
        }
    }

    /// What a call has to send. The call is over with its last bytes or its status.
    pub fn output(&mut self, handle: u32, bytes_max: usize) -> Output {
        let call = &mut self.calls[handle as usize];
        match &mut call.state {
            Unary::Waiting | Unary::Preparing(_) | Unary::Abandoned | Unary::Left(_) => Output::Nothing,
            Unary::Course(_) => self.course_output(handle, bytes_max),
            Unary::Answering(response) => {
                let bytes = response.next(bytes_max).unwrap_or_default();
                if !response.is_finished() {
                    return Output::Bytes(bytes);
                }
                if call.parts.as_ref().is_some_and(|parts| !parts.is_over()) {
                    call.state = Unary::Waiting;
                    return Output::Bytes(bytes);
                }
                self.free(handle);
                Output::Last(bytes)
            }
            Unary::Subscribed(message) => message.take().map_or(Output::Nothing, Output::Bytes),
            Unary::KeepingAlive(answers) => match answers.take() {
                Some(bytes) => Output::Bytes(bytes),
                None => match answers.take_end() {
                    Some(status) => {
                        self.free(handle);
                        Output::End(status)
                    }
                    None => Output::Nothing,
                },
            },
            // The keys of a lease leave in pieces.
            Unary::Short(message) if message.len() > bytes_max => Output::Bytes(message.split_to(bytes_max)),
            Unary::Short(message) => {
                let message = std::mem::take(message);
                self.free(handle);
                Output::Last(message)
            }
            Unary::Failed(_) => match self.free(handle).state {
                Unary::Failed(status) => Output::End(status),
                _ => unreachable!("the state was matched above"),
            },
        }
    }

    /// Asks for the next part of an answer, once its peer has taken the one before: never more than one is in memory.
    pub fn next_part(&mut self, handle: u32) -> Option<Command> {
        let call = self.calls.get_mut(handle as usize)?;
        let parts = call.parts.as_ref().filter(|_| matches!(call.state, Unary::Waiting) && call.under_way == 0)?;
        call.under_way += 1;
        Some(parts.command())
    }

    /// The peer has gone. The slot stays for as long as a reply or a turn will still name it.
    pub fn closed(&mut self, handle: u32) {
        let call = &mut self.calls[handle as usize];
        match std::mem::replace(&mut call.state, Unary::Abandoned) {
            Unary::Course(course) => self.course_closed(handle, course),
            // A turn will find the slot and free it.
            state @ Unary::Preparing(_) => self.discard(state),
            state => {
                self.discard(state);
                self.free_if_abandoned(handle);
            }
        }
    }

    /// Calls under way, and the bytes that they take, but for their answers.
    pub fn bytes(&self) -> (usize, usize) {
        (self.calls.len(), self.calls.capacity() * size_of::<Call>() + self.request_bytes + self.awaited.bytes())
    }

    /// What the rows of answers on their way out take.
    pub fn scratch_bytes(&self) -> usize {
        self.scratch_bytes.get()
    }
}
