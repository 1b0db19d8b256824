//! Answers plain HTTP: asks the backend and looks at the other shards for what a page is about.
//!
//! A page asks as any client does, over the mesh, and waits for a bounded time: when shard 0 hangs, the pages of the
//! others still say so.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use http::request::Parts;
use slab::Slab;
use tokio::sync::oneshot;

use crate::backend::{AlarmFilter, Command, Reply};
use crate::grpc::status::Status;
use crate::net::Door;
use crate::service::pages::{self, Asked, Check, Findings};

use super::mesh::Token;
use super::{Shard, clock, process};

/// etcd waits for a read of its health check for 5 s and two election timeouts.
const ANSWER_MAX: Duration = Duration::from_secs(7);
/// In the words of etcd.
const TIMED_OUT: &str = "etcdserver: request timed out";

/// The shard that answers for the backend.
const WRITER: usize = 0;

/// Tells the token of a question from that of a call.
pub const QUESTION: Token = 1 << 31;

/// The questions of this shard that the backend has not answered yet.
#[derive(Default)]
pub struct Questions(Slab<oneshot::Sender<Reply>>);

impl Questions {
    fn add(&mut self, answer: oneshot::Sender<Reply>) -> Token {
        let index = self.0.insert(answer);
        QUESTION | u32::try_from(index).expect("each belongs to a connection, and there are fewer of those")
    }

    /// Whoever asked may have gone.
    pub fn reply(&mut self, token: Token, reply: Reply) {
        let _ = self.0.remove((token & !QUESTION) as usize).send(reply);
    }
}

impl Shard {
    /// What the backend says, or why it says nothing.
    async fn ask(&self, command: Command) -> Result<Reply, &'static str> {
        if self.boards.hangs(WRITER, clock::now()) {
            // A probe has less patience than the answer would take.
            return Err(TIMED_OUT);
        }
        let (sender, answer) = oneshot::channel();
        {
            let core = &mut *self.core.borrow_mut();
            let token = core.questions.add(sender);
            self.send(core, token, command);
        }
        match tokio::time::timeout(ANSWER_MAX, answer).await {
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(_)) | Err(_) => Err(TIMED_OUT),
        }
    }

    pub(super) async fn answer_page(self: Rc<Self>, door: Door, peer: SocketAddr, request: Parts) -> Response<Bytes> {
        let asked = match pages::asked(&request, door == Door::Pages) {
            Ok(asked) => asked,
            Err(refusal) => return refusal,
        };
        match asked {
            Asked::Version => pages::version(),
            Asked::Variables => pages::variables(&process::arguments(), process::descriptors_max()),
            Asked::Metrics => pages::metrics(self.write_metrics().await),
            Asked::Health { excluded } => {
                let mut findings = self.look_at_alarms().await;
                if pages::illness(&findings, &excluded).is_none() {
                    findings.read_failed = self.try_to_read().await.err();
                }
                let illness = pages::illness(&findings, &excluded);
                self.core.borrow_mut().meter.health_checked(illness.is_none());
                if let Some(reason) = &illness {
                    tracing::warn!(%peer, reason, "/health error");
                }
                pages::health(illness.as_deref())
            }
            Asked::Checks { checks, is_verbose } => {
                let findings = self.find(&checks).await;
                for check in &checks {
                    if let Some(reason) = findings.failure(*check) {
                        tracing::warn!(%peer, check = check.name(), %reason, "a health check failed");
                    }
                }
                pages::checks(&findings, &checks, is_verbose)
            }
        }
    }

    async fn find(&self, checks: &[Check]) -> Findings {
        let mut findings = Findings::default();
        if checks.contains(&Check::DataCorruption) {
            findings = self.look_at_alarms().await;
        }
        // Both reads are one here: each sees the committed revision of the moment at which it runs.
        if checks.iter().any(|check| matches!(check, Check::SerializableRead | Check::LinearizableRead)) {
            findings.read_failed = self.try_to_read().await.err();
        }
        if checks.contains(&Check::Shards) {
            findings.hangs = self.boards.hanging(clock::now());
        }
        findings
    }

    async fn look_at_alarms(&self) -> Findings {
        match self.ask(Command::Alarms(AlarmFilter::All)).await {
            Ok(Reply::Alarms { alarms, .. }) => Findings { alarms, ..Findings::default() },
            Ok(reply) => unreachable!("alarms were asked for: {reply:?}"),
            Err(error) => Findings { alarms_failed: Some(error.to_owned()), ..Findings::default() },
        }
    }

    async fn try_to_read(&self) -> Result<(), String> {
        match self.ask(pages::probe()).await {
            Ok(Reply::Answer(Ok(_))) => Ok(()),
            Ok(Reply::Answer(Err(error))) => Err(Status::from(error).message.into_owned()),
            Ok(reply) => unreachable!("a range was asked for: {reply:?}"),
            Err(error) => Err(error.to_owned()),
        }
    }
}
