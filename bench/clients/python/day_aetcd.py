"""A day's work with aetcd: asyncio, and watches as asynchronous iterators.

    day_aetcd.py HOST PORT

Whoever runs it restarts the server when it prints "restart SIGNAL", and then types "serving" to it. The first thing that
is not as promised ends it with its reason.
"""

import asyncio
import sys
import time

import aetcd
from aetcd import exceptions

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

# What the library raises while the server is away: it passes on what the connection says, so the kinds are many.
AWAY = (exceptions.ClientError, aetcd.rpc.AioRpcError)


async def day(client):
    await puts_and_deletes(client)
    await reads(client)
    await transactions(client)
    await refusals(client)
    await watch_options(client)
    await compacted_history(client)
    await maintenance(client)
    await leases(client)
    await locks(client)
    await Restarts(client).run()


async def puts_and_deletes(client):
    first = await client.put(b"put/a", b"1", prev_kv=True)
    second = await client.put(b"put/a", b"2", prev_kv=True)
    ensure_equal("previous pair of the second put", (second.prev_kv.value, second.prev_kv.version), (b"1", 1))
    ensure_equal("revision of the second put", second.header.revision, first.header.revision + 1)
    found = await client.get(b"put/a")
    ensure_equal("versions", (found.value, found.version, found.create_revision), (b"2", 2, first.header.revision))
    ensure(await client.replace(b"put/a", b"2", b"3"), "replace of the right value")
    ensure(not await client.replace(b"put/a", b"2", b"4"), "replace of a wrong value")

    await client.put(b"put/b", b"1")
    await client.put(b"put/c", b"1")
    deleted = await client.delete(b"put/c", prev_kv=True)
    ensure_equal("deleted", (deleted.deleted, deleted.prev_kv.value), (1, b"1"))
    ensure_equal("a delete of nothing", await client.delete(b"put/c"), None)
    deleted = await client.delete_range(b"put/a", b"put/c", prev_kv=True)
    ensure_equal("deleted by range", [pair.value for pair in deleted], [b"3", b"1"])
    ensure_equal("deleted by prefix", (await client.delete_prefix(b"put/")).deleted, 0)
    ensure_equal("a key that is gone", await client.get(b"put/a"), None)


async def reads(client):
    for name in "cadb":
        await client.put(f"read/{name}".encode(), f"value of {name}".encode())
    cases = [
        ("prefix", {}, "abcd"),
        ("descending", {"sort_order": "descend"}, "dcba"),
        ("by creation", {"sort_order": "ascend", "sort_target": "create"}, "cadb"),
        ("keys only", {"keys_only": True}, "abcd"),
    ]
    for name, options, keys in cases:
        got = await client.get_prefix(b"read/", **options)
        ensure_equal(f"{name}: keys", "".join(pair.key.decode()[-1] for pair in got), keys)
        ensure_equal(f"{name}: count and more", (got.count, got.more), (4, False))
        ensure_equal(f"{name}: has values", all(pair.value for pair in got), name != "keys only")
    got = await client.get_range(b"read/b", b"read/d")
    ensure_equal("range", [pair.key for pair in got], [b"read/b", b"read/c"])
    ensure_equal("serializable", (await client.get(b"read/a", serializable=True)).value, b"value of a")
    everything = await client.get_all(keys_only=True)
    ensure(everything.count >= 4, "all keys", everything.count)


async def transactions(client):
    of = client.transactions
    made, answers = await client.transaction(
        compare=[of.create(b"txn/a") == 0],
        success=[of.put(b"txn/a", b"1"), of.put(b"txn/b", b"1"), of.get(b"txn/a")],
        failure=[of.get(b"txn/a")],
    )
    ensure(made and len(answers) == 3, "create", (made, answers))
    ensure_equal("a transaction sees its own put", answers[2][0][0], b"1")
    made, answers = await client.transaction(
        compare=[of.create(b"txn/a") == 0],
        success=[of.put(b"txn/a", b"wrong")],
        failure=[of.get(b"txn/", range_end=b"txn0")],
    )
    ensure(not made, "create again", answers)
    ensure_equal("the other branch", [value for value, _ in answers[0]], [b"1", b"1"])

    nested = of.txn([of.mod(b"txn/a") > 1 << 40], [], [of.delete(b"txn/b", prev_kv=True), of.put(b"txn/c", b"right")])
    made, answers = await client.transaction(
        compare=[of.value(b"txn/a") == b"1", of.version(b"txn/b") < 2], success=[nested], failure=[]
    )
    inner = answers[0].response_txn
    ensure(made and not inner.succeeded, "nested", answers)
    ensure_equal("the nested deletion", inner.responses[0].response_delete_range.prev_kvs[0].key, b"txn/b")
    left = [pair.value for pair in await client.get_prefix(b"txn/")]
    ensure_equal("after the nested transaction", left, [b"1", b"right"])


async def error_of(call):
    try:
        await call
    except Exception as error:
        return error
    return None


async def refusals(client):
    of = client.transactions
    await client.put(b"refuse/a", b"1")
    cases = [
        ("an empty key", exceptions.InvalidArgumentError, "etcdserver: key is not provided", client.put(b"", b"x")),
        ("an unknown lease", exceptions.ClientError, "etcdserver: requested lease not found",
         client.put(b"refuse/a", b"x", lease=123)),
        ("a key twice", exceptions.InvalidArgumentError, "etcdserver: duplicate key given in txn request",
         client.transaction([], [of.put(b"refuse/a", b"1"), of.put(b"refuse/a", b"2")], [])),
        ("1.6 MB", exceptions.InvalidArgumentError, "etcdserver: request is too large",
         client.put(b"refuse/a", b"x" * 1_600_000)),
        ("a revoke of nothing", exceptions.ClientError, "etcdserver: requested lease not found",
         client.revoke_lease(123)),
        ("a compaction of the future", exceptions.ClientError,
         "etcdserver: mvcc: required revision is a future revision", client.compact(1 << 40)),
    ]
    for name, kind, text, call in cases:
        refused(name, (kind, text), await error_of(call))


async def next_of(events):
    return await asyncio.wait_for(anext(events), ANSWER_WITHIN)


async def watch_options(client):
    """Previous pairs, a filter, a start in the past, and a cancel."""
    first = (await client.put(b"watch/a", b"1")).header.revision
    await client.put(b"watch/a", b"2")
    await client.delete(b"watch/a")
    watch = await client.watch_prefix(b"watch/", start_revision=first, prev_kv=True)
    events = aiter(watch)
    told = [await next_of(events) for _ in range(3)]
    ensure_equal("kinds", [event.kind for event in told], ["PUT", "PUT", "DELETE"])
    ensure_equal("values", [event.kv.value for event in told], [b"1", b"2", b""])
    ensure_equal("previous values", [event.prev_kv.value for event in told[1:]], [b"1", b"2"])
    await watch.cancel()
    only = await client.watch(b"watch/a", start_revision=first, kind=aetcd.rtypes.EventKind.DELETE)
    event = await next_of(aiter(only))
    ensure_equal("filtered", (event.kind, event.kv.mod_revision), ("DELETE", first + 2))
    await only.cancel()


async def compacted_history(client):
    now = (await client.put(b"compact/a", b"1")).header.revision
    await client.compact(now, physical=True)
    watch = await client.watch(b"compact/a", start_revision=now - 1)
    error = await error_of(next_of(aiter(watch)))
    ensure(isinstance(error, exceptions.RevisionCompactedError), "a watch below the compaction", error)
    ensure_equal("compacted revision", error.compacted_revision, now)
    watch = await client.watch(b"compact/a", start_revision=now)
    ensure_equal("at the compaction", (await next_of(aiter(watch))).kv.value, b"1")
    await watch.cancel()


async def maintenance(client):
    members = [member async for member in client.members()]
    ensure_equal("members", len(members), 1)
    status = await client.status()
    ensure(status.leader is not None and status.leader.id == members[0].id, "the one member leads", status.leader)
    ensure(status.version.startswith("3."), "version", status.version)
    ensure(status.db_size > 0, "size", status.db_size)
    ensure_equal("alarms", [alarm async for alarm in client.list_alarms()], [])
    await client.defragment()
    ensure_equal("two hashes of one state", await client.hash(), await client.hash())


async def await_deletion(client, key, since):
    """Waits for the deletion of a key from a revision on, and gives the event."""
    watch = await client.watch(key, start_revision=since, kind=aetcd.rtypes.EventKind.DELETE)
    try:
        return await asyncio.wait_for(anext(aiter(watch)), SHORT_LEASE + ANSWER_WITHIN)
    finally:
        await watch.cancel()


async def leases(client):
    granted = await client.lease(60)
    put = await client.put(b"lease/a", b"1", lease=granted)
    await client.put(b"lease/b", b"1", lease=granted.id)
    ensure_equal("lease of a key", (await client.get(b"lease/a")).lease, granted.id)
    ensure_equal("granted", (granted.ttl, await granted.granted_ttl()), (60, 60))
    ensure(50 <= await granted.remaining_ttl() <= 60, "remaining time", await granted.remaining_ttl())
    ensure_equal("keys of a lease", sorted(await granted.keys()), [b"lease/a", b"lease/b"])
    in_use = await error_of(client.lease(60, lease_id=granted.id))
    ensure(isinstance(in_use, exceptions.DuplicateLeaseError), "an id in use", in_use)
    await granted.revoke()
    ensure_equal("keys after a revoke", (await client.get_prefix(b"lease/")).count, 0)
    gone = await await_deletion(client, b"lease/a", put.header.revision)
    other = await await_deletion(client, b"lease/b", put.header.revision)
    ensure_equal("a revoke deletes at one revision", gone.kv.mod_revision, other.kv.mod_revision)
    ensure_equal("a lease that is gone", (await client.get_lease_info(granted.id)).TTL, -1)
    ensure_equal("a keep-alive of it", (await granted.refresh()).TTL, 0)

    # One lease is kept alive while others run out twice; so it lives for longer than its TTL.
    kept = await client.lease(SHORT_LEASE)
    await client.put(b"lease/kept", b"1", lease=kept)
    keeper = asyncio.create_task(keep_alive(kept))
    for _ in range(2):
        begun = time.monotonic()
        short = await client.lease(SHORT_LEASE)
        put = await client.put(b"lease/short", b"1", lease=short)
        await await_deletion(client, b"lease/short", put.header.revision)
        check_expiry_time("a lease", time.monotonic() - begun)
    ensure_equal("the key of a lease that was kept alive", (await client.get(b"lease/kept")).value, b"1")
    keeper.cancel()
    await kept.revoke()


async def keep_alive(lease):
    while True:
        await asyncio.sleep(lease.ttl / 3)
        await lease.refresh()


async def locks(client):
    count, workers = 10, 4
    await client.put(b"lock/shared", b"0")

    async def work():
        for _ in range(count):
            lock = client.lock(b"lock/of", ttl=30)
            ensure(await lock.acquire(timeout=30), "a lock that others release is never had")
            # Read and write are two steps, which the lock alone holds together.
            now = int((await client.get(b"lock/shared")).value)
            await client.put(b"lock/shared", str(now + 1).encode())
            ensure(await lock.is_acquired(), "the lock is lost")
            ensure(await lock.release(), "the lock is not released")

    await asyncio.gather(*(work() for _ in range(workers)))
    ensure_equal("counted under the lock", (await client.get(b"lock/shared")).value, str(count * workers).encode())

    # Who holds a lock and falls silent loses it when his lease runs out, and not before.
    begun = time.monotonic()
    silent, next_one = client.lock(b"lock/silent", ttl=SHORT_LEASE), client.lock(b"lock/silent", ttl=30)
    ensure(await silent.acquire(), "a free lock")
    ensure(not await next_one.acquire(timeout=0), "a lock is had twice")
    ensure(await next_one.acquire(timeout=SHORT_LEASE + ANSWER_WITHIN), "the lock of a holder whose lease ran out")
    check_expiry_time("a lock", time.monotonic() - begun)
    ensure(not await silent.is_acquired() and await next_one.is_acquired(), "the lock has changed hands")
    ensure_equal("refresh of a lock", (await next_one.refresh()).TTL, 30)
    await next_one.release()


class Restarts:
    """Ten watches of one client see a counter go up while the server is restarted under them: each number once.

    The library ends its watches with the connection; who reads them begins again at the revision behind the last one
    seen, as its users must.
    """

    def __init__(self, client):
        self.client = client
        self.changed = asyncio.Condition()
        # As in the other library, creates at the same time are mixed up.
        self.creating = asyncio.Lock()
        self.acknowledged = 0
        self.over = False
        self.seen = [Seen(f"watch {number}") for number in range(WATCHES)]

    async def run(self):
        lease = await self.client.lease(30)
        start = (await self.client.put(b"kept", b"1", lease=lease)).header.revision
        put = await self.client.put(b"forgotten", b"1", lease=await self.client.lease(SHORT_LEASE))
        work = []
        for number, seen in enumerate(self.seen):
            seen.revision = start
            work.append(self.watch(seen, COUNTER_PREFIX if number % 2 else COUNTER))
        self.tasks = [asyncio.create_task(each) for each in [*work, self.count_up()]]
        for signal in ("TERM", "KILL"):
            await self.until_all_have(self.acknowledged + PUTS_BETWEEN)
            await asyncio.to_thread(ask_for_restart, signal)
        await self.until_all_have(self.acknowledged + PUTS_BETWEEN)
        self.over = True
        await self.tasks[-1]
        await self.until_all_have(self.acknowledged)
        for seen in self.seen:
            ensure_equal(f"{seen.name}: events", seen.next, self.acknowledged)
        for task in self.tasks:
            task.cancel()

        ensure_equal("a lease after the restarts", (await lease.refresh()).TTL, 30)
        ensure_equal("its keys", list(await lease.keys()), [b"kept"])
        await lease.revoke()
        ensure_equal("the key of a revoked lease", await self.client.get(b"kept"), None)
        await await_deletion(self.client, b"forgotten", put.header.revision)

    async def watch(self, seen, key):
        watch = self.client.watch if key == COUNTER else self.client.watch_prefix
        while True:
            try:
                async with self.creating:
                    events = await watch(key.encode(), start_revision=seen.revision + 1)
                async for event in events:
                    seen.take(event.kv.key, event.kv.value, event.kv.mod_revision)
                    async with self.changed:
                        self.changed.notify_all()
            except AWAY:
                # Nothing tells when the server is back; trying does.
                await asyncio.sleep(0.1)

    async def count_up(self):
        number = 0
        while not self.over:
            try:
                await self.client.put(COUNTER.encode(), str(number).encode())
                number += 1
            except AWAY:
                number = number_after_failure(await self.stored(), number)
            self.acknowledged = number

    async def stored(self):
        while True:
            try:
                found = await self.client.get(COUNTER.encode())
                return found and found.value
            except AWAY:
                await asyncio.sleep(0.1)

    def failure(self):
        ended = (task for task in self.tasks if task.done() and not task.cancelled())
        return next((task.exception() for task in ended if task.exception()), None)

    async def until_all_have(self, number):
        def have():
            return self.failure() or all(seen.next >= number for seen in self.seen)

        async with self.changed:
            try:
                await asyncio.wait_for(self.changed.wait_for(have), 30)
            except asyncio.TimeoutError:
                pass
        if failure := self.failure():
            raise failure
        counts = [seen.next for seen in self.seen]
        ensure(min(counts) >= number, f"not all watches have seen {number} events", counts)


async def main():
    host, port = sys.argv[1:]
    # The channel shall look soon for a server that is back.
    options = {"grpc.max_reconnect_backoff_ms": 500, "grpc.initial_reconnect_backoff_ms": 100}
    async with aetcd.Client(host=host, port=int(port), timeout=ANSWER_WITHIN, options=options) as client:
        return end("day_aetcd", await error_of(day(client)))


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
