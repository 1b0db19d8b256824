//! A call of several steps, and what it says after each of them.
//!
//! A course is values in, values out: a reply of the backend or a change at the place where it waits comes in, and [`Next`]
//! says what is to be done for it.

use bytes::Bytes;

use crate::backend::{Command, Identity, Reply};
use crate::grpc::status::Status;
use crate::net::Output;
use crate::service::kv::decode::Limits;
use crate::types::{Batch, Revision};

use super::announcement::Announcer;
use super::awaited::Place;
use super::contest::Contest;
use super::observation::Observation;
use super::proclamation::Proclamation;
use super::{Recipe, single};

/// What a call does next.
#[derive(Debug)]
pub enum Next {
    /// It asks the backend, and comes back with the reply.
    Ask(Command),
    /// It waits for what happens at [`Course::following`].
    Follow,
    /// It goes on as it was.
    Wait,
    /// It wants to hear nothing until it is asked for output.
    Pause,
    /// It ends with this message.
    Answer(Bytes),
    /// It ends with this status.
    Refuse(Status),
}

impl Next {
    /// Asks, unless what was to be asked is refused already.
    pub(super) fn ask(command: Result<Command, Status>) -> Next {
        command.map_or_else(Next::Refuse, Next::Ask)
    }
}

/// What the calls of a server have in common.
#[derive(Clone, Copy)]
pub struct Around<'a> {
    pub identity: Identity,
    pub limits: &'a Limits,
    pub announcer: &'a Announcer,
}

/// Where a course waits, and up to which revision it knows what happened there.
#[derive(Clone, Debug)]
pub struct Following {
    pub place: Place,
    pub at: Revision,
}

/// What becomes of a course whose peer has gone.
pub enum Gone {
    /// Nothing of it is left.
    Nothing,
    /// Its key is to be taken away.
    Leave(Command),
    /// Whether a key of it is to be left shows with the next reply: [`Course::left`]. Before that it asks this.
    AfterReply(Option<Command>),
}

#[derive(Debug)]
pub enum Course {
    Contest(Contest),
    Observation(Observation),
    Proclamation(Proclamation),
}

/// A call that has begun, with the first that it asks.
#[derive(Debug)]
pub enum Begun {
    Single(Command),
    Course(Course, Command),
}

/// # Errors
/// With what etcd would answer whatever the store holds.
pub fn begin(recipe: Recipe, message: Bytes, limits: &Limits) -> Result<Begun, Status> {
    Ok(match recipe {
        Recipe::Lock => course(Contest::lock(message, limits)?, Course::Contest),
        Recipe::Campaign => course(Contest::campaign(message, limits)?, Course::Contest),
        Recipe::Observe => course(Observation::begin(message)?, Course::Observation),
        Recipe::Proclaim => match Proclamation::begin(message, limits)? {
            (Some(proclamation), command) => Begun::Course(Course::Proclamation(proclamation), command),
            (None, command) => Begun::Single(command),
        },
        Recipe::Unlock => Begun::Single(single::unlock(message, limits)?),
        Recipe::Leader => Begun::Single(single::leader(message)?),
        Recipe::Resign => Begun::Single(single::resign(message, limits)?),
    })
}

fn course<T>((begun, command): (T, Command), kind: impl FnOnce(T) -> Course) -> Begun {
    Begun::Course(kind(begun), command)
}

impl Course {
    pub fn reply(&mut self, reply: Reply, around: Around<'_>) -> Next {
        match self {
            Course::Contest(contest) => contest.reply(reply, around),
            Course::Observation(observation) => observation.reply(reply, around),
            Course::Proclamation(proclamation) => proclamation.reply(reply, around),
        }
    }

    /// A change at the place where it waits.
    pub fn told(&mut self, batch: &Batch, index: usize, around: Around<'_>) -> Next {
        match self {
            Course::Contest(contest) => contest.told(&batch.changes[index]),
            Course::Observation(observation) => observation.told(batch, index, around),
            Course::Proclamation(_) => unreachable!("it waits for nothing"),
        }
    }

    pub fn following(&self) -> &Following {
        let following = match self {
            Course::Contest(contest) => contest.following(),
            Course::Observation(observation) => observation.following(),
            Course::Proclamation(_) => None,
        };
        following.expect("it says where it waits")
    }

    pub fn gone(&self, limits: &Limits) -> Gone {
        match self {
            Course::Contest(contest) => contest.gone(limits),
            Course::Observation(_) | Course::Proclamation(_) => Gone::Nothing,
        }
    }

    /// The reply to a course that was to wait for it after its peer had gone.
    pub fn left(&mut self, reply: Reply, around: Around<'_>) -> Gone {
        match self {
            Course::Contest(contest) => contest.left(reply, around),
            Course::Observation(_) | Course::Proclamation(_) => Gone::Nothing,
        }
    }

    pub fn has_output(&self) -> bool {
        matches!(self, Course::Observation(observation) if observation.has_output())
    }

    /// What there is to send, and what the call does once that is taken.
    pub fn output(&mut self, bytes_max: usize) -> (Output, Next) {
        match self {
            Course::Observation(observation) => observation.output(bytes_max),
            Course::Contest(_) | Course::Proclamation(_) => (Output::Nothing, Next::Wait),
        }
    }

    /// What it holds in memory.
    pub fn bytes(&self) -> usize {
        let apart = match self {
            Course::Contest(contest) => contest.bytes(),
            Course::Observation(observation) => observation.bytes(),
            Course::Proclamation(proclamation) => proclamation.bytes(),
        };
        size_of::<Course>() + apart
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::pb::v3electionpb;
    use crate::service::errors::{malformed_message, malformed_request};
    use crate::service::random::Random;

    const RECIPES: [Recipe; 7] = [
        Recipe::Lock,
        Recipe::Unlock,
        Recipe::Campaign,
        Recipe::Proclaim,
        Recipe::Leader,
        Recipe::Observe,
        Recipe::Resign,
    ];

    #[test]
    fn junk_and_damaged_requests_are_commands_or_refusals() {
        let mut random = Random::new(7);
        let leader = v3electionpb::LeaderKey { name: "e".into(), key: "e/7".into(), rev: 5, lease: 7 };
        let whole = v3electionpb::ProclaimRequest { leader: Some(leader), value: "v".into() }.encode_to_vec();
        for turn in 0..20_000 {
            let recipe = RECIPES[turn % RECIPES.len()];
            let junk = begin(recipe, vec![0x0f].into(), &Limits::default());
            let words = if recipe == Recipe::Observe { malformed_message() } else { malformed_request() };
            assert_eq!(junk.err(), Some(words));
            let mut message = whole.clone();
            if random.one_in(3) {
                message = random.junk(12);
            } else {
                random.damage(&mut message);
            }
            // Whatever comes back is an answer; only a panic fails.
            let _ = begin(recipe, message.into(), &Limits::default());
        }
    }
}
