package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/kubernetes"
)

const (
	pods     = "/registry/pods/default/"
	events   = "/registry/events/default/"
	podCount = 500
	pageSize = 100
	// How many events an API server puts to one lease before it takes another.
	eventsPerLease = 1000
	eventCount     = 2500
	// Long enough for its events to be written, whatever the disk; an API server takes an hour.
	eventLease = 8
)

// apiserver does what an API server of Kubernetes does with its store, by the calls that it makes.
type apiserver struct {
	*kubernetes.Client
	written atomic.Int64
}

// useKubernetes lists page by page while others write, watches from the list on, asks for bookmarks, compacts as an API
// server does, and puts events to leases that many share.
func useKubernetes(ctx context.Context, client *clientv3.Client) error {
	// Watches of an API server want to hear when the cluster has lost its leader.
	ctx, cancel := context.WithTimeout(clientv3.WithRequireLeader(ctx), time.Minute)
	defer cancel()
	server := &apiserver{Client: &kubernetes.Client{Client: client}}
	server.Kubernetes = server.Client
	if err := server.create(ctx); err != nil {
		return fmt.Errorf("create: %w", err)
	}
	if err := server.listAndWatch(ctx); err != nil {
		return fmt.Errorf("list and watch: %w", err)
	}
	if err := server.conflicts(ctx); err != nil {
		return fmt.Errorf("conflicts: %w", err)
	}
	if err := server.compact(ctx); err != nil {
		return fmt.Errorf("compact: %w", err)
	}
	if err := server.events(ctx); err != nil {
		return fmt.Errorf("events: %w", err)
	}
	return nil
}

func pod(number int) string { return fmt.Sprintf("%spod-%04d", pods, number) }

func (s *apiserver) create(ctx context.Context) error {
	return inParallel(podCount, func(number int) error {
		put, err := s.Kubernetes.OptimisticPut(ctx, pod(number), []byte("0"), 0, kubernetes.PutOptions{})
		if err == nil && !put.Succeeded {
			err = fmt.Errorf("%s is there already", pod(number))
		}
		return err
	})
}

// inParallel runs work for each number below count, some at a time.
func inParallel(count int, work func(number int) error) error {
	var group sync.WaitGroup
	failed := make(chan error, count)
	var next atomic.Int64
	for range 20 {
		group.Go(func() {
			for number := int(next.Add(1)) - 1; number < count; number = int(next.Add(1)) - 1 {
				if err := work(number); err != nil {
					failed <- err
					return
				}
			}
		})
	}
	group.Wait()
	close(failed)
	return <-failed
}

// listAndWatch is a reflector: a list in pages of one revision, then a watch from behind that revision. What it holds at
// the end must be what a fresh list gives, although pods change and go all the while.
func (s *apiserver) listAndWatch(ctx context.Context) error {
	writing, stop := context.WithCancel(ctx)
	defer stop()
	written := make(chan error, 1)
	go func() { written <- s.change(writing) }()
	held, revision, err := s.list(ctx)
	if err != nil {
		return err
	}
	watch := s.Watch(ctx, pods, clientv3.WithPrefix(), clientv3.WithRev(revision+1), clientv3.WithPrevKV(), clientv3.WithProgressNotify())
	// The writer has to do something behind the list, whatever the speed of both.
	for enough := s.written.Load() + 500; s.written.Load() < enough; {
		if err := s.follow(ctx, watch, held, &revision); err != nil {
			return err
		}
	}
	stop()
	if err := <-written; err != nil {
		return err
	}
	return s.bookmark(ctx, watch, held, revision)
}

// change changes pods, deletes some and creates them again, until it is told to stop.
func (s *apiserver) change(ctx context.Context) error {
	for number := 0; ctx.Err() == nil; number++ {
		key := pod(number * 7 % podCount)
		got, err := s.Kubernetes.Get(ctx, key, kubernetes.GetOptions{})
		if err == nil {
			err = s.changeOne(ctx, key, got, number)
		}
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		s.written.Add(1)
	}
	return nil
}

func (s *apiserver) changeOne(ctx context.Context, key string, got kubernetes.GetResponse, number int) error {
	var succeeded bool
	if got.KV != nil && number%5 == 0 {
		deleted, err := s.Kubernetes.OptimisticDelete(ctx, key, got.KV.ModRevision, kubernetes.DeleteOptions{GetOnFailure: true})
		if err != nil {
			return err
		}
		succeeded = deleted.Succeeded
	} else {
		put, err := s.Kubernetes.OptimisticPut(ctx, key, []byte(strconv.Itoa(number)), got.KV.GetModRevision(), kubernetes.PutOptions{GetOnFailure: true})
		if err != nil {
			return err
		}
		succeeded = put.Succeeded
	}
	if !succeeded {
		return fmt.Errorf("nobody else changes %s, and yet it has changed", key)
	}
	return nil
}

// list reads all pods in pages, each at the revision of the first.
func (s *apiserver) list(ctx context.Context) (map[string]string, int64, error) {
	held := map[string]string{}
	options := kubernetes.ListOptions{Limit: pageSize}
	for left := int64(-1); ; {
		page, err := s.Kubernetes.List(ctx, pods, options)
		if err != nil {
			return nil, 0, err
		}
		if options.Revision == 0 {
			options.Revision, left = page.Revision, page.Count
		}
		if page.Count != left {
			return nil, 0, fmt.Errorf("a page tells of %d pods from %q on, expected %d", page.Count, options.Continue, left)
		}
		for _, kv := range page.Kvs {
			if kv.ModRevision > options.Revision {
				return nil, 0, fmt.Errorf("a page at %d has %v", options.Revision, kv)
			}
			held[string(kv.Key)] = string(kv.Value)
		}
		left -= int64(len(page.Kvs))
		if left == 0 {
			return held, options.Revision, nil
		}
		if len(page.Kvs) != pageSize {
			return nil, 0, fmt.Errorf("a page of %d pods, %d are left", len(page.Kvs), left)
		}
		options.Continue = string(page.Kvs[pageSize-1].Key) + "\x00"
	}
}

// follow takes one response of the watch into what is held.
func (s *apiserver) follow(ctx context.Context, watch clientv3.WatchChan, held map[string]string, revision *int64) error {
	select {
	case response, open := <-watch:
		if !open || response.Err() != nil {
			return fmt.Errorf("the watch ended: %w", response.Err())
		}
		for _, event := range response.Events {
			key := string(event.Kv.Key)
			before, was := held[key]
			if was != (event.PrevKv != nil) || was && before != string(event.PrevKv.Value) {
				return fmt.Errorf("held is %q (%v), the event has the previous pair %v", before, was, event.PrevKv)
			}
			if event.Kv.ModRevision <= *revision {
				return fmt.Errorf("an event of revision %d behind %d", event.Kv.ModRevision, *revision)
			}
			*revision = event.Kv.ModRevision
			if event.Type == clientv3.EventTypeDelete {
				delete(held, key)
			} else {
				held[key] = string(event.Kv.Value)
			}
		}
		if response.IsProgressNotify() {
			*revision = max(*revision, response.Header.Revision)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("the watch has come to revision %d: %w", *revision, ctx.Err())
	}
}

// bookmark lets the watch prove that it has seen everything, as for a consistent list from the cache: a progress
// notification that reaches the revision of a read.
func (s *apiserver) bookmark(ctx context.Context, watch clientv3.WatchChan, held map[string]string, revision int64) error {
	// Another resource has moved the revision on, which no event of pods tells.
	if _, err := s.Put(ctx, "/registry/leases/other", "x"); err != nil {
		return err
	}
	fresh, now, err := s.list(ctx)
	if err != nil {
		return err
	}
	if revision >= now {
		return fmt.Errorf("the watch is at %d, before it was told of %d", revision, now)
	}
	for revision < now {
		// An API server asks again every 100 ms, for a watch that is behind does not answer.
		if err := s.RequestProgress(ctx); err != nil {
			return err
		}
		turn, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
		err := s.follow(turn, watch, held, &revision)
		late := turn.Err() != nil && ctx.Err() == nil
		cancel()
		if err != nil && !late {
			return err
		}
	}
	if len(held) != len(fresh) {
		return fmt.Errorf("%d pods are held, %d are there", len(held), len(fresh))
	}
	for key, value := range fresh {
		if held[key] != value {
			return fmt.Errorf("%s is held as %q, and is %q", key, held[key], value)
		}
	}
	return nil
}

// conflicts checks that who comes late is told what is there.
func (s *apiserver) conflicts(ctx context.Context) error {
	key := pod(podCount + 1)
	made, err := s.Kubernetes.OptimisticPut(ctx, key, []byte("1"), 0, kubernetes.PutOptions{})
	if err != nil {
		return err
	}
	again, err := s.Kubernetes.OptimisticPut(ctx, key, []byte("2"), 0, kubernetes.PutOptions{GetOnFailure: true})
	if err != nil {
		return err
	}
	if !made.Succeeded || again.Succeeded || string(again.KV.Value) != "1" || again.KV.ModRevision != made.Revision {
		return fmt.Errorf("created: %v, again: %v", made, again)
	}
	late, err := s.Kubernetes.OptimisticDelete(ctx, key, made.Revision-1, kubernetes.DeleteOptions{GetOnFailure: true})
	if err != nil {
		return err
	}
	if late.Succeeded || late.KV.ModRevision != made.Revision {
		return fmt.Errorf("deleted at another revision: %v", late)
	}
	old, err := s.Kubernetes.Get(ctx, key, kubernetes.GetOptions{Revision: made.Revision - 1})
	if err != nil {
		return err
	}
	if old.KV != nil || old.Revision < made.Revision {
		return fmt.Errorf("before it was there: %v", old)
	}
	_, err = s.Delete(ctx, key)
	return err
}

// compact is the compactor of an API server: one key says who compacts, and up to which revision was compacted last.
func (s *apiserver) compact(ctx context.Context) error {
	const record = "compact_rev_key"
	before, err := s.KV.Get(ctx, record)
	if err != nil {
		return err
	}
	now := before.Header.Revision
	for _, wins := range []bool{true, false} {
		turn, err := s.Txn(ctx).
			If(clientv3.Compare(clientv3.Version(record), "=", 0)).
			Then(clientv3.OpPut(record, strconv.FormatInt(now, 10))).
			Else(clientv3.OpGet(record)).
			Commit()
		if err != nil {
			return err
		}
		if turn.Succeeded != wins {
			return fmt.Errorf("whose turn it is to compact: expected %v, got %v", wins, turn)
		}
	}
	if _, err := s.Compact(ctx, now); err != nil {
		return err
	}
	// The token of an old list has run out now, and so has an old watch; both have to be told so that they list anew.
	_, err = s.Kubernetes.List(ctx, pods, kubernetes.ListOptions{Revision: now - 1, Limit: pageSize, Continue: pod(3) + "\x00"})
	if !errors.Is(err, rpctypes.ErrCompacted) {
		return fmt.Errorf("an old list: wanted %q, got %w", rpctypes.ErrCompacted, err)
	}
	for response := range s.Watch(ctx, pods, clientv3.WithPrefix(), clientv3.WithRev(now-1)) {
		if errors.Is(response.Err(), rpctypes.ErrCompacted) && response.CompactRevision == now {
			return nil
		}
		return fmt.Errorf("an old watch: wanted %q at %d, got %v", rpctypes.ErrCompacted, now, response)
	}
	return errors.New("an old watch ended without a word")
}

// events puts events, of which a thousand share a lease, and sees each lease take all of its events at one revision.
func (s *apiserver) events(ctx context.Context) error {
	start, err := s.KV.Get(ctx, events)
	if err != nil {
		return err
	}
	gone := s.Watch(ctx, events, clientv3.WithPrefix(), clientv3.WithRev(start.Header.Revision+1), clientv3.WithFilterPut())
	begun := time.Now()
	for first := 0; first < eventCount; first += eventsPerLease {
		lease, err := s.Grant(ctx, eventLease)
		if err != nil {
			return err
		}
		err = inParallel(min(eventsPerLease, eventCount-first), func(number int) error {
			key := fmt.Sprintf("%sevent-%04d", events, first+number)
			put, err := s.Kubernetes.OptimisticPut(ctx, key, []byte("Scheduled"), 0, kubernetes.PutOptions{LeaseID: lease.ID})
			if err == nil && !put.Succeeded {
				err = fmt.Errorf("%s is there already", key)
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	var deletions []*clientv3.Event
	for len(deletions) < eventCount {
		response, open := <-gone
		if !open || response.Err() != nil {
			return fmt.Errorf("%d of %d events are gone: %w", len(deletions), eventCount, errors.Join(response.Err(), ctx.Err()))
		}
		if len(deletions) == 0 && time.Since(begun) < eventLease*time.Second {
			return fmt.Errorf("a lease of %d s ran out after %v", eventLease, time.Since(begun))
		}
		deletions = append(deletions, response.Events...)
	}
	revisions := map[int64]int{}
	for _, deletion := range deletions {
		revisions[deletion.Kv.ModRevision]++
	}
	if len(revisions) != (eventCount+eventsPerLease-1)/eventsPerLease {
		return fmt.Errorf("one revision for each lease: %v", revisions)
	}
	ordered := slices.IsSortedFunc(deletions, func(a, b *clientv3.Event) int {
		return cmp.Or(cmp.Compare(a.Kv.ModRevision, b.Kv.ModRevision), slices.Compare(a.Kv.Key, b.Kv.Key))
	})
	if !ordered {
		return errors.New("the keys of a lease do not go in order")
	}
	return nil
}
