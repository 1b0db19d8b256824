use super::*;
use crate::store::command::{DeleteRange, Outcome, Put, PutLease, PutValue};
use crate::types::{KeyRange, LeaseId};

fn put(key: &'static str) -> Command {
    let (value, lease) = (PutValue::Set("v".into()), PutLease::Set(LeaseId::NONE));
    Command::Write(Write::Put(Put { key: key.into(), value, lease, prev_kv: false }))
}

fn compact(revision: i64) -> Command {
    Command::Write(Write::Compact(Revision(revision)))
}

fn history(from: i64) -> Command {
    Command::History { from: Revision(from) }
}

fn origin(token: u32) -> Origin {
    Origin { shard: 0, token }
}

fn tokens(writer: &mut Writer) -> Vec<u32> {
    std::iter::from_fn(|| writer.next_reply()).map(|(origin, _)| origin.token).collect()
}

#[test]
fn a_reply_waits_for_its_group_and_a_batch_is_told_first() {
    let mut writer = Writer::new(Store::new(), Pace::default(), Position(1));
    writer.command(origin(1), put("a"), Time(1));
    let (first, batches) = writer.seal().map(|(position, batches)| (position, batches.len())).expect("a group");
    assert_eq!(batches, 1);
    writer.command(origin(2), put("b"), Time(1));
    let (second, _) = writer.seal().expect("another group");
    assert_eq!(tokens(&mut writer), Vec::<u32>::new(), "nothing is told before it is durable");
    let release = writer.durable(first).expect("the first group");
    assert_eq!((release.revision, release.batches.len()), (Revision(2), 1));
    assert_eq!(tokens(&mut writer), [1]);
    assert_eq!(writer.durable(second).map(|release| release.revision), Some(Revision(3)));
    assert_eq!(tokens(&mut writer), [2]);
    assert!(writer.durable(second).is_none() && writer.seal().is_none());
}

#[test]
fn a_refusal_leaves_with_the_group_it_depends_on() {
    let mut writer = Writer::new(Store::new(), Pace::default(), Position(1));
    writer.command(origin(1), put("a"), Time(1));
    writer.command(origin(2), compact(2), Time(1));
    writer.command(origin(3), compact(2), Time(1));
    let (position, _) = writer.seal().expect("a group");
    assert_eq!(tokens(&mut writer), Vec::<u32>::new());
    let release = writer.durable(position).expect("the group");
    assert_eq!((release.revision, release.compacted), (Revision(2), Some(Revision(2))));
    let replies: Vec<_> = std::iter::from_fn(|| writer.next_reply()).map(|(_, reply)| reply).collect();
    assert!(matches!(&replies[1], Reply::Answer(Ok(Answer { result: Outcome::Compact, .. }))));
    assert!(matches!(&replies[2], Reply::Answer(Err(Error::Compacted { .. }))));
}

#[test]
fn a_read_beside_a_compaction_that_is_not_durable_waits_for_it() {
    let mut writer = Writer::new(Store::new(), Pace::default(), Position(1));
    writer.command(origin(1), put("a"), Time(1));
    writer.command(origin(2), compact(2), Time(1));
    writer.command(origin(3), history(2), Time(1));
    let (position, _) = writer.seal().expect("a group");
    assert_eq!(tokens(&mut writer), Vec::<u32>::new(), "at the committed revision 1 it would be refused wrongly");
    writer.durable(position);
    assert_eq!(tokens(&mut writer), [1, 2, 3]);
}

#[test]
fn history_ends_at_the_committed_revision() {
    let mut writer = Writer::new(Store::new(), Pace::default(), Position(1));
    writer.command(origin(1), put("a"), Time(1));
    let (position, _) = writer.seal().expect("a group");
    writer.durable(position);
    writer.command(origin(2), put("a"), Time(1));
    assert_eq!(tokens(&mut writer), [1]);
    writer.command(origin(3), history(2), Time(1));
    let (_, reply) = writer.next_reply().expect("history owes the log nothing");
    let Reply::History(Ok(batches)) = reply else { panic!("history was asked") };
    assert_eq!(batches.iter().map(|batch| batch.revision).collect::<Vec<_>>(), [Revision(2)]);
}
#[test]
fn what_only_looked_costs_the_log_nothing_and_leaves_with_what_it_saw() {
    let mut writer = Writer::new(Store::new(), Pace::default(), Position(1));
    let nothing =
        || Command::Write(Write::DeleteRange(DeleteRange { range: KeyRange::One("x".into()), prev_kv: false }));
    writer.command(origin(1), nothing(), Time(1));
    assert!(writer.seal().is_none());
    assert_eq!(tokens(&mut writer), [1], "nothing is under way");
    writer.command(origin(2), put("a"), Time(1));
    let (position, _) = writer.seal().expect("a group");
    assert_eq!(position, Position(1));
    writer.command(origin(3), nothing(), Time(1));
    assert!(writer.seal().is_none());
    assert_eq!(tokens(&mut writer), Vec::<u32>::new());
    writer.durable(position);
    assert_eq!(tokens(&mut writer), [2, 3]);
}

#[test]
fn removal_waits_until_its_compaction_is_durable() {
    let mut writer = Writer::new(Store::new(), Pace::default(), Position(1));
    for token in 1..=3 {
        writer.command(origin(token), put("a"), Time(1));
    }
    let (position, _) = writer.seal().expect("a group");
    writer.durable(position);
    writer.command(origin(4), Command::CompactPhysical(Revision(4)), Time(1));
    let (position, _) = writer.seal().expect("a compaction is logged");
    assert!(!writer.step());
    assert_eq!(writer.store().bytes().history, 3 * 112, "the log may yet lose the compaction");
    assert_eq!(tokens(&mut writer), [1, 2, 3]);
    writer.durable(position);
    while writer.step() {}
    assert_eq!(tokens(&mut writer), [4], "told once the removal is done");
    assert_eq!(writer.store().bytes().history, 112);
}

#[test]
fn a_refused_log_answers_what_waits_and_leaves_reads_at_the_committed_revision() {
    let mut writer = Writer::new(Store::new(), Pace::default(), Position(1));
    writer.command(origin(1), put("a"), Time(1));
    let (position, _) = writer.seal().expect("a group");
    writer.durable(position);
    writer.command(origin(2), put("a"), Time(1));
    writer.seal().expect("a group");
    writer.command(origin(3), compact(3), Time(1));
    writer.command(origin(4), history(2), Time(1));
    assert_eq!(tokens(&mut writer), [1]);
    writer.refuse();
    writer.command(origin(5), put("b"), Time(1));
    let replies: Vec<_> = std::iter::from_fn(|| writer.next_reply()).collect();
    assert_eq!(replies.iter().map(|(origin, _)| origin.token).collect::<Vec<_>>(), [2, 3, 4, 5]);
    for refused in [0, 1, 3] {
        assert!(matches!(&replies[refused].1, Reply::Answer(Err(Error::LogRefused))));
    }
    writer.command(origin(6), Command::Read(all()), Time(1));
    let (_, reply) = writer.next_reply().expect("reads go on");
    let Reply::Answer(Ok(answer)) = reply else { panic!("a range was asked: {reply:?}") };
    assert_eq!(answer.revision, Revision(2), "what was not durable is never shown");
}

#[test]
fn a_compaction_that_the_log_refuses_forgets_nothing() {
    let mut writer = Writer::new(Store::new(), Pace::default(), Position(1));
    for key in ["a", "b", "c"] {
        writer.command(origin(1), put(key), Time(1));
    }
    assert_eq!(replies(&mut writer).len(), 3);
    writer.command(origin(2), compact(3), Time(1));
    writer.command(origin(3), history(2), Time(1));
    assert_eq!(tokens(&mut writer), Vec::<u32>::new(), "its refusal would tell of the compaction");
    writer.refuse();
    writer.command(origin(4), history(2), Time(1));
    let replies = replies(&mut writer);
    let [Reply::Answer(Err(Error::LogRefused)), Reply::History(Ok(none)), Reply::History(Ok(all))] = &replies[..]
    else {
        panic!("{replies:?}")
    };
    assert_eq!((none.len(), all.len()), (0, 3), "who waited asks again and gets it");
    assert_eq!(writer.store().compacted(), None);
}

#[test]
fn no_hash_begins_under_a_compaction_that_is_not_committed() {
    let mut writer = Writer::new(Store::new(), Pace::default(), Position(1));
    writer.command(origin(1), put("a"), Time(1));
    assert_eq!(replies(&mut writer).len(), 1);
    writer.command(origin(2), Command::Read(Read::Hash { revision: 0 }), Time(1));
    writer.command(origin(3), put("b"), Time(1));
    writer.command(origin(4), compact(3), Time(1));
    let (position, _) = writer.seal().expect("a group");
    for _ in 0..10 {
        writer.step();
    }
    assert_eq!(tokens(&mut writer), Vec::<u32>::new());
    writer.durable(position);
    while writer.step() {}
    let hash = replies(&mut writer).iter().find_map(|reply| match reply {
        Reply::Answer(Ok(Answer { revision, result: Outcome::Hash(hash) })) => Some((*revision, hash.compacted)),
        _ => None,
    });
    assert_eq!(hash, Some((Revision(3), Revision(3))));
}

fn alarm(member: u64, kind: AlarmKind, active: bool) -> Command {
    Command::Write(Write::Alarm { alarm: Alarm { member, kind }, active })
}

/// Seals and releases what came, and gives the answers in their order.
fn replies(writer: &mut Writer) -> Vec<Reply> {
    if let Some((position, _)) = writer.seal() {
        writer.durable(position);
    }
    std::iter::from_fn(|| writer.next_reply()).map(|(_, reply)| reply).collect()
}

fn alarms(writer: &mut Writer) -> Vec<Alarm> {
    writer.command(origin(99), Command::Alarms(AlarmFilter::All), Time(1));
    let Some((_, Reply::Alarms { alarms, .. })) = writer.next_reply() else { panic!("it is answered at once") };
    alarms
}

fn is_refused(reply: &Reply) -> bool {
    matches!(reply, Reply::Answer(Err(Error::NoSpace)))
}

#[test]
fn a_write_that_would_reach_the_quota_raises_the_alarm_through_the_log() {
    let quota = Quota { bytes: Some(600) };
    let mut writer = Writer::new(Store::new(), Pace::default(), Position(1)).with_quota(quota, 7);
    // A put costs 258 bytes, and one that is held takes some 195.
    for token in 1..=2 {
        writer.command(origin(token), put("a"), Time(1));
    }
    assert!(!replies(&mut writer).iter().any(is_refused));
    writer.command(origin(3), put("b"), Time(1));
    let raised = Alarm { member: 7, kind: AlarmKind::NoSpace };
    let (position, entries) = writer.seal().expect("the alarm is in the log");
    assert_eq!(entries, [Entry::Alarm { alarm: raised, active: true }]);
    assert_eq!(alarms(&mut writer), [], "an alarm that is not durable is not told");
    let release = writer.durable(position).expect("a group");
    assert_eq!((release.alarms, release.revision), (vec![(raised, true)], Revision(3)));
    assert!(writer.next_reply().is_some_and(|(_, reply)| is_refused(&reply)));
    assert_eq!(alarms(&mut writer), [raised]);
    writer.command(origin(4), put("b"), Time(1));
    assert!(writer.seal().is_none(), "it is not raised twice");
    // The way out: forget, wait until it is gone, disarm.
    writer.command(origin(5), compact(3), Time(1));
    assert!(!is_refused(&replies(&mut writer)[1]));
    assert!(writer.is_removing());
    while writer.step() {}
    assert!(!writer.is_removing());
    writer.command(origin(6), put("a"), Time(1));
    writer.command(origin(7), alarm(7, AlarmKind::NoSpace, false), Time(1));
    writer.command(origin(8), put("a"), Time(1));
    let replies: Vec<bool> = replies(&mut writer).iter().map(is_refused).collect();
    assert_eq!(replies, [true, false, false], "an alarm never clears by itself");
}

#[test]
fn there_may_be_so_many_alarms_and_that_for_space_all_the_same() {
    let mut writer = Writer::new(Store::new(), Pace::default(), Position(1)).with_quota(Quota { bytes: Some(600) }, 7);
    for token in 1..=2 {
        writer.command(origin(token), put("a"), Time(1));
    }
    assert!(!replies(&mut writer).iter().any(is_refused));
    let mut raise = |member| {
        writer.command(origin(1), alarm(member, AlarmKind::Corrupt, true), Time(1));
        matches!(replies(&mut writer)[0], Reply::Answer(Err(Error::TooManyAlarms)))
    };
    assert!(!(0..ALARMS_MAX as u64).any(&mut raise));
    assert!(raise(1_000) && !raise(5), "one that is active may be raised again");
    for member in 0..ALARMS_MAX as u64 {
        writer.command(origin(1), alarm(member, AlarmKind::Corrupt, false), Time(1));
        writer.command(origin(1), alarm(member, AlarmKind::NoSpace, true), Time(1));
    }
    assert!(!replies(&mut writer).iter().any(|reply| matches!(reply, Reply::Answer(Err(_)))));
    writer.command(origin(1), alarm(7, AlarmKind::NoSpace, false), Time(1));
    writer.command(origin(1), alarm(1_000, AlarmKind::NoSpace, true), Time(1));
    writer.command(origin(2), put("b"), Time(1));
    replies(&mut writer);
    let own = Alarm { member: 7, kind: AlarmKind::NoSpace };
    assert!(alarms(&mut writer).contains(&own) && alarms(&mut writer).len() == ALARMS_MAX + 1);
}

#[test]
fn a_disk_without_room_refuses_puts_and_leaves_deletes() {
    let mut writer = Writer::new(Store::new(), Pace::default(), Position(1));
    writer.command(origin(1), put("a"), Time(1));
    assert!(!is_refused(&replies(&mut writer)[0]));
    writer.set_short_of_space(true);
    let delete = DeleteRange { range: KeyRange::One("a".into()), prev_kv: false };
    writer.command(origin(2), put("a"), Time(1));
    writer.command(origin(3), Command::Write(Write::DeleteRange(delete)), Time(1));
    let replies: Vec<bool> = replies(&mut writer).iter().map(is_refused).collect();
    assert_eq!(replies, [true, false]);
    assert_eq!(alarms(&mut writer), [Alarm { member: 0, kind: AlarmKind::NoSpace }]);
}

#[test]
fn the_status_tells_what_is_committed_and_is_never_empty() {
    let quota = Quota { bytes: Some(1 << 20) };
    let mut writer = Writer::new(Store::new(), Pace::default(), Position(5)).with_quota(quota, 7);
    let status = |writer: &mut Writer| {
        writer.command(origin(9), Command::Status, Time(1));
        let Some((_, Reply::Status(status))) = writer.next_reply() else { panic!("it is answered at once") };
        status
    };
    let empty = status(&mut writer);
    assert_eq!((empty.size_bytes, empty.position, empty.revision), (1, 4, Revision(1)));
    writer.command(origin(1), put("a"), Time(1));
    writer.command(origin(2), alarm(1, AlarmKind::Corrupt, true), Time(1));
    let (position, _) = writer.seal().expect("a group");
    writer.command(origin(3), put("b"), Time(1));
    let applied = status(&mut writer);
    assert_eq!((applied.position, applied.revision, applied.alarms.len()), (4, Revision(1), 0));
    writer.durable(position);
    while writer.next_reply().is_some() {}
    let told = status(&mut writer);
    assert_eq!((told.position, told.revision, told.alarms.len()), (5, Revision(2), 1));
    assert_eq!(told.quota_bytes, Some(1 << 20));
}

fn all() -> Read {
    Read::Range(crate::sim::plain_range(KeyRange::From("a".into()), 0))
}
