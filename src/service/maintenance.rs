//! Maintenance: alarms, status, hashes and the rest, from bytes to commands and from replies to bytes.
//!
//! Its answers are short, so they are encoded at once and as a whole, with the generated messages. Snapshot is answered
//! `UNIMPLEMENTED` by the route.
//!
//! What a single member cannot do is refused in etcd's words: it leads, so leadership moves to itself or nowhere. A downgrade
//! makes the data readable for an older etcd; ours has another format, which no etcd reads, so that is `UNIMPLEMENTED`.

use bytes::Bytes;

use crate::backend::{AlarmFilter, BackendStatus, Command, Identity};
use crate::grpc::status::Status;
use crate::pb::etcdserverpb as wire;
use crate::pb::etcdserverpb::alarm_request::AlarmAction;
use crate::service::errors::{Refusal, unknown_alarm};
use crate::service::message::{framed, header, parse};
use crate::service::{Asked, downgrade};
use crate::store::command::{Hash, Read, Write};
use crate::types::{Alarm, AlarmKind, ETCD_API_VERSION, Revision};

/// What etcd names the format of its database by. It goes with the API version; ours has another format, which no client
/// reads.
pub const STORAGE_VERSION: &str = "3.7.0";
/// What the members agreed to be compatible with.
pub const CLUSTER_VERSION: &str = "3.7";

/// The calls that are served.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MaintenanceMethod {
    Alarm,
    Status,
    Defragment,
    Hash,
    HashKv,
    MoveLeader,
    Downgrade,
}

impl MaintenanceMethod {
    pub fn of(name: &str) -> Option<MaintenanceMethod> {
        Some(match name {
            "Alarm" => MaintenanceMethod::Alarm,
            "Status" => MaintenanceMethod::Status,
            "Defragment" => MaintenanceMethod::Defragment,
            "Hash" => MaintenanceMethod::Hash,
            "HashKV" => MaintenanceMethod::HashKv,
            "MoveLeader" => MaintenanceMethod::MoveLeader,
            "Downgrade" => MaintenanceMethod::Downgrade,
            _ => return None,
        })
    }
}

/// Reads the request of one call.
///
/// # Errors
/// When it is no request of the call, asks for what a single member cannot do, or names an alarm or an action that etcd
/// does not know.
pub fn decode(method: MaintenanceMethod, message: Bytes, identity: Identity) -> Result<Asked, Status> {
    let command = match method {
        MaintenanceMethod::Alarm => alarm(&parse(message)?)?,
        MaintenanceMethod::Status => parse::<wire::StatusRequest>(message).map(|_| Command::Status)?,
        MaintenanceMethod::Defragment => parse::<wire::DefragmentRequest>(message).map(|_| Command::Defragment)?,
        // etcd hashes its file, whose pages and other buckets no other server has. What can differ here is what is stored.
        MaintenanceMethod::Hash => parse::<wire::HashRequest>(message).map(|_| hash_at(0))?,
        MaintenanceMethod::HashKv => hash_at(parse::<wire::HashKvRequest>(message)?.revision),
        MaintenanceMethod::MoveLeader => {
            let request: wire::MoveLeaderRequest = parse(message)?;
            // To move it to where it is takes no move.
            let is_here = request.target_id == identity.member_id;
            return if is_here { Ok(Asked::Answer(moved())) } else { Err(Refusal::BadLeaderTransferee.into()) };
        }
        MaintenanceMethod::Downgrade => downgrade::decode(&parse(message)?)?,
    };
    Ok(Asked::Backend(command))
}

fn hash_at(revision: i64) -> Command {
    Command::Read(Read::Hash { revision })
}

fn moved() -> Bytes {
    framed(&wire::MoveLeaderResponse { header: None })
}

/// The answer to a hash request.
pub fn hash(header: Option<wire::ResponseHeader>, hash: &Hash) -> Bytes {
    framed(&wire::HashResponse { header, hash: hash.hash })
}

/// The answer to a request for the hash of keys.
pub fn hash_kv(header: Option<wire::ResponseHeader>, hash: &Hash) -> Bytes {
    let Hash { hash, revision, compacted } = *hash;
    framed(&wire::HashKvResponse { header, hash, compact_revision: compacted.0, hash_revision: revision.0 })
}

fn alarm(request: &wire::AlarmRequest) -> Result<Command, Status> {
    let action = AlarmAction::try_from(request.action).map_err(|_| unknown_alarm())?;
    let kind = match wire::AlarmType::try_from(request.alarm).map_err(|_| unknown_alarm())? {
        wire::AlarmType::None => None,
        wire::AlarmType::Nospace => Some(AlarmKind::NoSpace),
        wire::AlarmType::Corrupt => Some(AlarmKind::Corrupt),
    };
    Ok(match (action, kind) {
        (AlarmAction::Get, None) => Command::Alarms(AlarmFilter::All),
        (AlarmAction::Get, Some(kind)) => Command::Alarms(AlarmFilter::Only(kind)),
        (AlarmAction::Activate | AlarmAction::Deactivate, None) => Command::Alarms(AlarmFilter::Nothing),
        (AlarmAction::Activate | AlarmAction::Deactivate, Some(kind)) => Command::Write(Write::Alarm {
            alarm: Alarm { member: request.member_id, kind },
            active: action == AlarmAction::Activate,
        }),
    })
}

/// The answer to an alarm request: those that it lists.
pub fn alarms(identity: Identity, revision: Revision, alarms: &[Alarm]) -> Bytes {
    let alarms = alarms.iter().map(|alarm| wire::AlarmMember { member_id: alarm.member, alarm: number(alarm.kind) });
    framed(&wire::AlarmResponse { header: header(identity, revision), alarms: alarms.collect() })
}

fn number(kind: AlarmKind) -> i32 {
    match kind {
        AlarmKind::NoSpace => wire::AlarmType::Nospace.into(),
        AlarmKind::Corrupt => wire::AlarmType::Corrupt.into(),
    }
}

/// The answer to a status request. The one member leads, and its log has an index as raft's has: both tell how many groups
/// are committed, and what is committed is applied.
pub fn status(identity: Identity, status: &BackendStatus) -> Bytes {
    framed(&wire::StatusResponse {
        header: header(identity, status.revision),
        // Clients parse it and take it for the release whose API they may use.
        version: ETCD_API_VERSION.to_owned(),
        db_size: signed(status.size_bytes),
        leader: identity.member_id,
        raft_index: status.position,
        raft_term: identity.raft_term,
        raft_applied_index: status.position,
        errors: errors(status),
        db_size_in_use: signed(status.used_bytes),
        is_learner: false,
        storage_version: STORAGE_VERSION.to_owned(),
        // etcd tells the flag as it was given, and a negative one disables the quota.
        db_size_quota: status.quota_bytes.map_or(-1, signed),
        downgrade_info: Some(wire::DowngradeInfo::default()),
    })
}

/// One text for each alarm, as etcd prints its message.
fn errors(status: &BackendStatus) -> Vec<String> {
    let alarms = status.alarms.iter().map(|alarm| {
        let name = wire::AlarmType::try_from(number(alarm.kind)).unwrap_or_default().as_str_name();
        match alarm.member {
            0 => format!("alarm:{name}"),
            member => format!("memberID:{member} alarm:{name}"),
        }
    });
    let refused = status.is_refusing_writes.then(|| Refusal::LogRefused.row().1.to_owned());
    alarms.chain(refused).collect()
}

/// The answer to a defragmentation. etcd leaves its header away.
pub fn defragmented() -> Bytes {
    framed(&wire::DefragmentResponse { header: None })
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::service::errors::malformed_request;
    use crate::service::random::Random;

    const IDENTITY: Identity = Identity { cluster_id: 3, member_id: 7, raft_term: 2 };
    const METHODS: [MaintenanceMethod; 7] = [
        MaintenanceMethod::Alarm,
        MaintenanceMethod::Status,
        MaintenanceMethod::Defragment,
        MaintenanceMethod::Hash,
        MaintenanceMethod::HashKv,
        MaintenanceMethod::MoveLeader,
        MaintenanceMethod::Downgrade,
    ];
    const NO_SPACE: Alarm = Alarm { member: 7, kind: AlarmKind::NoSpace };

    fn asked<M: Message>(method: MaintenanceMethod, request: &M) -> Result<Asked, Status> {
        decode(method, request.encode_to_vec().into(), IDENTITY)
    }

    fn request(action: i32, member_id: u64, alarm: i32) -> Result<Command, Status> {
        match asked(MaintenanceMethod::Alarm, &wire::AlarmRequest { action, member_id, alarm })? {
            Asked::Backend(command) => Ok(command),
            Asked::Answer(_) => panic!("alarms are the backend's"),
        }
    }

    fn sent<M: Message + Default>(bytes: &Bytes) -> M {
        let message = M::decode(&bytes[5..]).expect("a whole message");
        assert_eq!(bytes[..5], [0, 0, 0, 0, bytes.len() as u8 - 5]);
        message
    }

    fn status_of(alarms: Vec<Alarm>) -> BackendStatus {
        BackendStatus {
            revision: Revision(9),
            size_bytes: 100,
            used_bytes: 80,
            quota_bytes: Some(1_000),
            position: 5,
            alarms,
            is_refusing_writes: false,
        }
    }

    #[test]
    fn alarms_are_listed_raised_and_taken_back() {
        for (action, alarm, filter) in [
            (0, 0, AlarmFilter::All),
            (0, 1, AlarmFilter::Only(AlarmKind::NoSpace)),
            (0, 2, AlarmFilter::Only(AlarmKind::Corrupt)),
            (1, 0, AlarmFilter::Nothing),
            (2, 0, AlarmFilter::Nothing),
        ] {
            let command = request(action, 9, alarm).expect("a request");
            assert!(matches!(command, Command::Alarms(given) if given == filter), "{command:?}");
        }
        for (action, raised) in [(1, true), (2, false)] {
            let Ok(Command::Write(Write::Alarm { alarm, active })) = request(action, 7, 1) else { panic!("a write") };
            assert_eq!((alarm, active), (NO_SPACE, raised));
        }
        let response: wire::AlarmResponse = sent(&alarms(IDENTITY, Revision(9), &[NO_SPACE]));
        assert_eq!(response.alarms, [wire::AlarmMember { member_id: 7, alarm: 1 }]);
        assert_eq!(response.header.map(|header| (header.member_id, header.revision)), Some((7, 9)));
    }

    #[test]
    fn what_etcd_has_no_word_for_is_refused() {
        for (action, alarm) in [(3, 1), (-1, 1), (1, 3), (0, 9)] {
            assert_eq!(request(action, 7, alarm).expect_err("refused"), unknown_alarm());
        }
        for method in METHODS {
            let refused = decode(method, Bytes::from_static(&[0x0f]), IDENTITY).err();
            assert_eq!(refused, Some(malformed_request()), "{method:?}");
        }
    }

    #[test]
    fn junk_and_damaged_requests_are_commands_or_refusals() {
        let mut random = Random::new(7);
        for turn in 0..20_000 {
            let mut message = wire::AlarmRequest { action: 1, member_id: random.next(), alarm: random.below(3) as i32 }
                .encode_to_vec();
            if random.one_in(3) {
                message = random.junk(12)
            } else {
                random.damage(&mut message)
            }
            // Whatever comes back is an answer; only a panic fails.
            let _ = decode(METHODS[turn % METHODS.len()], message.into(), IDENTITY);
        }
    }

    #[test]
    fn the_status_names_the_one_member_as_leader_and_its_alarms_as_errors() {
        let corrupt = Alarm { member: 0, kind: AlarmKind::Corrupt };
        let response: wire::StatusResponse = sent(&status(IDENTITY, &status_of(vec![corrupt, NO_SPACE])));
        assert_eq!((response.version.as_str(), response.storage_version.as_str()), ("3.7.3", "3.7.0"));
        assert_eq!((response.leader, response.raft_term), (7, 2));
        assert_eq!((response.raft_index, response.raft_applied_index), (5, 5));
        assert_eq!((response.db_size, response.db_size_in_use, response.db_size_quota), (100, 80, 1_000));
        assert_eq!(response.errors, ["alarm:CORRUPT", "memberID:7 alarm:NOSPACE"]);
        assert!(response.downgrade_info.is_some() && !response.is_learner);
    }

    #[test]
    fn a_quota_that_is_off_reads_as_etcds_and_a_disk_that_refuses_is_an_error() {
        let backend = BackendStatus { quota_bytes: None, is_refusing_writes: true, ..status_of(Vec::new()) };
        let bytes = status(IDENTITY, &backend);
        let response = wire::StatusResponse::decode(&bytes[5..]).expect("a whole message");
        assert_eq!(response.db_size_quota, -1);
        assert!(response.errors.len() == 1 && response.errors[0].contains("disk refuses"), "{:?}", response.errors);
    }

    #[test]
    fn a_defragmentation_is_answered_without_a_header() {
        assert_eq!(defragmented()[..], [0; 5]);
    }

    #[test]
    fn leadership_moves_to_the_one_member_or_nowhere() {
        let moved = |target_id| asked(MaintenanceMethod::MoveLeader, &wire::MoveLeaderRequest { target_id });
        assert!(matches!(moved(7), Ok(Asked::Answer(message)) if message[..] == [0; 5]));
        for stranger in [0, 8, u64::MAX] {
            assert_eq!(moved(stranger).err(), Some(Refusal::BadLeaderTransferee.into()));
        }
    }

    #[test]
    fn hashes_name_their_revision_and_their_compaction() {
        for (request, revision) in [(0, 0), (9, 9), (-1, -1)] {
            let request = wire::HashKvRequest { revision: request };
            let Ok(Asked::Backend(Command::Read(Read::Hash { revision: asked }))) =
                asked(MaintenanceMethod::HashKv, &request)
            else {
                panic!("a read")
            };
            assert_eq!(asked, revision);
        }
        let told = Hash { hash: 77, revision: Revision(5), compacted: Revision(-1) };
        let response: wire::HashKvResponse = sent(&hash_kv(header(IDENTITY, Revision(9)), &told));
        assert_eq!((response.hash, response.compact_revision, response.hash_revision), (77, -1, 5));
        assert_eq!(response.header.map(|header| header.revision), Some(9));
        let response: wire::HashResponse = sent(&hash(header(IDENTITY, Revision(9)), &told));
        assert_eq!(response.hash, 77);
    }
}
