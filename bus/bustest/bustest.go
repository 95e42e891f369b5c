// Package bustest has what tests of transports share: small steps that fail the test when they do not come about.
package bustest

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/wheelrefinery/refinery/bus"
)

// Patience is how long a test waits for what must come.
const Patience = 20 * time.Second

// Log collects what a bus logs.
type Log struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *Log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *Log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// Count says how often s was logged.
func (l *Log) Count(s string) int { return strings.Count(l.String(), s) }

// Logger writes to l as text.
func (l *Log) Logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

// Quiet is a log in which any line, of level info or above, fails the test at its end.
func Quiet(t testing.TB) *Log {
	l := &Log{}
	t.Cleanup(func() {
		if s := l.String(); s != "" {
			t.Errorf("unexpected log:\n%s", s)
		}
	})
	return l
}

// Subscribe makes a member of a group and subscribes it to a topic.
func Subscribe(t testing.TB, b bus.Bus, group, topic string) (<-chan *message.Message, message.Subscriber) {
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

// Keyed makes a message whose UUID is key/payload.
func Keyed(key, payload string) *message.Message {
	return bus.NewMessage(key+"/"+payload, key, []byte(payload))
}

// Publish publishes, or ends the test.
func Publish(t testing.TB, b message.Publisher, topic string, messages ...*message.Message) {
	t.Helper()
	if err := b.Publish(topic, messages...); err != nil {
		t.Fatal(err)
	}
}

// Receive takes the next message, which the caller acks or nacks.
func Receive(t testing.TB, ch <-chan *message.Message) *message.Message {
	t.Helper()
	select {
	case m, ok := <-ch:
		if !ok {
			t.Fatal("channel closed")
		}
		return m
	case <-time.After(Patience):
		t.Fatal("no message")
	}
	return nil
}

// Expect takes messages with these payloads, in this order, and acks them.
func Expect(t testing.TB, ch <-chan *message.Message, payloads ...string) {
	t.Helper()
	for _, want := range payloads {
		m := Receive(t, ch)
		if got := string(m.Payload); got != want {
			t.Fatalf("received %q, want %q", got, want)
		}
		m.Ack()
	}
}

// ExpectNone fails if a message comes within d.
func ExpectNone(t testing.TB, ch <-chan *message.Message, d time.Duration) {
	t.Helper()
	select {
	case m := <-ch:
		t.Fatalf("received %q, want nothing", m.Payload)
	case <-time.After(d):
	}
}

// Eventually waits until cond holds.
func Eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(Patience); !cond(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("never: " + what)
		}
	}
}
