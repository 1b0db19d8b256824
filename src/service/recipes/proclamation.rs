//! Proclaim by a leader who names no lease: one is granted, and the key goes with it from then on.

use bytes::Bytes;

use crate::backend::{Command, LeaseAnswer, LeaseOutcome, Reply};
use crate::grpc::status::Status;
use crate::pb::v3electionpb;
use crate::service::errors::missing_leader;
use crate::service::kv::decode::Limits;
use crate::service::message::parse;
use crate::types::LeaseId;

use super::course::{Around, Next};
use super::{Recipe, grant, single, without_status};

#[derive(Debug)]
pub struct Proclamation {
    leader: v3electionpb::LeaderKey,
    value: Bytes,
}

impl Proclamation {
    /// With a lease it is a call of one request, and there is no proclamation to lead through its steps.
    ///
    /// # Errors
    /// When it is no request, or one that etcd refuses whatever the store holds.
    pub fn begin(message: Bytes, limits: &Limits) -> Result<(Option<Proclamation>, Command), Status> {
        let v3electionpb::ProclaimRequest { leader, value } = parse(message)?;
        let leader = leader.ok_or_else(missing_leader)?;
        if leader.lease == LeaseId::NONE.0 {
            return Ok((Some(Proclamation { leader, value }), grant()));
        }
        Ok((None, single::proclaim(leader, value, limits)?))
    }

    pub fn reply(&mut self, reply: Reply, around: Around<'_>) -> Next {
        match reply {
            Reply::Answer(Err(error)) => Next::Refuse(without_status(error.into())),
            Reply::Lease(LeaseAnswer { outcome: LeaseOutcome::Granted(lease), .. }) => {
                let leader = v3electionpb::LeaderKey { lease: lease.id.0, ..std::mem::take(&mut self.leader) };
                Next::ask(single::proclaim(leader, std::mem::take(&mut self.value), around.limits))
            }
            Reply::Answer(answer) => {
                single::answer(Recipe::Proclaim, answer, around.identity).map_or_else(Next::Refuse, Next::Answer)
            }
            reply => unreachable!("a lease and a transaction were asked for, and not {reply:?}"),
        }
    }

    pub fn bytes(&self) -> usize {
        self.leader.name.len() + self.leader.key.len() + self.value.len()
    }
}
