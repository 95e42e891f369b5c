package bustest

import (
	"context"
	"math/rand/v2"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/wheelrefinery/refinery/bus"
)

func contextOf(t testing.TB) (context.Context, context.CancelFunc) {
	return context.WithCancel(t.Context())
}

// flow checks what consumers see of numbered messages of many keys: each key's in order, none missing, never two of a key at a time.
// Messages may come again.
type flow struct {
	t     testing.TB
	topic string
	nacks bool

	mu       sync.Mutex
	keys     map[string]*keyState
	again    int // deliveries of what was acknowledged before
	together int
	most     int
	handlers sync.WaitGroup
}

type keyState struct {
	next   int             // number of the message that must come now
	holder context.Context // of the message that is being handled; nil: none
}

func newFlow(t testing.TB, topic string) *flow {
	return &flow{t: t, topic: topic, keys: map[string]*keyState{}}
}

// consume handles messages of a new subscriber of b until its channel closes.
func (f *flow) consume(b bus.Bus) message.Subscriber {
	f.t.Helper()
	ch, sub := Subscribe(f.t, b, "g", f.topic)
	f.handlers.Go(func() {
		for m := range ch {
			f.handlers.Go(func() { f.handle(m) })
		}
	})
	return sub
}

func (f *flow) handle(m *message.Message) {
	key := m.Metadata.Get(bus.KeyMetadata)
	number, err := strconv.Atoi(string(m.Payload))
	if err != nil {
		f.t.Errorf("received %q", m.Payload)
		return
	}
	f.mu.Lock()
	k := f.keys[key]
	if k == nil {
		k = &keyState{}
		f.keys[key] = k
	}
	// Who lost a message is told by the end of its context, before another gets it.
	if k.holder != nil && k.holder.Err() == nil {
		f.t.Errorf("key %s: two messages at a time", key)
	}
	if number > k.next {
		f.t.Errorf("key %s: received %d, want %d", key, number, k.next)
	}
	if number < k.next {
		f.again++
	}
	ctx := m.Context()
	k.holder = ctx
	f.together++
	f.most = max(f.most, f.together)
	f.mu.Unlock()

	select {
	case <-time.After(time.Duration(rand.IntN(1500)) * time.Microsecond):
	case <-ctx.Done():
	}

	f.mu.Lock()
	defer f.mu.Unlock()
	f.together--
	if k.holder != ctx || ctx.Err() != nil {
		return // it is another's now
	}
	k.holder = nil
	if f.nacks && rand.IntN(8) == 0 {
		m.Nack()
		return
	}
	if number == k.next {
		k.next++
	}
	m.Ack()
}

// publish publishes each messages of n keys, from a goroutine for each key. An attempt that fails is made again.
func (f *flow) publish(b bus.Bus, n, each int, pause time.Duration) {
	var publishers sync.WaitGroup
	for key := range n {
		publishers.Go(func() {
			for i := range each {
				m := Keyed(strconv.Itoa(key), strconv.Itoa(i))
				for err := b.Publish(f.topic, m); err != nil; err = b.Publish(f.topic, m) {
					if f.t.Context().Err() != nil {
						f.t.Errorf("publish: %v", err)
						return
					}
					time.Sleep(20 * time.Millisecond)
				}
				time.Sleep(pause)
			}
		})
	}
	publishers.Wait()
}

func (f *flow) wait(n, each int) {
	f.t.Helper()
	f.waitFor(n, each, Patience)
}

func (f *flow) waitFor(n, each int, patience time.Duration) {
	f.t.Helper()
	deadline := time.Now().Add(patience)
	for ; ; time.Sleep(2 * time.Millisecond) {
		f.mu.Lock()
		done := 0
		for _, k := range f.keys {
			if k.next == each {
				done++
			}
		}
		f.mu.Unlock()
		if done == n {
			return
		}
		if time.Now().After(deadline) {
			f.t.Fatalf("%d of %d keys are done", done, n)
		}
	}
}

// Sixteen publishers, a key each, and fifty more keys; random nacks; four subscribers of two processes.
func testOrder(t *testing.T, tr Transport) {
	const keys, each = 66, 40
	f := newFlow(t, topic())
	f.nacks = true
	first, second := tr.open(t), tr.open(t)
	for _, b := range []bus.Bus{first, second} {
		f.consume(b)
		f.consume(b)
	}
	f.publish(tr.open(t), keys, each, 0)
	f.wait(keys, each)
	if f.most < 10 {
		t.Errorf("at most %d messages were handled side by side", f.most)
	}
	for _, b := range []bus.Bus{first, second} {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	}
	f.handlers.Wait()
}

// Subscribers of the group join and leave while messages flow.
func testRebalance(t *testing.T, tr Transport) {
	const keys, each = 32, 300
	f := newFlow(t, topic())
	here := tr.open(t)
	f.consume(here)
	done := make(chan struct{})
	go func() {
		defer close(done)
		f.publish(here, keys, each, 5*time.Millisecond)
	}()
	for range 3 {
		other := tr.open(t)
		f.consume(other)
		sub := f.consume(here)
		time.Sleep(300 * time.Millisecond)
		if err := other.Close(); err != nil {
			t.Error(err)
		}
		if err := sub.Close(); err != nil {
			t.Error(err)
		}
	}
	<-done
	f.waitFor(keys, each, Patience+tr.Takeover)
	t.Logf("%d of %d came again", f.again, keys*each)
	if f.again > keys*each/4 {
		t.Errorf("%d of %d messages came again", f.again, keys*each)
	}
	if err := here.Close(); err != nil {
		t.Error(err)
	}
	f.handlers.Wait()
	// Everything was acknowledged: who comes now gets nothing.
	ch, _ := Subscribe(t, tr.open(t), "g", f.topic)
	ExpectNone(t, ch, 100*time.Millisecond)
}
