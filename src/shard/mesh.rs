//! Bounded lock-free queues between the shards.
//!
//! Only the writer's shard has something to say to the others and they to it, so the mesh has two queues for each shard:
//! its requests to the writer and the writer's replies to it. Shard 0 has the same pair to itself, so that the writer treats
//! all shards alike.
//!
//! A request reserves the room of its reply: a shard has at most as many requests under way as its reply queue has places.
//! So the writer can always reply, and two full queues never wait for each other. What a shard cannot send yet waits on
//! its side, with the call that caused it: the peers that fill the queue are the ones that are slowed.

use std::collections::VecDeque;

use rtrb::{Consumer, Producer, RingBuffer};

use crate::backend::{Command, Reply};

/// Requests that a shard may have under way at the writer. At 100,000 puts a second it is 20 ms of work.
const UNDER_WAY_MAX: usize = 2_048;

/// Names a request on the shard that sent it.
pub type Token = u32;

pub struct Request {
    pub token: Token,
    pub command: Command,
}

pub struct Response {
    pub token: Token,
    pub reply: Reply,
}

/// A shard's end of its pair of queues.
pub struct Link {
    requests: Producer<Request>,
    responses: Consumer<Response>,
    under_way: usize,
    waiting: VecDeque<Request>,
}

/// The writer's end of one shard's pair of queues.
pub struct Port {
    requests: Consumer<Request>,
    responses: Producer<Response>,
}

/// The two ends for one shard.
pub fn pair() -> (Link, Port) {
    let (request_in, request_out) = RingBuffer::new(UNDER_WAY_MAX);
    let (response_in, response_out) = RingBuffer::new(UNDER_WAY_MAX);
    let link = Link { requests: request_in, responses: response_out, under_way: 0, waiting: VecDeque::new() };
    (link, Port { requests: request_out, responses: response_in })
}

impl Link {
    /// Sends the request, or keeps it until there is room for its reply. True when the writer has something new to do.
    pub fn send(&mut self, request: Request) -> bool {
        self.waiting.push_back(request);
        self.flush()
    }

    fn flush(&mut self) -> bool {
        let before = self.under_way;
        while self.under_way < UNDER_WAY_MAX {
            let Some(request) = self.waiting.pop_front() else { break };
            let pushed = self.requests.push(request);
            assert!(pushed.is_ok(), "a reserved request has a place, since both queues are equally long");
            self.under_way += 1;
        }
        self.under_way > before
    }

    /// The next reply. The place it took is free for the next waiting request.
    pub fn receive(&mut self) -> Option<Response> {
        let response = self.responses.pop().ok()?;
        self.under_way -= 1;
        Some(response)
    }

    /// After replies were received: sends what waited for their room. True when the writer has something new to do.
    pub fn refill(&mut self) -> bool {
        !self.waiting.is_empty() && self.flush()
    }

    pub fn has_response(&self) -> bool {
        !self.responses.is_empty()
    }
}

impl Port {
    pub fn receive(&mut self) -> Option<Request> {
        self.requests.pop().ok()
    }

    pub fn has_request(&self) -> bool {
        !self.requests.is_empty()
    }

    pub fn reply(&mut self, response: Response) {
        let pushed = self.responses.push(response);
        assert!(pushed.is_ok(), "the request reserved the room of its reply");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Revision;

    fn history(from: i64) -> Command {
        Command::History { from: Revision(from) }
    }

    #[test]
    fn requests_beyond_the_room_wait_and_leave_in_order() {
        let (mut link, mut port) = pair();
        let total = UNDER_WAY_MAX as u32 * 3;
        for token in 0..total {
            link.send(Request { token, command: history(i64::from(token)) });
        }
        let mut replied = 0;
        while replied < total {
            while let Some(request) = port.receive() {
                port.reply(Response { token: request.token, reply: Reply::History(Ok(Vec::new())) });
            }
            assert!(port.receive().is_none(), "no more than the reserved requests are under way");
            while let Some(response) = link.receive() {
                assert_eq!(response.token, replied, "replies keep the order of their requests here");
                replied += 1;
            }
            link.refill();
        }
        assert!(!link.has_response() && !port.has_request());
    }
}
