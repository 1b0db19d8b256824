package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// useKV puts, gets, deletes and compares with every option that needs no lease, and checks each answer.
func useKV(ctx context.Context, client *clientv3.Client) error {
	steps := []func(context.Context, *clientv3.Client) error{putsAndPrevious, rangesAndOrders, oldRevisions, transactions, refusals}
	for _, step := range steps {
		if _, err := client.Delete(ctx, "kv/", clientv3.WithPrefix()); err != nil {
			return err
		}
		if err := step(ctx, client); err != nil {
			return err
		}
	}
	return nil
}

func putsAndPrevious(ctx context.Context, client *clientv3.Client) error {
	first, err := client.Put(ctx, "kv/a", "1", clientv3.WithPrevKV())
	if err != nil {
		return err
	}
	if first.PrevKv != nil {
		return errors.New("the first put of a key has a previous value")
	}
	second, err := client.Put(ctx, "kv/a", "2", clientv3.WithPrevKV())
	if err != nil {
		return err
	}
	if second.PrevKv == nil || string(second.PrevKv.Value) != "1" || second.PrevKv.ModRevision != first.Header.Revision {
		return fmt.Errorf("previous value of the second put: %v", second.PrevKv)
	}
	if second.Header.Revision != first.Header.Revision+1 {
		return errors.New("a put did not advance the revision by one")
	}
	if _, err := client.Put(ctx, "kv/a", "", clientv3.WithIgnoreValue()); err != nil {
		return err
	}
	got, err := client.Get(ctx, "kv/a")
	if err != nil {
		return err
	}
	if len(got.Kvs) != 1 || string(got.Kvs[0].Value) != "2" || got.Kvs[0].Version != 3 {
		return fmt.Errorf("after a put that kept the value: %v", got.Kvs)
	}
	deleted, err := client.Delete(ctx, "kv/a", clientv3.WithPrevKV())
	if err != nil {
		return err
	}
	if deleted.Deleted != 1 || len(deleted.PrevKvs) != 1 || string(deleted.PrevKvs[0].Value) != "2" {
		return fmt.Errorf("delete: %v", deleted)
	}
	return nil
}

func rangesAndOrders(ctx context.Context, client *clientv3.Client) error {
	for _, key := range []string{"kv/b", "kv/a", "kv/d", "kv/c"} {
		if _, err := client.Put(ctx, key, "value of "+key); err != nil {
			return err
		}
	}
	cases := []struct {
		name    string
		key     string
		options []clientv3.OpOption
		want    string
		count   int64
		more    bool
	}{
		{"prefix", "kv/", []clientv3.OpOption{clientv3.WithPrefix()}, "abcd", 4, false},
		{"range", "kv/b", []clientv3.OpOption{clientv3.WithRange("kv/d")}, "bc", 2, false},
		{"from key", "kv/c", []clientv3.OpOption{clientv3.WithRange("kv0")}, "cd", 2, false},
		{"limit", "kv/", []clientv3.OpOption{clientv3.WithPrefix(), clientv3.WithLimit(3)}, "abc", 4, true},
		{"descending", "kv/", []clientv3.OpOption{clientv3.WithPrefix(), clientv3.WithSort(clientv3.SortByKey, clientv3.SortDescend)}, "dcba", 4, false},
		{"by creation", "kv/", []clientv3.OpOption{clientv3.WithPrefix(), clientv3.WithSort(clientv3.SortByCreateRevision, clientv3.SortAscend)}, "badc", 4, false},
		{"first created", "kv/", clientv3.WithFirstCreate(), "b", 4, true},
		{"last changed", "kv/", clientv3.WithLastRev(), "c", 4, true},
		{"serializable", "kv/a", []clientv3.OpOption{clientv3.WithSerializable()}, "a", 1, false},
		{"nothing", "kv/x", nil, "", 0, false},
	}
	for _, c := range cases {
		got, err := client.Get(ctx, c.key, c.options...)
		if err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
		var keys bytes.Buffer
		for _, kv := range got.Kvs {
			keys.WriteByte(kv.Key[len(kv.Key)-1])
			if string(kv.Value) != "value of "+string(kv.Key) {
				return fmt.Errorf("%s: %s has value %q", c.name, kv.Key, kv.Value)
			}
		}
		if keys.String() != c.want || got.Count != c.count || got.More != c.more {
			return fmt.Errorf("%s: got %s, count %d, more %v", c.name, keys.String(), got.Count, got.More)
		}
	}
	only, err := client.Get(ctx, "kv/", clientv3.WithPrefix(), clientv3.WithKeysOnly())
	if err != nil {
		return err
	}
	for _, kv := range only.Kvs {
		if len(kv.Value) != 0 {
			return fmt.Errorf("keys only: %s has a value", kv.Key)
		}
	}
	count, err := client.Get(ctx, "kv/", clientv3.WithPrefix(), clientv3.WithCountOnly())
	if err != nil {
		return err
	}
	if len(count.Kvs) != 0 || count.Count != 4 {
		return fmt.Errorf("count only: %v", count)
	}
	return nil
}

func oldRevisions(ctx context.Context, client *clientv3.Client) error {
	var revisions []int64
	for i := range 5 {
		put, err := client.Put(ctx, "kv/old", fmt.Sprint(i))
		if err != nil {
			return err
		}
		revisions = append(revisions, put.Header.Revision)
	}
	for i, revision := range revisions {
		got, err := client.Get(ctx, "kv/old", clientv3.WithRev(revision))
		if err != nil {
			return err
		}
		if len(got.Kvs) != 1 || string(got.Kvs[0].Value) != fmt.Sprint(i) || got.Kvs[0].Version != int64(i+1) {
			return fmt.Errorf("at revision %d: %v", revision, got.Kvs)
		}
	}
	bounded, err := client.Get(ctx, "kv/", clientv3.WithPrefix(), clientv3.WithMinModRev(revisions[4]+1))
	if err != nil {
		return err
	}
	if len(bounded.Kvs) != 0 {
		return fmt.Errorf("nothing was changed later: %v", bounded.Kvs)
	}
	return nil
}

func transactions(ctx context.Context, client *clientv3.Client) error {
	created, err := client.Txn(ctx).
		If(clientv3.Compare(clientv3.CreateRevision("kv/t"), "=", 0)).
		Then(clientv3.OpPut("kv/t", "1"), clientv3.OpGet("kv/t")).
		Else(clientv3.OpGet("kv/t")).Commit()
	if err != nil {
		return err
	}
	if !created.Succeeded || len(created.Responses) != 2 {
		return fmt.Errorf("create: %v", created)
	}
	inside := created.Responses[1].GetResponseRange().Kvs
	if len(inside) != 1 || inside[0].ModRevision != created.Header.Revision {
		return fmt.Errorf("a transaction does not see its own put: %v", inside)
	}
	again, err := client.Txn(ctx).
		If(clientv3.Compare(clientv3.CreateRevision("kv/t"), "=", 0)).
		Then(clientv3.OpPut("kv/t", "2")).
		Else(clientv3.OpGet("kv/t")).Commit()
	if err != nil {
		return err
	}
	if again.Succeeded || string(again.Responses[0].GetResponseRange().Kvs[0].Value) != "1" {
		return fmt.Errorf("create again: %v", again)
	}
	nested, err := client.Txn(ctx).
		If(clientv3.Compare(clientv3.Value("kv/t"), "=", "1"), clientv3.Compare(clientv3.Version("kv/t"), "<", 2)).
		Then(clientv3.OpTxn(
			[]clientv3.Cmp{clientv3.Compare(clientv3.ModRevision("kv/t"), ">", created.Header.Revision)},
			[]clientv3.Op{clientv3.OpPut("kv/u", "wrong")},
			[]clientv3.Op{clientv3.OpPut("kv/u", "right"), clientv3.OpDelete("kv/t", clientv3.WithPrevKV())},
		)).Commit()
	if err != nil {
		return err
	}
	inner := nested.Responses[0].GetResponseTxn()
	if !nested.Succeeded || inner.Succeeded || inner.Responses[1].GetResponseDeleteRange().Deleted != 1 {
		return fmt.Errorf("nested: %v", nested)
	}
	got, err := client.Get(ctx, "kv/", clientv3.WithPrefix())
	if err != nil {
		return err
	}
	if len(got.Kvs) != 1 || string(got.Kvs[0].Value) != "right" || got.Kvs[0].ModRevision != nested.Header.Revision {
		return fmt.Errorf("after the nested transaction: %v", got.Kvs)
	}
	return nil
}

// refusals checks that mistakes come back as the errors the client knows by their text.
func refusals(ctx context.Context, client *clientv3.Client) error {
	now, err := client.Put(ctx, "kv/r", "1")
	if err != nil {
		return err
	}
	var twice []clientv3.Op
	for range 2 {
		twice = append(twice, clientv3.OpPut("kv/r", "2"))
	}
	var many []clientv3.Op
	for i := range 129 {
		many = append(many, clientv3.OpPut(fmt.Sprint("kv/", i), "x"))
	}
	cases := []struct {
		want error
		call func() error
	}{
		{rpctypes.ErrEmptyKey, func() error { _, err := client.Put(ctx, "", "x"); return err }},
		{rpctypes.ErrKeyNotFound, func() error { _, err := client.Put(ctx, "kv/none", "", clientv3.WithIgnoreValue()); return err }},
		{rpctypes.ErrLeaseNotFound, func() error { _, err := client.Put(ctx, "kv/r", "x", clientv3.WithLease(12345)); return err }},
		{rpctypes.ErrFutureRev, func() error {
			_, err := client.Get(ctx, "kv/r", clientv3.WithRev(now.Header.Revision+1000))
			return err
		}},
		{rpctypes.ErrFutureRev, func() error { _, err := client.Compact(ctx, now.Header.Revision+1000); return err }},
		{rpctypes.ErrDuplicateKey, func() error { _, err := client.Txn(ctx).Then(twice...).Commit(); return err }},
		{rpctypes.ErrTooManyOps, func() error { _, err := client.Txn(ctx).Then(many...).Commit(); return err }},
		{rpctypes.ErrRequestTooLarge, func() error { _, err := client.Put(ctx, "kv/r", string(make([]byte, 1_600_000))); return err }},
	}
	for _, c := range cases {
		if got := c.call(); !errors.Is(got, c.want) {
			return fmt.Errorf("wanted the error %q, got %v", c.want, got)
		}
	}
	return nil
}
