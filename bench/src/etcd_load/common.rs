//! The flags that all loads of etcd's tool have.

use std::sync::Arc;

use clap::Args;
use tarsier_proto::etcdserverpb as pb;

use super::tally::Form;
use crate::caller::{self, Caller};
use crate::fault::{Fault, Result};
use crate::link::Windows;
use crate::wire;

/// A range may answer with many megabytes.
pub const WINDOWS: Windows = Windows::WIDE;

#[derive(Args, Debug)]
pub struct Common {
    /// Servers, as HOST:PORT or http://HOST:PORT, separated by commas
    #[arg(long, global = true, default_value = "127.0.0.1:2379", value_delimiter = ',', value_parser = host_and_port)]
    pub endpoints: Vec<Arc<str>>,
    /// Ask that one of the servers alone which says that it is the leader
    #[arg(long, global = true)]
    target_leader: bool,
    /// Connections
    #[arg(long, global = true, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    conns: u32,
    /// Clients, which share the connections
    #[arg(long, global = true, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    clients: u32,
    /// Print all digits
    #[arg(long, global = true)]
    precise: bool,
    /// Print what each second has seen besides
    #[arg(long, global = true)]
    sample: bool,
    #[command(flatten)]
    _absent: Absent,
}

/// What etcd's tool has and this one has not: each is refused with its reason, since a figure that was made without it would
/// not be the one that was asked for.
#[derive(Args, Debug)]
struct Absent {
    #[arg(long, global = true, hide = true, value_parser = no_tls)]
    cert: Option<String>,
    #[arg(long = "key", global = true, hide = true, value_parser = no_tls)]
    tls_key: Option<String>,
    #[arg(long, global = true, hide = true, value_parser = no_tls)]
    cacert: Option<String>,
    #[arg(long, global = true, hide = true, value_parser = no_tls)]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    insecure_skip_tls_verify: Option<String>,
    #[arg(long, global = true, hide = true, value_parser = no_users)]
    user: Option<String>,
    #[arg(long, global = true, hide = true, value_parser = no_dial_timeout)]
    dial_timeout: Option<String>,
    #[arg(long, global = true, hide = true, value_parser = no_sync)]
    auto_sync_interval: Option<String>,
    #[arg(long, global = true, hide = true, value_parser = no_perfdash)]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    report_perfdash: Option<String>,
}

fn no_tls(_: &str) -> std::result::Result<String, &'static str> {
    Err("the load client speaks no TLS; measure a server that listens without")
}

fn no_users(_: &str) -> std::result::Result<String, &'static str> {
    Err("the load client logs in as nobody; measure a server without auth")
}

fn no_dial_timeout(_: &str) -> std::result::Result<String, &'static str> {
    Err("a server that answers nothing for five seconds is given up, whatever this says")
}

fn no_sync(_: &str) -> std::result::Result<String, &'static str> {
    Err("the servers are those of --endpoints from beginning to end")
}

fn no_perfdash(_: &str) -> std::result::Result<String, &'static str> {
    Err("no report for perfdash is written")
}

/// What remains of an endpoint without the scheme that etcd's tools take as well.
fn host_and_port(text: &str) -> std::result::Result<Arc<str>, String> {
    let rest = text.trim();
    let rest = match rest.split_once("://") {
        None => rest,
        Some(("http", rest)) => rest.trim_end_matches('/'),
        Some(("https", _)) => return Err("the load client speaks no TLS".to_owned()),
        Some((scheme, _)) => return Err(format!("{scheme} is not spoken here")),
    };
    let is_port = |port: &str| port.parse::<u16>().is_ok_and(|port| port > 0);
    match rest.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && !rest.contains('/') && is_port(port) => Ok(rest.into()),
        _ => Err("an endpoint is HOST:PORT".to_owned()),
    }
}

impl Common {
    pub fn form(&self) -> Form {
        Form { precise: self.precise, sample: self.sample }
    }

    /// One a client; the connection of client i is i modulo their number, its server that modulo the servers.
    pub async fn callers(&self) -> Result<Vec<Caller>> {
        let endpoints = self.asked().await?;
        let mut connections = Vec::new();
        for at in 0..self.conns.min(self.clients) as usize {
            let endpoint = &endpoints[at % endpoints.len()];
            connections.push(Caller::connect(endpoint, WINDOWS).await?);
        }
        Ok((0..self.clients as usize).map(|client| connections[client % connections.len()].clone()).collect())
    }

    /// The servers that the load goes to. All are there.
    async fn asked(&self) -> Result<Vec<Arc<str>>> {
        let mut leaders = Vec::new();
        for endpoint in &self.endpoints {
            let caller = caller::greet(endpoint).await?;
            if self.target_leader && is_leader(&caller.ask(wire::PATH_STATUS, &pb::StatusRequest::default()).await?) {
                leaders.push(endpoint.clone());
            }
        }
        if !self.target_leader {
            return Ok(self.endpoints.clone());
        }
        // Two endpoints may be one server's.
        leaders.truncate(1);
        if leaders.is_empty() {
            Err(Fault::Refused("none of the endpoints is the leader".to_owned()))
        } else {
            Ok(leaders)
        }
    }
}

fn is_leader(status: &pb::StatusResponse) -> bool {
    status.header.as_ref().is_some_and(|header| status.leader != 0 && header.member_id == status.leader)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_may_have_the_scheme_that_is_spoken() {
        for text in ["127.0.0.1:2379", "http://127.0.0.1:2379", " http://127.0.0.1:2379/"] {
            assert_eq!(host_and_port(text).as_deref(), Ok("127.0.0.1:2379"));
        }
        assert_eq!(host_and_port("http://[::1]:2379").as_deref(), Ok("[::1]:2379"));
        let refused = |text| host_and_port(text).unwrap_err();
        assert_eq!(refused("https://127.0.0.1:2379"), "the load client speaks no TLS");
        assert_eq!(refused("unix://socket:0"), "unix is not spoken here");
        for text in ["", "localhost", "localhost:", ":2379", "localhost:0", "localhost:2379/v3", "localhost:port"] {
            assert_eq!(refused(text), "an endpoint is HOST:PORT", "{text}");
        }
    }

    #[test]
    fn the_leader_is_who_names_itself() {
        let status = |member_id, leader| {
            let header = Some(pb::ResponseHeader { member_id, ..Default::default() });
            pb::StatusResponse { header, leader, ..Default::default() }
        };
        assert!(is_leader(&status(7, 7)));
        assert!(!is_leader(&status(7, 8)));
        assert!(!is_leader(&status(0, 0)), "nobody is");
        assert!(!is_leader(&pb::StatusResponse::default()));
    }
}
