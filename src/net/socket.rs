//! A connected socket on the ring: at most one receive and one send in flight.
//!
//! It owns the descriptor and what is in flight on it. A receive is armed once and its completion kept until somebody
//! takes it, so a lost wake or a poll for another reason never drops one. While it waits it holds no buffer: the kernel
//! picks one from the shard's pool when bytes are there. The end has an order: [`Socket::poll_close`] shuts down, awaits
//! both operations, and only then may the socket be dropped; the descriptor closes with the last share of it.

use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use rustix::io::Errno;
use rustix::net::Shutdown;

use super::ring::{self, Nop, Received, Recv, Send};

pub struct Socket {
    descriptor: Rc<OwnedFd>,
    receiving: Receiving,
    sending: Option<Sending>,
    is_shut: bool,
}

enum Receiving {
    Idle,
    Armed(Recv),
    /// Every buffer of the shard is out; try again once the ring has turned.
    Starved(Nop),
}

struct Sending {
    operation: Send,
    sent: usize,
}

impl Socket {
    pub fn new(descriptor: OwnedFd) -> Socket {
        Socket { descriptor: Rc::new(descriptor), receiving: Receiving::Idle, sending: None, is_shut: false }
    }

    /// The next bytes; empty at the end of the stream.
    pub fn poll_receive(&mut self, context: &mut Context<'_>) -> Poll<io::Result<Received>> {
        loop {
            match &mut self.receiving {
                Receiving::Idle => self.receiving = Receiving::Armed(Recv::submit(&self.descriptor)),
                Receiving::Armed(operation) => {
                    let result = ready!(Pin::new(operation).poll(context));
                    self.receiving = Receiving::Idle;
                    match result {
                        Err(error) if is(&error, Errno::NOBUFS) => {
                            if !ring::replenish() {
                                self.receiving = Receiving::Starved(Nop::submit());
                            }
                        }
                        Err(error) if is(&error, Errno::INTR) => {}
                        result => return Poll::Ready(result),
                    }
                }
                Receiving::Starved(pause) => {
                    ready!(Pin::new(pause).poll(context));
                    self.receiving = Receiving::Idle;
                }
            }
        }
    }

    pub fn is_sending(&self) -> bool {
        self.sending.is_some()
    }

    /// # Panics
    /// While another send is in flight.
    pub fn send(&mut self, buffer: Vec<u8>) {
        assert!(self.sending.is_none(), "a second send would race with the first for the order of bytes");
        self.sending = Some(Sending { operation: Send::submit(&self.descriptor, buffer, 0), sent: 0 });
    }

    /// Ready with the buffer once all of it has left, and with `None` when nothing was in flight.
    pub fn poll_sent(&mut self, context: &mut Context<'_>) -> Poll<io::Result<Option<Vec<u8>>>> {
        while let Some(sending) = &mut self.sending {
            let (result, buffer) = ready!(Pin::new(&mut sending.operation).poll(context));
            let sent = sending.sent;
            self.sending = None;
            let sent = match result {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(more) => sent + more,
                Err(error) if is(&error, Errno::INTR) => sent,
                Err(error) => return Poll::Ready(Err(error)),
            };
            if sent == buffer.len() {
                return Poll::Ready(Ok(Some(buffer)));
            }
            let operation = Send::submit(&self.descriptor, buffer, sent);
            self.sending = Some(Sending { operation, sent });
        }
        Poll::Ready(Ok(None))
    }

    /// Tells the peer that nothing follows what was sent. It may still send.
    pub fn end_sending(&self) -> io::Result<()> {
        rustix::net::shutdown(&*self.descriptor, Shutdown::Write).map_err(io::Error::from)
    }

    /// Ends both directions at once, whatever is in flight, and is ready when nothing is.
    pub fn poll_close(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if !self.is_shut {
            self.is_shut = true;
            // A peer that has gone leaves nothing to shut down; the operations end either way.
            let _ = rustix::net::shutdown(&*self.descriptor, Shutdown::Both);
        }
        // The buffer or the error of a send tell nothing any more.
        let _ = ready!(self.poll_sent(context));
        if let Receiving::Armed(operation) = &mut self.receiving {
            // What a late receive took goes back to the pool here.
            let _ = ready!(Pin::new(operation).poll(context));
        }
        self.receiving = Receiving::Idle;
        Poll::Ready(())
    }
}

fn is(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno.raw_os_error())
}
