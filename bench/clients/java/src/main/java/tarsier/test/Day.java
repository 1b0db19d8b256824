package tarsier.test;

import static tarsier.test.Check.ANSWER_WITHIN;
import static tarsier.test.Check.SHORT_LEASE;
import static tarsier.test.Check.answer;
import static tarsier.test.Check.bytes;
import static tarsier.test.Check.ensure;
import static tarsier.test.Check.ensureEqual;
import static tarsier.test.Check.ensureRefused;
import static tarsier.test.Check.refused;
import static tarsier.test.Check.text;
import static tarsier.test.Check.within;

import io.etcd.jetcd.ByteSequence;
import io.etcd.jetcd.Client;
import io.etcd.jetcd.KV;
import io.etcd.jetcd.KeyValue;
import io.etcd.jetcd.Watch;
import io.etcd.jetcd.common.exception.CompactedException;
import io.etcd.jetcd.kv.GetResponse;
import io.etcd.jetcd.kv.TxnResponse;
import io.etcd.jetcd.lease.LeaseKeepAliveResponse;
import io.etcd.jetcd.op.Cmp;
import io.etcd.jetcd.op.CmpTarget;
import io.etcd.jetcd.op.Op;
import io.etcd.jetcd.options.CompactOption;
import io.etcd.jetcd.options.DeleteOption;
import io.etcd.jetcd.options.GetOption;
import io.etcd.jetcd.options.GetOption.SortOrder;
import io.etcd.jetcd.options.GetOption.SortTarget;
import io.etcd.jetcd.options.LeaseOption;
import io.etcd.jetcd.options.PutOption;
import io.etcd.jetcd.options.WatchOption;
import io.etcd.jetcd.support.CloseableClient;
import io.etcd.jetcd.support.Observers;
import io.etcd.jetcd.watch.WatchEvent;
import io.etcd.jetcd.watch.WatchEvent.EventType;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;

/**
 * A day's work with jetcd: {@code Day ENDPOINT}.
 *
 * <p>Whoever runs it restarts the server when it prints "restart SIGNAL", and then types "serving" to it. The first thing
 * that is not as promised ends it with its reason.
 */
public final class Day {
    private final Client client;
    private final KV kv;
    private final String endpoint;

    private Day(Client client, String endpoint) {
        this.client = client;
        this.kv = client.getKVClient();
        this.endpoint = endpoint;
    }

    public static void main(String[] arguments) {
        try (Client client = Client.builder().endpoints(arguments[0]).build()) {
            Day day = new Day(client, arguments[0]);
            day.putsAndDeletes();
            day.reads();
            day.transactions();
            day.refusals();
            day.watchOptions();
            day.compactedHistory();
            day.maintenance();
            day.leases();
            new Contests(client).run();
            new Restarts(client).run();
        } catch (Exception error) {
            error.printStackTrace();
            System.exit(1);
        }
        System.out.println("verified");
        // The library's threads would keep the process alive for a while.
        System.exit(0);
    }

    private void putsAndDeletes() throws Exception {
        long first = answer(kv.put(bytes("put/a"), bytes("1"))).getHeader().getRevision();
        var second = answer(kv.put(bytes("put/a"), bytes("2"), PutOption.builder().withPrevKV().build()));
        ensureEqual("previous value of the second put", text(second.getPrevKv().getValue()), "1");
        ensureEqual("previous revision of the second put", second.getPrevKv().getModRevision(), first);
        ensureEqual("revision of the second put", second.getHeader().getRevision(), first + 1);
        KeyValue found = answer(kv.get(bytes("put/a"))).getKvs().get(0);
        ensureEqual("value", text(found.getValue()), "2");
        ensureEqual("version and creation", List.of(found.getVersion(), found.getCreateRevision()), List.of(2L, first));

        var previous = DeleteOption.builder().withPrevKV(true).build();
        var deleted = answer(kv.delete(bytes("put/a"), previous));
        ensureEqual("deleted", deleted.getDeleted(), 1L);
        ensureEqual("deleted value", text(deleted.getPrevKvs().get(0).getValue()), "2");
        var again = answer(kv.delete(bytes("put/a"), previous));
        ensureEqual("a delete of nothing", again.getDeleted(), 0L);
        ensureEqual("its revision", again.getHeader().getRevision(), deleted.getHeader().getRevision());
        ensureEqual("a key that is gone", answer(kv.get(bytes("put/a"))).getCount(), 0L);
    }

    private void reads() throws Exception {
        List<Long> revisions = new ArrayList<>();
        for (String name : List.of("c", "a", "d", "b")) {
            revisions.add(answer(kv.put(bytes("read/" + name), bytes("value of " + name))).getHeader().getRevision());
        }
        read("prefix", prefix(), "abcd", 4, false);
        read("limit", prefix().withLimit(3), "abc", 4, true);
        read("descending", prefix().withSortField(SortTarget.KEY).withSortOrder(SortOrder.DESCEND), "dcba", 4, false);
        read("by creation", prefix().withSortField(SortTarget.CREATE).withSortOrder(SortOrder.ASCEND), "cadb", 4, false);
        read("at a revision", prefix().withRevision(revisions.get(1)), "ac", 2, false);
        read("created later", prefix().withMinCreateRevision(revisions.get(2)), "bd", 4, false);
        read("changed earlier", prefix().withMaxModRevision(revisions.get(1)), "ac", 4, false);
        read("serializable", prefix().withSerializable(true), "abcd", 4, false);
        read("count only", prefix().withCountOnly(true), "", 4, false);
        read("keys only", prefix().withKeysOnly(true), "abcd", 4, false);
    }

    private static GetOption.Builder prefix() {
        return GetOption.builder().isPrefix(true);
    }

    private void read(String name, GetOption.Builder options, String keys, long count, boolean more) throws Exception {
        GetResponse got = answer(kv.get(bytes("read/"), options.build()));
        StringBuilder found = new StringBuilder();
        for (KeyValue pair : got.getKvs()) {
            String last = text(pair.getKey()).substring("read/".length());
            found.append(last);
            ensureEqual(name + ": value", text(pair.getValue()), name.equals("keys only") ? "" : "value of " + last);
        }
        ensureEqual(name + ": keys", found.toString(), keys);
        ensureEqual(name + ": count", got.getCount(), count);
        ensureEqual(name + ": more", got.isMore(), more);
    }

    private TxnResponse create() throws Exception {
        return answer(kv.txn()
                .If(new Cmp(bytes("txn/a"), Cmp.Op.EQUAL, CmpTarget.createRevision(0)))
                .Then(put("txn/a", "1"), put("txn/b", "1"), Op.get(bytes("txn/a"), GetOption.DEFAULT))
                .Else(Op.get(bytes("txn/a"), GetOption.DEFAULT))
                .commit());
    }

    private static Op put(String key, String value) {
        return Op.put(bytes(key), bytes(value), PutOption.DEFAULT);
    }

    private void transactions() throws Exception {
        TxnResponse made = create();
        ensure(made.isSucceeded() && made.getPutResponses().size() == 2, "create", made);
        ensureEqual("a transaction sees its own put", text(made.getGetResponses().get(0).getKvs().get(0).getValue()), "1");
        TxnResponse again = create();
        ensure(!again.isSucceeded() && again.getGetResponses().size() == 1, "create again", again);

        TxnResponse outer = answer(kv.txn()
                .If(new Cmp(bytes("txn/a"), Cmp.Op.EQUAL, CmpTarget.value(bytes("1"))),
                        new Cmp(bytes("txn/b"), Cmp.Op.LESS, CmpTarget.version(2)))
                .Then(Op.txn(
                        new Cmp[] {new Cmp(bytes("txn/a"), Cmp.Op.GREATER, CmpTarget.modRevision(1L << 40))},
                        new Op[] {put("txn/c", "wrong")},
                        new Op[] {Op.delete(bytes("txn/b"), DeleteOption.DEFAULT), put("txn/c", "right")}))
                .commit());
        TxnResponse inner = outer.getTxnResponses().get(0);
        ensure(outer.isSucceeded() && !inner.isSucceeded(), "nested", outer);
        ensureEqual("the nested deletion", inner.getDeleteResponses().get(0).getDeleted(), 1L);
        var left = answer(kv.get(bytes("txn/"), GetOption.builder().isPrefix(true).build())).getKvs();
        ensureEqual("after it", left.stream().map(pair -> text(pair.getValue())).toList(), List.of("1", "right"));
    }

    private void refusals() throws Exception {
        ensureRefused("an empty key", "etcdserver: key is not provided", kv.put(ByteSequence.EMPTY, bytes("x")));
        ensureRefused("an unknown lease", "etcdserver: requested lease not found",
                kv.put(bytes("refuse/a"), bytes("x"), PutOption.builder().withLeaseId(123).build()));
        String future = "etcdserver: mvcc: required revision is a future revision";
        ensureRefused("the future", future,
                kv.get(bytes("refuse/a"), GetOption.builder().withRevision(1L << 40).build()));
        ensureRefused("a compaction of the future", future, kv.compact(1L << 40));
        ensureRefused("a key twice", "etcdserver: duplicate key given in txn request",
                kv.txn().Then(put("refuse/a", "1"), put("refuse/a", "2")).commit());
        Op[] many = new Op[129];
        for (int number = 0; number < many.length; number++) {
            many[number] = put("refuse/" + number, "1");
        }
        ensureRefused("129 operations", "etcdserver: too many operations in txn request", kv.txn().Then(many).commit());
        ensureRefused("1.6 MB", "etcdserver: request is too large",
                kv.put(bytes("refuse/a"), bytes("x".repeat(1_600_000))));
        ensureRefused("a revoke of nothing", "etcdserver: requested lease not found", client.getLeaseClient().revoke(123));
        ensureRefused("a keep-alive of nothing", "etcdserver: requested lease not found",
                client.getLeaseClient().keepAliveOnce(123));
    }

    /** The events that a watch has been told, one after the other. */
    private static final class Told implements Watch.Listener {
        private final BlockingQueue<WatchEvent> events = new LinkedBlockingQueue<>();
        private final CompletableFuture<Throwable> error = new CompletableFuture<>();

        @Override
        public void onNext(io.etcd.jetcd.watch.WatchResponse response) {
            events.addAll(response.getEvents());
        }

        @Override
        public void onError(Throwable throwable) {
            error.complete(throwable);
        }

        @Override
        public void onCompleted() {}

        WatchEvent next(long seconds) throws Exception {
            WatchEvent event = events.poll(seconds, TimeUnit.SECONDS);
            ensure(event != null, "no event within " + seconds + " s", error.getNow(null));
            return event;
        }
    }

    private void watchOptions() throws Exception {
        long first = answer(kv.put(bytes("watch/a"), bytes("1"))).getHeader().getRevision();
        answer(kv.put(bytes("watch/a"), bytes("2")));
        answer(kv.delete(bytes("watch/a")));
        Told all = new Told();
        var options = WatchOption.builder().isPrefix(true).withRevision(first).withPrevKV(true);
        try (Watch.Watcher watcher = client.getWatchClient().watch(bytes("watch/"), options.build(), all)) {
            List<WatchEvent> told = List.of(all.next(ANSWER_WITHIN), all.next(ANSWER_WITHIN), all.next(ANSWER_WITHIN));
            ensureEqual("kinds", told.stream().map(WatchEvent::getEventType).toList(),
                    List.of(EventType.PUT, EventType.PUT, EventType.DELETE));
            ensureEqual("values", told.stream().map(event -> text(event.getKeyValue().getValue())).toList(),
                    List.of("1", "2", ""));
            ensureEqual("previous values", told.stream().map(event -> text(event.getPrevKV().getValue())).toList(),
                    List.of("", "1", "2"));
        }
        ensureEqual("filtered", deletion("watch/a", first, ANSWER_WITHIN).getKeyValue().getModRevision(), first + 2);
    }

    /** The first deletion of a key from a revision on. */
    private WatchEvent deletion(String key, long since, long seconds) throws Exception {
        return deletion(client, key, since, seconds);
    }

    static WatchEvent deletion(Client client, String key, long since, long seconds) throws Exception {
        Told told = new Told();
        var options = WatchOption.builder().withRevision(since).withNoPut(true).build();
        try (Watch.Watcher watcher = client.getWatchClient().watch(bytes(key), options, told)) {
            WatchEvent event = told.next(seconds);
            ensureEqual("a filter for deletions", event.getEventType(), EventType.DELETE);
            return event;
        }
    }

    private void compactedHistory() throws Exception {
        long now = answer(kv.put(bytes("compact/a"), bytes("1"))).getHeader().getRevision();
        answer(kv.compact(now, CompactOption.builder().withCompactPhysical(true).build()));
        Told late = new Told();
        var below = WatchOption.builder().withRevision(now - 1).build();
        try (Watch.Watcher watcher = client.getWatchClient().watch(bytes("compact/a"), below, late)) {
            Throwable error = within(ANSWER_WITHIN, late.error);
            ensure(error instanceof CompactedException, "a watch below the compaction", error);
            ensureEqual("compacted revision", ((CompactedException) error).getCompactedRevision(), now);
            ensure(late.events.isEmpty(), "no event comes below the compaction", late.events);
        }
        Told behind = new Told();
        var at = WatchOption.builder().withRevision(now).build();
        try (Watch.Watcher watcher = client.getWatchClient().watch(bytes("compact/a"), at, behind)) {
            ensureEqual("at the compaction", text(behind.next(ANSWER_WITHIN).getKeyValue().getValue()), "1");
        }
    }

    private void maintenance() throws Exception {
        var members = answer(client.getClusterClient().listMember()).getMembers();
        ensureEqual("members", members.size(), 1);
        var maintenance = client.getMaintenanceClient();
        var status = answer(maintenance.statusMember(endpoint));
        ensureEqual("the one member leads", status.getLeader(), members.get(0).getId());
        ensure(status.getVersion().startsWith("3."), "version", status.getVersion());
        ensureEqual("alarms", answer(maintenance.listAlarms()).getAlarms().size(), 0);
        answer(maintenance.defragmentMember(endpoint));
        int hash = answer(maintenance.hashKV(endpoint, 0)).getHash();
        ensureEqual("two hashes of one state", answer(maintenance.hashKV(endpoint, 0)).getHash(), hash);
    }

    private void leases() throws Exception {
        var leases = client.getLeaseClient();
        long id = answer(leases.grant(60)).getID();
        var attached = PutOption.builder().withLeaseId(id).build();
        long put = answer(kv.put(bytes("lease/a"), bytes("1"), attached)).getHeader().getRevision();
        answer(kv.put(bytes("lease/b"), bytes("1"), attached));
        ensureEqual("lease of a key", answer(kv.get(bytes("lease/a"))).getKvs().get(0).getLease(), id);
        var told = answer(leases.timeToLive(id, LeaseOption.builder().withAttachedKeys().build()));
        ensureEqual("granted", told.getGrantedTTL(), 60L);
        ensure(told.getTTL() >= 50 && told.getTTL() <= 60, "remaining time", told.getTTL());
        ensureEqual("keys of a lease", told.getKeys().stream().map(Check::text).sorted().toList(),
                List.of("lease/a", "lease/b"));
        ensureEqual("a keep-alive", answer(leases.keepAliveOnce(id)).getTTL(), 60L);
        answer(leases.revoke(id));
        long gone = deletion("lease/a", put, ANSWER_WITHIN).getKeyValue().getModRevision();
        ensureEqual("a revoke deletes at one revision",
                deletion("lease/b", put, ANSWER_WITHIN).getKeyValue().getModRevision(), gone);
        ensureEqual("a lease that is gone", answer(leases.timeToLive(id, LeaseOption.DEFAULT)).getTTL(), -1L);
        ensure(refused("a lease revoked twice", leases.revoke(id)) != null, "a reason", null);

        // One lease is kept alive while others run out twice; so it lives for longer than its TTL.
        long kept = answer(leases.grant(SHORT_LEASE)).getID();
        answer(kv.put(bytes("lease/kept"), bytes("1"), PutOption.builder().withLeaseId(kept).build()));
        CompletableFuture<LeaseKeepAliveResponse> alive = new CompletableFuture<>();
        var observer = Observers.<LeaseKeepAliveResponse>builder().onNext(alive::complete).onError(alive::completeExceptionally).build();
        try (CloseableClient keeping = leases.keepAlive(kept, observer)) {
            ensureEqual("the first keep-alive", answer(alive).getTTL(), SHORT_LEASE);
            for (int round = 0; round < 2; round++) {
                long begun = System.nanoTime();
                long brief = answer(leases.grant(SHORT_LEASE)).getID();
                var option = PutOption.builder().withLeaseId(brief).build();
                long at = answer(kv.put(bytes("lease/short"), bytes("1"), option)).getHeader().getRevision();
                deletion("lease/short", at, SHORT_LEASE + ANSWER_WITHIN);
                Check.expiryTime("a lease", begun);
            }
            ensureEqual("the key of a lease that was kept alive", answer(kv.get(bytes("lease/kept"))).getCount(), 1L);
        }
        answer(leases.revoke(kept));
    }
}
