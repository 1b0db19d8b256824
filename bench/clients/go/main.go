// Watchday is a day's work of etcd's own Go client against a server: reads, writes and transactions with their options,
// leases, the client's sessions, mutexes, elections and software transactions, what an API server of Kubernetes asks of
// its store, then many watches on one stream while another client writes, a compaction in between, a resume, progress and
// cancel.
//
// It ends with an error at the first thing that is not as etcd's documents promise. When all is well it prints
// "verified" and stays connected until the server stops; then its watches must end too, and it leaves with 0. With
// -leave it does not wait.
//
// With -restarts it has the server restarted again and again while the watches go on: by kill -9 and by a request to end,
// in turn. For each it prints a line, "restart KILL" or "restart TERM", and reads "serving" when that is done.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

func main() {
	endpoint := flag.String("endpoint", "http://127.0.0.1:2379", "the server")
	day := day{}
	flag.IntVar(&day.puts, "n", 100_000, "puts that every watch must see")
	flag.IntVar(&day.watches, "watches", 100, "watches on one stream")
	flag.IntVar(&day.writers, "writers", 50, "goroutines that put")
	leave := flag.Bool("leave", false, "leave when verified, instead of waiting for the server to stop")
	count := flag.Int("restarts", 0, "instead of the day: so many restarts, done by whoever runs this")
	flag.Parse()
	work := func() error { return run(*endpoint, &day, *leave) }
	if *count > 0 {
		work = func() error { return runRestarts(*endpoint, day, *count) }
	}
	if err := work(); err != nil {
		fmt.Fprintln(os.Stderr, "watchday:", err)
		os.Exit(1)
	}
}

func run(endpoint string, day *day, leave bool) error {
	if day.puts < 4*day.writers || day.watches < 10 {
		return errors.New("too few puts or watches: -n must be four for each writer, -watches at least 10")
	}
	writer, err := connect(endpoint)
	if err != nil {
		return err
	}
	defer writer.Close()
	watcher, err := connect(endpoint)
	if err != nil {
		return err
	}
	defer watcher.Close()

	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Minute)
	defer cancel()
	if err := useKV(ctx, writer); err != nil {
		return fmt.Errorf("kv: %w", err)
	}
	if err := useLeases(ctx, writer); err != nil {
		return fmt.Errorf("leases: %w", err)
	}
	if err := useConcurrency(ctx, writer); err != nil {
		return fmt.Errorf("concurrency: %w", err)
	}
	if err := useKubernetes(ctx, writer); err != nil {
		return fmt.Errorf("kubernetes: %w", err)
	}
	day.writer, day.watcher = writer, watcher
	left, err := day.run(ctx)
	if err != nil {
		return fmt.Errorf("watch: %w", err)
	}
	fmt.Println("verified")
	if leave {
		return nil
	}
	return untilServerStops(watcher, left)
}

func connect(endpoint string) (*clientv3.Client, error) {
	return clientv3.New(clientv3.Config{
		Endpoints:   []string{endpoint},
		DialTimeout: 5 * time.Second,
		// The client logs every retry; what matters here is told by the error.
		Logger: zap.NewNop(),
	})
}

// untilServerStops waits for the server to go away. The Go client would wait with its watches for it to come back, for
// as long as it is open; so once nobody answers it is closed, and then every watch must end.
func untilServerStops(client *clientv3.Client, watches []*watched) error {
	for {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		_, err := client.Get(ctx, "stopped")
		cancel()
		if err != nil {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	client.Close()
	deadline := time.After(10 * time.Second)
	for _, watch := range watches {
		for open := true; open; {
			select {
			case _, open = <-watch.responses:
			case <-deadline:
				return errors.New("a watch outlived the server and its client")
			}
		}
	}
	return nil
}
