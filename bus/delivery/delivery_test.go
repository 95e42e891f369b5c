package delivery

import (
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type text string

func (s text) Message() *message.Message { return message.NewMessage(string(s), []byte(s)) }

// owner is the goroutine that owns a queue, here the test's.
type owner struct {
	*testing.T
	q  *Queue[int]
	in <-chan *message.Message
}

func newOwner(t *testing.T) *owner {
	t.Helper()
	l := DefaultLimits()
	l.MinBackoff, l.MaxBackoff = time.Millisecond, time.Millisecond
	q := NewQueue[int](l)
	s := NewSubscriber(t.Context(), func(string) (*Queue[int], func(), error) { return q, func() {}, nil })
	in, err := s.Subscribe(t.Context(), "t")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return &owner{t, q, in}
}

// add adds entries, each "key number", to w, at positions from first on.
func (o *owner) add(w *Window[int], first int, entries ...string) {
	for i, e := range entries {
		o.q.Add(w, &Entry[int]{Pos: first + i, Record: text(e), Key: e[:1], Size: 1})
	}
}

// next hands the next message out; nil if there is none to be handed out.
func (o *owner) next() *message.Message {
	o.Helper()
	if o.q.Ready() == nil {
		return nil
	}
	o.q.Ready() <- o.q.Head()
	o.q.Handed()
	return <-o.in
}

func (o *owner) want(uuid string) *message.Message {
	o.Helper()
	m := o.next()
	if m == nil || m.UUID != uuid {
		o.Fatalf("handed out %v, want %s", m, uuid)
	}
	return m
}

func (o *owner) none() {
	o.Helper()
	if m := o.next(); m != nil {
		o.Fatalf("handed out %s, want nothing", m.UUID)
	}
}

func (o *owner) ack(m *message.Message) {
	m.Ack()
	o.q.SettleAll(<-o.q.Results())
}

func (o *owner) nack(m *message.Message) {
	m.Nack()
	o.q.SettleAll(<-o.q.Results())
}

func TestKeysInOrderAndPassed(t *testing.T) {
	o, w := newOwner(t), NewWindow(9)
	o.add(w, 10, "a1", "a2", "b1", "c1")
	a, b, c := o.want("a1"), o.want("b1"), o.want("c1")
	o.none()
	o.ack(b)
	if w.Passed() != 9 || w.First().Pos != 10 {
		t.Errorf("passed %d, first %d", w.Passed(), w.First().Pos)
	}
	o.nack(a)
	o.none() // in its pause, and a2 waits for it
	o.q.Again(time.Now().Add(time.Second))
	o.ack(o.want("a1"))
	if w.Passed() != 10 {
		t.Errorf("passed %d", w.Passed())
	}
	o.ack(c)
	o.ack(o.want("a2"))
	o.q.Add(w, &Entry[int]{Pos: 14}) // nothing to deliver
	if w.Passed() != 14 || w.First() != nil || o.q.Unacked() != 0 || !o.q.Room() {
		t.Errorf("passed %d, %d unacknowledged", w.Passed(), o.q.Unacked())
	}
}

// What is held is not handed out, acks of it count, and once it is resumed each key goes on where it stood.
func TestHoldAndResume(t *testing.T) {
	o, w, other := newOwner(t), NewWindow(0), NewWindow(0)
	o.add(w, 1, "a1", "a2", "b1", "b2", "c1", "d1", "d2")
	o.add(other, 1, "x1")
	a, b, c := o.want("a1"), o.want("b1"), o.want("c1")
	o.nack(b)
	o.q.Hold(w)
	if w.Flying() != 2 {
		t.Errorf("%d are out", w.Flying())
	}
	o.want("x1")
	o.none()
	o.ack(a)
	o.add(w, 8, "e1")
	o.q.Again(time.Now().Add(time.Second)) // b1's pause is over
	o.none()
	o.nack(c)
	if w.Flying() != 0 || w.Passed() != 1 {
		t.Errorf("%d are out, passed %d", w.Flying(), w.Passed())
	}
	o.q.Resume(w)
	got := map[string]bool{}
	for m := o.next(); m != nil; m = o.next() {
		got[m.UUID] = true
	}
	for _, want := range []string{"a2", "b1", "d1", "e1"} { // c1 is in its pause
		if !got[want] {
			t.Errorf("%s was not handed out: %v", want, got)
		}
	}
	if len(got) != 4 {
		t.Errorf("handed out %v", got)
	}
}

// What is dropped ends: its contexts, and every effect of an ack.
func TestDrop(t *testing.T) {
	o, w, other := newOwner(t), NewWindow(0), NewWindow(0)
	o.add(w, 1, "a1", "b1", "c1")
	a, b := o.want("a1"), o.want("b1")
	o.nack(b)
	o.add(other, 1, "x1")
	o.q.Drop(w)
	select {
	case <-a.Context().Done():
	case <-time.After(10 * time.Second):
		t.Fatal("the context of a message outlives its window")
	}
	a.Ack()
	o.q.SettleAll(<-o.q.Results())
	o.q.Again(time.Now().Add(time.Second))
	if w.Passed() != 0 || o.q.Unacked() != 1 {
		t.Errorf("passed %d, %d unacknowledged", w.Passed(), o.q.Unacked())
	}
	if !o.q.Due().IsZero() {
		t.Error("something of it is delayed")
	}
	o.ack(o.want("x1"))
	o.none()
}
