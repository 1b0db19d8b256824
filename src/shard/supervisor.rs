//! Tells the supervisor that has started the process how it stands: systemd, with `Type=notify`, or who does as systemd does.
//!
//! etcd's own unit is of that type, and a server that never says that it is ready is killed there after 90 s. The protocol is a
//! datagram with a word in it, to the socket that `NOTIFY_SOCKET` names (sd_notify(3)): no library is needed for it.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// What a supervisor acts on.
#[derive(Clone, Copy)]
pub enum State {
    /// Clients are served; whoever was ordered behind this service may start.
    Ready,
    /// The end has begun.
    Stopping,
}

/// Who is told: nobody, unless the environment names a socket.
pub struct Supervisor {
    socket: Option<OsString>,
}

impl Supervisor {
    pub fn of_this_process() -> Supervisor {
        Supervisor { socket: std::env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty()) }
    }

    /// Nobody can do anything about a supervisor that does not listen but read of it, and clients are served all the same.
    pub fn tell(&self, state: State) {
        let Some(socket) = &self.socket else { return };
        if let Err(error) = send(socket, state) {
            tracing::warn!(%error, socket = %socket.display(), "the supervisor cannot be told how the server stands");
        }
    }
}

fn send(socket: &OsStr, state: State) -> io::Result<()> {
    let word: &[u8] = match state {
        State::Ready => b"READY=1",
        State::Stopping => b"STOPPING=1",
    };
    // A name that begins with @ is no file: it lies in the abstract namespace, where that byte is 0.
    let address = match socket.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(socket)?,
    };
    let sender = UnixDatagram::unbound()?;
    // A supervisor that does not read must not hold up the start.
    sender.set_nonblocking(true)?;
    sender.send_to_addr(word, &address).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(listener: &UnixDatagram) -> String {
        let mut buffer = [0; 64];
        let length = listener.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    }

    #[test]
    fn the_socket_hears_of_the_start_and_of_the_end() {
        let path = std::env::temp_dir().join(format!("tarsier-supervisor-{}", std::process::id()));
        let listener = UnixDatagram::bind(&path).unwrap();
        let supervisor = Supervisor { socket: Some(path.clone().into_os_string()) };
        supervisor.tell(State::Ready);
        supervisor.tell(State::Stopping);
        assert_eq!([received(&listener), received(&listener)], ["READY=1", "STOPPING=1"]);
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_name_with_an_at_sign_is_abstract() {
        let name = format!("tarsier-supervisor-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let listener = UnixDatagram::bind_addr(&address).unwrap();
        send(OsStr::new(&format!("@{name}")), State::Ready).unwrap();
        assert_eq!(received(&listener), "READY=1");
    }

    #[test]
    fn a_socket_that_is_not_there_is_an_error_and_no_socket_is_none() {
        send(OsStr::new("/nowhere/notify"), State::Ready).unwrap_err();
        Supervisor { socket: None }.tell(State::Ready);
    }
}
