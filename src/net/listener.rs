//! Listening sockets, and the task that accepts from one.
//!
//! Each shard has its own listener an address (`SO_REUSEPORT`), so the kernel spreads clients and no connection is ever
//! passed between threads. `SO_REUSEPORT` also lets a second server share the port in silence, which then gets half of the
//! clients; so [`probe`] first binds without it.
//!
//! The accept runs bare in its task: an accept that is dropped in flight leaks the client that it takes. It ends by
//! shutting the listening socket down.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::Shutdown;
use socket2::{Domain, Protocol, Socket, Type};

use super::ring::Accept;

/// Clients that the kernel keeps until they are accepted: a whole fleet that reconnects at once.
const BACKLOG: i32 = 4_096;
/// The kernel doubles this for its own overhead, and caps it by `net.core.wmem_max`.
pub const SEND_BUFFER_BYTES: usize = 256 * 1_024;
/// Less would cut the answers to large ranges into many sends.
pub const SEND_BUFFER_BYTES_MIN: usize = 32 * 1_024;

/// What the kernel holds at most for a socket whose send buffer was set so: what it counts is twice that.
pub fn send_buffer_bytes_max(send_buffer_bytes: usize) -> usize {
    2 * send_buffer_bytes
}
const BACK_OFF_MIN: Duration = Duration::from_millis(10);
const BACK_OFF_MAX: Duration = Duration::from_millis(100);

/// The addresses that `host:port` means: `localhost` is both families, and so is an empty host.
///
/// # Errors
/// When it is not an address. Other names are not resolved: a listener that follows DNS surprises its operator.
pub fn addresses(text: &str) -> Result<Vec<SocketAddr>, ListenError> {
    let malformed = || ListenError::Malformed(text.to_owned());
    if let Ok(address) = text.parse() {
        return Ok(vec![address]);
    }
    let (host, port) = text.rsplit_once(':').ok_or_else(malformed)?;
    let port = port.parse().map_err(|_| malformed())?;
    match host {
        "localhost" => Ok(vec![
            SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port),
            SocketAddr::new(IpAddr::V6(Ipv6Addr::LOCALHOST), port),
        ]),
        "" => Ok(vec![
            SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port),
            SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port),
        ]),
        _ => Err(malformed()),
    }
}

#[derive(Debug)]
pub enum ListenError {
    Malformed(String),
    Taken(SocketAddr),
    Refused(SocketAddr, io::Error),
}

impl std::error::Error for ListenError {}

impl std::fmt::Display for ListenError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ListenError::Malformed(text) => write!(f, "cannot listen on {text:?}: want ADDRESS:PORT"),
            ListenError::Taken(address) => {
                write!(f, "cannot listen on {address}: another process does; stop it or choose another port")
            }
            ListenError::Refused(address, error) => write!(f, "cannot listen on {address}: {error}"),
        }
    }
}

/// Refuses an address that another process listens on. Call it once an address, before the shards bind.
///
/// # Errors
/// When the address is taken or cannot be bound.
pub fn probe(address: SocketAddr) -> Result<(), ListenError> {
    socket(address, false).map(drop)
}

fn socket(address: SocketAddr, shared: bool) -> Result<Socket, ListenError> {
    let open = || {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        // Or a restart meets its own connections in TIME_WAIT.
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(shared)?;
        if address.is_ipv6() {
            // The IPv4 address beside it has a socket of its own.
            socket.set_only_v6(true)?;
        }
        // Its clients inherit it. Left alone, the kernel grows the buffer of a peer that reads slowly to 4 MiB.
        socket.set_send_buffer_size(SEND_BUFFER_BYTES)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        Ok(socket)
    };
    open().map_err(|error: io::Error| match error.kind() {
        io::ErrorKind::AddrInUse => ListenError::Taken(address),
        _ => ListenError::Refused(address, error),
    })
}

/// One shard's listening socket.
#[derive(Clone)]
pub struct Listener {
    socket: Rc<OwnedFd>,
    address: SocketAddr,
}

impl Listener {
    /// # Errors
    /// When the address cannot be bound.
    pub fn bind(address: SocketAddr) -> Result<Listener, ListenError> {
        let socket = socket(address, true)?;
        // With port 0 the kernel has chosen one.
        let bound = socket.local_addr().ok().and_then(|bound| bound.as_socket());
        Ok(Listener { socket: Rc::new(socket.into()), address: bound.unwrap_or(address) })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What the kernel may hold for each client that is accepted from here on. A kernel that refuses leaves what
    /// [`Listener::bind`] has set.
    pub(super) fn set_send_buffer_bytes(&self, bytes: usize) {
        let _ = rustix::net::sockopt::set_socket_send_buffer_size(&*self.socket, bytes);
    }

    /// Refuses clients from here on and ends [`Listener::accept_all`]; the accept in flight completes with an error.
    pub fn close(&self) {
        if let Err(error) = rustix::net::shutdown(&*self.socket, Shutdown::Both) {
            tracing::warn!(address = %self.address, %error, "cannot close the listener");
        }
    }

    /// Accepts until closed. `refused` hears of each error that is not the end.
    pub(super) async fn accept_all(&self, mut accepted: impl FnMut(OwnedFd, SocketAddr), mut refused: impl FnMut()) {
        let mut back_off = BACK_OFF_MIN;
        loop {
            match Accept::submit(&self.socket).await {
                Ok(client) => {
                    back_off = BACK_OFF_MIN;
                    // A client that is gone already has no name.
                    if let Some(peer) = prepare(&client) {
                        accepted(client, peer);
                    }
                }
                Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => return,
                Err(error) => {
                    refused();
                    let is_news = back_off == BACK_OFF_MIN;
                    if is_news && error.kind() != io::ErrorKind::ConnectionAborted {
                        tracing::warn!(address = %self.address, %error, "cannot accept a client, backing off");
                    }
                    // Out of descriptors or memory: whoever closes next makes room. The listener never gives up.
                    tokio::time::sleep(back_off).await;
                    back_off = (back_off * 2).min(BACK_OFF_MAX);
                }
            }
        }
    }
}

/// What an event says must not wait for the acknowledgement of the one before it.
fn prepare(client: &OwnedFd) -> Option<SocketAddr> {
    rustix::net::sockopt::set_tcp_nodelay(client, true).ok()?;
    SocketAddr::try_from(rustix::net::getpeername(client).ok()??).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn localhost_means_both_families_and_other_names_are_refused() {
        let both = addresses("localhost:2379").unwrap();
        assert_eq!(both, ["127.0.0.1:2379".parse().unwrap(), "[::1]:2379".parse().unwrap()]);
        assert_eq!(addresses("[::]:80").unwrap(), ["[::]:80".parse().unwrap()]);
        for text in ["example.com:1", "127.0.0.1", "1.2.3.4:70000", ""] {
            assert!(matches!(addresses(text), Err(ListenError::Malformed(_))), "{text}");
        }
    }

    #[test]
    fn shards_share_a_port_and_a_stranger_is_noticed() {
        let first = Listener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let second = Listener::bind(first.address()).unwrap();
        assert_eq!(first.address(), second.address());
        let error = probe(first.address()).unwrap_err();
        assert!(error.to_string().contains("another process"), "{error}");
        drop((first, second));
    }
}
