//! Examples as text: each line of a script runs against the store and the model, and the answer stands behind the arrow.
//!
//! A version reads `key=value(create,mod,version)`; a header's revision stands first. Ranges are `a`, `a..c` and `a..`.

use crate::types::{Alarm, AlarmKind, Change, Key, KeyRange, KeyValue, LeaseId, Revision, Time};

use super::command::*;
use super::model::Model;
use super::{CompactProgress, Store};
use crate::sim::all_keys;

/// Runs a script of `command -> answer` separated by semicolons.
fn check(script: &str) {
    let (mut store, mut model) = (Store::new(), Model::new());
    for line in script.split(';').filter(|line| !line.trim().is_empty()) {
        let (command, expected) = line.split_once("->").unwrap_or_else(|| panic!("no arrow: {line}"));
        let expected = expected.split_whitespace().collect::<Vec<_>>().join(" ");
        let answer = run(&mut Words::of(command), &mut store, &mut model);
        assert_eq!(answer, expected, "{}", command.trim());
        // Removal at every step, unpinned: what a script reads next is at the applied revision or named.
        while store.compact_step(1, None) == CompactProgress::More {}
    }
}

struct Words(std::iter::Peekable<std::vec::IntoIter<String>>);

impl Words {
    fn of(text: &str) -> Words {
        let spaced = text.replace('(', " ( ").replace(')', " ) ").replace(',', " , ");
        let words: Vec<String> = spaced.split_whitespace().map(str::to_owned).collect();
        Words(words.into_iter().peekable())
    }

    fn next(&mut self) -> String {
        self.0.next().expect("another word")
    }

    fn number(&mut self) -> i64 {
        self.next().parse().expect("a number")
    }

    /// Takes the word if it is the next one.
    fn take(&mut self, word: &str) -> bool {
        self.0.next_if(|next| next == word).is_some()
    }

    fn is_over(&mut self) -> bool {
        self.0.peek().is_none()
    }
}

fn run(words: &mut Words, store: &mut Store, model: &mut Model) -> String {
    match words.next().as_str() {
        "get" => {
            let read = Read::Range(range(words));
            assert!(words.is_over());
            let expected = model.read(&read, model.revision());
            let answer = match store.read(&read, store.revision()) {
                Ok(mut job) => loop {
                    if let Some(answer) = store.step(&mut job, 1) {
                        break answer;
                    }
                },
                Err(error) => Err(error),
            };
            assert_eq!(answer, expected, "store and model differ");
            show(&answer)
        }
        "events" => {
            let range = key_range(&words.next());
            assert!(words.take("from"));
            let from = Revision(words.number());
            events(store, model, &range, from)
        }
        "compact" => apply(Write::Compact(Revision(words.number())), store, model),
        "put" => apply(Write::Put(put(words)), store, model),
        "del" => apply(Write::DeleteRange(delete(words)), store, model),
        "txn" => apply(Write::Txn(txn(words)), store, model),
        "alarm" => apply(Write::Alarm { alarm: alarm(words), active: true }, store, model),
        "disarm" => apply(Write::Alarm { alarm: alarm(words), active: false }, store, model),
        other => panic!("no such command: {other}"),
    }
}

fn apply(write: Write, store: &mut Store, model: &mut Model) -> String {
    let applied = store.apply(&write, Time(9));
    let (answer, entry) = model.apply(&write, Time(9));
    assert_eq!(applied.answer, answer, "store and model differ");
    assert_eq!(applied.entry, entry, "store and model differ");
    assert_eq!(store.alarms().collect::<Vec<_>>(), model.alarms(), "store and model differ");
    show(&answer)
}

fn events(store: &Store, model: &Model, range: &KeyRange, from: Revision) -> String {
    let batches = match store.history(from, store.revision(), usize::MAX, usize::MAX) {
        Ok(batches) => batches,
        Err(error) => return format!("compacted {}", error.compacted),
    };
    let changes = batches.iter().flat_map(|batch| batch.changes.iter().map(|change| (batch.revision, change.clone())));
    let changes: Vec<_> = changes.filter(|(_, change)| range.contains(change.key())).collect();
    assert_eq!(Ok(&changes), model.events(range, from, store.revision()).as_ref());
    let texts = changes.iter().map(|(revision, change)| match change {
        Change::Put { kv, previous } => format!("{revision} put {}{}", show_kv(kv), show_was(previous)),
        Change::Delete { key, previous } => {
            format!("{revision} del {}{}", String::from_utf8_lossy(key), show_was(previous))
        }
    });
    texts.collect::<Vec<_>>().join(", ")
}

/// `nospace 1`: the kind and the member.
fn alarm(words: &mut Words) -> Alarm {
    let kind = match words.next().as_str() {
        "nospace" => AlarmKind::NoSpace,
        "corrupt" => AlarmKind::Corrupt,
        other => panic!("no such alarm: {other}"),
    };
    Alarm { member: words.number() as u64, kind }
}

fn key_range(word: &str) -> KeyRange {
    match word.split_once("..") {
        None => KeyRange::One(Key::copy_from_slice(word.as_bytes())),
        Some((start, "")) => KeyRange::From(Key::copy_from_slice(start.as_bytes())),
        Some((start, end)) => KeyRange::Span { start: start.to_owned().into(), end: end.to_owned().into() },
    }
}

/// `put a=1`; `put a=*` keeps the value; then `prev`, `lease 7` or `lease keep`.
fn put(words: &mut Words) -> Put {
    let word = words.next();
    let (key, value) = word.split_once('=').expect("key=value");
    let value = if value == "*" { PutValue::Keep } else { PutValue::Set(value.to_owned().into()) };
    let lease = match words.take("lease") {
        true if words.take("keep") => PutLease::Keep,
        true => PutLease::Set(LeaseId(words.number())),
        false => PutLease::Set(LeaseId::NONE),
    };
    Put { key: key.to_owned().into(), value, lease, prev_kv: words.take("prev") }
}

fn delete(words: &mut Words) -> DeleteRange {
    DeleteRange { range: key_range(&words.next()), prev_kv: words.take("prev") }
}

fn range(words: &mut Words) -> Range {
    let mut range = Range { range: key_range(&words.next()), ..all_keys() };
    loop {
        if words.take("rev") {
            range.revision = words.number();
        } else if words.take("limit") {
            range.limit = words.number() as usize;
        } else if words.take("by") {
            range.target = match words.next().as_str() {
                "version" => SortTarget::Version,
                "create" => SortTarget::Create,
                "mod" => SortTarget::Mod,
                "value" => SortTarget::Value,
                other => panic!("no such target: {other}"),
            };
        } else if words.take("asc") {
            range.order = SortOrder::Ascend;
        } else if words.take("desc") {
            range.order = SortOrder::Descend;
        } else if words.take("min_mod") {
            range.min_mod_revision = words.number();
        } else if words.take("max_create") {
            range.max_create_revision = words.number();
        } else if words.take("count") {
            range.count_only = true;
        } else if words.take("keys") {
            range.keys_only = true;
        } else {
            return range;
        }
    }
}

/// `txn if ver a = 0, val b != x then put a=1, (txn then del b) else get a`; each part may be missing.
fn txn(words: &mut Words) -> Txn {
    let mut txn = Txn { compares: Vec::new(), success: Vec::new(), failure: Vec::new() };
    if words.take("if") {
        txn.compares.push(compare(words));
        while words.take(",") {
            txn.compares.push(compare(words));
        }
    }
    for (word, branch) in [("then", &mut txn.success), ("else", &mut txn.failure)] {
        if words.take(word) {
            branch.push(op(words));
            while words.take(",") {
                branch.push(op(words));
            }
        }
    }
    txn
}

fn op(words: &mut Words) -> Op {
    match words.next().as_str() {
        "put" => Op::Put(put(words)),
        "del" => Op::DeleteRange(delete(words)),
        "get" => Op::Range(range(words)),
        "(" => {
            assert!(words.take("txn"));
            let inner = txn(words);
            assert!(words.take(")"));
            Op::Txn(inner)
        }
        other => panic!("no such operation: {other}"),
    }
}

fn compare(words: &mut Words) -> Compare {
    let target = words.next();
    let range = key_range(&words.next());
    let relation = match words.next().as_str() {
        "=" => Relation::Equal,
        "!=" => Relation::NotEqual,
        ">" => Relation::Greater,
        "<" => Relation::Less,
        _ => Relation::Unknown,
    };
    let operand = match target.as_str() {
        "ver" => Operand::Version(words.number()),
        "create" => Operand::Create(words.number()),
        "mod" => Operand::Mod(words.number()),
        "lease" => Operand::Lease(words.number()),
        "val" => Operand::Value(words.next().into()),
        other => panic!("no such target: {other}"),
    };
    Compare { range, relation, operand }
}

fn show(answer: &Result<Answer, Error>) -> String {
    match answer {
        Err(Error::Compacted { compacted, .. }) => format!("compacted {compacted}"),
        Err(Error::FutureRevision { current, .. }) => format!("future {current}"),
        Err(Error::KeyNotFound) => "key not found".to_owned(),
        Err(Error::LeaseNotFound { lease }) => format!("lease {} not found", lease.0),
        Err(Error::NoSpace) => "no space".to_owned(),
        Err(Error::Corrupt) => "corrupt".to_owned(),
        Err(Error::NoMemory) => "no memory".to_owned(),
        Err(Error::TooManyAlarms) => "too many alarms".to_owned(),
        Err(Error::LogRefused) => unreachable!("a store has no log"),
        Err(Error::LeaseExists | Error::LeaseTtlTooLarge) => unreachable!("leases are granted elsewhere"),
        Ok(Answer { result: Outcome::Compact, .. }) => "ok".to_owned(),
        Ok(Answer { revision, result }) => format!("{revision}{}", show_outcome(result)),
    }
}

fn show_outcome(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Range(rows) => {
            let mut text = ":".to_owned();
            for kv in &rows.rows {
                let whole = show_kv(kv);
                let without_value = format!(" {}", String::from_utf8_lossy(kv.key()));
                text += &if rows.show == Show::All { format!(" {whole}") } else { without_value };
            }
            text + if rows.more { " more" } else { "" } + &format!(" count {}", rows.count)
        }
        Outcome::Put { previous } => show_was(previous),
        Outcome::DeleteRange { deleted, previous } => {
            let previous = previous.iter().map(|kv| show_was(&Some(kv.clone()))).collect::<String>();
            format!(" deleted {deleted}{previous}")
        }
        Outcome::Txn(txn) => {
            let answers: Vec<_> = txn.answers.iter().map(|answer| show(&Ok(answer.clone()))).collect();
            format!(" {} [{}]", if txn.succeeded { "yes" } else { "no" }, answers.join(" | "))
        }
        Outcome::Compact => String::new(),
        Outcome::Hash(hash) => format!(" hash {} of {} over {}", hash.hash, hash.revision, hash.compacted),
        Outcome::Alarm(None) => " none".to_owned(),
        Outcome::Alarm(Some(Alarm { member, kind })) => format!(" {kind:?} {member}"),
    }
}

fn show_kv(kv: &KeyValue) -> String {
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    let numbers = (kv.create_revision(), kv.mod_revision(), kv.version());
    format!("{}={}({},{},{})", text(kv.key()), text(kv.value()), numbers.0, numbers.1, numbers.2)
}

fn show_was(previous: &Option<KeyValue>) -> String {
    previous.as_ref().map_or(String::new(), |kv| format!(" was {}", show_kv(kv)))
}

#[test]
fn a_fresh_store_stands_at_1_and_its_first_put_is_2() {
    check("get a -> 1: count 0;  put a=1 -> 2;  get a -> 2: a=1(2,2,1) count 1");
}

#[test]
fn a_put_of_the_same_value_is_a_change() {
    check("put a=1 -> 2;  put a=1 prev -> 3 was a=1(2,2,1);  get a -> 3: a=1(2,3,2) count 1");
}

#[test]
fn a_delete_of_nothing_changes_nothing() {
    check("put a=1 -> 2;  del b -> 2 deleted 0;  del b..a -> 2 deleted 0;  events a.. from 0 -> 2 put a=1(2,2,1)");
}

#[test]
fn a_deleted_key_begins_anew() {
    check(
        "put a=1 -> 2;  put a=2 -> 3;  del a prev -> 4 deleted 1 was a=2(2,3,2);  get a -> 4: count 0;
         put a=3 prev -> 5;  get a -> 5: a=3(5,5,1) count 1;  get a rev 3 -> 5: a=2(2,3,2) count 1;
         get a rev 4 -> 5: count 0",
    );
}

#[test]
fn the_headers_inside_a_transaction_tell_when_it_first_changed_something() {
    check(
        "put a=1 -> 2;
         txn then get a, del x, put b=1, get a..c, del a, (txn then get b) ->
            3 yes [2: a=1(2,2,1) count 1 | 2 deleted 0 | 3 | 3: a=1(2,2,1) b=1(3,3,1) count 2 | 3 deleted 1
            | 0 yes [3: b=1(3,3,1) count 1]];
         txn then del x, get b -> 3 yes [3 deleted 0 | 3: b=1(3,3,1) count 1];
         txn then (txn then del x) -> 3 yes [0 yes [3 deleted 0]];  txn -> 3 yes []",
    );
}

#[test]
fn a_limit_cuts_the_rows_but_not_the_count() {
    check(
        "txn then put a=1, put b=1, put c=1, put d=1, put e=1 -> 2 yes [2 | 2 | 2 | 2 | 2];
         get a.. limit 2 -> 2: a=1(2,2,1) b=1(2,2,1) more count 5;
         get a.. limit 5 count -> 2: count 5;
         get a.. limit 2 desc -> 2: e=1(2,2,1) d=1(2,2,1) more count 5;
         get a.. limit 5 keys -> 2: a b c d e count 5",
    );
}

#[test]
fn an_empty_range_is_read_without_an_error() {
    check("put a=1 -> 2;  get b..a -> 2: count 0;  get a..a -> 2: count 0");
}

#[test]
fn a_target_without_an_order_sorts_what_the_limit_left_by_key() {
    check(
        "put a=9 -> 2;  put b=8 -> 3;  put c=7 -> 4;
         get a.. by value limit 1 -> 4: b=8(3,3,1) more count 3;
         get a.. by value limit 1 asc -> 4: c=7(4,4,1) more count 3;
         get a.. by value limit 1 min_mod 1 -> 4: c=7(4,4,1) more count 3;
         get a.. by mod desc limit 1 max_create 3 -> 4: b=8(3,3,1) more count 3;
         get a.. by value keys -> 4: c b a count 3",
    );
}

#[test]
fn rows_that_compare_as_equal_stay_in_key_order() {
    check(
        "put a=1 -> 2;  put b=1 -> 3;  put c=1 -> 4;
         get a.. by value desc -> 4: a=1(2,2,1) b=1(3,3,1) c=1(4,4,1) count 3;
         get a.. by version desc limit 2 -> 4: a=1(2,2,1) b=1(3,3,1) more count 3",
    );
}

#[test]
fn a_missing_key_compares_as_zero_and_its_value_as_nothing() {
    check(
        "txn if create a = 0, mod a = 0, ver a = 0, lease a = 0 -> 1 yes [];
         txn if val a != x -> 1 no [];  txn if val a < x -> 1 no []",
    );
    check(
        "txn if ver a..c > 0 -> 1 no [];  put b=1 -> 2;  txn if ver a..c > 0 -> 2 yes [];  put a=1 -> 3;
           txn if mod a.. = 3 -> 3 no [];  txn if val a.. = 1 -> 3 yes [];  txn if val a ~ 2 -> 3 yes []",
    );
}

#[test]
fn compares_of_a_nested_transaction_see_the_state_before_the_outer_one() {
    check(
        "txn then put a=1, (txn if create a = 0 then put b=1 else put c=1) -> 2 yes [2 | 0 yes [2]];
           get a.. -> 2: a=1(2,2,1) b=1(2,2,1) count 2",
    );
}

#[test]
fn a_transaction_that_fails_leaves_no_trace() {
    check(
        "put a=1 -> 2;  txn then put b=1, get a rev 9 -> future 2;
         txn then put b=1, put c=1 lease 7 -> lease 7 not found;  txn then put b=1, put c=* -> key not found;
         txn then put b=1, del a.., put a=*, put d=1 -> key not found;
         get a.. -> 2: a=1(2,2,1) count 1;  events a.. from 2 -> 2 put a=1(2,2,1);  put b=1 -> 3",
    );
}

#[test]
fn the_lease_of_a_put_is_looked_for_before_its_key() {
    check(
        "put a=* lease 7 -> lease 7 not found;  put a=* -> key not found;  put a=1 lease keep -> key not found;
           put a=1 -> 2;  put a=* lease keep -> 3;  get a -> 3: a=1(2,3,2) count 1",
    );
}

#[test]
fn a_range_inside_a_transaction_takes_a_negative_revision_as_it_is() {
    check(
        "put a=1 -> 2;  put a=2 -> 3;  get a rev -1 -> 3: a=2(2,3,2) count 1;
         txn then get a rev -1 -> 3 yes [3: a=2(2,3,2) count 1];  txn then get a rev -2 -> compacted -1;
         compact 2 -> ok;  get a rev -1 -> 3: a=2(2,3,2) count 1;  txn then get a rev -1 -> compacted 2;
         txn then put a=3, get a, get a rev 2 -> 4 yes [4 | 4: a=3(2,4,3) count 1 | 4: a=1(2,2,1) count 1]",
    );
}

#[test]
fn a_compaction_forgets_what_lies_below_it() {
    check(
        "put a=1 -> 2;  put a=2 -> 3;  put b=1 -> 4;  compact 5 -> future 4;  compact 3 -> ok;  compact 3 -> compacted 3;
         compact 2 -> compacted 3;  get a rev 2 -> compacted 3;  get a rev 3 -> 4: a=2(2,3,2) count 1;
         get a rev 5 -> future 4;  events a.. from 2 -> compacted 3;  compact 4 -> ok;
         get a.. -> 4: a=2(2,3,2) b=1(4,4,1) count 2",
    );
    check(
        "compact -1 -> compacted -1;  compact 0 -> ok;  compact 0 -> compacted 0;  compact 1 -> ok;  get a -> 1: count 0",
    );
}

#[test]
fn a_delete_at_the_compacted_revision_is_still_told() {
    check(
        "put a=1 -> 2;  del a -> 3 deleted 1;  put b=1 -> 4;  compact 3 -> ok;
           events a.. from 3 -> 3 del a, 4 put b=1(4,4,1);  get a rev 3 -> 4: count 0",
    );
}

#[test]
fn the_changes_of_a_transaction_share_one_revision_in_their_order() {
    check(
        "txn then put c=1, put a=1, put b=1 -> 2 yes [2 | 2 | 2];
           events a.. from 2 -> 2 put c=1(2,2,1), 2 put a=1(2,2,1), 2 put b=1(2,2,1);
           del a.. -> 3 deleted 3;  events a..b from 3 -> 3 del a was a=1(2,2,1)",
    );
}

#[test]
fn an_event_carries_the_state_before_its_whole_revision() {
    check(
        "put a=1 -> 2;  txn then del a.., put a=2, (txn then put a=3) -> 3 yes [3 deleted 1 | 3 | 0 yes [3]];
         get a -> 3: a=3(3,3,2) count 1;
         events a from 2 -> 2 put a=1(2,2,1), 3 del a was a=1(2,2,1), 3 put a=2(3,3,1), 3 put a=3(3,3,2);
         compact 3 -> ok;  events a from 3 -> 3 del a, 3 put a=2(3,3,1), 3 put a=3(3,3,2);
         put a=4 -> 4;  events a from 4 -> 4 put a=4(3,4,3) was a=3(3,3,2)",
    );
}

#[test]
fn an_alarm_for_space_refuses_what_may_put_and_lets_the_rest_through() {
    check(
        "put a=1 -> 2;  put b=1 -> 3;  alarm nospace 7 -> 3 NoSpace 7;  alarm nospace 7 -> 3 NoSpace 7;
         put a=2 -> no space;  put a=* -> no space;  txn then put a=2 -> no space;
         txn if ver a = 9 then put a=2 else get a -> no space;  txn then (txn if ver a = 9 then put a=2) -> no space;
         txn then del a, get b -> 4 yes [4 deleted 1 | 4: b=1(3,3,1) count 1];  del b -> 5 deleted 1;
         get a rev 3 -> 5: a=1(2,2,1) count 1;  compact 5 -> ok;  txn -> 5 yes [];
         disarm nospace 8 -> 5 none;  disarm corrupt 7 -> 5 none;  put a=2 -> no space;
         disarm nospace 7 -> 5 NoSpace 7;  disarm nospace 7 -> 5 none;  put a=2 -> 6",
    );
}

#[test]
fn an_alarm_of_corruption_refuses_every_write_and_no_read() {
    check(
        "put a=1 -> 2;  alarm nospace 7 -> 2 NoSpace 7;  alarm corrupt 0 -> 2 Corrupt 0;  put a=2 -> corrupt;
         del a -> corrupt;  txn -> corrupt;  compact 2 -> corrupt;  get a -> 2: a=1(2,2,1) count 1;
         disarm corrupt 0 -> 2 Corrupt 0;  put a=2 -> no space;  disarm nospace 7 -> 2 NoSpace 7;  put a=2 -> 3",
    );
}

#[test]
fn an_alarm_of_another_member_counts_as_ones_own() {
    check(
        "alarm nospace 1 -> 1 NoSpace 1;  alarm nospace 2 -> 1 NoSpace 2;  disarm nospace 1 -> 1 NoSpace 1;
         put a=1 -> no space;  disarm nospace 2 -> 1 NoSpace 2;  put a=1 -> 2",
    );
}
