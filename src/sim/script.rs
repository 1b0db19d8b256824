//! Examples as text, run through the real writer and hub.
//!
//! Statements are separated by `;` and each says what comes of it behind `->`:
//!
//! | statement | comes of it |
//! | --- | --- |
//! | `put a=1` | the revision |
//! | `del a`, `del a..c`, `del a..` | the revision |
//! | `txn put a=1, del b` | the revision |
//! | `compact 3` | `ok`, `compacted`, `future` |
//! | `get a`, `get a at 3` | `1@3`, `none`, `compacted`, `future` |
//! | `watch w a from 3 id 5 prev noput nodelete notify` | `created 7 id 0`, or `refused` and the reason; then perhaps `, compacted 5` |
//! | `w` | the next message of the watch: `put a=1@8, del b@8`, `canceled`, `progress 9`, or `nothing` |
//! | `cancel 0` | nothing by itself; the watch then says `canceled` |
//! | `progress` | `progress 7`, or `nothing` |

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;
use prost::Message;

use crate::backend::{Command, HistoryError, Identity, Reply};
use crate::pb::etcdserverpb::WatchResponse;
use crate::pb::mvccpb::event::EventType;
use crate::service::recipes::awaited::Awaited;
use crate::shard::durability::InMemory;
use crate::shard::embedded::Embedded;
use crate::shard::history::Appender;
use crate::shard::intake::Intake;
use crate::shard::mesh::{self, Link, Request};
use crate::shard::writer::{Pace, Writer};
use crate::sim::plain_range;
use crate::store::Store;
use crate::store::command::{Answer, DeleteRange, Error, Op, Outcome, Put, PutLease, PutValue, Read, Txn, Write};
use crate::types::{KeyRange, LeaseId, Position, Revision, Time};
use crate::watch::hub::{Create, Hub, HubConfig, Request as WatchAsk, StreamId};

/// Runs a script and compares what comes of each statement.
pub fn check(script: &str) {
    let mut stage = Stage::new();
    for statement in script.split(';').map(str::trim).filter(|statement| !statement.is_empty()) {
        let (action, expected) = statement.split_once("->").map_or((statement, None), |(a, e)| (a, Some(e.trim())));
        let came = stage.act(action.trim());
        if let Some(expected) = expected {
            assert_eq!(came, expected, "{statement}\nin: {script}");
        }
    }
}

/// One shard with one watch stream.
struct Stage {
    embedded: Embedded,
    link: Link,
    intake: Intake,
    hub: Hub,
    stream: StreamId,
    names: HashMap<String, i64>,
    messages: VecDeque<WatchResponse>,
}

impl Stage {
    fn new() -> Stage {
        let appender = Appender::new(Revision::FIRST, None);
        let intake = Intake::new(appender.reader(), appender.committed(), Revision::FIRST);
        let (link, port) = mesh::pair();
        let writer = Writer::new(Store::new(), Pace::default(), Position(1));
        let embedded = Embedded::new(writer, Box::new(InMemory::default()), appender, vec![port]);
        let identity = Identity { cluster_id: 1, member_id: 2, raft_term: 3 };
        let mut hub = Hub::new(HubConfig { identity: identity.into(), ..HubConfig::default() }, Revision::FIRST);
        let stream = hub.open_stream(0);
        Stage { embedded, link, intake, hub, stream, names: HashMap::new(), messages: VecDeque::new() }
    }

    fn act(&mut self, action: &str) -> String {
        let (verb, rest) = action.split_once(' ').unwrap_or((action, ""));
        match verb {
            "put" | "del" => self.write(Write::Txn(transaction(&[action]))),
            "txn" => self.write(Write::Txn(transaction(&rest.split(',').map(str::trim).collect::<Vec<_>>()))),
            "compact" => self.write(Write::Compact(Revision(number(rest)))),
            "get" => self.get(rest),
            "watch" => self.watch(rest),
            "cancel" => self.ask(WatchAsk::Cancel { watch_id: number(rest) }),
            "progress" => {
                self.ask(WatchAsk::Progress);
                self.next_message(-1)
            }
            name => {
                let id = *self.names.get(name).unwrap_or_else(|| panic!("no watch is called {name}"));
                self.next_message(id)
            }
        }
    }

    fn answer(&mut self, command: Command) -> Result<Answer, Error> {
        self.link.send(Request { token: 1, command });
        while self.embedded.turn(Time(1), 10) {}
        let response = self.link.receive().expect("an answer in the turn of its command");
        let Reply::Answer(answer) = response.reply else { panic!("an answer to a command") };
        self.settle();
        answer
    }

    fn settle(&mut self) {
        loop {
            let mut more = self.intake.feed(&mut self.hub, &mut Awaited::new(self.intake.received()));
            more |= self.hub.turn(1_000);
            if let Some(from) = self.hub.next_history_request() {
                self.link.send(Request { token: 2, command: Command::History { from } });
                while self.embedded.turn(Time(1), 10) {}
                let Some(Reply::History(history)) = self.link.receive().map(|response| response.reply) else {
                    panic!("history was asked")
                };
                self.hub.handle_history(history.map_err(|HistoryError::Compacted(revision)| revision));
                more = true;
            }
            let mut bytes = Vec::new();
            while let Some(chunk) = self.hub.take_output(self.stream, 1 << 20) {
                bytes.extend_from_slice(&chunk);
            }
            self.decode(&bytes);
            if !more && bytes.is_empty() {
                return;
            }
        }
    }

    fn decode(&mut self, mut bytes: &[u8]) {
        while let Some((prefix, rest)) = bytes.split_at_checked(5) {
            let length = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]) as usize;
            let response = WatchResponse::decode(&rest[..length]).expect("the hub writes valid messages");
            self.messages.push_back(response);
            bytes = &rest[length..];
        }
    }

    fn write(&mut self, write: Write) -> String {
        let compacts = matches!(write, Write::Compact(_));
        match self.answer(Command::Write(write)) {
            Ok(_) if compacts => "ok".to_owned(),
            Ok(answer) => answer.revision.to_string(),
            Err(error) => word(error),
        }
    }

    fn get(&mut self, what: &str) -> String {
        let (range, revision) = what.split_once(" at ").map_or((what, 0), |(range, at)| (range, number(at)));
        let range = plain_range(key_range(range), revision);
        match self.answer(Command::Read(Read::Range(range))) {
            Ok(Answer { result: Outcome::Range(rows), .. }) if rows.rows.is_empty() => "none".to_owned(),
            Ok(Answer { result: Outcome::Range(rows), .. }) => {
                let shown = rows.rows.iter().map(|kv| format!("{}@{}", text(kv.value()), kv.mod_revision()));
                shown.collect::<Vec<_>>().join(", ")
            }
            Ok(answer) => panic!("no answer to a range: {answer:?}"),
            Err(error) => word(error),
        }
    }

    fn watch(&mut self, what: &str) -> String {
        let mut words = what.split(' ');
        let name = words.next().expect("a watch has a name").to_owned();
        let mut create = Create::plain(key_range(words.next().expect("a watch has a range")));
        while let Some(option) = words.next() {
            match option {
                "from" => create.start = number(words.next().expect("from REVISION")),
                "id" => create.watch_id = number(words.next().expect("id NUMBER")),
                "prev" => create.prev_kv = true,
                "noput" => create.no_put = true,
                "nodelete" => create.no_delete = true,
                "notify" => create.progress_notify = true,
                other => panic!("a watch has no option {other}"),
            }
        }
        self.ask(WatchAsk::Create(create));
        let at = self.messages.iter().position(|message| message.created).expect("every create is answered");
        let created = self.messages.remove(at).expect("the position was just found");
        if created.canceled {
            assert_eq!(created.watch_id, -1);
            return format!("refused {}", created.cancel_reason);
        }
        self.names.insert(name, created.watch_id);
        let header = created.header.expect("every response has a header").revision;
        format!("created {header} id {}", created.watch_id)
    }

    fn ask(&mut self, ask: WatchAsk) -> String {
        self.hub.request(self.stream, self.intake.committed(), ask);
        self.settle();
        String::new()
    }

    fn next_message(&mut self, id: i64) -> String {
        let Some(at) = self.messages.iter().position(|message| message.watch_id == id) else {
            return "nothing".to_owned();
        };
        let message = self.messages.remove(at).expect("the position was just found");
        let header = message.header.expect("every response has a header").revision;
        if message.canceled {
            return match message.compact_revision {
                0 => "canceled".to_owned(),
                revision => format!("compacted {revision} header {header}"),
            };
        }
        if message.events.is_empty() {
            return format!("progress {header}");
        }
        let shown = message.events.iter().map(|event| {
            let kv = event.kv.as_ref().expect("every event has its key");
            let previous = event.prev_kv.as_ref().map(|kv| format!(" was {}", text(&kv.value))).unwrap_or_default();
            match event.r#type() {
                EventType::Put => format!("put {}={}@{}{previous}", text(&kv.key), text(&kv.value), kv.mod_revision),
                EventType::Delete => format!("del {}@{}{previous}", text(&kv.key), kv.mod_revision),
            }
        });
        shown.collect::<Vec<_>>().join(", ")
    }
}

fn transaction(statements: &[&str]) -> Txn {
    let success = statements.iter().map(|statement| match statement.split_once(' ').expect("VERB KEY") {
        ("put", pair) => {
            let (key, value) = pair.split_once('=').expect("put KEY=VALUE");
            let value = PutValue::Set(Bytes::copy_from_slice(value.as_bytes()));
            let key = Bytes::copy_from_slice(key.as_bytes());
            Op::Put(Put { key, value, lease: PutLease::Set(LeaseId::NONE), prev_kv: false })
        }
        ("del", range) => Op::DeleteRange(DeleteRange { range: key_range(range), prev_kv: false }),
        (verb, _) => panic!("a transaction has no {verb}"),
    });
    Txn { compares: Vec::new(), success: success.collect(), failure: Vec::new() }
}

fn key_range(text: &str) -> KeyRange {
    let key = |text: &str| Bytes::copy_from_slice(text.as_bytes());
    match text.split_once("..") {
        None => KeyRange::One(key(text)),
        Some((start, "")) => KeyRange::From(key(start)),
        Some((start, end)) => KeyRange::Span { start: key(start), end: key(end) },
    }
}

fn number(text: &str) -> i64 {
    text.trim().parse().unwrap_or_else(|_| panic!("{text:?} is no number"))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn word(error: Error) -> String {
    match error {
        Error::Compacted { .. } => "compacted".to_owned(),
        Error::FutureRevision { .. } => "future".to_owned(),
        other => format!("{other:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::check;

    #[test]
    fn a_watch_sees_a_put_made_after_it_was_created() {
        check("put b=0 -> 2; watch w a -> created 2 id 0; put a=1 -> 3; w -> put a=1@3; w -> nothing");
    }

    #[test]
    fn a_watch_that_starts_before_the_compacted_revision_is_canceled_with_that_revision() {
        check(
            "put a=1 -> 2; put a=2 -> 3; compact 3 -> ok; watch w a from 2 -> created 3 id 0; w -> compacted 3 header 0;
             watch v a from 3 -> created 3 id 1; v -> put a=2@3",
        );
    }

    #[test]
    fn a_delete_at_the_compacted_revision_is_still_told() {
        check("put a=1; del a -> 3; compact 3 -> ok; watch w a from 3 -> created 3 id 0; w -> del a@3; get a -> none");
    }

    #[test]
    fn two_watches_of_one_key_have_a_message_each() {
        check("watch v a; watch w a -> created 1 id 1; put a=1; v -> put a=1@2; w -> put a=1@2; v -> nothing");
    }

    #[test]
    fn a_transaction_is_one_message_in_the_order_of_its_operations() {
        check(
            "put c=0; watch w a..; txn put b=1, put a=1, del c -> 3; w -> put b=1@3, put a=1@3, del c@3; w -> nothing",
        );
    }

    #[test]
    fn a_watch_from_the_future_is_told_nothing_before_its_start() {
        check(
            "watch w a from 4 -> created 1 id 0; put a=1; put a=2; progress -> nothing; w -> nothing;
             put a=3 -> 4; w -> put a=3@4; progress -> progress 4",
        );
    }

    #[test]
    fn progress_is_told_once_when_all_watches_are_synced_and_never_without_a_watch() {
        check("progress -> nothing; watch v a; watch w b; put a=1; v -> put a=1@2; progress -> progress 2; progress");
    }

    #[test]
    fn a_known_watch_is_canceled_with_an_answer_and_an_unknown_one_in_silence() {
        check("watch w a; cancel 0; w -> canceled; cancel 0; w -> nothing; put a=1; w -> nothing");
    }

    #[test]
    fn a_chosen_id_that_is_taken_is_refused_and_the_first_watch_goes_on() {
        check(
            "watch w a id 5 -> created 1 id 5;
             watch v a id 5 -> refused mvcc: duplicate watch ID provided on the WatchStream; put a=1; w -> put a=1@2",
        );
    }

    #[test]
    fn automatic_ids_skip_the_chosen_ones() {
        check("watch a k id 1 -> created 1 id 1; watch b k -> created 1 id 0; watch c k -> created 1 id 2");
    }

    #[test]
    fn a_negative_start_and_an_empty_range_are_refused_in_etcds_words() {
        check(
            "watch w a from -1 -> refused etcdserver: mvcc: required revision has been compacted;
             watch w b..a -> refused mvcc: watcher range is empty",
        );
    }

    #[test]
    fn the_previous_value_is_that_before_the_revision_and_missing_for_a_creation() {
        check(
            "watch w a.. prev; put a=1; w -> put a=1@2; put a=2; w -> put a=2@3 was 1; del a; w -> del a@4 was 2;
             put a=3; compact 5 -> ok; watch v a from 5 prev; v -> put a=3@5",
        );
    }

    #[test]
    fn a_previous_value_below_the_compacted_revision_is_left_out() {
        check("put a=1; put a=2 -> 3; compact 3; watch w a from 3 prev; w -> put a=2@3");
    }

    #[test]
    fn filters_drop_puts_or_deletes_or_both() {
        check(
            "watch p a noput; watch d a nodelete; watch n a noput nodelete; put a=1; del a; p -> del a@3; p -> nothing;
             d -> put a=1@2; d -> nothing; n -> nothing; progress -> progress 3",
        );
    }

    #[test]
    fn history_is_replayed_from_the_start_revision_in_one_message() {
        check("put a=1; put b=1; put a=2; watch w a from 2 -> created 4 id 0; w -> put a=1@2, put a=2@4; w -> nothing");
    }

    #[test]
    fn a_watch_from_the_first_revision_is_told_everything() {
        check(
            "put a=1; put a=2; watch w a from 1 -> created 3 id 0; w -> put a=1@2, put a=2@3; progress -> progress 3",
        );
    }

    #[test]
    fn reads_of_old_revisions_work_down_to_the_compacted_one() {
        check(
            "put a=1; put a=2; del a; get a -> none; get a at 2 -> 1@2; compact 3 -> ok; get a at 2 -> compacted;
             get a at 3 -> 2@3; get a at 9 -> future; compact 3 -> compacted; compact 9 -> future",
        );
    }
}
