package file

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/wheelrefinery/refinery/bus/bustest"
)

func TestOpen(t *testing.T) {
	log := bustest.Quiet(t).Logger()
	if _, err := Open("", log); err == nil {
		t.Error("no directory: no error")
	}
	b, err := Open(filepath.Join(t.TempDir(), "new", "dir"), log)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
}

func TestRefusedNamesLeaveNothing(t *testing.T) {
	dir := t.TempDir()
	b := open(t, dir)
	for _, name := range []string{"", "..", "../a", "a/b", "a\x00"} {
		if err := b.Publish(name, bustest.Keyed("k", "1")); err == nil {
			t.Errorf("topic %q: no error", name)
		}
		if _, err := b.Subscriber(name); err == nil {
			t.Errorf("group %q: no error", name)
		}
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("refused names left %v, %v", entries, err)
	}
}

func TestPublishWaitsForSync(t *testing.T) {
	syncing, release := make(chan struct{}), make(chan struct{})
	b := open(t, t.TempDir(), func(tn *tuning) {
		tn.sync = func(f *os.File) error {
			syncing <- struct{}{}
			<-release
			return f.Sync()
		}
	})
	done := make(chan error, 1)
	go func() { done <- b.Publish("t", bustest.Keyed("k", "1")) }()
	<-syncing
	select {
	case err := <-done:
		t.Fatalf("Publish returned %v before the sync", err)
	case <-time.After(50 * time.Millisecond):
	}
	close(release)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestGroupCommit(t *testing.T) {
	var syncs atomic.Int64
	b := open(t, t.TempDir(), func(tn *tuning) {
		tn.sync = func(*os.File) error {
			syncs.Add(1)
			time.Sleep(2 * time.Millisecond)
			return nil
		}
	})
	for range 3 {
		bustest.Publish(t, b, "t", bustest.Keyed("k", "1"), bustest.Keyed("k", "2"), bustest.Keyed("k", "3"))
	}
	if n := syncs.Swap(0); n != 3 {
		t.Errorf("3 publishes alone took %d syncs", n)
	}
	const publishers, each = 64, 10
	var wg sync.WaitGroup
	for range publishers {
		wg.Go(func() {
			for range each {
				bustest.Publish(t, b, "t", bustest.Keyed("k", "x"))
			}
		})
	}
	wg.Wait()
	if n := syncs.Load(); n > publishers*each/10 {
		t.Errorf("%d publishes took %d syncs", publishers*each, n)
	}
}

func TestMessagesOfOneCallStayTogether(t *testing.T) {
	b := open(t, t.TempDir())
	const publishers, calls, each = 8, 5, 7
	var wg sync.WaitGroup
	for p := range publishers {
		wg.Go(func() {
			for c := range calls {
				var ms []*message.Message
				for i := range each {
					ms = append(ms, message.NewMessage("", fmt.Appendf(nil, "%d/%d/%d", p, c, i)))
				}
				bustest.Publish(t, b, "t", ms...)
			}
		})
	}
	wg.Wait()
	ch, _ := bustest.Subscribe(t, b, "g", "t")
	for range publishers * calls {
		first := bustest.Receive(t, ch)
		first.Ack()
		call, ok := strings.CutSuffix(string(first.Payload), "/0")
		if !ok {
			t.Fatalf("a call starts with %s", first.Payload)
		}
		for i := 1; i < each; i++ {
			bustest.Expect(t, ch, fmt.Sprint(call, "/", i))
		}
	}
}

func TestTornTail(t *testing.T) {
	dir := t.TempDir()
	log := &bustest.Log{}
	first := openLogging(t, dir, log)
	bustest.Publish(t, first, "t", bustest.Keyed("k", "1"))
	ch, _ := bustest.Subscribe(t, first, "g", "t")
	bustest.Expect(t, ch, "1")

	// Another process dies in the middle of a write; while this one reads, a third goes on.
	segment := segmentsOf(t, dir, "t")[0]
	good, err := os.ReadFile(segment)
	if err != nil {
		t.Fatal(err)
	}
	for _, cut := range []int{1, 20, len(good) / 2, len(good) - 1} {
		appendTo(t, segment, string(good[:cut]))
		bustest.ExpectNone(t, ch, 40*time.Millisecond)
		next := openLogging(t, dir, log)
		bustest.Publish(t, next, "t", bustest.Keyed("k", fmt.Sprint("after ", cut)))
		bustest.Expect(t, ch, fmt.Sprint("after ", cut))
		if err := next.Close(); err != nil {
			t.Fatal(err)
		}
	}
	bustest.Publish(t, first, "t", bustest.Keyed("k", "last"))
	bustest.Expect(t, ch, "last")
	all, err := os.ReadFile(segment)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(all)) {
		if _, err := decodeLine([]byte(strings.TrimSuffix(line, "\n"))); err != nil {
			t.Errorf("segment holds %q: %v", line, err)
		}
	}
	if s := log.String(); s != "" {
		t.Errorf("a torn tail is not corruption, but was logged:\n%s", s)
	}
}

func appendTo(t *testing.T, file, s string) {
	t.Helper()
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString(s); err != nil {
		t.Fatal(err)
	}
}

func TestCorruptMiddle(t *testing.T) {
	dir := t.TempDir()
	b := open(t, dir)
	bustest.Publish(t, b, "t", bustest.Keyed("k", "1"), bustest.Keyed("k", "2"), bustest.Keyed("k", "3"))
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	segment := segmentsOf(t, dir, "t")[0]
	data, err := os.ReadFile(segment)
	if err != nil {
		t.Fatal(err)
	}
	second := strings.Index(string(data), "\n") + 1
	data[second+40] ^= 1
	if err := os.WriteFile(segment, data, 0o600); err != nil {
		t.Fatal(err)
	}

	log := &bustest.Log{}
	b = openLogging(t, dir, log)
	ch, _ := bustest.Subscribe(t, b, "g", "t")
	bustest.Expect(t, ch, "1", "3")
	bustest.Publish(t, b, "t", bustest.Keyed("k", "4"))
	bustest.Expect(t, ch, "4")
	if log.Count("Corrupt") != 1 || log.Count(fmt.Sprint("offset=", second)) != 1 || log.Count("00000000000000000000.jsonl") != 1 {
		t.Errorf("want one report with segment and offset %d, got\n%s", second, log)
	}
	// Passed is passed: the group does not meet it again.
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	b = open(t, dir)
	ch, _ = bustest.Subscribe(t, b, "g", "t")
	bustest.Publish(t, b, "t", bustest.Keyed("k", "5"))
	bustest.Expect(t, ch, "5")
}

// A write or sync that fails fails its publish, leaves nothing of it in the file, and the segment is not written to again.
func TestWriteFails(t *testing.T) {
	broken := errors.New("broken disk")
	for name, breakIt := range map[string]func(tn *tuning, failing *atomic.Bool){
		"sync": func(tn *tuning, failing *atomic.Bool) {
			tn.sync = func(f *os.File) error {
				if failing.Load() {
					return broken
				}
				return f.Sync()
			}
		},
		"write": func(tn *tuning, failing *atomic.Bool) {
			tn.writeAt = func(f *os.File, b []byte, off int64) (int, error) {
				if failing.Load() {
					n, _ := f.WriteAt(b[:len(b)*2/3], off)
					return n, broken
				}
				return f.WriteAt(b, off)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			var failing atomic.Bool
			b := open(t, dir, func(tn *tuning) { breakIt(tn, &failing) })
			bustest.Publish(t, b, "t", bustest.Keyed("k", "1"))
			size := fileSize(t, segmentsOf(t, dir, "t")[0])
			failing.Store(true)
			for range 3 {
				if err := b.Publish("t", bustest.Keyed("k", "lost"), bustest.Keyed("k", "too")); !errors.Is(err, broken) {
					t.Fatalf("Publish returned %v", err)
				}
			}
			failing.Store(false)
			bustest.Publish(t, b, "t", bustest.Keyed("k", "2"))
			files := segmentsOf(t, dir, "t")
			if len(files) != 4 || fileSize(t, files[0]) != size || fileSize(t, files[1]) != 0 {
				t.Errorf("segments are %v, the first of %d bytes, want 4 and %d bytes", files, fileSize(t, files[0]), size)
			}
			other := open(t, dir) // another process finds the same end
			bustest.Publish(t, other, "t", bustest.Keyed("k", "3"))
			bustest.Publish(t, b, "t", bustest.Keyed("k", "4"))
			ch, _ := bustest.Subscribe(t, other, "g", "t")
			bustest.Expect(t, ch, "1", "2", "3", "4")
		})
	}
}

// A subscriber that reads while a sync is going to fail may get the message or not, but stays in step.
func TestReaderOutlivesFailedSync(t *testing.T) {
	broken := errors.New("broken disk")
	var n atomic.Int64
	dir := t.TempDir()
	b := open(t, dir, func(tn *tuning) {
		tn.sync = func(f *os.File) error {
			if n.Add(1)%2 == 0 {
				time.Sleep(30 * time.Millisecond) // time for the reader to see what was written
				return broken
			}
			return f.Sync()
		}
	})
	ch, _ := bustest.Subscribe(t, open(t, dir), "g", "t")
	seen := 0
	for i := range 10 {
		payload := fmt.Sprintf("good %d", i)
		bustest.Publish(t, b, "t", bustest.Keyed("k", payload))
		for {
			m := bustest.Receive(t, ch)
			m.Ack()
			if string(m.Payload) == payload {
				break
			}
			if !strings.HasPrefix(string(m.Payload), "bad") {
				t.Fatalf("received %q, want %q", m.Payload, payload)
			}
			seen++
		}
		if err := b.Publish("t", bustest.Keyed("k", strings.Repeat("bad", i+1))); !errors.Is(err, broken) {
			t.Fatal(err)
		}
	}
	if seen == 0 {
		t.Error("the reader never saw a message whose sync failed: this test tests nothing")
	}
}

func fileSize(t *testing.T, name string) int64 {
	t.Helper()
	info, err := os.Stat(name)
	if err != nil {
		t.Fatal(err)
	}
	return info.Size()
}

// After a power failure an offset can stand beyond what is left of the topic. What is published then must not be taken for
// consumed.
func TestOffsetBeyondEnd(t *testing.T) {
	dir := t.TempDir()
	b := open(t, dir)
	bustest.Publish(t, b, "t", bustest.Keyed("k", "1"), bustest.Keyed("k", "2"))
	ch, _ := bustest.Subscribe(t, b, "g", "t")
	bustest.Expect(t, ch, "1", "2")
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	segment := segmentsOf(t, dir, "t")[0]
	if err := os.Truncate(segment, fileSize(t, segment)/2-7); err != nil {
		t.Fatal(err)
	}
	b = open(t, dir)
	ch, _ = bustest.Subscribe(t, b, "g", "t")
	for i := range 5 {
		bustest.Publish(t, b, "t", bustest.Keyed("k", fmt.Sprint("new ", i)))
		bustest.Expect(t, ch, fmt.Sprint("new ", i))
	}
}

func TestSegmentsAreRemovedWhenAllGroupsPassed(t *testing.T) {
	dir := t.TempDir()
	b := open(t, dir, func(tn *tuning) { tn.segmentSize = 1 << 10 })
	for i := range 100 {
		bustest.Publish(t, b, "t", bustest.Keyed("k", fmt.Sprintf("%d", i)))
	}
	all := len(segmentsOf(t, dir, "t"))
	if all < 10 {
		t.Fatalf("only %d segments", all)
	}
	consume := func(group string, from, to int) {
		t.Helper()
		ch, sub := bustest.Subscribe(t, b, group, "t")
		for i := from; i < to; i++ {
			bustest.Expect(t, ch, fmt.Sprint(i))
		}
		if err := sub.Close(); err != nil {
			t.Fatal(err)
		}
	}
	consume("away", 0, 0) // known from now on, with nothing consumed
	consume("fast", 0, 100)
	if n := len(segmentsOf(t, dir, "t")); n != all {
		t.Fatalf("%d of %d segments are left, though a group needs them all", n, all)
	}
	consume("away", 0, 50)
	half := len(segmentsOf(t, dir, "t"))
	if half >= all*2/3 || half <= all/3 {
		t.Errorf("%d of %d segments are left after half of the messages", half, all)
	}
	consume("away", 50, 100)
	if n := len(segmentsOf(t, dir, "t")); n != 1 {
		t.Errorf("%d segments are left after all messages", n)
	}
	// A group that comes now starts at the oldest message that is left; others go on where they were.
	bustest.Publish(t, b, "t", bustest.Keyed("k", "100"))
	consume("away", 100, 101)
	ch, _ := bustest.Subscribe(t, b, "late", "t")
	for {
		m := bustest.Receive(t, ch)
		m.Ack()
		if string(m.Payload) == "100" {
			break
		}
	}
}

// What a reader saw while a torn tail was being replaced is not what stands there: it looks again before it calls a line
// corrupt.
func TestCursorLooksAgain(t *testing.T) {
	b := open(t, t.TempDir()) // fails the test if anything is reported
	bustest.Publish(t, b, "t", bustest.Keyed("k", "1"))
	tp, err := b.topic("t")
	if err != nil {
		t.Fatal(err)
	}
	c := newCursor(tp, 0)
	if _, err := c.open(); err != nil {
		t.Fatal(err)
	}
	defer c.close()
	c.unread = []byte("half old, half new\n")
	if r, pos, err := c.read(); err != nil || r == nil || r.Text != "1" || pos != 0 {
		t.Errorf("read %v at %d, %v", r, pos, err)
	}
}
