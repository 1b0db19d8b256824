"""A day's work with etcd-sdk-python (the python-etcd3 that is kept up): threads, blocking calls.

    day_pyetcd.py HOST PORT

Whoever runs it restarts the server when it prints "restart SIGNAL", and then types "serving" to it. The first thing that
is not as promised ends it with its reason.
"""

import sys
import threading
import time

import grpc
import pyetcd
from pyetcd import events, exceptions

from common import (
    ANSWER_WITHIN,
    COUNTER,
    COUNTER_PREFIX,
    PUTS_BETWEEN,
    SHORT_LEASE,
    WATCHES,
    Seen,
    ask_for_restart,
    check_expiry_time,
    end,
    ensure,
    ensure_equal,
    number_after_failure,
    refused,
)

# What the library raises while the server is away.
AWAY = (
    exceptions.ConnectionFailedError,
    exceptions.ConnectionTimeoutError,
    exceptions.InternalServerError,
    exceptions.WatchTimedOut,
)


def day(client):
    puts_and_deletes(client)
    reads(client)
    transactions(client)
    refusals(client)
    watch_options(client)
    compacted_history(client)
    maintenance(client)
    leases(client)
    locks(client)
    Restarts(client).run()


def puts_and_deletes(client):
    first = client.put("put/a", "1", prev_kv=True)
    ensure(not first.HasField("prev_kv"), "the first put of a key has a previous pair", first)
    second = client.put("put/a", "2", prev_kv=True)
    ensure_equal("previous value of the second put", second.prev_kv.value, b"1")
    ensure_equal("previous revision of the second put", second.prev_kv.mod_revision, first.header.revision)
    ensure_equal("revision of the second put", second.header.revision, first.header.revision + 1)
    value, found = client.get("put/a")
    ensure_equal("value", value, b"2")
    ensure_equal("versions", (found.version, found.create_revision), (2, first.header.revision))

    ensure(client.put_if_not_exists("put/b", "1"), "put_if_not_exists of a new key")
    ensure(not client.put_if_not_exists("put/b", "2"), "put_if_not_exists of a key that exists")
    ensure(client.replace("put/b", "1", "3"), "replace of the right value")
    ensure(not client.replace("put/b", "1", "4"), "replace of a wrong value")

    deleted = client.delete("put/b", prev_kv=True, return_response=True)
    ensure_equal("deleted", [pair.value for pair in deleted.prev_kvs], [b"3"])
    again = client.delete("put/b", return_response=True)
    ensure_equal("a delete of nothing", (again.deleted, again.header.revision), (0, deleted.header.revision))
    ensure_equal("delete by prefix", client.delete_prefix("put/").deleted, 1)
    ensure_equal("a key that is gone", client.get("put/a"), (None, None))


def reads(client):
    revisions = [client.put(f"read/{name}", f"value of {name}").header.revision for name in "cadb"]
    cases = [
        ("prefix", {}, "abcd", 4, False),
        ("limit", {"limit": 3}, "abc", 4, True),
        ("descending", {"sort_order": "descend"}, "dcba", 4, False),
        ("by creation", {"sort_order": "ascend", "sort_target": "create"}, "cadb", 4, False),
        ("at a revision", {"revision": revisions[1]}, "ac", 2, False),
        ("changed earlier", {"max_mod_revision": revisions[1]}, "ac", 4, False),
        ("serializable", {"serializable": True}, "abcd", 4, False),
        ("keys only", {"keys_only": True}, "abcd", 4, False),
        ("count only", {"count_only": True}, "", 4, False),
    ]
    for name, options, keys, count, more in cases:
        got = client.get_prefix_response("read/", **options)
        ensure_equal(f"{name}: keys", "".join(pair.key.decode()[-1] for pair in got.kvs), keys)
        ensure_equal(f"{name}: count and more", (got.count, got.more), (count, more))
        values = {pair.value for pair in got.kvs}
        ensure_equal(f"{name}: has values", values not in ({b""}, set()), name not in ("keys only", "count only"))
    between = [found.key for _, found in client.get_range("read/b", "read/d")]
    ensure_equal("range", between, [b"read/b", b"read/c"])


def transactions(client):
    of = client.transactions
    made, answers = client.transaction(
        compare=[of.create("txn/a") == 0],
        success=[of.put("txn/a", "1"), of.put("txn/b", "1"), of.get("txn/a")],
        failure=[of.get("txn/a")],
    )
    ensure(made and len(answers) == 3, "create", (made, answers))
    ensure_equal("a transaction sees its own put", answers[2][0][0], b"1")
    made, answers = client.transaction(
        compare=[of.create("txn/a") == 0],
        success=[of.put("txn/a", "wrong")],
        failure=[of.get("txn/a"), of.get("txn/", range_end="txn0")],
    )
    ensure(not made and len(answers) == 2, "create again", (made, answers))
    ensure_equal("the other branch", [value for value, _ in answers[1]], [b"1", b"1"])

    made, answers = client.transaction(
        compare=[of.value("txn/a") == "1", of.version("txn/b") < 2],
        success=[of.txn([of.mod("txn/a") > 1 << 40], [], [of.delete("txn/b", prev_kv=True), of.put("txn/c", "right")])],
        failure=[],
    )
    nested = answers[0].response_txn
    ensure(made and not nested.succeeded, "nested", answers)
    ensure_equal("the nested deletion", nested.responses[0].response_delete_range.prev_kvs[0].key, b"txn/b")
    ensure_equal("after the nested transaction", [value for value, _ in client.get_prefix("txn/")], [b"1", b"right"])


def error_of(call):
    try:
        call()
    except Exception as error:
        return error
    return None


def refusals(client):
    of = client.transactions
    client.put("refuse/a", "1")
    cases = [
        ("an empty key", "etcdserver: key is not provided", lambda: client.put("", "x")),
        ("an unknown lease", "etcdserver: requested lease not found", lambda: client.put("refuse/a", "x", lease=123)),
        ("the future", "etcdserver: mvcc: required revision is a future revision",
         lambda: client.get_response("refuse/a", revision=1 << 40)),
        ("a key twice", "etcdserver: duplicate key given in txn request",
         lambda: client.transaction([], [of.put("refuse/a", "1"), of.put("refuse/a", "2")], [])),
        ("129 operations", "etcdserver: too many operations in txn request",
         lambda: client.transaction([], [of.put(f"refuse/{number}", "1") for number in range(129)], [])),
        ("1.6 MB", "etcdserver: request is too large", lambda: client.put("refuse/a", "x" * 1_600_000)),
        ("a revoke of nothing", "etcdserver: requested lease not found", lambda: client.revoke_lease(123)),
    ]
    for name, text, call in cases:
        refused(name, (grpc.RpcError, text), error_of(call))


def watch_options(client):
    """Previous pairs, a filter, a start in the past, and a cancel."""
    first = client.put("watch/a", "1").header.revision
    client.put("watch/a", "2")
    client.delete("watch/a")
    found, cancel = client.watch_prefix("watch/", start_revision=first, prev_kv=True)
    told = [next(found) for _ in range(3)]
    ensure_equal("values", [event.value for event in told], [b"1", b"2", b""])
    ensure_equal("previous values", [event.prev_value for event in told], [b"", b"1", b"2"])
    ensure(isinstance(told[2], events.DeleteEvent), "the third event is a deletion", told[2])
    cancel()
    no_puts = pyetcd.etcdrpc.WatchCreateRequest.NOPUT
    found, cancel = client.watch("watch/a", start_revision=first, filters=[no_puts])
    only = next(found)
    ensure_equal("filtered", (type(only), only.mod_revision), (events.DeleteEvent, first + 2))
    cancel()


def compacted_history(client):
    now = client.put("compact/a", "1").header.revision
    client.compact(now, physical=True)
    found, _ = client.watch("compact/a", start_revision=now - 1)
    error = error_of(lambda: next(found))
    ensure(isinstance(error, exceptions.RevisionCompactedError), "a watch below the compaction", error)
    ensure_equal("compacted revision", error.compacted_revision, now)
    found, cancel = client.watch("compact/a", start_revision=now)
    ensure_equal("at the compaction", next(found).value, b"1")
    cancel()


def maintenance(client):
    members = list(client.members)
    ensure_equal("members", len(members), 1)
    status = client.status()
    ensure(status.leader is not None and status.leader.id == members[0].id, "the one member leads", status.leader)
    ensure(status.version.startswith("3."), "version", status.version)
    ensure(status.db_size > 0, "size", status.db_size)
    ensure_equal("alarms", list(client.list_alarms()), [])
    client.defragment()
    ensure_equal("two hashes of one state", client.hash(), client.hash())


def await_deletion(client, key, since):
    """Waits for the deletion of a key from a revision on, and gives the event."""
    found, cancel = client.watch(key, start_revision=since)
    timer = threading.Timer(SHORT_LEASE + ANSWER_WITHIN, cancel)
    timer.start()
    try:
        for event in found:
            if isinstance(event, events.DeleteEvent):
                return event
    finally:
        timer.cancel()
        cancel()
    ensure(False, f"the key {key} is never deleted")


def leases(client):
    granted = client.lease(60)
    put = client.put("lease/a", "1", lease=granted)
    client.put("lease/b", "1", lease=granted.id)
    ensure_equal("lease of a key", client.get("lease/a")[1].lease_id, granted.id)
    ensure_equal("granted", (granted.ttl, granted.granted_ttl), (60, 60))
    ensure(50 <= granted.remaining_ttl <= 60, "remaining time", granted.remaining_ttl)
    ensure_equal("keys of a lease", sorted(granted.keys), [b"lease/a", b"lease/b"])
    in_use = error_of(lambda: client.lease(60, lease_id=granted.id))
    ensure(isinstance(in_use, exceptions.PreconditionFailedError), "an id in use", in_use)
    granted.revoke()
    ensure_equal("keys after a revoke", list(client.get_prefix("lease/")), [])
    gone = await_deletion(client, "lease/a", put.header.revision)
    other = await_deletion(client, "lease/b", put.header.revision)
    ensure_equal("a revoke deletes at one revision", gone.mod_revision, other.mod_revision)
    ensure_equal("a lease that is gone", client.get_lease_info(granted.id).TTL, -1)

    # One lease is kept alive while others run out twice; so it lives for longer than its TTL.
    kept = client.lease(SHORT_LEASE)
    client.put("lease/kept", "1", lease=kept)
    over = threading.Event()
    keeper = threading.Thread(target=keep_alive, args=(kept, over), daemon=True)
    keeper.start()
    for _ in range(2):
        begun = time.monotonic()
        short = client.lease(SHORT_LEASE)
        put = client.put("lease/short", "1", lease=short)
        await_deletion(client, "lease/short", put.header.revision)
        check_expiry_time("a lease", time.monotonic() - begun)
    ensure_equal("the key of a lease that was kept alive", client.get("lease/kept")[0], b"1")
    over.set()
    keeper.join()
    kept.revoke()


def keep_alive(lease, over):
    while not over.wait(lease.ttl / 3):
        lease.refresh()


def locks(client):
    count, workers = 10, 4
    client.put("lock/shared", "0")
    failures = []

    def work():
        try:
            for _ in range(count):
                lock = client.lock("shared", ttl=30)
                ensure(lock.acquire(timeout=30), "a lock that others release is never had")
                # Read and write are two steps, which the lock alone holds together.
                client.put("lock/shared", str(int(client.get("lock/shared")[0]) + 1))
                ensure(lock.is_acquired(), "the lock is lost")
                ensure(lock.release(), "the lock is not released")
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for failure in failures:
        raise failure
    ensure_equal("counted under the lock", client.get("lock/shared")[0], str(count * workers).encode())

    # Who holds a lock and falls silent loses it when his lease runs out, and not before.
    begun = time.monotonic()
    silent, next_one = client.lock("silent", ttl=SHORT_LEASE), client.lock("silent", ttl=30)
    ensure(silent.acquire(), "a free lock")
    ensure(not next_one.acquire(timeout=0), "a lock is had twice")
    ensure(next_one.acquire(timeout=SHORT_LEASE + ANSWER_WITHIN), "the lock of a holder whose lease ran out")
    check_expiry_time("a lock", time.monotonic() - begun)
    ensure(not silent.is_acquired() and next_one.is_acquired(), "the lock has changed hands")
    ensure(next_one.refresh()[0].TTL == 30, "refresh of a lock")
    next_one.release()


class Restarts:
    """Ten watches of one client see a counter go up while the server is restarted under them: each number once.

    The library ends its watches with the connection; who reads them begins again at the revision behind the last one
    seen, as its users must.
    """

    def __init__(self, client):
        self.client = client
        self.changed = threading.Condition()
        # The library takes the answer to one create for that of another when threads create watches at the same time.
        self.creating = threading.Lock()
        self.failure = None
        self.acknowledged = 0
        self.over = threading.Event()
        self.seen = [Seen(f"watch {number}") for number in range(WATCHES)]

    def run(self):
        start = self.client.put("kept", "1", lease=(lease := self.client.lease(30))).header.revision
        forgotten = self.client.put("forgotten", "1", lease=self.client.lease(SHORT_LEASE)).header.revision
        for number, seen in enumerate(self.seen):
            seen.revision = start
            self.begin(self.watch, seen, COUNTER_PREFIX if number % 2 else COUNTER)
        writer = self.begin(self.count_up)
        for signal in ("TERM", "KILL"):
            self.until_all_have(self.acknowledged + PUTS_BETWEEN)
            ask_for_restart(signal)
        self.until_all_have(self.acknowledged + PUTS_BETWEEN)
        self.over.set()
        writer.join()
        self.until_all_have(self.acknowledged)
        for seen in self.seen:
            ensure_equal(f"{seen.name}: events", seen.next, self.acknowledged)

        ensure_equal("a lease after the restarts", lease.refresh()[0].TTL, 30)
        ensure_equal("its keys", list(lease.keys), [b"kept"])
        lease.revoke()
        ensure_equal("the key of a revoked lease", self.client.get("kept"), (None, None))
        await_deletion(self.client, "forgotten", forgotten)

    def begin(self, work, *arguments):
        def guarded():
            try:
                work(*arguments)
            except Exception as error:
                with self.changed:
                    self.failure = error
                    self.changed.notify_all()

        thread = threading.Thread(target=guarded, daemon=True)
        thread.start()
        return thread

    def watch(self, seen, key):
        watch = self.client.watch_response if key == COUNTER else self.client.watch_prefix_response
        while not self.over.is_set():
            try:
                with self.creating:
                    responses, _ = watch(key, start_revision=seen.revision + 1)
                for response in responses:
                    with self.changed:
                        for event in response.events:
                            seen.take(event.key, event.value, event.mod_revision)
                        self.changed.notify_all()
            except AWAY:
                # Nothing tells when the server is back; trying does.
                time.sleep(0.1)

    def count_up(self):
        number = 0
        while not self.over.is_set():
            try:
                self.client.put(COUNTER, str(number))
                number += 1
            except AWAY:
                number = number_after_failure(self.stored(), number)
            self.acknowledged = number

    def stored(self):
        while True:
            try:
                return self.client.get(COUNTER)[0]
            except AWAY:
                time.sleep(0.1)

    def until_all_have(self, number):
        with self.changed:
            done = self.changed.wait_for(
                lambda: self.failure or all(seen.next >= number for seen in self.seen), timeout=30
            )
            if self.failure:
                raise self.failure
            ensure(done, f"not all watches have seen {number} events", [seen.next for seen in self.seen])


def main():
    host, port = sys.argv[1:]
    # The channel shall look soon for a server that is back, and so shall the library, which would leave a server alone for
    # 300 s that was away once.
    options = {"grpc.max_reconnect_backoff_ms": 500, "grpc.initial_reconnect_backoff_ms": 100}
    endpoint = pyetcd.Endpoint(host, int(port), secure=False, time_retry=0, opts=options.items())
    client = pyetcd.MultiEndpointEtcd3Client([endpoint], timeout=ANSWER_WITHIN)
    error = error_of(lambda: day(client))
    sys.exit(end("day_pyetcd", error))


if __name__ == "__main__":
    main()
