package bus_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/message/router/middleware"

	"github.com/wheelrefinery/refinery/bus"
	"github.com/wheelrefinery/refinery/bus/bustest"
	"github.com/wheelrefinery/refinery/bus/file"
)

// poisonLog is an bus.OnPoison that remembers.
type poisonLog struct {
	mu      sync.Mutex
	reasons []string
	fail    error
}

func (p *poisonLog) record(m *message.Message, reason error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.reasons = append(p.reasons, m.UUID+": "+reason.Error())
	err := p.fail
	p.fail = nil
	return err
}

func (p *poisonLog) all() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string(nil), p.reasons...)
}

// open opens a bus whose log is a failure of the test.
func open(t *testing.T) bus.Bus {
	t.Helper()
	b, err := file.Open(t.TempDir(), bustest.Quiet(t).Logger())
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

// route runs a router for topic "t" until the test or the returned function ends it.
func route(t *testing.T, b bus.Bus, onPoison bus.OnPoison, h bus.Handler) (stop func()) {
	t.Helper()
	r, err := bus.NewRouter(b, (&bustest.Log{}).Logger(), "g", onPoison, map[string]bus.Handler{"t": h})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := r.Run(context.Background()); err != nil {
			t.Errorf("router: %v", err)
		}
	})
	<-r.Running()
	stop = sync.OnceFunc(func() {
		if err := r.Close(); err != nil {
			t.Errorf("close router: %v", err)
		}
		wg.Wait()
	})
	t.Cleanup(stop)
	return stop
}

func TestRouterPoison(t *testing.T) {
	for name, c := range map[string]struct {
		handler bus.Handler
		calls   int64
		reason  string
	}{
		"undecodable": {func(*message.Message) error { return fmt.Errorf("decode: %w", bus.ErrPermanent) }, 1, "decode: permanent failure"},
		"failing":     {func(*message.Message) error { return errors.New("no database") }, 6, "no database"},
		"panicking":   {func(*message.Message) error { panic("oh no") }, 6, "handler panicked: oh no"},
		"nil panic":   {func(*message.Message) error { panic(nil) }, 6, "handler panicked: panic called with nil argument"},
		"long reason that is not text": {
			func(*message.Message) error {
				return fmt.Errorf("\xff%s%w", strings.Repeat("x", 1<<20), bus.ErrPermanent)
			}, 1, "",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := open(t)
			var (
				calls       atomic.Int64
				first, last time.Time // of the calls
			)
			log := &poisonLog{}
			route(t, b, log.record, func(m *message.Message) error {
				if string(m.Payload) == "fine" {
					return nil
				}
				if last = time.Now(); calls.Add(1) == 1 {
					first = last
				}
				return c.handler(m)
			})
			poison, _ := bustest.Subscribe(t, b, "watch", bus.TopicPoison)
			// As large as can be: it must fit into the poison topic with its reason.
			bad := message.NewMessage("bad", []byte(strings.Repeat("z", bus.MaxMessageBytes-20)))
			bad.Metadata.Set(bus.KeyMetadata, "k")
			bustest.Publish(t, b, "t", bad)
			bustest.Publish(t, b, "t", bustest.Keyed("k", "fine"))
			m := bustest.Receive(t, poison)
			m.Ack()
			if m.UUID != "bad" || len(m.Payload) != len(bad.Payload) || m.Metadata.Get(bus.KeyMetadata) != "k" ||
				m.Metadata.Get(middleware.PoisonedTopicKey) != "t" {
				t.Errorf("poison topic got %s with %v", m.UUID, m.Metadata)
			}
			if got := m.Metadata.Get(middleware.ReasonForPoisonedKey); c.reason != "" && got != c.reason {
				t.Errorf("reason is %q, want %q", got, c.reason)
			}
			if got := log.all(); len(got) != 1 || c.reason != "" && got[0] != "bad: "+c.reason {
				t.Errorf("onPoison was told %.100q", got)
			}
			if n := calls.Load(); n != c.calls {
				t.Errorf("handler was called %d times, want %d", n, c.calls)
			}
			if took := last.Sub(first); c.calls > 1 && (took < 1300*time.Millisecond || took > 2500*time.Millisecond) {
				t.Errorf("retries took %v, want about 1.55 s", took)
			}
			// Acknowledged: the group goes past it, and it does not come again.
			bustest.Eventually(t, "offset at the end", func() bool {
				all, err := b.Stats()
				if err != nil {
					t.Fatal(err)
				}
				return slices.ContainsFunc(all, func(s bus.Stats) bool { return s.Topic == "t" && s.Group == "g" && s.Bytes == 0 })
			})
			bustest.ExpectNone(t, poison, 20*time.Millisecond)
		})
	}
}

// Until the outcome is recorded nothing reaches the poison topic and nothing is acknowledged.
func TestRouterOnPoisonFails(t *testing.T) {
	b := open(t)
	poison, _ := bustest.Subscribe(t, b, "watch", bus.TopicPoison)
	log := &poisonLog{fail: errors.New("no database")}
	var calls atomic.Int64
	route(t, b, func(m *message.Message, reason error) error {
		select {
		case <-poison:
			t.Error("in the poison topic before onPoison returned")
		case <-m.Acked():
			t.Error("acknowledged before onPoison returned")
		case <-time.After(30 * time.Millisecond):
		}
		return log.record(m, reason)
	}, func(*message.Message) error { calls.Add(1); return bus.ErrPermanent })
	bustest.Publish(t, b, "t", bustest.Keyed("k", "1"))
	bustest.Receive(t, poison).Ack()
	if n := calls.Load(); n != 2 || len(log.all()) != 2 {
		t.Errorf("handler was called %d times, onPoison %d times, want twice each", n, len(log.all()))
	}
	bustest.ExpectNone(t, poison, 50*time.Millisecond)
}

func TestRouterRetries(t *testing.T) {
	b := open(t)
	log := &poisonLog{}
	done := make(chan string, 10)
	var failures atomic.Int64
	route(t, b, log.record, func(m *message.Message) error {
		if string(m.Payload) == "1" && failures.Add(1) <= 2 {
			return errors.New("not yet")
		}
		done <- string(m.Payload)
		return nil
	})
	bustest.Publish(t, b, "t", bustest.Keyed("k", "1"), bustest.Keyed("k", "2"), bustest.Keyed("other", "3"))
	var order []string
	for range 3 {
		select {
		case p := <-done:
			order = append(order, p)
		case <-time.After(bustest.Patience):
			t.Fatalf("handled only %v", order)
		}
	}
	if got := strings.Join(order, ""); got != "312" {
		t.Errorf("handled in order %s, want 312: a key waits for its retries, others do not", got)
	}
	if got := log.all(); len(got) != 0 {
		t.Errorf("poisoned: %q", got)
	}
}

// A message whose handler is interrupted because the router closes is not poisoned: the next router gets it.
func TestRouterCloseGivesBack(t *testing.T) {
	b := open(t)
	log := &poisonLog{}
	started := make(chan struct{}, 1)
	stop := route(t, b, log.record, func(m *message.Message) error {
		started <- struct{}{}
		<-m.Context().Done()
		return fmt.Errorf("query: %w: %w", m.Context().Err(), bus.ErrPermanent)
	})
	bustest.Publish(t, b, "t", bustest.Keyed("k", "1"))
	<-started
	start := time.Now()
	stop()
	if d := time.Since(start); d > 2*time.Second {
		t.Errorf("closing took %v", d)
	}
	got := make(chan string, 1)
	route(t, b, log.record, func(m *message.Message) error { got <- string(m.Payload); return nil })
	select {
	case <-got:
	case <-time.After(bustest.Patience):
		t.Error("message was lost")
	}
	if got := log.all(); len(got) != 0 {
		t.Errorf("poisoned: %q", got)
	}
}

func TestRouterRefusesPoisonTopic(t *testing.T) {
	b := open(t)
	none := func(*message.Message) error { return nil }
	if _, err := bus.NewRouter(b, (&bustest.Log{}).Logger(), "g", (&poisonLog{}).record, map[string]bus.Handler{bus.TopicPoison: none}); err == nil {
		t.Error("no error")
	}
	if _, err := bus.NewRouter(b, (&bustest.Log{}).Logger(), "g", nil, map[string]bus.Handler{"t": none}); err == nil {
		t.Error("no error without bus.OnPoison")
	}
}
