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
import io.etcd.jetcd.Election;
import io.etcd.jetcd.KV;
import io.etcd.jetcd.Lease;
import io.etcd.jetcd.Lock;
import io.etcd.jetcd.election.CampaignResponse;
import io.etcd.jetcd.election.LeaderResponse;
import io.etcd.jetcd.election.NoLeaderException;
import io.etcd.jetcd.election.NotLeaderException;
import io.etcd.jetcd.lock.LockResponse;
import io.etcd.jetcd.options.GetOption;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;

/** Locks and elections, which jetcd leaves to the services of the server. */
final class Contests {
    private static final int WORKERS = 4;
    private static final int TURNS = 10;

    private final KV kv;
    private final Lease leases;
    private final Lock locks;
    private final Election elections;

    Contests(Client client) {
        this.kv = client.getKVClient();
        this.leases = client.getLeaseClient();
        this.locks = client.getLockClient();
        this.elections = client.getElectionClient();
    }

    void run() throws Exception {
        countUnderTheLock();
        lockOfTheSilent();
        elect();
    }

    private void countUnderTheLock() throws Exception {
        answer(kv.put(bytes("lock/shared"), bytes("0")));
        List<CompletableFuture<Void>> workers = new ArrayList<>();
        for (int worker = 0; worker < WORKERS; worker++) {
            workers.add(CompletableFuture.runAsync(() -> {
                try {
                    count();
                } catch (Exception error) {
                    throw new RuntimeException(error);
                }
            }));
        }
        for (var worker : workers) {
            within(3 * ANSWER_WITHIN, worker);
        }
        var counted = answer(kv.get(bytes("lock/shared"))).getKvs().get(0).getValue();
        ensureEqual("counted under the lock", text(counted), String.valueOf(WORKERS * TURNS));
    }

    private void count() throws Exception {
        long lease = answer(leases.grant(60)).getID();
        for (int turn = 0; turn < TURNS; turn++) {
            ByteSequence key = within(2 * ANSWER_WITHIN, locks.lock(bytes("lock/of"), lease)).getKey();
            ensure(text(key).startsWith("lock/of/"), "key of a lock", text(key));
            // Read and write are two steps, which the lock alone holds together.
            int now = Integer.parseInt(text(answer(kv.get(bytes("lock/shared"))).getKvs().get(0).getValue()));
            answer(kv.put(bytes("lock/shared"), bytes(String.valueOf(now + 1))));
            answer(locks.unlock(key));
        }
        answer(leases.revoke(lease));
    }

    /** Who holds a lock and falls silent loses it when his lease runs out, and not before. */
    private void lockOfTheSilent() throws Exception {
        long begun = System.nanoTime();
        long silent = answer(leases.grant(SHORT_LEASE)).getID();
        long other = answer(leases.grant(60)).getID();
        answer(locks.lock(bytes("lock/silent"), silent));
        CompletableFuture<LockResponse> waiting = locks.lock(bytes("lock/silent"), other);
        LockResponse had = within(SHORT_LEASE + ANSWER_WITHIN, waiting);
        Check.expiryTime("a lock", begun);
        answer(locks.unlock(had.getKey()));
        ensureRefused("a lock without a lease that is known", "etcdserver: requested lease not found",
                locks.lock(bytes("lock/silent"), 123));
        answer(leases.revoke(other));
    }

    private void elect() throws Exception {
        ByteSequence post = bytes("post");
        ensure(refused("a leader of nobody", elections.leader(post)) instanceof NoLeaderException, "no leader", null);
        long first = answer(leases.grant(60)).getID();
        long second = answer(leases.grant(60)).getID();
        CampaignResponse elected = answer(elections.campaign(post, first, bytes("first")));
        ensureEqual("leader", text(answer(elections.leader(post)).getKv().getValue()), "first");
        BlockingQueue<String> observed = new LinkedBlockingQueue<>();
        elections.observe(post, new Election.Listener() {
            @Override
            public void onNext(LeaderResponse response) {
                observed.add(text(response.getKv().getValue()));
            }

            @Override
            public void onError(Throwable throwable) {
                observed.add(throwable.toString());
            }

            @Override
            public void onCompleted() {
                observed.add("completed");
            }
        });
        ensureEqual("observed", observed.poll(ANSWER_WITHIN, TimeUnit.SECONDS), "first");
        CompletableFuture<CampaignResponse> waiting = elections.campaign(post, second, bytes("second"));
        awaitCandidates(post, 2);
        answer(elections.proclaim(elected.getLeader(), bytes("still the first")));
        ensureEqual("proclaimed", observed.poll(ANSWER_WITHIN, TimeUnit.SECONDS), "still the first");
        ensure(!waiting.isDone(), "the second is elected beside the first", waiting);
        answer(elections.resign(elected.getLeader()));
        CampaignResponse next = answer(waiting);
        ensureEqual("the next leader", observed.poll(ANSWER_WITHIN, TimeUnit.SECONDS), "second");
        Throwable late = refused("a leader that was", elections.proclaim(elected.getLeader(), bytes("late")));
        ensure(late instanceof NotLeaderException, "not leader any more", late);

        // Whose lease ends has resigned.
        answer(leases.revoke(second));
        ensure(refused("nobody leads", elections.leader(post)) instanceof NoLeaderException, "no leader", null);
        ensureEqual("lease of the second", next.getLeader().getLease(), second);
        answer(leases.revoke(first));
    }

    private void awaitCandidates(ByteSequence post, long count) throws Exception {
        var option = GetOption.builder().withPrefix(bytes(text(post) + "/")).withCountOnly(true).build();
        long deadline = System.nanoTime() + TimeUnit.SECONDS.toNanos(ANSWER_WITHIN);
        while (answer(kv.get(bytes(text(post) + "/"), option)).getCount() < count) {
            ensure(System.nanoTime() < deadline, "candidates never became " + count, null);
        }
    }
}
