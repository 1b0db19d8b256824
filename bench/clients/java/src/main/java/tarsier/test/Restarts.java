package tarsier.test;

import static tarsier.test.Check.ANSWER_WITHIN;
import static tarsier.test.Check.SHORT_LEASE;
import static tarsier.test.Check.answer;
import static tarsier.test.Check.bytes;
import static tarsier.test.Check.ensure;
import static tarsier.test.Check.ensureEqual;
import static tarsier.test.Check.text;

import io.etcd.jetcd.Client;
import io.etcd.jetcd.KV;
import io.etcd.jetcd.Watch;
import io.etcd.jetcd.lease.LeaseKeepAliveResponse;
import io.etcd.jetcd.options.LeaseOption;
import io.etcd.jetcd.options.PutOption;
import io.etcd.jetcd.options.WatchOption;
import io.etcd.jetcd.support.CloseableClient;
import io.etcd.jetcd.support.Observers;
import io.etcd.jetcd.watch.WatchEvent;
import io.etcd.jetcd.watch.WatchEvent.EventType;
import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;
import java.util.concurrent.atomic.AtomicBoolean;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.concurrent.atomic.AtomicReference;

/**
 * Ten watches of one client see a counter go up while the server is restarted under them: each number once. The library
 * resumes its watches by itself, and whoever listens to them must not notice.
 */
final class Restarts {
    private static final String COUNTER = "count/er";
    private static final String COUNTER_PREFIX = "count/";
    private static final int WATCHES = 10;

    /** The puts on each side of a restart. */
    private static final int PUTS_BETWEEN = 100;

    /** No restart takes this long, in seconds, with all that comes behind it. */
    private static final long CAUGHT_UP_WITHIN = 30;

    private final Client client;
    private final KV kv;
    private final BufferedReader answers = new BufferedReader(new InputStreamReader(System.in));
    private final List<Seen> seen = new ArrayList<>();
    private final AtomicInteger acknowledged = new AtomicInteger();
    private final AtomicBoolean over = new AtomicBoolean();
    private final AtomicReference<Throwable> failure = new AtomicReference<>();
    private final Object changed = new Object();

    Restarts(Client client) {
        this.client = client;
        this.kv = client.getKVClient();
    }

    /**
     * What one watch has seen. The counter goes up by one with each put, so a lost, doubled or exchanged event shows as a
     * wrong number or as a revision that does not grow.
     */
    private static final class Seen {
        final String name;
        final CompletableFuture<Void> created = new CompletableFuture<>();
        volatile int next;
        private long revision;

        Seen(String name) {
            this.name = name;
        }

        void take(WatchEvent event) {
            var pair = event.getKeyValue();
            ensureEqual(name + ": kind", event.getEventType(), EventType.PUT);
            ensureEqual(name + ": key", text(pair.getKey()), COUNTER);
            ensureEqual(name + ": event", Integer.parseInt(text(pair.getValue())), next);
            ensure(pair.getModRevision() > revision, name + ": expected a revision above " + revision, pair.getModRevision());
            revision = pair.getModRevision();
            next = next + 1;
        }
    }

    void run() throws Exception {
        var leases = client.getLeaseClient();
        long kept = answer(leases.grant(30)).getID();
        answer(kv.put(bytes("kept"), bytes("1"), PutOption.builder().withLeaseId(kept).build()));
        long forgotten = answer(leases.grant(SHORT_LEASE)).getID();
        var option = PutOption.builder().withLeaseId(forgotten).build();
        long since = answer(kv.put(bytes("forgotten"), bytes("1"), option)).getHeader().getRevision();
        List<Watch.Watcher> watchers = new ArrayList<>();
        try (CloseableClient keeping = leases.keepAlive(kept, Observers.<LeaseKeepAliveResponse>observer(told -> {}))) {
            for (int number = 0; number < WATCHES; number++) {
                watchers.add(watch(number));
            }
            Thread writer = new Thread(this::countUp);
            writer.setDaemon(true);
            writer.start();
            for (String signal : List.of("TERM", "KILL")) {
                untilAllHave(acknowledged.get() + PUTS_BETWEEN);
                askForRestart(signal);
            }
            untilAllHave(acknowledged.get() + PUTS_BETWEEN);
            over.set(true);
            writer.join();
            untilAllHave(acknowledged.get());
            for (Seen one : seen) {
                ensureEqual(one.name + ": events", one.next, acknowledged.get());
            }
            watchers.forEach(Watch.Watcher::close);
            var told = answer(leases.timeToLive(kept, LeaseOption.builder().withAttachedKeys().build()));
            ensure(told.getTTL() > 0 && told.getTTL() <= 30, "a lease after the restarts", told.getTTL());
            ensureEqual("its keys", told.getKeys().stream().map(Check::text).toList(), List.of("kept"));
        }
        answer(leases.revoke(kept));
        ensureEqual("the key of a revoked lease", answer(kv.get(bytes("kept"))).getCount(), 0L);
        Day.deletion(client, "forgotten", since, SHORT_LEASE + ANSWER_WITHIN);
    }

    private Watch.Watcher watch(int number) throws Exception {
        Seen one = new Seen("watch " + number);
        seen.add(one);
        var option = WatchOption.builder().isPrefix(number % 2 == 1).withCreateNotify(true).build();
        var key = bytes(number % 2 == 1 ? COUNTER_PREFIX : COUNTER);
        // The library tells of every lost connection as an error, and goes on; so an error alone is none here.
        var watcher = client.getWatchClient().watch(key, option, response -> {
            if (response.isCreatedNotify()) {
                one.created.complete(null);
                return;
            }
            try {
                response.getEvents().forEach(one::take);
            } catch (RuntimeException error) {
                fail(error);
            }
            synchronized (changed) {
                changed.notifyAll();
            }
        });
        answer(one.created);
        return watcher;
    }

    private void fail(Throwable error) {
        failure.compareAndSet(null, error);
        synchronized (changed) {
            changed.notifyAll();
        }
    }

    private void countUp() {
        try {
            for (int number = 0; !over.get(); acknowledged.set(number)) {
                try {
                    kv.put(bytes(COUNTER), bytes(String.valueOf(number))).get(CAUGHT_UP_WITHIN, TimeUnit.SECONDS);
                    number++;
                } catch (ExecutionException | TimeoutException away) {
                    number = 1 + stored(number);
                }
            }
        } catch (Exception error) {
            fail(error);
        }
    }

    /** A put that was not answered may have happened or not; the key says which. */
    private int stored(int number) throws Exception {
        while (true) {
            try {
                var found = kv.get(bytes(COUNTER)).get(CAUGHT_UP_WITHIN, TimeUnit.SECONDS).getKvs();
                int stored = found.isEmpty() ? -1 : Integer.parseInt(text(found.get(0).getValue()));
                ensure(stored == number || stored == number - 1, "a write was lost: " + (number - 1) + " was answered", stored);
                return stored;
            } catch (ExecutionException away) {
                // Nothing tells when the server is back; trying does.
                Thread.sleep(50);
            }
        }
    }

    private void askForRestart(String signal) throws Exception {
        System.out.println("restart " + signal);
        ensureEqual("the answer to a restart", answers.readLine(), "serving");
    }

    private void untilAllHave(int number) throws Exception {
        long deadline = System.nanoTime() + TimeUnit.SECONDS.toNanos(CAUGHT_UP_WITHIN);
        synchronized (changed) {
            while (failure.get() == null && seen.stream().anyMatch(one -> one.next < number)) {
                long left = TimeUnit.NANOSECONDS.toMillis(deadline - System.nanoTime());
                ensure(left > 0, "not all watches have seen " + number + " events",
                        seen.stream().map(one -> one.next).toList());
                changed.wait(left);
            }
        }
        if (failure.get() != null) {
            throw new Exception(failure.get());
        }
    }
}
