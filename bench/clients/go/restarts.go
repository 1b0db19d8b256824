package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// restarts is a run over a server that ends and comes back while clients write and watch: half of the times it is
// killed, half of the times asked to end. The watches are the client's own: it resumes them by itself, and whoever reads
// them must not notice. Nor must a session, which lives on the lease that it keeps alive.
type restarts struct {
	day
	count   int
	answers *bufio.Scanner
}

// How long the writers write between two restarts.
const writing = 700 * time.Millisecond

// restart has whoever runs the program restart the server by a signal, and returns when it serves again.
func (r *restarts) restart(by string) error {
	fmt.Println("restart", by)
	if !r.answers.Scan() || r.answers.Text() != "serving" {
		return fmt.Errorf("the answer to a restart: expected serving; got %q (%w)", r.answers.Text(), r.answers.Err())
	}
	return nil
}

func (r *restarts) run(ctx context.Context, endpoint string) error {
	var err error
	if r.writer, err = connect(endpoint); err != nil {
		return err
	}
	defer r.writer.Close()
	if r.watcher, err = connect(endpoint); err != nil {
		return err
	}
	defer r.watcher.Close()
	session, err := concurrency.NewSession(r.watcher, concurrency.WithTTL(30))
	if err != nil {
		return err
	}
	if _, err := r.writer.Put(ctx, "session", "alive", clientv3.WithLease(session.Lease())); err != nil {
		return err
	}
	watches, err := r.createAll(ctx)
	if err != nil {
		return err
	}
	if err := r.restartAll(ctx, watches); err != nil {
		return err
	}
	select {
	case <-session.Done():
		return errors.New("the session has not lived through the restarts")
	default:
	}
	kept, err := r.writer.Get(ctx, "session")
	if err != nil {
		return err
	}
	if len(kept.Kvs) != 1 || clientv3.LeaseID(kept.Kvs[0].Lease) != session.Lease() {
		return fmt.Errorf("the key of the session: %v", kept.Kvs)
	}
	return session.Close()
}

// restartAll writes through all restarts and then lets every watch come to the last write.
func (r *restarts) restartAll(whole context.Context, watches []*watched) error {
	ctx, cancel := context.WithCancelCause(whole)
	defer cancel(nil)
	over := make(chan struct{})
	puts := make([]int, r.writers)
	var writers sync.WaitGroup
	for writer := range r.writers {
		writers.Go(func() {
			var err error
			if puts[writer], err = r.putUntil(ctx, over, writer); err != nil {
				cancel(err)
			}
		})
	}
	err := r.restartOften(ctx)
	close(over)
	writers.Wait()
	if err = errors.Join(err, context.Cause(ctx)); err != nil {
		return err
	}
	total := 0
	for _, count := range puts {
		total += count
	}
	ctx, stop := context.WithTimeout(whole, time.Minute)
	defer stop()
	for _, watch := range watches {
		if err := watch.until(ctx, total); err != nil {
			return err
		}
		if watch.seen != total {
			return fmt.Errorf("%s saw %d events of %d puts", watch.name, watch.seen, total)
		}
	}
	fmt.Printf("%d restarts, %d puts, %d watches\n", r.count, total, len(watches))
	return nil
}

func (r *restarts) restartOften(ctx context.Context) error {
	for restart := range r.count {
		select {
		case <-time.After(writing):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		by := "KILL"
		if restart%2 == 1 {
			by = "TERM"
		}
		if err := r.restart(by); err != nil {
			return fmt.Errorf("restart %d: %w", restart, err)
		}
	}
	return nil
}

// putUntil counts up in the writer's key until it is over, and gives how often. A put that was not answered may have
// happened or not: the key itself says which. So no number is written twice, and none is left out.
func (r *restarts) putUntil(ctx context.Context, over <-chan struct{}, writer int) (int, error) {
	key := fmt.Sprint(prefix, writer)
	for number := 0; ; {
		select {
		case <-over:
			return number, nil
		case <-ctx.Done():
			return number, nil
		default:
		}
		_, err := r.writer.Put(ctx, key, fmt.Sprint(number))
		if err == nil {
			number++
			continue
		}
		if ctx.Err() != nil {
			return number, nil
		}
		if code := status.Code(err); code != codes.Unavailable && code != codes.Unknown {
			return number, fmt.Errorf("put: %w", err)
		}
		happened, err := r.happened(ctx, key, number)
		if err != nil {
			return number, err
		}
		if happened {
			number++
		}
	}
}

// happened asks until somebody answers whether the key has this number; otherwise it must have the one before.
func (r *restarts) happened(ctx context.Context, key string, number int) (bool, error) {
	for {
		response, err := r.writer.Get(ctx, key)
		switch {
		case ctx.Err() != nil:
			return false, nil
		case err != nil:
			time.Sleep(10 * time.Millisecond)
		case len(response.Kvs) == 0 && number == 0:
			return false, nil
		case len(response.Kvs) == 0:
			return false, fmt.Errorf("lost: %s, which was %d", key, number-1)
		case string(response.Kvs[0].Value) == fmt.Sprint(number):
			return true, nil
		case string(response.Kvs[0].Value) == fmt.Sprint(number-1):
			return false, nil
		default:
			return false, fmt.Errorf("lost: %s is %s after %d was answered", key, response.Kvs[0].Value, number-1)
		}
	}
}

func runRestarts(endpoint string, day day, count int) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	r := restarts{day: day, count: count, answers: bufio.NewScanner(os.Stdin)}
	if err := r.run(ctx, endpoint); err != nil {
		return err
	}
	fmt.Println("verified")
	return nil
}
