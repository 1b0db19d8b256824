package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

const prefix = "day/"

// day is one run: what is put, who puts it, who watches.
type day struct {
	puts, watches, writers int
	writer, watcher        *clientv3.Client
}

// watched is one watch and what it has seen so far. Every writer puts to a key of its own and counts; so a lost, doubled
// or exchanged event shows as a wrong number of its writer, and as a revision that does not grow.
type watched struct {
	name      string
	responses clientv3.WatchChan
	cancel    context.CancelFunc
	revision  int64
	next      []int
	seen      int
}

func (d *day) watch(ctx context.Context, name string, options ...clientv3.OpOption) *watched {
	ctx, cancel := context.WithCancel(ctx)
	options = append(options, clientv3.WithPrefix())
	return &watched{
		name:      name,
		responses: d.watcher.Watch(ctx, prefix, options...),
		cancel:    cancel,
		next:      make([]int, d.writers),
	}
}

// created waits for the server's word that the watch is there.
func (w *watched) created() error {
	response, open := <-w.responses
	if !open || !response.Created || response.Err() != nil {
		return fmt.Errorf("%s was not created: %v", w.name, response)
	}
	return nil
}

// take checks one response.
func (w *watched) take(response clientv3.WatchResponse) error {
	if err := response.Err(); err != nil {
		return fmt.Errorf("%s ended: %w", w.name, err)
	}
	for _, event := range response.Events {
		if event.Kv.ModRevision <= w.revision {
			return fmt.Errorf("%s: revision %d after %d", w.name, event.Kv.ModRevision, w.revision)
		}
		w.revision = event.Kv.ModRevision
		writer, err := strconv.Atoi(strings.TrimPrefix(string(event.Kv.Key), prefix))
		if err != nil || writer >= len(w.next) {
			return fmt.Errorf("%s: a key that nobody puts: %q", w.name, event.Kv.Key)
		}
		if number := string(event.Kv.Value); number != strconv.Itoa(w.next[writer]) {
			return fmt.Errorf("%s: writer %d: event %s where %d is next", w.name, writer, number, w.next[writer])
		}
		w.next[writer]++
		w.seen++
	}
	return nil
}

// until takes responses until so many events have been seen; whole responses, so it may be more.
func (w *watched) until(ctx context.Context, events int) error {
	for w.seen < events {
		select {
		case response, open := <-w.responses:
			if !open {
				return fmt.Errorf("%s was closed after %d events", w.name, w.seen)
			}
			if err := w.take(response); err != nil {
				return err
			}
		case <-ctx.Done():
			return fmt.Errorf("%s: %d of %d events: %w", w.name, w.seen, events, ctx.Err())
		}
	}
	return nil
}

// progress takes responses until one is a progress notification, and checks that it claims no less than was seen.
func (w *watched) progress(ctx context.Context) error {
	for {
		select {
		case response, open := <-w.responses:
			if !open {
				return fmt.Errorf("%s was closed instead of a progress notification", w.name)
			}
			if err := w.take(response); err != nil {
				return err
			}
			if !response.IsProgressNotify() {
				continue
			}
			if response.Header.Revision < w.revision {
				return fmt.Errorf("%s: progress %d is behind %d", w.name, response.Header.Revision, w.revision)
			}
			return nil
		case <-ctx.Done():
			return fmt.Errorf("%s: no progress notification: %w", w.name, ctx.Err())
		}
	}
}

// closed checks that nothing but the end comes.
func (w *watched) closed(ctx context.Context) error {
	for {
		select {
		case response, open := <-w.responses:
			if !open {
				return nil
			}
			if len(response.Events) != 0 {
				return fmt.Errorf("%s: an event after its cancel", w.name)
			}
		case <-ctx.Done():
			return fmt.Errorf("%s is still open after its cancel", w.name)
		}
	}
}

// run plays the day and returns the watches that are still open at its end.
func (d *day) run(ctx context.Context) ([]*watched, error) {
	deleted, err := d.writer.Delete(ctx, prefix, clientv3.WithPrefix())
	if err != nil {
		return nil, err
	}
	watches, err := d.createAll(ctx)
	if err != nil {
		return nil, err
	}
	if err := d.work(ctx, watches); err != nil {
		return nil, err
	}
	if err := d.startBelowCompaction(ctx, deleted.Header.Revision); err != nil {
		return nil, err
	}
	if err := d.askForProgress(ctx, watches); err != nil {
		return nil, err
	}
	return d.cancelSome(ctx, watches)
}

func (d *day) createAll(ctx context.Context) ([]*watched, error) {
	var watches []*watched
	for i := range d.watches {
		watches = append(watches, d.watch(ctx, fmt.Sprintf("watch %d", i), clientv3.WithCreatedNotify()))
	}
	for _, watch := range watches {
		if err := watch.created(); err != nil {
			return nil, err
		}
	}
	return watches, nil
}

// work puts everything while all watches read: a quarter, then a compaction of it while the rest is put. The last watch
// is cut in the middle and resumed at the revision after the last it has seen.
//
// A watch that is still behind when its history is compacted is ended by the server, so the compaction waits until all
// have read the quarter.
func (d *day) work(whole context.Context, watches []*watched) error {
	ctx, cancel := context.WithCancelCause(whole)
	defer cancel(nil)
	var group, quarterRead sync.WaitGroup
	run := func(part func() error) {
		group.Go(func() {
			if err := part(); err != nil {
				cancel(err)
			}
		})
	}
	quarterRead.Add(len(watches))
	run(func() error { return d.putAllAndCompact(ctx, &quarterRead) })
	last := watches[len(watches)-1]
	for _, watch := range watches {
		run(func() error {
			err := watch.until(ctx, d.quarter()*d.writers)
			quarterRead.Done()
			if err != nil {
				return err
			}
			if watch == last {
				return d.cutAndResume(ctx, whole, watch, d.total())
			}
			return watch.until(ctx, d.total())
		})
	}
	group.Wait()
	return context.Cause(ctx)
}

// quarter is what a writer puts before the compaction.
func (d *day) quarter() int { return d.puts / d.writers / 4 }

// total is what all writers put: the same for each.
func (d *day) total() int { return d.puts / d.writers * d.writers }

func (d *day) putAllAndCompact(ctx context.Context, quarterRead *sync.WaitGroup) error {
	if err := d.put(ctx, 0, d.quarter()); err != nil {
		return err
	}
	now, err := d.writer.Get(ctx, prefix, clientv3.WithPrefix(), clientv3.WithCountOnly())
	if err != nil {
		return err
	}
	quarterRead.Wait()
	compacted := make(chan error, 1)
	go func() {
		_, err := d.writer.Compact(ctx, now.Header.Revision)
		compacted <- err
	}()
	err = d.put(ctx, d.quarter(), d.puts/d.writers)
	return errors.Join(err, <-compacted)
}

func (d *day) put(ctx context.Context, from, to int) error {
	failed := make(chan error, d.writers)
	for writer := range d.writers {
		go func() {
			key := prefix + strconv.Itoa(writer)
			for number := from; number < to; number++ {
				if _, err := d.writer.Put(ctx, key, strconv.Itoa(number)); err != nil {
					failed <- fmt.Errorf("put: %w", err)
					return
				}
			}
			failed <- nil
		}()
	}
	var all error
	for range d.writers {
		all = errors.Join(all, <-failed)
	}
	return all
}

// cutAndResume reads within ctx; the resumed watch outlives it, so it belongs to the whole run.
func (d *day) cutAndResume(ctx, whole context.Context, watch *watched, total int) error {
	if err := watch.until(ctx, total/2); err != nil {
		return err
	}
	watch.cancel()
	if err := drain(watch); err != nil {
		return err
	}
	resumed := d.watch(whole, watch.name+" resumed", clientv3.WithRev(watch.revision+1))
	watch.name, watch.responses, watch.cancel = resumed.name, resumed.responses, resumed.cancel
	return watch.until(ctx, total)
}

// drain takes what was on its way to a watch that was cut: it counts as seen.
func drain(watch *watched) error {
	for response := range watch.responses {
		if response.Canceled {
			continue
		}
		if err := watch.take(response); err != nil {
			return err
		}
	}
	return nil
}

func (d *day) startBelowCompaction(ctx context.Context, revision int64) error {
	late := d.watch(ctx, "the watch below the compaction", clientv3.WithRev(revision))
	defer late.cancel()
	for response := range late.responses {
		if response.Err() == nil {
			continue
		}
		if !errors.Is(response.Err(), rpctypes.ErrCompacted) || response.CompactRevision <= revision {
			return fmt.Errorf("%s: %w, compact revision %d", late.name, response.Err(), response.CompactRevision)
		}
		return late.closed(ctx)
	}
	return fmt.Errorf("%s ended without a word", late.name)
}

func (d *day) askForProgress(ctx context.Context, watches []*watched) error {
	if err := d.watcher.RequestProgress(ctx); err != nil {
		return err
	}
	for _, watch := range watches {
		if err := watch.progress(ctx); err != nil {
			return err
		}
	}
	return nil
}

// cancelSome ends each tenth watch; the others see one more event of each writer.
func (d *day) cancelSome(ctx context.Context, watches []*watched) ([]*watched, error) {
	var left []*watched
	for i, watch := range watches {
		if i%10 != 0 {
			left = append(left, watch)
			continue
		}
		watch.cancel()
		if err := watch.closed(ctx); err != nil {
			return nil, err
		}
	}
	each := d.puts / d.writers
	if err := d.put(ctx, each, each+1); err != nil {
		return nil, err
	}
	for _, watch := range left {
		if err := watch.until(ctx, d.total()+d.writers); err != nil {
			return nil, err
		}
		if watch.seen != d.total()+d.writers {
			return nil, fmt.Errorf("%s saw %d events", watch.name, watch.seen)
		}
	}
	return left, nil
}
