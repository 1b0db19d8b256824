package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// restarts is a run over a server that ends and comes back while clients write and watch: half of the times it is
// killed, half of the times asked to end. The watches are the client's own: it resumes them by itself, and whoever reads
// them must not notice.
type restarts struct {
	day
	count   int
	command []string
	server  *exec.Cmd
	output  io.Writer
}

// How long the writers write between two restarts, and how long a server may take to answer.
const (
	writing = 700 * time.Millisecond
	ready   = 30 * time.Second
)

func (r *restarts) start(ctx context.Context) error {
	r.server = exec.Command(r.command[0], r.command[1:]...)
	r.server.Stdout, r.server.Stderr = r.output, r.output
	if err := r.server.Start(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, ready)
	defer cancel()
	begun := time.Now()
	for {
		one, cancel := context.WithTimeout(ctx, time.Second)
		_, err := r.writer.Get(one, "ready")
		cancel()
		if err == nil {
			fmt.Printf("the server answers after %d ms\n", time.Since(begun).Milliseconds())
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("the server does not answer: %w", err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func (r *restarts) stop(by syscall.Signal) error {
	if err := r.server.Process.Signal(by); err != nil {
		return err
	}
	err := r.server.Wait()
	var exit *exec.ExitError
	// Both kinds of end are what was asked for; a real etcd ends itself by the signal that it was sent.
	if errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == by {
		return nil
	}
	return err
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
	if err := r.start(ctx); err != nil {
		return err
	}
	defer func() { r.server.Process.Kill() }()
	watches, err := r.createAll(ctx)
	if err != nil {
		return err
	}
	return r.restartAll(ctx, watches)
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
		by := syscall.SIGKILL
		if restart%2 == 1 {
			by = syscall.SIGTERM
		}
		if err := r.stop(by); err != nil {
			return fmt.Errorf("restart %d: %w", restart, err)
		}
		if err := r.start(ctx); err != nil {
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

// runRestarts gives the server that stands behind the flags ten restarts.
func runRestarts(endpoint string, day day, count int, command []string, log string) error {
	output, err := os.Create(log)
	if err != nil {
		return err
	}
	defer output.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	// An interrupted run must not leave its server behind.
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	r := restarts{day: day, count: count, command: command, output: output}
	if err := r.run(ctx, endpoint); err != nil {
		return err
	}
	fmt.Println("verified")
	return nil
}
