package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

const (
	// shortLease is the least TTL that etcd grants, in seconds.
	shortLease = 2
	// An expired lease may be found out late, but not by more than this.
	expiryLateMax = 5 * time.Second
)

// useLeases grants, lists, attaches, revokes, keeps alive and lets expire.
func useLeases(ctx context.Context, client *clientv3.Client) error {
	steps := []func(context.Context, *clientv3.Client) error{grantAndRevoke, leaseRefusals, keepAliveAndExpiry}
	for _, step := range steps {
		if err := step(ctx, client); err != nil {
			return err
		}
	}
	return nil
}

func grantAndRevoke(ctx context.Context, client *clientv3.Client) error {
	granted, err := client.Grant(ctx, 60)
	if err != nil {
		return err
	}
	put, err := client.Put(ctx, "lease/a", "1", clientv3.WithLease(granted.ID))
	if err != nil {
		return err
	}
	create := clientv3.OpPut("lease/b", "1", clientv3.WithLease(granted.ID))
	if _, err := client.Txn(ctx).If(clientv3.Compare(clientv3.LeaseValue("lease/a"), "=", granted.ID)).Then(create).Commit(); err != nil {
		return err
	}
	if _, err := client.Put(ctx, "lease/a", "2", clientv3.WithIgnoreLease()); err != nil {
		return err
	}
	got, err := client.Get(ctx, "lease/", clientv3.WithPrefix())
	if err != nil {
		return err
	}
	for _, kv := range got.Kvs {
		if len(got.Kvs) != 2 || clientv3.LeaseID(kv.Lease) != granted.ID {
			return fmt.Errorf("two keys of the lease %x: %v", granted.ID, got.Kvs)
		}
	}
	told, err := client.TimeToLive(ctx, granted.ID, clientv3.WithAttachedKeys())
	if err != nil {
		return err
	}
	if told.GrantedTTL != 60 || told.TTL < 50 || told.TTL > 60 || fmt.Sprintf("%s", told.Keys) != "[lease/a lease/b]" {
		return fmt.Errorf("time to live: %v, keys %s", told, told.Keys)
	}
	if err := listed(ctx, client, granted.ID, true); err != nil {
		return err
	}
	if _, err := client.Revoke(ctx, granted.ID); err != nil {
		return err
	}
	gone, err := deletions(ctx, client, "lease/", put.Header.Revision, 2)
	if err != nil {
		return err
	}
	if gone[0].Kv.ModRevision != gone[1].Kv.ModRevision {
		return fmt.Errorf("a revoke at two revisions: %v", gone)
	}
	if told, err = client.TimeToLive(ctx, granted.ID); err != nil || told.TTL != -1 {
		return fmt.Errorf("time to live of a lease that is gone: %v, %w", told, err)
	}
	return listed(ctx, client, granted.ID, false)
}

func listed(ctx context.Context, client *clientv3.Client, id clientv3.LeaseID, want bool) error {
	leases, err := client.Leases(ctx)
	if err != nil {
		return err
	}
	if slices.Contains(leases.Leases, clientv3.LeaseStatus{ID: id}) != want {
		return fmt.Errorf("the list of leases has %x: expected %v; got %v", id, want, leases.Leases)
	}
	return nil
}

func leaseRefusals(ctx context.Context, client *clientv3.Client) error {
	cases := []struct {
		want error
		call func() error
	}{
		{rpctypes.ErrLeaseNotFound, func() error { _, err := client.Revoke(ctx, 123); return err }},
		{rpctypes.ErrLeaseNotFound, func() error { _, err := client.KeepAliveOnce(ctx, 123); return err }},
		{rpctypes.ErrLeaseTTLTooLarge, func() error { _, err := client.Grant(ctx, 9_000_000_001); return err }},
		{rpctypes.ErrLeaseProvided, func() error {
			_, err := client.Put(ctx, "lease/c", "1", clientv3.WithIgnoreLease(), clientv3.WithLease(123))
			return err
		}},
	}
	for _, c := range cases {
		if got := c.call(); !errors.Is(got, c.want) {
			return fmt.Errorf("wanted the error %q, got %v", c.want, got)
		}
	}
	return nil
}

// keepAliveAndExpiry keeps one lease alive while others run out twice; so it lives for longer than its TTL.
func keepAliveAndExpiry(ctx context.Context, client *clientv3.Client) error {
	kept, err := client.Grant(ctx, shortLease)
	if err != nil {
		return err
	}
	if _, err := client.Put(ctx, "lease/kept", "1", clientv3.WithLease(kept.ID)); err != nil {
		return err
	}
	keeping, stop := context.WithCancel(ctx)
	defer stop()
	alive, err := client.KeepAlive(keeping, kept.ID)
	if err != nil {
		return err
	}
	for range 2 {
		if err := expire(ctx, client); err != nil {
			return err
		}
	}
	got, err := client.Get(ctx, "lease/kept")
	if err != nil {
		return err
	}
	if len(got.Kvs) != 1 {
		return errors.New("the key of a lease that was kept alive is gone")
	}
	stop()
	answers := 0
	for answer := range alive {
		if answer.TTL != shortLease {
			return fmt.Errorf("a keep-alive: %v", answer)
		}
		answers++
	}
	if answers < 3 {
		return fmt.Errorf("%d keep-alives in twice the time of the lease", answers)
	}
	_, err = client.Revoke(ctx, kept.ID)
	return err
}

// expire lets a lease run out.
func expire(ctx context.Context, client *clientv3.Client) error {
	begun := time.Now()
	short, err := client.Grant(ctx, shortLease)
	if err != nil {
		return err
	}
	put, err := client.Put(ctx, "lease/short", "1", clientv3.WithLease(short.ID))
	if err != nil {
		return err
	}
	if _, err := deletions(ctx, client, "lease/short", put.Header.Revision, 1); err != nil {
		return err
	}
	return expiryTime("a lease", begun)
}

func expiryTime(what string, begun time.Time) error {
	took := time.Since(begun)
	if took < shortLease*time.Second || took > shortLease*time.Second+expiryLateMax {
		return fmt.Errorf("%s of %d s ran out after %v", what, shortLease, took)
	}
	return nil
}

// deletions waits for so many deletions under a prefix from a revision on.
func deletions(ctx context.Context, client *clientv3.Client, prefix string, since int64, count int) ([]*clientv3.Event, error) {
	ctx, cancel := context.WithTimeout(ctx, shortLease*time.Second+10*time.Second)
	defer cancel()
	var gone []*clientv3.Event
	for response := range client.Watch(ctx, prefix, clientv3.WithPrefix(), clientv3.WithRev(since), clientv3.WithFilterPut()) {
		if err := response.Err(); err != nil {
			return nil, err
		}
		if gone = append(gone, response.Events...); len(gone) >= count {
			return gone, nil
		}
	}
	return nil, fmt.Errorf("%d of %d deletions of %s: %w", len(gone), count, prefix, ctx.Err())
}
