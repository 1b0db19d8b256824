//! The calls of Lock and Election that need no lease of their own: letting go of a lock, asking who leads, speaking as the
//! leader, and resigning.
//!
//! Both services are recipes on keys: whoever waits or leads has a key below the name, and the one that was created first
//! leads. etcd runs the recipes of its Go client inside of the server, so each call here is the one KV request which that
//! client sends. An error loses its status on that way: it keeps its words, and its code becomes UNKNOWN.

use bytes::Bytes;

use crate::backend::{Command, Identity};
use crate::grpc::status::{Code, Status};
use crate::pb::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use crate::pb::etcdserverpb::range_request::{SortOrder, SortTarget};
use crate::pb::etcdserverpb::request_op::Request;
use crate::pb::etcdserverpb::{Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest};
use crate::pb::{mvccpb, v3electionpb, v3lockpb};
use crate::service::errors::{Refusal, missing_leader, no_leader, no_lease_named, not_leader};
use crate::service::kv::decode::{self, Limits};
use crate::service::message::{framed, header, parse};
use crate::store::command::{Answer, Error, Outcome, Rows};
use crate::types::KeyValue;

/// Between the name of an election and what tells its candidates apart.
const SEPARATOR: u8 = b'/';

/// The calls that are served.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Recipe {
    Unlock,
    Proclaim,
    Leader,
    Resign,
}

impl Recipe {
    pub fn of_lock(name: &str) -> Option<Recipe> {
        (name == "Unlock").then_some(Recipe::Unlock)
    }

    pub fn of_election(name: &str) -> Option<Recipe> {
        Some(match name {
            "Proclaim" => Recipe::Proclaim,
            "Leader" => Recipe::Leader,
            "Resign" => Recipe::Resign,
            _ => return None,
        })
    }
}

/// The KV request that a call comes down to.
///
/// # Errors
/// With what etcd would answer whatever the store holds.
pub fn decode(recipe: Recipe, message: Bytes, limits: &Limits) -> Result<Command, Status> {
    match recipe {
        Recipe::Unlock => {
            let v3lockpb::UnlockRequest { key } = parse(message)?;
            let request = DeleteRangeRequest { key, ..Default::default() };
            decode::checked_delete(request, limits).map_err(without_status)
        }
        Recipe::Proclaim => {
            let v3electionpb::ProclaimRequest { leader, value } = parse(message)?;
            let leader = leader.ok_or_else(missing_leader)?;
            if leader.lease == 0 {
                return Err(no_lease_named());
            }
            let put = PutRequest { key: leader.key.clone(), value, lease: leader.lease, ..Default::default() };
            as_leader(leader, Request::RequestPut(put), limits)
        }
        Recipe::Leader => {
            let v3electionpb::LeaderRequest { name } = parse(message)?;
            decode::checked_range(first_created(&name)).map_err(without_status)
        }
        Recipe::Resign => {
            let v3electionpb::ResignRequest { leader } = parse(message)?;
            let leader = leader.ok_or_else(missing_leader)?;
            let delete = DeleteRangeRequest { key: leader.key.clone(), ..Default::default() };
            as_leader(leader, Request::RequestDeleteRange(delete), limits)
        }
    }
}

/// What is done if the key of the leader is still the one that it campaigned with.
fn as_leader(leader: v3electionpb::LeaderKey, request: Request, limits: &Limits) -> Result<Command, Status> {
    let is_the_same = Compare {
        result: CompareResult::Equal.into(),
        target: CompareTarget::Create.into(),
        key: leader.key,
        target_union: Some(TargetUnion::CreateRevision(leader.rev)),
        ..Default::default()
    };
    let success = vec![RequestOp { request: Some(request) }];
    let request = TxnRequest { compare: vec![is_the_same], success, failure: Vec::new() };
    decode::checked_txn(request, limits).map_err(without_status)
}

fn first_created(name: &[u8]) -> RangeRequest {
    let below = |end| [name, &[end]].concat().into();
    RangeRequest {
        key: below(SEPARATOR),
        range_end: below(SEPARATOR + 1),
        limit: 1,
        sort_order: SortOrder::Ascend.into(),
        sort_target: SortTarget::Create.into(),
        ..Default::default()
    }
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

fn key_value(kv: &KeyValue) -> mvccpb::KeyValue {
    mvccpb::KeyValue {
        key: Bytes::copy_from_slice(kv.key()),
        create_revision: kv.create_revision().0,
        mod_revision: kv.mod_revision().0,
        version: kv.version(),
        value: Bytes::copy_from_slice(kv.value()),
        lease: kv.lease().0,
    }
}

/// etcd's client knows etcd's errors by their words, and hands them on as plain ones. What it does not know passes as it is.
fn without_status(refusal: Refusal) -> Status {
    match refusal {
        Refusal::LogRefused | Refusal::NoMemory => refusal.into(),
        etcds => Status::new(Code::Unknown, etcds.row().1),
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::service::errors::malformed_request;
    use crate::service::random::Random;
    use crate::store::command::{Read, TxnOutcome, Write};
    use crate::types::{KeyRange, Revision};

    const IDENTITY: Identity = Identity { cluster_id: 3, member_id: 7, raft_term: 2 };
    const RECIPES: [Recipe; 4] = [Recipe::Unlock, Recipe::Proclaim, Recipe::Leader, Recipe::Resign];

    fn asked<M: Message>(recipe: Recipe, request: &M) -> Result<Command, Status> {
        decode(recipe, request.encode_to_vec().into(), &Limits::default())
    }

    fn proclaimed(lease: i64, value: usize) -> Result<Command, Status> {
        let leader = v3electionpb::LeaderKey { name: "e".into(), key: "e/7".into(), rev: 5, lease };
        asked(
            Recipe::Proclaim,
            &v3electionpb::ProclaimRequest { leader: Some(leader), value: vec![b'v'; value].into() },
        )
    }

    #[test]
    fn the_leader_is_looked_for_below_its_name_and_nowhere_else() {
        let asked = asked(Recipe::Leader, &v3electionpb::LeaderRequest { name: "e".into() });
        let Ok(Command::Read(Read::Range(range))) = asked else { panic!("{asked:?}") };
        assert_eq!((range.range, range.limit), (KeyRange::Span { start: "e/".into(), end: "e0".into() }, 1));
    }

    #[test]
    fn errors_keep_their_words_and_lose_their_codes() {
        let unknown = |text: &'static str| Some(Status::new(Code::Unknown, text));
        let no_key = asked(Recipe::Unlock, &v3lockpb::UnlockRequest::default());
        assert_eq!(no_key.err(), unknown("etcdserver: key is not provided"));
        assert_eq!(proclaimed(7, 1_572_864).err(), unknown("etcdserver: request is too large"));
        for recipe in RECIPES {
            let told = |error| answer(recipe, Err(error), IDENTITY).err();
            assert_eq!(told(Error::NoSpace), unknown("etcdserver: mvcc: database space exceeded"));
            assert_eq!(told(Error::LogRefused), Some(Refusal::LogRefused.into()), "etcd has no such words");
        }
    }

    #[test]
    fn a_proclamation_is_the_leaders_alone_and_needs_its_lease() {
        let asked = proclaimed(7, 1);
        assert!(matches!(asked, Ok(Command::Write(Write::Txn(_)))), "{asked:?}");
        assert_eq!(proclaimed(0, 1).map_err(|status| status.code).err(), Some(Code::Unimplemented));
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

    #[test]
    fn junk_and_damaged_requests_are_commands_or_refusals() {
        let mut random = Random::new(7);
        let leader = v3electionpb::LeaderKey { name: "e".into(), key: "e/7".into(), rev: 5, lease: 7 };
        let whole = v3electionpb::ProclaimRequest { leader: Some(leader), value: "v".into() }.encode_to_vec();
        for turn in 0..20_000 {
            let recipe = RECIPES[turn % RECIPES.len()];
            let junk = decode(recipe, vec![0x0f].into(), &Limits::default());
            assert_eq!(junk.err(), Some(malformed_request()));
            let mut message = whole.clone();
            if random.one_in(3) {
                message = random.junk(12);
            } else {
                random.damage(&mut message);
            }
            // Whatever comes back is an answer; only a panic fails.
            let _ = decode(recipe, message.into(), &Limits::default());
        }
    }
}
