//! The calls of a trial, typed, each within a patience: a call that hangs is a failure and not a wait.

use std::time::Duration;

use prost::Message;
use tarsier_proto::etcdserverpb as pb;

use crate::caller::Caller;
use crate::fault::{Fault, Result};
use crate::proof::history::{self, Mark, Operation, Put, Row, Write};
use crate::wire;

pub const PATIENCE: Duration = Duration::from_secs(20);

/// An answer in time.
pub async fn in_time<T>(what: &str, call: impl Future<Output = Result<T>>) -> Result<T> {
    let late = |_| Fault::Stalled { waiting_for: what.to_owned(), seconds: PATIENCE.as_secs() };
    tokio::time::timeout(PATIENCE, call).await.map_err(late)?
}

pub async fn call<T: Message + Default>(caller: &Caller, path: &'static str, request: &impl Message) -> Result<T> {
    in_time(path, caller.ask(path, request)).await
}

/// Whether a call may have failed because the server was stopped; then nobody knows what became of it.
pub fn is_lost(fault: &Fault) -> bool {
    match fault {
        Fault::Connect { .. } | Fault::Http { .. } | Fault::Closed { .. } | Fault::NoAnswer { .. } => true,
        Fault::Status { code, .. } => code == "14",
        _ => false,
    }
}

/// A status with this text.
pub fn says(fault: &Fault, text: &str) -> bool {
    matches!(fault, Fault::Status { message, .. } if message.contains(text))
}

/// The header of a linearizable read.
pub async fn header(caller: &Caller) -> Result<pb::ResponseHeader> {
    let request = pb::RangeRequest { key: "any".into(), ..Default::default() };
    let response: pb::RangeResponse = call(caller, wire::PATH_RANGE, &request).await?;
    response.header.ok_or_else(|| Fault::Broken("an answer has no header".to_owned()))
}

/// The revision of a write, and how many keys each of its deletes has found.
pub async fn write(caller: &Caller, write: &Write) -> Result<(i64, Vec<i64>)> {
    let revision = |header: Option<pb::ResponseHeader>| header.unwrap_or_default().revision;
    match write[..] {
        [Operation::Put(key, mark)] => {
            let response: pb::PutResponse = call(caller, wire::PATH_PUT, &put(key, mark)).await?;
            Ok((revision(response.header), Vec::new()))
        }
        [Operation::Delete(key)] => {
            let response: pb::DeleteRangeResponse = call(caller, wire::PATH_DELETE_RANGE, &delete(key)).await?;
            Ok((revision(response.header), vec![response.deleted]))
        }
        _ => {
            let request = pb::TxnRequest { success: write.iter().map(operation).collect(), ..Default::default() };
            let response: pb::TxnResponse = call(caller, wire::PATH_TXN, &request).await?;
            let deleted = response.responses.iter().filter_map(|response| match &response.response {
                Some(pb::response_op::Response::ResponseDeleteRange(response)) => Some(response.deleted),
                _ => None,
            });
            Ok((revision(response.header), deleted.collect()))
        }
    }
}

fn put(key: u16, mark: Mark) -> pb::PutRequest {
    pb::PutRequest { key: history::key(key).into(), value: mark.value().into(), ..Default::default() }
}

fn delete(key: u16) -> pb::DeleteRangeRequest {
    pb::DeleteRangeRequest { key: history::key(key).into(), ..Default::default() }
}

fn operation(operation: &Operation) -> pb::RequestOp {
    let request = match *operation {
        Operation::Put(key, mark) => pb::request_op::Request::RequestPut(put(key, mark)),
        Operation::Delete(key) => pb::request_op::Request::RequestDeleteRange(delete(key)),
    };
    wire::operation(request)
}

pub async fn compact(caller: &Caller, revision: i64, physical: bool) -> Result<i64> {
    let request = pb::CompactionRequest { revision, physical };
    let response: pb::CompactionResponse = call(caller, wire::PATH_COMPACT, &request).await?;
    Ok(response.header.unwrap_or_default().revision)
}

/// Everything at a revision, 0 for now; `None` if it is compacted.
pub async fn rows(caller: &Caller, revision: i64) -> Result<Option<Vec<Row>>> {
    let (key, range_end) = (history::key(0).into(), history::ALL_END.into());
    let request = pb::RangeRequest { key, range_end, revision, ..Default::default() };
    let response: pb::RangeResponse = match call(caller, wire::PATH_RANGE, &request).await {
        Err(fault) if says(&fault, "required revision has been compacted") => return Ok(None),
        response => response?,
    };
    if response.count != response.kvs.len() as i64 || response.more {
        return Err(Fault::Broken(format!("a read at {revision} counts otherwise than it shows")));
    }
    let rows = response.kvs.iter().map(|kv| {
        let key = history::index(&kv.key);
        let (Some(key), Some(mark)) = (key, Mark::read(&kv.value)) else {
            let text = format!("a read at {revision} shows what nobody wrote: {:?}, {} bytes", kv.key, kv.value.len());
            return Err(Fault::Broken(text));
        };
        let put = Put { mark, create_revision: kv.create_revision, version: kv.version };
        Ok(Row { key, mod_revision: kv.mod_revision, put })
    });
    rows.collect::<Result<Vec<Row>>>().map(Some)
}
