//! The page of numbers that a server shows to Prometheus, as far as a run asks it something.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::caller::Caller;
use crate::fault::{Fault, Result};

const PATIENCE: Duration = Duration::from_secs(20);

/// A number of the page that has no labels.
pub async fn number(endpoint: &str, name: &str) -> Result<u64> {
    let page = page(endpoint).await?;
    number_in(&page, name).ok_or_else(|| Fault::Refused(format!("http://{endpoint}/metrics names no {name}")))
}

/// What a server says it is: the version of the API that it speaks, and of a tarsier, whose own version is another one,
/// that before it. Empty if it says nothing.
pub async fn version(caller: &Caller) -> Result<String> {
    let api = caller.api_version().await?;
    // A server need not show the page to its clients; then the call is all that tells.
    let page = page(caller.endpoint()).await.unwrap_or_default();
    Ok(match own_version_in(&page) {
        Some(own) => format!("{own} (API version {api})"),
        None => api,
    })
}

async fn page(endpoint: &str) -> Result<String> {
    let failed = |cause| Fault::Refused(format!("http://{endpoint}/metrics cannot be read: {cause}"));
    let mut page = String::new();
    let read = async {
        let mut socket = TcpStream::connect(endpoint).await?;
        socket.write_all(b"GET /metrics HTTP/1.0\r\nhost: bench\r\n\r\n").await?;
        socket.read_to_string(&mut page).await
    };
    let late = |_| Fault::Stalled { waiting_for: "the page of numbers".to_owned(), seconds: PATIENCE.as_secs() };
    tokio::time::timeout(PATIENCE, read).await.map_err(late)?.map_err(failed)?;
    Ok(page)
}

/// The number of that name, which has no labels, on a page of numbers. Go writes a million as `1e+06`.
fn number_in(page: &str, name: &str) -> Option<u64> {
    let text = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
    text.trim().parse::<f64>().ok().map(|number| number as u64)
}

/// The version of the program, which tarsier shows as a label.
fn own_version_in(page: &str) -> Option<&str> {
    let labels = page.lines().find_map(|line| line.strip_prefix("tarsier_build_info{version=\""))?;
    labels.split_once('"').map(|(version, _)| version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_found_by_its_whole_name() {
        let page =
            "# TYPE limit_bytes gauge\r\nlimit_bytes_total 1\r\nlimit_bytes{a=\"b\"} 2\r\nlimit_bytes 858993459\r\n";
        assert_eq!(number_in(page, "limit_bytes"), Some(858_993_459));
        assert_eq!(number_in(page, "bytes"), None);
        assert_eq!(number_in("count 1.234567e+06\n", "count"), Some(1_234_567));
    }

    #[test]
    fn only_a_tarsier_has_a_version_of_its_own() {
        let page = "# TYPE tarsier_build_info gauge\ntarsier_build_info{version=\"0.1.0\"} 1\n";
        assert_eq!(own_version_in(page), Some("0.1.0"));
        assert_eq!(own_version_in("etcd_server_version{server_version=\"3.7.3\"} 1\n"), None);
    }
}
