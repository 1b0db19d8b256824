//! Single calls for the parts of a run that are not the load: readiness, revisions, puts that cause events, compaction.

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use h2::SendStream;
use h2::client::SendRequest;
use prost::Message;
use tarsier_proto::etcdserverpb as pb;
use tarsier_proto::v3lockpb;

use crate::fault::{Fault, PATIENCE, Result, within};
use crate::link::{self, Answer, Connected, Piece, Windows};
use crate::wire::{self, Deframer};

/// How long nothing may come of a compaction, which is answered when all that it forgets is gone. Etcd pauses 10 ms behind
/// each thousand revisions, so that a million of them take it 10 s and more.
const COMPACTION_PATIENCE: Duration = Duration::from_secs(600);

/// A connection whose calls are awaited one by one; clones share it. Must be made inside a `LocalSet`.
#[derive(Clone)]
pub struct Caller {
    endpoint: Arc<str>,
    requests: SendRequest<Bytes>,
}

impl Caller {
    pub async fn connect(endpoint: &Arc<str>, windows: Windows) -> Result<Caller> {
        let Connected { requests, connection, .. } = link::connect(endpoint, windows).await?;
        // Its error reaches each call that is under way, so the task has nobody to report to.
        tokio::task::spawn_local(async move { drop(connection.await) });
        Ok(Caller { endpoint: endpoint.clone(), requests })
    }

    /// Opens a call; what it asks goes into the one half, what it is answered comes out of the other.
    pub async fn open(&self, path: &'static str) -> Result<(SendStream<Bytes>, Answer)> {
        let http = |cause| Fault::Http { endpoint: self.endpoint.to_string(), cause };
        let head = link::call_head(&self.endpoint, path)?;
        let mut requests = self.requests.clone().ready().await.map_err(http)?;
        let (response, send) = requests.send_request(head, false).map_err(http)?;
        Ok((send, Answer::Head(response)))
    }

    pub fn endpoint(&self) -> &Arc<str> {
        &self.endpoint
    }

    /// One call with one request, which is framed already. Gives the body of the answer, of several the last.
    pub async fn call(&self, path: &'static str, request: Bytes) -> Result<Vec<u8>> {
        self.call_within(PATIENCE, path, request).await
    }

    /// The same with another patience. It begins anew with each piece of the answer: a large one may take its time.
    async fn call_within(&self, patience: Duration, path: &'static str, request: Bytes) -> Result<Vec<u8>> {
        let (mut send, mut answer) = within(patience, format_args!("an answer to {path}"), self.open(path)).await?;
        let http = |cause| Fault::Http { endpoint: self.endpoint.to_string(), cause };
        send.send_data(request, true).map_err(http)?;
        let (mut deframer, mut body) = (Deframer::default(), None);
        loop {
            let piece = poll_fn(|cx| answer.poll_piece(&self.endpoint, path, cx));
            match within(patience, format_args!("an answer to {path}"), piece).await? {
                Piece::End => return body.ok_or(Fault::NoAnswer { path }),
                Piece::Data(data) => deframer
                    .feed(&data, |message| {
                        body = Some(message.to_vec());
                        Ok(())
                    })
                    .map_err(|cause| Fault::Malformed { path, cause })?,
            }
        }
    }

    /// Any message that has no encoder of its own.
    pub async fn call_message(&self, path: &'static str, request: &impl Message) -> Result<Vec<u8>> {
        self.call(path, wire::framed(request)).await
    }

    /// The same with its answer as a message; of several the last.
    pub async fn ask<T: Message + Default>(&self, path: &'static str, request: &impl Message) -> Result<T> {
        decode(path, &self.call_message(path, request).await?)
    }

    /// The revision that the write got.
    pub async fn put(&self, key: &[u8], value: &[u8]) -> Result<i64> {
        let mut out = BytesMut::with_capacity(key.len() + value.len() + 16);
        wire::put(&mut out, key, value);
        let body = self.call(wire::PATH_PUT, out.freeze()).await?;
        wire::header_revision(&body).map_err(|cause| Fault::Malformed { path: wire::PATH_PUT, cause })
    }

    /// The store's revision now, by a linearizable read of one key.
    pub async fn revision(&self) -> Result<i64> {
        let mut out = BytesMut::new();
        wire::range(&mut out, b"any", b"");
        let body = self.call(wire::PATH_RANGE, out.freeze()).await?;
        wire::header_revision(&body).map_err(|cause| Fault::Malformed { path: wire::PATH_RANGE, cause })
    }

    /// A lease of so many seconds.
    pub async fn grant(&self, seconds: i64) -> Result<i64> {
        let request = pb::LeaseGrantRequest { ttl: seconds, ..Default::default() };
        Ok(self.ask::<pb::LeaseGrantResponse>(wire::PATH_LEASE_GRANT, &request).await?.id)
    }

    /// Keeps a lease alive with a call of its own, as `KeepAliveOnce` of etcd's client does.
    pub async fn keep_alive(&self, lease: i64) -> Result<()> {
        let request = pb::LeaseKeepAliveRequest { id: lease };
        let answer: pb::LeaseKeepAliveResponse = self.ask(wire::PATH_LEASE_KEEP_ALIVE, &request).await?;
        match answer.ttl {
            // The answer for a lease that the server does not have.
            ..=0 => Err(Fault::Broken("a lease ended while it was kept alive".to_owned())),
            _ => Ok(()),
        }
    }

    /// Waits until the lease holds the lock of this name; gives the key that stands for it. How long the others hold it is
    /// nothing that the server could be blamed for, so the patience is that of whoever waits.
    pub async fn lock(&self, name: &'static str, lease: i64) -> Result<Bytes> {
        let request = v3lockpb::LockRequest { name: name.into(), lease };
        let body = self.call_within(Duration::MAX, wire::PATH_LOCK, wire::framed(&request)).await?;
        Ok(decode::<v3lockpb::LockResponse>(wire::PATH_LOCK, &body)?.key)
    }

    /// Lets go of a lock, named by the key that [`lock`](Self::lock) gave.
    pub async fn unlock(&self, key: Bytes) -> Result<()> {
        self.call_message(wire::PATH_UNLOCK, &v3lockpb::UnlockRequest { key }).await.map(drop)
    }

    /// Forgets what lies before a revision, and waits until it is gone.
    pub async fn compact(&self, revision: i64) -> Result<()> {
        let request = pb::CompactionRequest { revision, physical: true };
        self.call_within(COMPACTION_PATIENCE, wire::PATH_COMPACT, wire::framed(&request)).await.map(drop)
    }

    /// The version of etcd whose API the server speaks; empty if it does not know the call.
    pub async fn api_version(&self) -> Result<String> {
        let path = wire::PATH_STATUS;
        match self.ask::<pb::StatusResponse>(path, &pb::StatusRequest::default()).await {
            Err(Fault::Status { code, .. }) if code == "12" => Ok(String::new()),
            status => Ok(status?.version),
        }
    }
}

fn decode<T: Message + Default>(path: &'static str, body: &[u8]) -> Result<T> {
    T::decode(body).map_err(|_| Fault::Malformed { path, cause: wire::Malformed("not the message of this call") })
}

/// The first word to a server that is said to be there: it answers a read soon, or is none. What takes connections and says
/// nothing would otherwise be waited for without end.
pub async fn greet(endpoint: &Arc<str>) -> Result<Caller> {
    const PATIENCE: Duration = Duration::from_secs(5);
    let greeting = async {
        let caller = Caller::connect(endpoint, Windows::SMALL).await?;
        caller.revision().await?;
        Ok(caller)
    };
    within(PATIENCE, format_args!("an answer of {endpoint}"), greeting).await
}

/// Waits until a server answers a read; gives a caller for it.
pub async fn wait_until_ready(
    endpoint: &Arc<str>,
    patience: Duration,
    mut still_alive: impl FnMut() -> Result<()>,
) -> Result<Caller> {
    let deadline = tokio::time::Instant::now() + patience;
    let mut last = None;
    loop {
        let attempt = async {
            let caller = Caller::connect(endpoint, Windows::SMALL).await?;
            caller.revision().await?;
            Ok(caller)
        };
        let outcome = match tokio::time::timeout_at(deadline, attempt).await {
            Ok(outcome) => outcome,
            // What the last attempt that ended has met says more than that time is over.
            Err(_) => Err(last.take().unwrap_or_else(|| Fault::Stalled {
                waiting_for: format!("an answer of {endpoint}"),
                seconds: patience.as_secs(),
            })),
        };
        still_alive()?;
        match outcome {
            Ok(caller) => return Ok(caller),
            Err(fault) if tokio::time::Instant::now() >= deadline => return Err(fault),
            Err(fault) => {
                last = Some(fault);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_that_is_not_answered_ends_with_the_patience() {
        // It takes connections, by the kernel, and says nothing on them.
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = silent.local_addr().unwrap().to_string().into();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let outcome = tokio::task::LocalSet::new().block_on(&runtime, async {
            let caller = Caller::connect(&endpoint, Windows::SMALL).await.unwrap();
            caller.call_within(Duration::from_millis(50), wire::PATH_PUT, Bytes::new()).await
        });
        let text = outcome.unwrap_err().to_string();
        assert_eq!(text, "nothing moved for 0 s; missing: an answer to /etcdserverpb.KV/Put");
    }
}
