"""What both Python programs share: how a step fails, how they ask for a restart, and what a watch must have seen.

It knows neither of the libraries.
"""

import sys

# No single answer takes this long, in seconds.
ANSWER_WITHIN = 10

# So long does the server keep a key of a lease that nobody keeps alive, in seconds: the least that etcd grants.
SHORT_LEASE = 2

# An expired lease may be found out late, but not by more than this, in seconds.
EXPIRY_LATE_MAX = 5

# The watches that live through the restarts, and the puts on each side of one.
WATCHES = 10
PUTS_BETWEEN = 100

# The counter is written to one key, and half of the watches look at that key alone, the others at its prefix.
COUNTER = "count/er"
COUNTER_PREFIX = "count/"


class Failed(Exception):
    """A step that did not give what it should."""


def ensure(condition, what, got=None):
    if not condition:
        raise Failed(what if got is None else f"{what}; got {got!r}")


def ensure_equal(what, got, expected):
    ensure(got == expected, f"{what}: expected {expected!r}", got)


def refused(what, wanted, error):
    """Checks that a call ended with this error of the library: its class, and a part of its text."""
    kind, text = wanted
    ensure(isinstance(error, kind), f"{what}: expected {kind.__name__}", error)
    ensure(text in str(error), f"{what}: expected the text {text!r}", str(error))


def ask_for_restart(signal):
    """Has whoever runs the program restart the server by this signal, and returns when it serves again."""
    print(f"restart {signal}", flush=True)
    ensure_equal("the answer to a restart", sys.stdin.readline().strip(), "serving")


class Seen:
    """What one watch of the counter has seen. The counter goes up by one with each put, so a lost, doubled or exchanged
    event shows as a wrong number or as a revision that does not grow."""

    def __init__(self, name):
        self.name = name
        self.next = 0
        self.revision = 0

    def take(self, key, value, revision):
        ensure_equal(f"{self.name}: key", key.decode(), COUNTER)
        ensure_equal(f"{self.name}: event", int(value), self.next)
        ensure(revision > self.revision, f"{self.name}: expected a revision above {self.revision}", revision)
        self.next += 1
        self.revision = revision


def number_after_failure(stored, number):
    """A put that was not answered may have happened or not; the key says which. Gives the number to put next."""
    stored = -1 if stored is None else int(stored)
    ensure(stored in (number - 1, number), f"a write was lost: {number - 1} was answered", stored)
    return stored + 1


def check_expiry_time(what, seconds):
    ensure(seconds >= SHORT_LEASE, f"{what} expired early: its TTL is {SHORT_LEASE} s", seconds)
    ensure(seconds <= SHORT_LEASE + EXPIRY_LATE_MAX, f"{what} expired late: its TTL is {SHORT_LEASE} s", seconds)


def end(name, error):
    """Tells how the program ended, and gives its exit status."""
    if error is None:
        print("verified", flush=True)
        return 0
    print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr)
    return 1
