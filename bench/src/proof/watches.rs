//! Watches on one stream that live through restarts: each is opened again behind the last event that it has seen.

use std::cell::RefCell;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use h2::SendStream;
use prost::Message;
use tarsier_proto::{etcdserverpb as pb, mvccpb};
use tokio::task::JoinHandle;

use crate::fault::{Fault, Result};
use crate::link::{self, Answer, Connected, Piece, Windows};
use crate::proof::calls::{PATIENCE, is_lost};
use crate::proof::history::{self, Mark, Put, Told};
use crate::proof::ledger::Revisions;
use crate::wire::{self, Deframer, Malformed};

/// What a watch is told of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scope {
    All,
    One(u16),
    /// From the first to before the second.
    Span(u16, u16),
    Deletes,
}

impl Scope {
    fn has(self, told: &Told) -> bool {
        match self {
            Scope::All => true,
            Scope::One(key) => told.key == key,
            Scope::Span(from, to) => (from..to).contains(&told.key),
            Scope::Deletes => told.put.is_none(),
        }
    }

    /// What remains of all events for a watch of this scope.
    pub fn part(self, revisions: &Revisions) -> Revisions {
        let part = |told: &Vec<Told>| told.iter().copied().filter(|told| self.has(told)).collect::<Vec<Told>>();
        let parts = revisions.iter().map(|(&revision, told)| (revision, part(told)));
        parts.filter(|(_, told)| !told.is_empty()).collect()
    }

    fn create(self, start_revision: i64) -> pb::WatchCreateRequest {
        let (key, range_end) = match self {
            Scope::All | Scope::Deletes => (history::key(0), history::ALL_END.to_vec()),
            Scope::One(key) => (history::key(key), Vec::new()),
            Scope::Span(from, to) => (history::key(from), history::key(to)),
        };
        let no_puts = pb::watch_create_request::FilterType::Noput as i32;
        let filters = if self == Scope::Deletes { vec![no_puts] } else { Vec::new() };
        pb::WatchCreateRequest {
            key: key.into(),
            range_end: range_end.into(),
            start_revision,
            filters,
            ..Default::default()
        }
    }
}

/// What one watch has seen.
pub struct Seen {
    scope: Scope,
    /// The revision of its last event.
    pub last: i64,
    /// Not yet judged.
    pub fresh: Revisions,
}

pub type AllSeen = Rc<RefCell<Vec<Seen>>>;

/// Watches that have seen everything up to a revision. Their ids on the wire are their places here.
pub fn seen(scopes: &[Scope], revision: i64) -> AllSeen {
    let seen = scopes.iter().map(|&scope| Seen { scope, last: revision, fresh: Revisions::new() });
    Rc::new(RefCell::new(seen.collect()))
}

/// The open stream. Dropping it closes the connection.
pub struct Watches {
    reader: JoinHandle<Result<()>>,
    driver: JoinHandle<()>,
    _requests: SendStream<Bytes>,
}

impl Drop for Watches {
    fn drop(&mut self) {
        self.reader.abort();
        self.driver.abort();
    }
}

impl Watches {
    pub async fn open(endpoint: &Arc<str>, seen: &AllSeen) -> Result<Watches> {
        let http = |cause| Fault::Http { endpoint: endpoint.to_string(), cause };
        let Connected { requests, connection, .. } = link::connect(endpoint, Windows::WIDE).await?;
        // Its error reaches the reader.
        let driver = tokio::task::spawn_local(async move { drop(connection.await) });
        let head = link::call_head(endpoint, wire::PATH_WATCH)?;
        let mut requests = requests.ready().await.map_err(http)?;
        let (response, mut send) = requests.send_request(head, false).map_err(http)?;
        let mut creates = BytesMut::new();
        for seen in &*seen.borrow() {
            let create = pb::watch_request::RequestUnion::CreateRequest(seen.scope.create(seen.last + 1));
            let request = pb::WatchRequest { request_union: Some(create) };
            wire::encode(&mut creates, &request);
        }
        send.send_data(creates.freeze(), false).map_err(http)?;
        let reader = tokio::task::spawn_local(read(endpoint.clone(), Answer::Head(response), seen.clone()));
        Ok(Watches { reader, driver, _requests: send })
    }

    /// Waits until each watch has an event of its revision; the revisions stand in the order of the watches.
    pub async fn wait(&mut self, seen: &AllSeen, revisions: &[i64]) -> Result<()> {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let behind = |(seen, &due): (&Seen, &i64)| (seen.last < due).then_some((seen.scope, seen.last, due));
            let first = seen.borrow().iter().zip(revisions).find_map(behind);
            let Some((scope, last, due)) = first else { return Ok(()) };
            if self.reader.is_finished() {
                return self.ended().await;
            }
            if tokio::time::Instant::now() > deadline {
                let waiting_for = format!("revision {due} on the watch of {scope:?}, which is at {last}");
                return Err(Fault::Stalled { waiting_for, seconds: PATIENCE.as_secs() });
            }
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
    }

    /// Why the stream has ended, after its server was stopped.
    pub async fn ended(&mut self) -> Result<()> {
        let late =
            |_| Fault::Stalled { waiting_for: "the end of a watch stream".to_owned(), seconds: PATIENCE.as_secs() };
        let ended = tokio::time::timeout(PATIENCE, &mut self.reader).await.map_err(late)?;
        match ended.map_err(|cause| Fault::Refused(format!("the reader of the watches ended badly: {cause}")))? {
            Err(fault) if is_lost(&fault) => Ok(()),
            outcome => outcome,
        }
    }
}

async fn read(endpoint: Arc<str>, mut answer: Answer, seen: AllSeen) -> Result<()> {
    let path = wire::PATH_WATCH;
    let mut deframer = Deframer::default();
    loop {
        match poll_fn(|cx| answer.poll_piece(&endpoint, path, cx)).await? {
            Piece::End => return Err(Fault::NoAnswer { path }),
            Piece::Data(data) => {
                let mut bodies = Vec::new();
                let outcome = deframer.feed(&data, |body| {
                    bodies.push(body.to_vec());
                    Ok(())
                });
                outcome.map_err(|cause| Fault::Malformed { path, cause })?;
                for body in bodies {
                    let malformed = |_| Fault::Malformed { path, cause: Malformed("no WatchResponse") };
                    take(&pb::WatchResponse::decode(&body[..]).map_err(malformed)?, &mut seen.borrow_mut())?;
                }
            }
        }
    }
}

/// Takes a response: its revisions must be whole and grow.
fn take(response: &pb::WatchResponse, all: &mut [Seen]) -> Result<()> {
    let broken = |text: String| Err(Fault::Broken(format!("watch {}: {text}", response.watch_id)));
    if response.canceled || response.compact_revision != 0 {
        return broken(format!("ended at {}: {}", response.compact_revision, response.cancel_reason));
    }
    let at = usize::try_from(response.watch_id).ok().filter(|&at| at < all.len());
    let Some(at) = at else { return broken("nobody has this id".to_owned()) };
    let before = all[at].last;
    for event in &response.events {
        let Some((revision, told)) = told(event) else { return broken(format!("nobody wrote {event:?}")) };
        let seen = &mut all[at];
        // Behind the last response, a revision can neither come again nor go on.
        if revision <= before || revision < seen.last {
            return broken(format!("revision {revision} after {}", seen.last));
        }
        seen.last = revision;
        seen.fresh.entry(revision).or_default().push(told);
    }
    let header = response.header.unwrap_or_default().revision;
    if header < all[at].last {
        return broken(format!("its header says {header} where it tells {}", all[at].last));
    }
    Ok(())
}

fn told(event: &mvccpb::Event) -> Option<(i64, Told)> {
    let kv = event.kv.as_ref()?;
    let put = match event.r#type {
        0 => Some(Put { mark: Mark::read(&kv.value)?, create_revision: kv.create_revision, version: kv.version }),
        _ => None,
    };
    Some((kv.mod_revision, Told { key: history::index(&kv.key)?, put }))
}
