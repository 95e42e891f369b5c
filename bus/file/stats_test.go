package file

import (
	"context"
	"errors"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wheelrefinery/refinery/bus"
	"github.com/wheelrefinery/refinery/bus/bustest"
)

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

// A process that does not consume for a group, since another one does or none, knows how long it has waited.
func TestStatsOfAnother(t *testing.T) {
	dir := t.TempDir()
	open := func() bus.Bus {
		b, err := Open(dir, bustest.Quiet(t).Logger())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { b.Close() })
		return b
	}
	here, there := open(), open()
	sub, err := there.Subscriber("g")
	if err != nil {
		t.Fatal(err)
	}
	in, err := sub.Subscribe(t.Context(), "t")
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	if err := here.Publish("t", bus.NewMessage("id", "key", []byte("payload"))); err != nil {
		t.Fatal(err)
	}
	m := <-in
	stats := func() bus.Stats {
		all, err := here.Stats()
		if err != nil || len(all) != 1 {
			t.Fatal(all, err)
		}
		return all[0]
	}
	if s := stats(); s.Bytes == 0 || s.Unacked != 0 || s.Oldest.Before(begin.Add(-time.Second)) || s.Oldest.After(time.Now()) {
		t.Errorf("while it waits: %+v", s)
	}
	m.Ack()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if s := stats(); s.Bytes == 0 && s.Oldest.IsZero() {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("after it: %+v", stats())
		}
	}
}
