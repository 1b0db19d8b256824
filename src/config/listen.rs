//! Client URLs: where to listen, and what to tell clients.
//!
//! etcd's rules: a scheme, a host, a port and nothing behind; a listener binds an IP address or `localhost`, never a name
//! that a resolver would have to turn into one. Nothing here touches a socket.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// One address to listen on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ListenAddress {
    pub address: SocketAddr,
    /// Whether the start fails when it cannot be bound. `localhost` asks for both families, and a host without IPv6 still
    /// has a localhost: there only the IPv4 address is required. An unspecified address asks for both as well (Go's
    /// `net.Listen`), and requires its own.
    pub required: bool,
}

/// The addresses that a comma-separated list of URLs asks for, each once, in the order of the list.
pub fn listen_addresses(urls: &str) -> Result<Vec<ListenAddress>, String> {
    let mut addresses: Vec<ListenAddress> = Vec::new();
    for url in urls.split(',') {
        for wanted in addresses_of(url.trim())? {
            match addresses.iter_mut().find(|known| known.address == wanted.address) {
                Some(known) => known.required |= wanted.required,
                None => addresses.push(wanted),
            }
        }
    }
    Ok(addresses)
}

/// The same of a list that may be empty and has no address of `others`. Listeners of one process share a port in silence,
/// and clients would come to either.
pub fn listen_addresses_beside(urls: &str, others: &[ListenAddress]) -> Result<Vec<ListenAddress>, String> {
    if urls.is_empty() {
        return Ok(Vec::new());
    }
    let addresses = listen_addresses(urls)?;
    // An address of the host lies within the unspecified one of its family.
    let meet = |one: SocketAddr, other: SocketAddr| {
        let is_any = one.ip().is_unspecified() || other.ip().is_unspecified();
        one.port() == other.port() && one.is_ipv4() == other.is_ipv4() && (one.ip() == other.ip() || is_any)
    };
    match addresses.iter().find(|wanted| others.iter().any(|other| meet(other.address, wanted.address))) {
        Some(taken) => Err(format!("{} is an address for clients already", taken.address)),
        None => Ok(addresses),
    }
}

/// The URLs that clients are told, checked but not resolved: a name may well mean something only to them.
pub fn advertised_urls(urls: &str) -> Result<Vec<String>, String> {
    urls.split(',')
        .map(|url| {
            let url = url.trim();
            host_and_port(url).map(|_| url.to_owned())
        })
        .collect()
}

/// The URLs that the one member is listed with, in order and each once. Nothing listens there, so etcd's rule for them is the
/// only one: its four schemes, a host that may be a name, a port, no path (`types.NewURLs`).
pub fn peer_urls(urls: &str) -> Result<Vec<String>, String> {
    let mut urls: Vec<String> = urls.split(',').map(|url| peer_url(url.trim())).collect::<Result<_, _>>()?;
    urls.sort_unstable();
    urls.dedup();
    Ok(urls)
}

fn peer_url(url: &str) -> Result<String, String> {
    let expected = || format!("{url:?}: expected a URL such as http://127.0.0.1:2380");
    let (scheme, rest) = url.split_once("://").ok_or_else(expected)?;
    match scheme {
        "http" | "https" => {}
        "unix" | "unixs" => return Ok(url.to_owned()),
        _ => return Err(expected()),
    }
    let (authority, query) = rest.split_at(rest.find(['?', '#']).unwrap_or(rest.len()));
    if authority.contains('/') || query.contains(char::is_whitespace) {
        return Err(format!("{url}: expected no path behind host and port"));
    }
    let (host, port) = authority.rsplit_once(':').ok_or_else(|| format!("{url}: the port is missing"))?;
    let bare_ipv6 = host.contains(':') && !(host.contains('[') && host.ends_with(']'));
    if bare_ipv6 || host.contains(char::is_whitespace) || !port.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(expected());
    }
    Ok(url.to_owned())
}

fn addresses_of(url: &str) -> Result<Vec<ListenAddress>, String> {
    let (host, port) = host_and_port(url)?;
    if port == 0 {
        return Err(format!("{url}: port 0 would give every shard a port of its own"));
    }
    if host == "localhost" {
        return Ok(vec![
            ListenAddress { address: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port), required: true },
            ListenAddress { address: SocketAddr::new(IpAddr::V6(Ipv6Addr::LOCALHOST), port), required: false },
        ]);
    }
    let ip: IpAddr = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(inside) => inside.parse().map(IpAddr::V6),
        None => host.parse().map(IpAddr::V4),
    }
    .map_err(|_| format!("{url}: expected an IP address or localhost to listen on"))?;
    let mut addresses = vec![ListenAddress { address: SocketAddr::new(ip, port), required: true }];
    if ip.is_unspecified() {
        let other = if ip.is_ipv4() { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
        addresses.push(ListenAddress { address: SocketAddr::new(other, port), required: false });
    }
    Ok(addresses)
}

/// Splits `http://host:port`, and says of every other scheme why it is refused.
fn host_and_port(url: &str) -> Result<(&str, u16), String> {
    let expected = || format!("{url:?}: expected a URL such as http://127.0.0.1:2379");
    let (scheme, rest) = url.split_once("://").ok_or_else(expected)?;
    match scheme {
        "http" => {}
        "https" => return Err(format!("{url}: TLS is not built yet, only http is served")),
        "unix" | "unixs" => return Err(format!("{url}: unix sockets are not supported, only TCP")),
        _ => return Err(expected()),
    }
    // etcd: "URL must not contain a path"; a lone slash is one.
    if rest.contains(['/', '?', '#', '@']) {
        return Err(format!("{url}: expected nothing but host and port behind http://"));
    }
    let (host, port) = rest.rsplit_once(':').ok_or_else(|| format!("{url}: the port is missing"))?;
    // `u16::from_str` would take a leading plus sign.
    let port = Some(port).filter(|port| port.bytes().all(|b| b.is_ascii_digit())).and_then(|port| port.parse().ok());
    let port = port.ok_or_else(|| format!("{url}: expected a port from 1 to 65535"))?;
    let bare_ipv6 = host.contains(':') && !(host.starts_with('[') && host.ends_with(']'));
    if host.is_empty() || bare_ipv6 || host.contains(char::is_whitespace) {
        return Err(expected());
    }
    Ok((host, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(urls: &str, expected: &str) {
        let answer = match listen_addresses(urls) {
            Ok(addresses) => addresses
                .iter()
                .map(|a| format!("{}{}", a.address, if a.required { "" } else { "?" }))
                .collect::<Vec<_>>()
                .join(" "),
            Err(reason) => format!("error: {reason}"),
        };
        assert_eq!(answer, expected, "{urls}");
    }

    #[test]
    fn localhost_means_both_families_and_needs_only_the_first() {
        check("http://localhost:2379", "127.0.0.1:2379 [::1]:2379?");
        check("http://localhost:2379,http://[::1]:2379", "127.0.0.1:2379 [::1]:2379");
    }

    #[test]
    fn an_unspecified_address_means_both_families_and_needs_its_own() {
        check("http://0.0.0.0:2379", "0.0.0.0:2379 [::]:2379?");
        check("http://[::]:2379", "[::]:2379 0.0.0.0:2379?");
        check("http://[::]:2379,http://0.0.0.0:2379", "[::]:2379 0.0.0.0:2379");
    }

    #[test]
    fn addresses_keep_the_order_of_the_list_and_come_once() {
        check("http://10.0.0.1:1, http://127.0.0.1:2,http://10.0.0.1:1", "10.0.0.1:1 127.0.0.1:2");
    }

    #[test]
    fn what_cannot_be_served_is_refused_with_its_reason() {
        check("https://127.0.0.1:2379", "error: https://127.0.0.1:2379: TLS is not built yet, only http is served");
        check("unix://socket:0", "error: unix://socket:0: unix sockets are not supported, only TCP");
        check(
            "http://example.com:2379",
            "error: http://example.com:2379: expected an IP address or localhost to listen on",
        );
        check("http://127.0.0.1", "error: http://127.0.0.1: the port is missing");
        check("http://127.0.0.1:0", "error: http://127.0.0.1:0: port 0 would give every shard a port of its own");
        check("http://127.0.0.1:65536", "error: http://127.0.0.1:65536: expected a port from 1 to 65535");
        check("http://127.0.0.1:+1", "error: http://127.0.0.1:+1: expected a port from 1 to 65535");
        check("http://127.0.0.1:1/", "error: http://127.0.0.1:1/: expected nothing but host and port behind http://");
        check("", "error: \"\": expected a URL such as http://127.0.0.1:2379");
        check("127.0.0.1:2379", "error: \"127.0.0.1:2379\": expected a URL such as http://127.0.0.1:2379");
        check("http://::1:2379", "error: \"http://::1:2379\": expected a URL such as http://127.0.0.1:2379");
        check("http://127.0.0.1:1,", "error: \"\": expected a URL such as http://127.0.0.1:2379");
    }

    #[test]
    fn pages_have_addresses_of_their_own_or_none() {
        let clients = listen_addresses("http://localhost:2379").expect("an address");
        assert_eq!(listen_addresses_beside("", &clients), Ok(Vec::new()));
        assert_eq!(listen_addresses_beside("http://127.0.0.1:2381", &clients).map(|list| list.len()), Ok(1));
        let taken = listen_addresses_beside("http://10.0.0.1:1,http://127.0.0.1:2379", &clients);
        assert_eq!(taken, Err("127.0.0.1:2379 is an address for clients already".to_owned()));
        assert!(listen_addresses_beside("https://127.0.0.1:2381", &clients).is_err());
        assert!(listen_addresses_beside("http://0.0.0.0:2379", &clients).is_err(), "127.0.0.1 is one of them");
        let any = listen_addresses("http://0.0.0.0:2379").expect("an address");
        assert!(listen_addresses_beside("http://127.0.0.1:2379", &any).is_err());
        assert!(listen_addresses_beside("http://[::1]:2379", &any).is_err(), "the other family is served too");
    }

    /// Each was given to an etcd 3.7.3 as well.
    #[test]
    fn what_etcd_refuses_as_the_url_of_a_peer_is_refused() {
        for good in [
            "http://10.0.0.1:2380",
            "https://node-1.example:2380",
            "http://[::1]:2380",
            "http://127.0.0.1:99999",
            "http://:2380",
            "http://127.0.0.1:2380?x=1",
            "unix://peer:1",
        ] {
            assert_eq!(peer_urls(good), Ok(vec![good.to_owned()]));
        }
        for bad in [
            "",
            "junk",
            "http://",
            "http://a",
            "http://127.0.0.1:2380/",
            "http://127.0.0.1:2380/path",
            "http://127.0.0.1:x",
            "http://::1:2380",
            "ftp://127.0.0.1:2380",
            "http://a:1,",
        ] {
            assert!(peer_urls(bad).is_err(), "{bad}");
        }
        let listed = peer_urls("http://b:1, http://a:1,http://b:1");
        assert_eq!(listed, Ok(vec!["http://a:1".to_owned(), "http://b:1".to_owned()]));
    }

    #[test]
    fn an_advertised_url_may_carry_a_name() {
        assert_eq!(
            advertised_urls("http://node-1.example:2379,http://10.0.0.1:2379"),
            Ok(vec!["http://node-1.example:2379".to_owned(), "http://10.0.0.1:2379".to_owned()])
        );
        assert!(advertised_urls("https://node-1.example:2379").is_err());
        assert!(advertised_urls("node-1.example:2379").is_err());
    }
}
