// Ten watches of one client see a counter go up while the server is restarted under them: each number once. The library
// resumes its watches by itself, and whoever listens to them must not notice.

import { EventEmitter, once } from 'node:events';
import { createInterface } from 'node:readline';

import { ANSWER_WITHIN, SHORT_LEASE, ensure, ensureEqual, errorOf, within } from './common.mjs';

const COUNTER = 'count/er';
const COUNTER_PREFIX = 'count/';
const WATCHES = 10;

// The puts on each side of a restart.
const PUTS_BETWEEN = 100;

// No restart takes this long, in seconds, with all that comes behind it.
const CAUGHT_UP_WITHIN = 30;

// What one watch has seen. The counter goes up by one with each put, so a lost, doubled or exchanged event shows as a wrong
// number or as a revision that does not grow.
class Seen {
  next = 0;
  revision = 0;

  constructor(name) {
    this.name = name;
  }

  take(pair) {
    ensureEqual(`${this.name}: key`, String(pair.key), COUNTER);
    ensureEqual(`${this.name}: event`, Number(pair.value), this.next);
    ensure(Number(pair.mod_revision) > this.revision, `${this.name}: expected a revision above ${this.revision}`, pair.mod_revision);
    this.next += 1;
    this.revision = Number(pair.mod_revision);
  }
}

export class Restarts {
  client;
  answers = createInterface({ input: process.stdin });
  progress = new EventEmitter();
  seen = [];
  acknowledged = 0;
  over = false;

  constructor(client) {
    this.client = client;
  }

  async run() {
    const lost = new Promise((_, reject) => this.progress.once('failure', reject));
    await Promise.race([this.work(), lost]);
    this.answers.close();
  }

  async work() {
    const kept = this.client.lease(30);
    kept.on('lost', error => this.progress.emit('failure', error));
    await kept.put('kept').value('1');
    const forgotten = this.client.lease(SHORT_LEASE, { autoKeepAlive: false });
    const since = (await forgotten.put('forgotten').value('1').exec()).header.revision;
    const watchers = [];
    for (let number = 0; number < WATCHES; number += 1) {
      watchers.push(await this.watch(number));
    }
    const counting = this.countUp().catch(error => this.progress.emit('failure', error));
    for (const signal of ['TERM', 'KILL']) {
      await this.untilAllHave(this.acknowledged + PUTS_BETWEEN);
      await this.askForRestart(signal);
    }
    await this.untilAllHave(this.acknowledged + PUTS_BETWEEN);
    this.over = true;
    await counting;
    await this.untilAllHave(this.acknowledged);
    for (const seen of this.seen) {
      ensureEqual(`${seen.name}: events`, seen.next, this.acknowledged);
    }
    for (const watcher of watchers) {
      await watcher.cancel();
    }

    const told = await this.client.leaseClient.leaseTimeToLive({ ID: await kept.grant(), keys: true });
    ensure(told.TTL > 0 && told.TTL <= 30, 'a lease after the restarts', told);
    ensureEqual('its keys', told.keys.map(String), ['kept']);
    await kept.revoke();
    ensureEqual('the key of a revoked lease', await this.client.get('kept').string(), null);
    const watcher = this.client.watch().key('forgotten').startRevision(since).only('delete').watcher();
    await within(SHORT_LEASE + ANSWER_WITHIN, 'a lease from before the restarts runs out', once(watcher, 'delete'));
    await watcher.cancel();
  }

  async watch(number) {
    const seen = new Seen(`watch ${number}`);
    this.seen.push(seen);
    const builder = this.client.watch();
    const watcher = await (number % 2 ? builder.prefix(COUNTER_PREFIX) : builder.key(COUNTER)).create();
    const guarded = work => (...given) => {
      try {
        work(...given);
      } catch (error) {
        this.progress.emit('failure', error);
      }
    };
    watcher.on('put', guarded(pair => {
      seen.take(pair);
      this.progress.emit('seen');
    }));
    watcher.on('delete', guarded(pair => ensure(false, `${seen.name}: a deletion`, pair)));
    watcher.on('error', error => this.progress.emit('failure', error));
    return watcher;
  }

  async countUp() {
    for (let number = 0; !this.over; ) {
      if (await errorOf(this.client.put(COUNTER).value(number).exec()) === null) {
        number += 1;
      } else {
        number = 1 + await this.stored(number);
      }
      this.acknowledged = number;
    }
  }

  // A put that was not answered may have happened or not; the key says which.
  async stored(number) {
    for (;;) {
      let stored;
      try {
        stored = await this.client.get(COUNTER).number() ?? -1;
      } catch {
        // Nothing tells when the server is back; trying does.
        await new Promise(resolve => setTimeout(resolve, 50));
        continue;
      }
      ensure(stored === number || stored === number - 1, `a write was lost: ${number - 1} was answered`, stored);
      return stored;
    }
  }

  async askForRestart(signal) {
    const answer = once(this.answers, 'line');
    console.log(`restart ${signal}`);
    ensureEqual('the answer to a restart', await answer, ['serving']);
  }

  async untilAllHave(number) {
    const counts = () => this.seen.map(seen => seen.next);
    const all = (async () => {
      while (Math.min(...counts()) < number) await once(this.progress, 'seen');
    })();
    const late = await errorOf(within(CAUGHT_UP_WITHIN, 'all watches', all));
    ensure(late === null, `not all watches have seen ${number} events`, counts());
  }
}
