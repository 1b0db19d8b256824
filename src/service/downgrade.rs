//! Downgrades: etcd makes the data readable for the release before, whose members then take over one by one.
//!
//! What etcd refuses is refused here in its words and its order. What it would do cannot be done: our data has another
//! format, which no etcd reads, so an operator who asks whether he may go back must not be told yes.

use bytes::Bytes;

use crate::backend::{Command, Identity};
use crate::grpc::status::Status;
use crate::pb::etcdserverpb as wire;
use crate::pb::etcdserverpb::downgrade_request::DowngradeAction;
use crate::service::errors::{Refusal, single_server};
use crate::service::message::{framed, header};
use crate::types::{ETCD_API_VERSION, Revision};

/// The release before the one whose API is kept: major and minor.
const RELEASE_BEFORE: (i64, i64) = (3, 6);

/// Reads a request. To cancel what is not under way is legal, and its answer tells the revision.
///
/// # Errors
/// For every other request.
pub fn decode(request: &wire::DowngradeRequest) -> Result<Command, Status> {
    match DowngradeAction::try_from(request.action) {
        Ok(DowngradeAction::Cancel) => Ok(Command::Status),
        Ok(DowngradeAction::Validate | DowngradeAction::Enable) => Err(refusal(&request.version)),
        Err(_) => Err(Refusal::UnknownMethod.into()),
    }
}

fn refusal(target: &str) -> Status {
    match release(target).or_else(|| release(&format!("{target}.0"))) {
        None => Refusal::WrongDowngradeVersionFormat.into(),
        Some(release) if release != RELEASE_BEFORE => Refusal::InvalidDowngradeTargetVersion.into(),
        Some(_) => single_server("no etcd reads its data"),
    }
}

/// Major and minor of a version as the library reads it that etcd uses: signs and leading zeros are legal.
fn release(version: &str) -> Option<(i64, i64)> {
    let (version, metadata) = version.split_once('+').unwrap_or((version, ""));
    let (version, pre_release) = version.split_once('-').unwrap_or((version, ""));
    let is_identifier = |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-.".contains(&byte));
    if !is_identifier(metadata) || !is_identifier(pre_release) {
        return None;
    }
    let mut numbers = version.splitn(3, '.').map(|number| number.parse::<i64>().ok());
    let (major, minor, _patch) = (numbers.next()??, numbers.next()??, numbers.next()??);
    Some((major, minor))
}

/// The answer to a cancel. It names the version of the cluster by its release.
pub fn canceled(identity: Identity, revision: Revision) -> Bytes {
    let release = ETCD_API_VERSION.rsplit_once('.').map_or(ETCD_API_VERSION, |(release, _)| release);
    framed(&wire::DowngradeResponse { header: header(identity, revision), version: release.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grpc::status::Code;

    #[test]
    fn versions_are_read_as_etcd_reads_them() {
        for (text, expected) in [
            ("3.6.0", Some((3, 6))),
            ("3.06.9", Some((3, 6))),
            ("3.6.0-alpha.1+build", Some((3, 6))),
            ("3.6", None),
            ("3.6.0.1", None),
            ("v3.6.0", None),
            ("3.6.0+b_d", None),
            ("-1.2.3", None),
            ("99999999999999999999.6.0", None),
        ] {
            assert_eq!(release(text), expected, "{text}");
        }
    }

    #[test]
    fn no_downgrade_is_ever_promised() {
        for version in ["", "3", "3.6", "3.6.0", "3.7", "x"] {
            for action in 0..2 {
                let request = wire::DowngradeRequest { action, version: version.to_owned() };
                assert!(decode(&request).is_err(), "{version}");
            }
        }
        assert_eq!(refusal("3.6").code, Code::Unimplemented);
        let cancel = wire::DowngradeRequest { action: 2, version: String::new() };
        assert!(matches!(decode(&cancel), Ok(Command::Status)));
    }
}
