//! Listening sockets, and the task that accepts from one.
//!
//! Each shard has its own listener an address (`SO_REUSEPORT`), so the kernel spreads clients and no connection is ever
//! passed between threads. `SO_REUSEPORT` also lets a second server share the port in silence, which then gets half of the
//! clients; so a [`Claim`] holds each address from before the store is read until every shard listens.
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

/// An address that is ours for as long as this lives: nobody else can bind it, and it refuses clients. Our shards can bind it
/// beside the claim, so that from the look whether it is free to the last shard's listener there is no moment for a second
/// server. With SO_REUSEPORT alone, two of one user that start together would share the port in silence.
#[derive(Debug)]
pub struct Claim {
    address: SocketAddr,
    _socket: Socket,
}

impl Claim {
    /// # Errors
    /// When another process listens on the address or has claimed it, or it cannot be bound.
    pub fn new(address: SocketAddr) -> Result<Claim, ListenError> {
        let socket = socket(address, false)?;
        // Two that bound at the same moment are told apart by now: of sockets with SO_REUSEADDR alone, one can listen. Without
        // that option, a bound socket keeps out whoever does not share its port as our listeners do. The two options
        // come before the end of the listening, or there would be a gap.
        let keep = || {
            socket.set_reuse_address(false)?;
            socket.set_reuse_port(true)?;
            // Nobody serves yet, so a client must be refused and not left waiting.
            rustix::net::shutdown(&socket, Shutdown::Both).map_err(io::Error::from)
        };
        keep().map_err(|error| ListenError::Refused(address, error))?;
        Ok(Claim { address, _socket: socket })
    }

    /// Whether the address lies within this one, so that a claim of its own would only meet ours.
    pub fn holds(&self, address: SocketAddr) -> bool {
        let (ours, ip) = (self.address.ip(), address.ip());
        let is_within = ours == ip || ours.is_unspecified() && ours.is_ipv4() == ip.is_ipv4();
        is_within && self.address.port() == address.port()
    }
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
        let error = Claim::new(first.address()).unwrap_err();
        assert!(error.to_string().contains("another process"), "{error}");
        drop((first, second));
    }

    /// As another process of the same user would.
    fn is_free(address: SocketAddr) -> bool {
        match Claim::new(address) {
            Ok(_) => true,
            Err(ListenError::Taken(_)) => false,
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn a_claimed_address_is_kept_for_our_listeners_and_refuses_clients_until_then() {
        // Addresses below 127 are this machine's, and nobody else listens on this one.
        let address = |port| SocketAddr::from(([127, 34, 0, 1], port));
        let first = Listener::bind(address(0)).unwrap();
        let port = first.address().port();
        drop(first);
        let claim = Claim::new(address(port)).unwrap();
        let any = SocketAddr::from(([0, 0, 0, 0], port));
        assert!(!is_free(address(port)) && !is_free(any), "a second start is told so");
        assert!(std::net::TcpListener::bind(address(port)).is_err(), "and so is another program");
        assert!(std::net::TcpStream::connect(address(port)).is_err(), "nobody serves here yet");
        let listener = Listener::bind(address(port)).unwrap();
        assert!(!is_free(address(port)));
        let further = Listener::bind(address(port)).unwrap();
        drop(claim);
        assert!(!is_free(address(port)), "it goes over to the listeners without a gap");
        std::net::TcpStream::connect(address(port)).unwrap();
        drop((listener, further));
        assert!(is_free(address(port)), "the next start has it at once");
    }

    #[test]
    fn of_those_that_claim_an_address_at_the_same_moment_one_at_most_has_it() {
        let address = SocketAddr::from(([127, 34, 0, 2], 34_567));
        let mut had = 0;
        for _ in 0..500 {
            let together = std::sync::Barrier::new(4);
            let claims = std::thread::scope(|scope| {
                let claim = || {
                    together.wait();
                    Claim::new(address).ok()
                };
                let threads: Vec<_> = (0..4).map(|_| scope.spawn(claim)).collect();
                threads.into_iter().filter_map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
            });
            assert!(claims.len() <= 1);
            had += claims.len();
        }
        assert!(had > 0);
    }

    #[test]
    fn an_unspecified_address_holds_all_of_its_family_and_port() {
        let claim = Claim::new("0.0.0.0:0".parse().unwrap()).unwrap();
        let claim = Claim { address: "0.0.0.0:80".parse().unwrap(), ..claim };
        let held =
            ["10.0.0.1:80", "0.0.0.0:80", "10.0.0.1:81", "[::1]:80"].map(|text| claim.holds(text.parse().unwrap()));
        assert_eq!(held, [true, true, false, false]);
    }
}
