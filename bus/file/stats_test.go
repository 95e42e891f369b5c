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
