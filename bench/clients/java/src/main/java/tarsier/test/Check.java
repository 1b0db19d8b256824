package tarsier.test;

import io.etcd.jetcd.ByteSequence;
import java.nio.charset.StandardCharsets;
import java.util.Objects;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;

/** How a step fails, and what several steps share. */
final class Check {
    /** No single answer takes this long, in seconds. */
    static final long ANSWER_WITHIN = 10;

    /** So long does the server keep a key of a lease that nobody keeps alive, in seconds: the least that etcd grants. */
    static final long SHORT_LEASE = 2;

    /** An expired lease may be found out late, but not by more than this, in seconds. */
    private static final long EXPIRY_LATE_MAX = 5;

    private Check() {}

    static final class Failed extends RuntimeException {
        private static final long serialVersionUID = 1;

        Failed(String what) {
            super(what);
        }
    }

    static void ensure(boolean condition, String what, Object got) {
        if (!condition) {
            throw new Failed(what + "; got " + got);
        }
    }

    static void ensureEqual(String what, Object got, Object expected) {
        ensure(Objects.equals(got, expected), what + ": expected " + expected, got);
    }

    /** The answer of a call that must succeed. */
    static <T> T answer(CompletableFuture<T> call) throws Exception {
        return within(ANSWER_WITHIN, call);
    }

    static <T> T within(long seconds, CompletableFuture<T> call) throws Exception {
        return call.get(seconds, TimeUnit.SECONDS);
    }

    /** The reason why a call that must fail has failed. */
    static Throwable refused(String what, CompletableFuture<?> call) throws InterruptedException, TimeoutException {
        try {
            throw new Failed(what + " is not refused; got " + call.get(ANSWER_WITHIN, TimeUnit.SECONDS));
        } catch (ExecutionException error) {
            return error.getCause();
        }
    }

    static void ensureRefused(String what, String text, CompletableFuture<?> call) throws Exception {
        Throwable reason = refused(what, call);
        ensure(String.valueOf(reason.getMessage()).contains(text), what + ": expected the error " + text, reason);
    }

    static void expiryTime(String what, long begunNanos) {
        double seconds = (System.nanoTime() - begunNanos) / 1e9;
        ensure(seconds >= SHORT_LEASE, what + " expired early: its TTL is " + SHORT_LEASE + " s", seconds);
        ensure(seconds <= SHORT_LEASE + EXPIRY_LATE_MAX, what + " expired late: its TTL is " + SHORT_LEASE + " s", seconds);
    }

    static ByteSequence bytes(String text) {
        return ByteSequence.from(text, StandardCharsets.UTF_8);
    }

    static String text(ByteSequence bytes) {
        return bytes.toString(StandardCharsets.UTF_8);
    }
}
