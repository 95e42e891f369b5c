package file

import (
	"context"
	"errors"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"golang.org/x/sys/unix"

	"github.com/wheelrefinery/refinery/bus"
	"github.com/wheelrefinery/refinery/bus/bustest"
)

// What Stats tells follows what is published and acknowledged, for a group that this process runs, for one that is away, and for a topic
// without one.
func TestStats(t *testing.T) {
	b, err := openFile(t.TempDir(), (&bustest.Log{}).Logger(), defaultTuning())
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	publish := func(topic string, n int) {
		for range n {
			if err := b.Publish(topic, bus.NewMessage("id", "key", []byte("payload"))); err != nil {
				t.Fatal(err)
			}
		}
	}
	of := func(topic, group string) bus.Stats {
		all, err := b.Stats()
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range all {
			if s.Topic == topic && s.Group == group {
				return s
			}
		}
		t.Fatalf("no %s of %s in %v", group, topic, all)
		return bus.Stats{}
	}
	if all, err := b.Stats(); err != nil || len(all) != 0 {
		t.Errorf("of nothing: %v %v", all, err)
	}
	publish("alone", 3)
	if s := of("alone", ""); s.Bytes < 3*len64("payload") || s.Unacked != 0 {
		t.Errorf("a topic without a group: %+v", s)
	}
	sub, err := b.Subscriber("g")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	in, err := sub.Subscribe(ctx, "read")
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Now().Add(-time.Second)
	publish("read", 3)
	m := <-in
	wait(t, func() bool { s := of("read", "g"); return s.Unacked == 3 && s.Bytes > 0 && s.Oldest.After(begin) })
	first := of("read", "g")
	m.Ack()
	(<-in).Ack()
	var last *message.Message = <-in
	wait(t, func() bool {
		s := of("read", "g")
		return s.Unacked == 1 && s.Bytes < first.Bytes && !s.Oldest.Before(first.Oldest)
	})
	last.Ack()
	wait(t, func() bool { s := of("read", "g"); return s.Unacked == 0 && s.Bytes == 0 && s.Oldest.IsZero() })
	cancel()
	for range in {
	}
	publish("read", 1)
	if s := of("read", "g"); s.Bytes == 0 || s.Unacked != 0 || !s.Oldest.After(first.Oldest) {
		t.Errorf("a group that is away: %+v", s)
	}
}

func len64(s string) int64 { return int64(len(s)) }

func wait(t *testing.T, f func() bool) {
	t.Helper()
	for begin := time.Now(); !f(); time.Sleep(time.Millisecond) {
		if time.Since(begin) > 10*time.Second {
			t.Fatal("it does not come about")
		}
	}
}

// Check finds a disk that takes nothing, and a lock that somebody holds, and leaves nothing behind.
func TestCheck(t *testing.T) {
	tn := defaultTuning()
	var trouble error
	tn.sync = func(f *os.File) error { return errors.Join(trouble, f.Sync()) }
	b, err := openFile(t.TempDir(), (&bustest.Log{}).Logger(), tn)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	check := func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		return b.Check(ctx)
	}
	if err := check(); err != nil {
		t.Error(err)
	}
	trouble = syscall.ENOSPC
	if err := check(); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("a full disk: %v", err)
	}
	trouble = nil
	tp, err := b.topic(bus.TopicCommands)
	if err != nil {
		t.Fatal(err)
	}
	lock, err := openLock(tp.root, "lock")
	if err != nil {
		t.Fatal(err)
	}
	if err := flock(lock, unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	if err := check(); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a lock that is held: %v", err)
	}
	lock.Close()
	if err := check(); err != nil {
		t.Errorf("after it was let go: %v", err)
	}
	names, err := tp.list(".")
	if err != nil || strings.Contains(strings.Join(names, " "), "probe") {
		t.Errorf("what it leaves: %v %v", names, err)
	}
	b.Close()
	if err := check(); !errors.Is(err, bus.ErrClosed) {
		t.Errorf("a closed bus: %v", err)
	}
}
