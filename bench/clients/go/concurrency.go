package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
)

const (
	contestants = 5
	// How often each of them counts up what they share.
	turns = 10
)

// useConcurrency is a day with the client's package of that name: sessions, mutexes, elections, software transactions.
func useConcurrency(ctx context.Context, client *clientv3.Client) error {
	steps := []struct {
		name string
		run  func(context.Context, *clientv3.Client) error
	}{
		{"mutex", countUnderMutex},
		{"mutex of a session that ends", mutexOfTheDead},
		{"election", elect},
		{"transactions", countByTransactions},
	}
	for _, step := range steps {
		ctx, cancel := context.WithTimeout(ctx, time.Minute)
		err := step.run(ctx, client)
		cancel()
		if err != nil {
			return fmt.Errorf("%s: %w", step.name, err)
		}
	}
	return nil
}

// contest runs as many as there are contestants at the same time, each turn after turn, and checks that the shared key has
// been counted up by each turn.
func contest(ctx context.Context, client *clientv3.Client, key string, contestant func() (turn func() error, end func() error, err error)) error {
	if _, err := client.Put(ctx, key, "0"); err != nil {
		return err
	}
	failed := make(chan error, contestants)
	for range contestants {
		go func() {
			failed <- func() error {
				turn, end, err := contestant()
				if err != nil {
					return err
				}
				for range turns {
					if err := turn(); err != nil {
						return errors.Join(err, end())
					}
				}
				return end()
			}()
		}()
	}
	var all error
	for range contestants {
		all = errors.Join(all, <-failed)
	}
	if all != nil {
		return all
	}
	got, err := client.Get(ctx, key)
	if err != nil {
		return err
	}
	if count := string(got.Kvs[0].Value); count != strconv.Itoa(contestants*turns) {
		return fmt.Errorf("%d contestants with %d turns each have counted to %s", contestants, turns, count)
	}
	return nil
}

func countUnderMutex(ctx context.Context, client *clientv3.Client) error {
	return contest(ctx, client, "mutex/count", func() (func() error, func() error, error) {
		session, err := concurrency.NewSession(client, concurrency.WithTTL(30), concurrency.WithContext(ctx))
		if err != nil {
			return nil, nil, err
		}
		mutex := concurrency.NewMutex(session, "mutex/lock")
		turn := func() error {
			if err := mutex.Lock(ctx); err != nil {
				return err
			}
			// Read and write are two steps, which the mutex alone holds together.
			got, err := client.Get(ctx, "mutex/count")
			if err != nil {
				return err
			}
			now, err := strconv.Atoi(string(got.Kvs[0].Value))
			if err != nil {
				return err
			}
			// The put carries the proof that the mutex is still ours.
			put := clientv3.OpPut("mutex/count", strconv.Itoa(now+1))
			done, err := client.Txn(ctx).If(mutex.IsOwner()).Then(put).Commit()
			if err != nil {
				return err
			}
			if !done.Succeeded {
				return errors.New("the mutex is lost")
			}
			return mutex.Unlock(ctx)
		}
		return turn, session.Close, nil
	})
}

// mutexOfTheDead checks that a mutex is free when the session of its owner ends: by closing, and by silence.
func mutexOfTheDead(ctx context.Context, client *clientv3.Client) error {
	waiting, err := concurrency.NewSession(client, concurrency.WithTTL(30))
	if err != nil {
		return err
	}
	defer waiting.Close()
	for _, closes := range []bool{true, false} {
		begun := time.Now()
		owning, err := concurrency.NewSession(client, concurrency.WithTTL(shortLease))
		if err != nil {
			return err
		}
		defer owning.Close()
		owned, wanted := concurrency.NewMutex(owning, "mutex/dead"), concurrency.NewMutex(waiting, "mutex/dead")
		if err := owned.Lock(ctx); err != nil {
			return err
		}
		if err := wanted.TryLock(ctx); !errors.Is(err, concurrency.ErrLocked) {
			return fmt.Errorf("a mutex that is owned: wanted %q, got %w", concurrency.ErrLocked, err)
		}
		locked := make(chan error, 1)
		go func() { locked <- wanted.Lock(ctx) }()
		if closes {
			if err := owning.Close(); err != nil {
				return err
			}
		} else {
			// An orphan is not kept alive any more, and its lease runs out.
			owning.Orphan()
		}
		if err := <-locked; err != nil {
			return err
		}
		if !closes {
			if err := expiryTime("a mutex", begun); err != nil {
				return err
			}
		}
		if err := wanted.Unlock(ctx); err != nil {
			return err
		}
	}
	return nil
}

func elect(ctx context.Context, client *clientv3.Client) error {
	var sessions [2]*concurrency.Session
	var candidates [2]*concurrency.Election
	for i := range candidates {
		session, err := concurrency.NewSession(client, concurrency.WithTTL(30))
		if err != nil {
			return err
		}
		defer session.Close()
		sessions[i], candidates[i] = session, concurrency.NewElection(session, "election/post")
	}
	first, second := candidates[0], candidates[1]
	if _, err := first.Leader(ctx); !errors.Is(err, concurrency.ErrElectionNoLeader) {
		return fmt.Errorf("before anybody stands: wanted %q, got %w", concurrency.ErrElectionNoLeader, err)
	}
	if err := first.Campaign(ctx, "first"); err != nil {
		return err
	}
	observing, stop := context.WithCancel(ctx)
	defer stop()
	observed := second.Observe(observing)
	if err := leads(ctx, observed, "first"); err != nil {
		return err
	}
	elected := make(chan error, 1)
	go func() { elected <- second.Campaign(ctx, "second") }()
	// The second stands when its key is there.
	for range client.Watch(observing, "election/post/"+strconv.FormatInt(int64(sessions[1].Lease()), 16), clientv3.WithRev(1)) {
		break
	}
	if err := first.Proclaim(ctx, "still the first"); err != nil {
		return err
	}
	if err := leads(ctx, observed, "still the first"); err != nil {
		return err
	}
	select {
	case err := <-elected:
		return fmt.Errorf("two leaders: %w", err)
	default:
	}
	if err := first.Resign(ctx); err != nil {
		return err
	}
	if err := <-elected; err != nil {
		return err
	}
	if err := leads(ctx, observed, "second"); err != nil {
		return err
	}
	if err := first.Proclaim(ctx, "late"); !errors.Is(err, concurrency.ErrElectionNotLeader) {
		return fmt.Errorf("a proclamation of who has resigned: wanted %q, got %w", concurrency.ErrElectionNotLeader, err)
	}
	return second.Resign(ctx)
}

// leads waits for the next leader that an observer is told of.
func leads(ctx context.Context, observed <-chan *clientv3.GetResponse, who string) error {
	select {
	case response, open := <-observed:
		if !open || string(response.Kvs[0].Value) != who {
			return fmt.Errorf("observed: expected %s; got %v", who, response.Kvs)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("observed: expected %s: %w", who, ctx.Err())
	}
}

func countByTransactions(ctx context.Context, client *clientv3.Client) error {
	for _, isolation := range []concurrency.Isolation{concurrency.SerializableSnapshot, concurrency.Serializable, concurrency.RepeatableReads} {
		err := contest(ctx, client, "stm/count", func() (func() error, func() error, error) {
			turn := func() error {
				_, err := concurrency.NewSTM(client, func(stm concurrency.STM) error {
					now, err := strconv.Atoi(stm.Get("stm/count"))
					if err != nil {
						return err
					}
					stm.Put("stm/count", strconv.Itoa(now+1))
					return nil
				}, concurrency.WithIsolation(isolation), concurrency.WithAbortContext(ctx))
				return err
			}
			return turn, func() error { return nil }, nil
		})
		if err != nil {
			return fmt.Errorf("isolation %d: %w", isolation, err)
		}
	}
	return nil
}
