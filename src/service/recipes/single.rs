//! The calls that come down to one KV request: letting go of a lock, asking who leads, speaking as the leader, resigning.

use bytes::Bytes;

use crate::backend::{Command, Identity};
use crate::grpc::status::Status;
use crate::pb::etcdserverpb::request_op::Request;
use crate::pb::etcdserverpb::{DeleteRangeRequest, PutRequest};
use crate::pb::v3electionpb::{self, LeaderKey};
use crate::pb::v3lockpb;
use crate::service::errors::{missing_leader, no_leader, not_leader};
use crate::service::kv::decode::{self, Limits};
use crate::service::message::{framed, header, parse};
use crate::store::command::{Answer, Error, Outcome, Rows};

use super::{Recipe, below, first_created, if_created_at, key_value, without_status};

/// # Errors
/// With what etcd would answer whatever the store holds.
pub fn unlock(message: Bytes, limits: &Limits) -> Result<Command, Status> {
    let v3lockpb::UnlockRequest { key } = parse(message)?;
    decode::checked_delete(DeleteRangeRequest { key, ..Default::default() }, limits).map_err(without_status)
}

/// # Errors
/// As [`unlock`].
pub fn leader(message: Bytes) -> Result<Command, Status> {
    let v3electionpb::LeaderRequest { name } = parse(message)?;
    decode::checked_range(first_created(below(&name))).map_err(without_status)
}

/// # Errors
/// As [`unlock`].
pub fn resign(message: Bytes, limits: &Limits) -> Result<Command, Status> {
    let v3electionpb::ResignRequest { leader } = parse(message)?;
    let leader = leader.ok_or_else(missing_leader)?;
    let delete = DeleteRangeRequest { key: leader.key.clone(), ..Default::default() };
    if_created_at(leader.key, leader.rev, Request::RequestDeleteRange(delete), limits)
}

/// # Errors
/// As [`unlock`].
pub fn proclaim(leader: LeaderKey, value: Bytes, limits: &Limits) -> Result<Command, Status> {
    let put = PutRequest { key: leader.key.clone(), value, lease: leader.lease, ..Default::default() };
    if_created_at(leader.key, leader.rev, Request::RequestPut(put), limits)
}

/// The message of a call, from what the KV request was answered.
///
/// # Errors
/// When the request was refused, nobody leads, or somebody else does.
pub fn answer(recipe: Recipe, answer: Result<Answer, Error>, identity: Identity) -> Result<Bytes, Status> {
    let Answer { revision, result } = answer.map_err(|error| without_status(error.into()))?;
    let header = header(identity, revision);
    match (recipe, result) {
        (Recipe::Leader, Outcome::Range(Rows { rows, .. })) => {
            let kv = Some(key_value(rows.first().ok_or_else(no_leader)?));
            Ok(framed(&v3electionpb::LeaderResponse { header, kv }))
        }
        (Recipe::Proclaim, Outcome::Txn(outcome)) if outcome.succeeded => {
            Ok(framed(&v3electionpb::ProclaimResponse { header }))
        }
        (Recipe::Proclaim, Outcome::Txn(_)) => Err(not_leader()),
        // Who does not lead resigns in vain, and etcd does not tell.
        (Recipe::Resign, Outcome::Txn(_)) => Ok(framed(&v3electionpb::ResignResponse { header })),
        (Recipe::Unlock, Outcome::DeleteRange { .. }) => Ok(framed(&v3lockpb::UnlockResponse { header })),
        (recipe, result) => unreachable!("{recipe:?} does not ask for {result:?}"),
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::grpc::status::Code;
    use crate::service::errors::Refusal;
    use crate::store::command::{Read, TxnOutcome, Write};
    use crate::types::{KeyRange, Revision};

    const IDENTITY: Identity = Identity { cluster_id: 3, member_id: 7, raft_term: 2 };
    const RECIPES: [Recipe; 4] = [Recipe::Unlock, Recipe::Proclaim, Recipe::Leader, Recipe::Resign];

    fn proclaimed(lease: i64, value: usize) -> Result<Command, Status> {
        let leader = LeaderKey { name: "e".into(), key: "e/7".into(), rev: 5, lease };
        proclaim(leader, vec![b'v'; value].into(), &Limits::default())
    }

    #[test]
    fn the_leader_is_looked_for_below_its_name_and_nowhere_else() {
        let asked = leader(v3electionpb::LeaderRequest { name: "e".into() }.encode_to_vec().into());
        let Ok(Command::Read(Read::Range(range))) = asked else { panic!("{asked:?}") };
        assert_eq!((range.range, range.limit), (KeyRange::Span { start: "e/".into(), end: "e0".into() }, 1));
    }

    #[test]
    fn errors_keep_their_words_and_lose_their_codes() {
        let unknown = |text: &'static str| Some(Status::new(Code::Unknown, text));
        let no_key = unlock(Bytes::new(), &Limits::default());
        assert_eq!(no_key.err(), unknown("etcdserver: key is not provided"));
        assert_eq!(proclaimed(7, 1_572_864).err(), unknown("etcdserver: request is too large"));
        for recipe in RECIPES {
            let told = |error| answer(recipe, Err(error), IDENTITY).err();
            assert_eq!(told(Error::NoSpace), unknown("etcdserver: mvcc: database space exceeded"));
            assert_eq!(told(Error::LogRefused), Some(Refusal::LogRefused.into()), "etcd has no such words");
        }
    }

    #[test]
    fn a_proclamation_is_the_leaders_alone() {
        let asked = proclaimed(7, 1);
        assert!(matches!(asked, Ok(Command::Write(Write::Txn(_)))), "{asked:?}");
        let told = |recipe, succeeded| {
            let result = Outcome::Txn(TxnOutcome { succeeded, answers: Vec::new() });
            answer(recipe, Ok(Answer { revision: Revision(9), result }), IDENTITY)
        };
        assert_eq!(told(Recipe::Proclaim, false), Err(not_leader()));
        let bytes = told(Recipe::Proclaim, true).expect("the leader proclaims");
        let response = v3electionpb::ProclaimResponse::decode(&bytes[5..]).expect("a whole message");
        assert_eq!(response.header.map(|header| (header.member_id, header.revision)), Some((7, 9)));
        assert_eq!(told(Recipe::Resign, false), told(Recipe::Resign, true), "a stranger is not told");
    }
}
