//! One watch stream, its messages awaited one after the other.

use std::collections::VecDeque;
use std::future::poll_fn;

use bytes::Bytes;
use h2::SendStream;
use tarsier_proto::etcdserverpb as pb;
use tarsier_proto::etcdserverpb::watch_request::RequestUnion;

use crate::caller::Caller;
use crate::fault::{Fault, PATIENCE, Result, within};
use crate::link::{Answer, Piece};
use crate::wire::{self, Deframer, WatchReply};

const PATH: &str = wire::PATH_WATCH;

pub struct WatchStream {
    caller: Caller,
    send: SendStream<Bytes>,
    answer: Answer,
    deframer: Deframer,
    messages: VecDeque<Vec<u8>>,
    created: u64,
}

impl WatchStream {
    pub async fn open(caller: &Caller) -> Result<WatchStream> {
        let (send, answer) = caller.open(PATH).await?;
        let (deframer, messages) = Default::default();
        Ok(WatchStream { caller: caller.clone(), send, answer, deframer, messages, created: 0 })
    }

    /// Creates a watch on one key and waits until it exists; `early` is given what comes to the other watches meanwhile.
    pub async fn create(
        &mut self,
        request: pb::WatchCreateRequest,
        mut early: impl FnMut(&WatchReply<'_>) -> Result<()>,
    ) -> Result<()> {
        let request = pb::WatchRequest { request_union: Some(RequestUnion::CreateRequest(request)) };
        let http = |cause| Fault::Http { endpoint: self.caller.endpoint().to_string(), cause };
        self.send.send_data(wire::framed(&request), false).map_err(http)?;
        let created = async {
            loop {
                let message = self.next_message().await?;
                let reply = self.decode(&message)?;
                if reply.created {
                    let expected = self.created as i64;
                    self.created += 1;
                    return match reply.watch_id {
                        found if found != expected => Err(Fault::WatchId { expected, found }),
                        _ => Ok(()),
                    };
                }
                early(&reply)?;
            }
        };
        within(PATIENCE, "a watch to be created", created).await
    }

    /// Gives the next message with events to `each`.
    pub async fn next(&mut self, each: impl FnOnce(&WatchReply<'_>) -> Result<()>) -> Result<()> {
        let message = self.next_message().await?;
        each(&self.decode(&message)?)
    }

    fn decode<'a>(&self, message: &'a [u8]) -> Result<WatchReply<'a>> {
        let reply = WatchReply::decode(message).map_err(|cause| Fault::Malformed { path: PATH, cause })?;
        if reply.canceled {
            let reason = String::from_utf8_lossy(reply.cancel_reason).into_owned();
            return Err(Fault::Canceled { watch: reply.watch_id as u64, reason });
        }
        Ok(reply)
    }

    async fn next_message(&mut self) -> Result<Vec<u8>> {
        loop {
            if let Some(message) = self.messages.pop_front() {
                return Ok(message);
            }
            let endpoint = self.caller.endpoint();
            match poll_fn(|cx| self.answer.poll_piece(endpoint, PATH, cx)).await? {
                // Nobody has asked for the stream's end.
                Piece::End => return Err(Fault::NoAnswer { path: PATH }),
                Piece::Data(data) => {
                    let messages = &mut self.messages;
                    let whole = self.deframer.feed(&data, |message| {
                        messages.push_back(message.to_vec());
                        Ok(())
                    });
                    whole.map_err(|cause| Fault::Malformed { path: PATH, cause })?;
                }
            }
        }
    }
}

/// How many events a reply has.
pub fn events(reply: &WatchReply<'_>) -> Result<u64> {
    let mut count = 0;
    for event in reply.events() {
        event.map_err(|cause| Fault::Malformed { path: PATH, cause })?;
        count += 1;
    }
    Ok(count)
}
