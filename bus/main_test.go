package bus

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if role := os.Getenv("BUS_TEST_CHILD"); role != "" {
		if err := children[role](os.Getenv("BUS_TEST_DIR")); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// child runs this test binary as another process that plays a role on dir.
func child(t *testing.T, role, dir string, env ...string) (*exec.Cmd, io.ReadCloser) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "BUS_TEST_CHILD="+role, "BUS_TEST_DIR="+dir)
	cmd.Env = append(cmd.Env, env...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if cmd.ProcessState == nil {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	})
	return cmd, out
}

// logBuffer collects what a bus logs.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

func (l *logBuffer) count(s string) int { return strings.Count(l.String(), s) }

// open opens a file bus whose log is a failure of the test, unless the test takes it.
func open(t testing.TB, dir string, change ...func(*tuning)) *fileBus {
	t.Helper()
	log := &logBuffer{}
	t.Cleanup(func() {
		if s := log.String(); s != "" {
			t.Errorf("unexpected log:\n%s", s)
		}
	})
	return openLogging(t, dir, log, change...)
}

func openLogging(t testing.TB, dir string, log io.Writer, change ...func(*tuning)) *fileBus {
	t.Helper()
	tn := defaultTuning()
	for _, c := range change {
		c(&tn)
	}
	b, err := openFile(dir, slog.New(slog.NewTextHandler(log, nil)), tn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Errorf("close bus: %v", err)
		}
	})
	return b
}

func subscribe(t testing.TB, b Bus, group, topic string) (<-chan *message.Message, message.Subscriber) {
	t.Helper()
	s, err := b.Subscriber(group)
	if err != nil {
		t.Fatal(err)
	}
	ch, err := s.Subscribe(context.Background(), topic)
	if err != nil {
		t.Fatal(err)
	}
	return ch, s
}

func keyed(key, payload string) *message.Message {
	m := message.NewMessage(key+"/"+payload, []byte(payload))
	m.Metadata.Set(KeyMetadata, key)
	return m
}

func publish(t testing.TB, b Bus, topic string, messages ...*message.Message) {
	t.Helper()
	if err := b.Publish(topic, messages...); err != nil {
		t.Fatal(err)
	}
}

const patience = 10 * time.Second

// receive takes the next message, which the caller acks or nacks.
func receive(t testing.TB, ch <-chan *message.Message) *message.Message {
	t.Helper()
	select {
	case m, ok := <-ch:
		if !ok {
			t.Fatal("channel closed")
		}
		return m
	case <-time.After(patience):
		t.Fatal("no message")
	}
	return nil
}

// expect takes messages with these payloads, in this order, and acks them.
func expect(t testing.TB, ch <-chan *message.Message, payloads ...string) {
	t.Helper()
	for _, want := range payloads {
		m := receive(t, ch)
		if got := string(m.Payload); got != want {
			t.Fatalf("received %q, want %q", got, want)
		}
		m.Ack()
	}
}

// expectNone fails if a message comes within d.
func expectNone(t testing.TB, ch <-chan *message.Message, d time.Duration) {
	t.Helper()
	select {
	case m := <-ch:
		t.Fatalf("received %q, want nothing", m.Payload)
	case <-time.After(d):
	}
}

func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !cond(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("never: " + what)
		}
	}
}

// segmentsOf lists the files of a topic's segments, in order.
func segmentsOf(t testing.TB, dir, topic string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, topic, "segments", "*.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func textLogger(w io.Writer) *slog.Logger { return slog.New(slog.NewTextHandler(w, nil)) }

func writeFile(t testing.TB, name, content string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func median(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2]
}
