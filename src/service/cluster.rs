//! The cluster of one: lists itself, and refuses in etcd's words what one member cannot do.
//!
//! etcd judges a change before it makes it, and what it refuses of a single member is refused here alike. What it would do,
//! add a member or move this one's peer URLs, no single server can: that is `UNIMPLEMENTED`.

use bytes::Bytes;
use http::uri::Authority;

use crate::backend::Identity;
use crate::grpc::status::Status;
use crate::pb::etcdserverpb as wire;
use crate::service::errors::{Refusal, single_server};
use crate::service::message::{framed, header, parse};
use crate::types::Revision;

/// What the one member is listed with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Member {
    pub name: String,
    pub peer_urls: Vec<String>,
    pub client_urls: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ClusterMethod {
    Add,
    Remove,
    Update,
    List,
    Promote,
}

impl ClusterMethod {
    pub fn of(name: &str) -> Option<ClusterMethod> {
        Some(match name {
            "MemberAdd" => ClusterMethod::Add,
            "MemberRemove" => ClusterMethod::Remove,
            "MemberUpdate" => ClusterMethod::Update,
            "MemberList" => ClusterMethod::List,
            "MemberPromote" => ClusterMethod::Promote,
            _ => return None,
        })
    }
}

/// The answer to a call. No member ever comes or goes, so nothing has to be asked of the backend, not even for a list
/// that is linearizable.
///
/// # Errors
/// With etcd's words for what it refuses; ours for what it would do.
pub fn answer(method: ClusterMethod, message: Bytes, identity: Identity, member: &Member) -> Result<Bytes, Status> {
    let id = identity.member_id;
    match method {
        ClusterMethod::List => {
            parse::<wire::MemberListRequest>(message)?;
            // etcd names no revision in this header.
            let (header, members) = (header(identity, Revision::ZERO), vec![listed(id, member)]);
            Ok(framed(&wire::MemberListResponse { header, members }))
        }
        ClusterMethod::Add => Err(added(&parse(message)?, member)),
        ClusterMethod::Remove => {
            let request: wire::MemberRemoveRequest = parse(message)?;
            Err(if request.id == id { Refusal::NotEnoughStartedMembers } else { Refusal::MemberNotFound }.into())
        }
        ClusterMethod::Update => updated(&parse(message)?, identity, member),
        ClusterMethod::Promote => {
            let request: wire::MemberPromoteRequest = parse(message)?;
            Err(if request.id == id { Refusal::MemberNotLearner } else { Refusal::MemberNotFound }.into())
        }
    }
}

fn listed(id: u64, member: &Member) -> wire::Member {
    let Member { name, peer_urls, client_urls } = member.clone();
    wire::Member { id, name, peer_ur_ls: peer_urls, client_ur_ls: client_urls, is_learner: false }
}

fn added(request: &wire::MemberAddRequest, member: &Member) -> Status {
    let urls = &request.peer_ur_ls;
    if urls.is_empty() || !urls.iter().all(|url| is_peer_url(url.trim())) {
        return Refusal::MemberBadUrls.into();
    }
    if urls.iter().any(|url| member.peer_urls.iter().any(|own| own == url.trim())) {
        return Refusal::PeerUrlExist.into();
    }
    single_server("it takes no further members")
}

/// etcd's form of a URL for peers: a scheme, a host and a port, and no path behind.
fn is_peer_url(url: &str) -> bool {
    let Some((scheme, rest)) = url.split_once("://") else { return false };
    match scheme.to_ascii_lowercase().as_str() {
        "http" | "https" => {
            let (authority, behind) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
            let has_port = authority.parse::<Authority>().is_ok_and(|authority| authority.port().is_some());
            has_port && !behind.starts_with('/')
        }
        "unix" | "unixs" => true,
        _ => false,
    }
}

/// etcd takes any texts for the new URLs. Here they are what the flag says, so only those can be asked for.
fn updated(request: &wire::MemberUpdateRequest, identity: Identity, member: &Member) -> Result<Bytes, Status> {
    if request.id != identity.member_id {
        return Err(Refusal::MemberNotFound.into());
    }
    if request.peer_ur_ls != member.peer_urls {
        return Err(single_server("its peer URLs are those of the flag --initial-advertise-peer-urls"));
    }
    let members = vec![listed(identity.member_id, member)];
    Ok(framed(&wire::MemberUpdateResponse { header: header(identity, Revision::ZERO), members }))
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::grpc::status::Code;
    use crate::service::errors::malformed_request;
    use crate::service::random::Random;

    const IDENTITY: Identity = Identity { cluster_id: 3, member_id: 7, raft_term: 2 };
    const METHODS: [&str; 5] = ["MemberAdd", "MemberRemove", "MemberUpdate", "MemberList", "MemberPromote"];

    fn member() -> Member {
        Member {
            name: "infra0".to_owned(),
            peer_urls: vec!["http://localhost:2380".to_owned()],
            client_urls: vec!["http://localhost:2379".to_owned()],
        }
    }

    fn asked<M: Message>(method: ClusterMethod, request: &M) -> Result<Bytes, Status> {
        answer(method, request.encode_to_vec().into(), IDENTITY, &member())
    }

    #[test]
    fn the_one_member_is_listed_and_told_with_every_change_that_changes_nothing() {
        for linearizable in [false, true] {
            let answered = asked(ClusterMethod::List, &wire::MemberListRequest { linearizable }).expect("a list");
            let list = wire::MemberListResponse::decode(&answered[5..]).expect("a whole message");
            assert_eq!(list.header.map(|header| (header.member_id, header.revision)), Some((7, 0)));
            let [listed] = &list.members[..] else { panic!("one member: {list:?}") };
            assert_eq!((listed.id, listed.name.as_str(), listed.is_learner), (7, "infra0", false));
            assert_eq!((&listed.peer_ur_ls, &listed.client_ur_ls), (&member().peer_urls, &member().client_urls));
        }
        let update = |id, peer_ur_ls| asked(ClusterMethod::Update, &wire::MemberUpdateRequest { id, peer_ur_ls });
        assert!(update(7, member().peer_urls).is_ok());
        assert_eq!(update(7, Vec::new()).map_err(|status| status.code), Err(Code::Unimplemented));
    }

    #[test]
    fn a_url_for_peers_has_a_host_and_a_port_and_nothing_behind() {
        for good in
            ["http://localhost:2380", "HTTPS://[::1]:1", "http://10.0.0.1:2380?a", "unix://socket", "http://a:1#b"]
        {
            assert!(is_peer_url(good), "{good}");
        }
        for bad in ["", "localhost:2380", "http://localhost", "ftp://a:1", "http://a:1/", "http://a b:1", "http://[::1"]
        {
            assert!(!is_peer_url(bad), "{bad}");
        }
    }

    #[test]
    fn a_member_that_could_be_added_anywhere_else_is_refused_here() {
        let add = |urls: &[&str]| {
            let peer_ur_ls = urls.iter().map(|url| (*url).to_owned()).collect();
            asked(ClusterMethod::Add, &wire::MemberAddRequest { peer_ur_ls, is_learner: true }).expect_err("refused")
        };
        assert_eq!(add(&[]), Refusal::MemberBadUrls.into());
        assert_eq!(add(&["http://a:1", "bad"]), Refusal::MemberBadUrls.into());
        assert_eq!(add(&["http://a:1", " http://localhost:2380"]), Refusal::PeerUrlExist.into());
        assert_eq!(add(&["http://a:1"]).code, Code::Unimplemented);
    }

    #[test]
    fn junk_and_damaged_requests_are_answers_or_refusals() {
        let mut random = Random::new(7);
        for turn in 0..20_000 {
            let method = ClusterMethod::of(METHODS[turn % METHODS.len()]).expect("a method");
            assert_eq!(answer(method, vec![0x0f].into(), IDENTITY, &member()), Err(malformed_request()));
            let mut message = wire::MemberUpdateRequest { id: 7, peer_ur_ls: member().peer_urls }.encode_to_vec();
            if random.one_in(3) {
                message = random.junk(12);
            } else {
                random.damage(&mut message);
            }
            // Whatever comes back is an answer; only a panic fails.
            let _ = answer(method, message.into(), IDENTITY, &member());
        }
    }
}
