// How a step fails, and what several steps share.

import assert from 'node:assert/strict';

// No single answer takes this long, in seconds.
export const ANSWER_WITHIN = 10;

// So long does the server keep a key of a lease that nobody keeps alive, in seconds: the least that etcd grants.
export const SHORT_LEASE = 2;

// An expired lease may be found out late, but not by more than this, in seconds.
const EXPIRY_LATE_MAX = 5;

export function ensure(condition, what, got) {
  if (!condition) assert.fail(got === undefined ? what : `${what}; got ${got instanceof Error ? got.stack : JSON.stringify(got)}`);
}

export function ensureEqual(what, got, expected) {
  assert.deepEqual(got, expected, `${what}: expected ${JSON.stringify(expected)}; got ${JSON.stringify(got)}`);
}

// The error that a promise ends with, or null.
export async function errorOf(promise) {
  try {
    await promise;
  } catch (error) {
    return error;
  }
  return null;
}

export async function within(seconds, what, promise) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`${what}: not within ${seconds} s`)), seconds * 1000);
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}

export function checkExpiryTime(what, begun) {
  const seconds = (performance.now() - begun) / 1000;
  ensure(seconds >= SHORT_LEASE, `${what} expired early: its TTL is ${SHORT_LEASE} s`, seconds);
  ensure(seconds <= SHORT_LEASE + EXPIRY_LATE_MAX, `${what} expired late: its TTL is ${SHORT_LEASE} s`, seconds);
}
