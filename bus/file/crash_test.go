package file

import (
	"bufio"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/wheelrefinery/refinery/bus"
	"github.com/wheelrefinery/refinery/bus/bustest"
)

// children are the roles that this test binary plays in other processes; see child.
var children = map[string]func(dir string) error{
	"publish": publishChild,
}

const (
	childTopic      = "t"
	childPublishers = 4
)

func childBus(dir string) (*fileBus, error) {
	tn := defaultTuning()
	tn.segmentSize = 8 << 10
	return openFile(dir, slog.New(slog.NewTextHandler(os.Stderr, nil)), tn)
}

// publishChild publishes with some publishers, each numbering its messages, and prints each one when
// Publish has returned. It ends after BUS_TEST_COUNT messages of each, if given.
func publishChild(dir string) error {
	b, err := childBus(dir)
	if err != nil {
		return err
	}
	defer b.Close()
	name := os.Getenv("BUS_TEST_NAME")
	count, _ := strconv.Atoi(os.Getenv("BUS_TEST_COUNT"))
	var wg sync.WaitGroup
	errs := make([]error, childPublishers)
	for p := range childPublishers {
		wg.Go(func() {
			key := fmt.Sprintf("%s%d", name, p)
			for i := 0; count == 0 || i < count; i++ {
				m := bustest.Keyed(key, strconv.Itoa(i))
				m.Metadata.Set("fill", strings.Repeat("x", i%700))
				if errs[p] = b.Publish(childTopic, m); errs[p] != nil {
					return
				}
				fmt.Printf("%s %d\n", key, i) // one write: lines of goroutines do not mix
			}
		})
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return b.Close()
}

// published reads what a publish child printed into last: the number of the last message of each publisher that returned. It
// calls f when last has n publishers.
func published(r io.Reader, last map[string]int, n int, f func()) error {
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		before := len(last)
		key, number, ok := strings.Cut(lines.Text(), " ")
		if i, err := strconv.Atoi(number); ok && err == nil {
			last[key] = max(last[key], i)
		}
		if before < n && len(last) == n {
			f()
		}
	}
	return lines.Err()
}

// inOrder takes messages until every publisher's last one has come, and fails on a gap or a step back. What a publisher
// wrote without learning that it did may come too.
func inOrder(t *testing.T, ch <-chan *message.Message, last map[string]int) map[string]int {
	t.Helper()
	seen, open := map[string]int{}, len(last)
	for open > 0 {
		m := bustest.Receive(t, ch)
		key := m.Metadata.Get(bus.KeyMetadata)
		i, err := strconv.Atoi(string(m.Payload))
		if err != nil || len(m.Metadata.Get("fill")) != i%700 {
			t.Fatalf("message %q of %s is not what was published", m.Payload, key)
		}
		want := 0
		if prev, ok := seen[key]; ok {
			want = prev + 1
		}
		if i != want {
			t.Fatalf("%s: received %d, want %d", key, i, want)
		}
		seen[key] = i
		if l, ok := last[key]; ok && i == l {
			open--
		}
		m.Ack()
	}
	return seen
}

func TestKillPublisher(t *testing.T) {
	rounds := 4
	if testing.Short() {
		rounds = 1
	}
	for round := range rounds {
		dir, last := t.TempDir(), map[string]int{}
		for kill := range 2 { // the second child finds what the first left
			cmd, out := child(t, "publish", dir, fmt.Sprint("BUS_TEST_NAME=", kill, "-"))
			// Killed at different moments of a batch.
			if err := published(out, last, childPublishers*(kill+1), func() {
				time.AfterFunc(time.Duration(70+37*round+11*kill)*time.Millisecond, func() { _ = cmd.Process.Kill() })
			}); err != nil {
				t.Fatal(err)
			}
			if err := cmd.Wait(); err == nil {
				t.Fatal("child ended by itself")
			}
		}
		if len(last) != 2*childPublishers {
			t.Fatalf("only %d publishers got anything done before the kill", len(last))
		}
		b := open(t, dir)
		bustest.Publish(t, b, childTopic, bustest.Keyed("end", "0")) // cuts what is torn
		last["end"] = 0
		ch, _ := bustest.Subscribe(t, b, "g", childTopic)
		n := len(last)
		for _, i := range inOrder(t, ch, last) {
			n += i
		}
		t.Logf("%d messages", n)
	}
}

func TestTwoProcessesPublish(t *testing.T) {
	dir := t.TempDir()
	const count = 400
	b := open(t, dir, func(tn *tuning) { tn.segmentSize = 8 << 10 })
	ch, _ := bustest.Subscribe(t, b, "g", childTopic)
	last := map[string]int{}
	var cmds []*exec.Cmd
	for _, name := range []string{"a", "b"} {
		cmd, out := child(t, "publish", dir, "BUS_TEST_NAME="+name, fmt.Sprint("BUS_TEST_COUNT=", count))
		go func() { _, _ = io.Copy(io.Discard, out) }()
		cmds = append(cmds, cmd)
		for p := range childPublishers {
			last[fmt.Sprint(name, p)] = count - 1
		}
	}
	last["here"] = count - 1
	go func() {
		for i := range count {
			m := bustest.Keyed("here", strconv.Itoa(i))
			m.Metadata.Set("fill", strings.Repeat("x", i%700))
			if err := b.Publish(childTopic, m); err != nil {
				t.Error(err)
			}
		}
	}()
	inOrder(t, ch, last)
	for _, cmd := range cmds {
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	}
	bustest.ExpectNone(t, ch, 50*time.Millisecond)
	// All rolled, and this group, the only one, has passed them.
	bustest.Eventually(t, "segments removed", func() bool { return len(segmentsOf(t, dir, childTopic)) <= 2 })
}

func TestStandbyTakesOverAfterClose(t *testing.T) {
	dir := t.TempDir()
	first, second := open(t, dir), open(t, dir)
	ch1, _ := bustest.Subscribe(t, first, "g", "t")
	bustest.Publish(t, first, "t", bustest.Keyed("a", "1"), bustest.Keyed("b", "2"), bustest.Keyed("c", "3"))
	bustest.Expect(t, ch1, "1", "2")
	ch2, _ := bustest.Subscribe(t, second, "g", "t")
	bustest.ExpectNone(t, ch2, 80*time.Millisecond)
	bustest.Receive(t, ch1) // "3" is not acknowledged
	closed := time.Now()
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	bustest.Expect(t, ch2, "3")
	if d := time.Since(closed); d > 300*time.Millisecond {
		t.Errorf("takeover after %v", d)
	}
	bustest.ExpectNone(t, ch2, 50*time.Millisecond) // acks of the last moment were written
}
