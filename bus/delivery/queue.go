// Package delivery hands the messages that a process has read for a consumer group to the group's subscribers there: those of a key one
// at a time and in order, those of different keys side by side, and one that was nacked again after a pause. What is read from where,
// and what is stored of acknowledgements, is the transport's.
package delivery

import (
	"container/heap"
	"context"
	"slices"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
)

// Limits of a queue.
type Limits struct {
	InFlight   int           // messages that are delivered and not acknowledged
	Unacked    int           // messages that are read and not acknowledged
	Bytes      int           // of these
	MinBackoff time.Duration // before a message that was nacked comes again; doubles with each nack of it
	MaxBackoff time.Duration
}

// DefaultLimits are those of every transport.
func DefaultLimits() Limits {
	return Limits{InFlight: 1024, Unacked: 16384, Bytes: 32 << 20, MinBackoff: 10 * time.Millisecond, MaxBackoff: time.Second}
}

// maxHeld bounds how many messages may be acknowledged before an older one is, each of which costs some bytes until then and a redelivery
// after a crash.
const maxHeld = 1 << 17

// Record is a stored message.
type Record interface {
	// Message makes a message that shares nothing with others, so that a handler which changes it does not change what is delivered
	// after a nack.
	Message() *message.Message
}

// Entry is a message that was read and is not passed yet. P is the transport's position.
type Entry[P any] struct {
	Pos    P
	Record Record // nil: acknowledged, or nothing to deliver
	Key    string
	Size   int
	Time   time.Time // when it was published

	window *Window[P]
	flying bool // handed out
	nacks  int
	due    time.Time // when it may be delivered again after a nack
}

// Window is a part of a topic that is read in order. A key belongs to one window.
type Window[P any] struct {
	ctx     context.Context // ends the messages of the window
	cancel  context.CancelFunc
	entries []*Entry[P]            // in order of position, from the oldest unacknowledged one on
	keys    map[string][]*Entry[P] // unacknowledged, in order; only the first of a key is anywhere else
	passed  P
	flying  int
	held    bool // nothing more of it is handed out
	dropped bool
}

// NewWindow makes a window of which everything until passed is acknowledged.
func NewWindow[P any](passed P) *Window[P] {
	w := &Window[P]{keys: map[string][]*Entry[P]{}, passed: passed}
	w.ctx, w.cancel = context.WithCancel(context.Background())
	return w
}

// Passed is the position until which, it included, everything is acknowledged.
func (w *Window[P]) Passed() P { return w.passed }

// First is the oldest entry that is not acknowledged; nil if there is none.
func (w *Window[P]) First() *Entry[P] {
	if len(w.entries) == 0 {
		return nil
	}
	return w.entries[0]
}

// Flying is how many messages of the window subscribers have.
func (w *Window[P]) Flying() int { return w.flying }

// pass lets go what is acknowledged at the beginning.
func (w *Window[P]) pass() (n int) {
	for n < len(w.entries) && w.entries[n].Record == nil {
		w.passed = w.entries[n].Pos
		n++
	}
	w.entries = w.entries[n:]
	return n
}

// Queue holds what was read for a group. One goroutine calls its methods: it sends Head to Ready when both are there and then calls
// Handed, and calls Settle with what comes from Results.
type Queue[P any] struct {
	limits  Limits
	ready   chan *Entry[P]
	results chan Result[P] // never full, since messages in flight are bounded

	deliver []*Entry[P]
	delayed entryHeap[P] // nacked
	flying  int
	unacked int
	bytes   int
	held    int // entries of all windows
}

// NewQueue makes an empty queue.
func NewQueue[P any](l Limits) *Queue[P] {
	return &Queue[P]{limits: l, ready: make(chan *Entry[P]), results: make(chan Result[P], l.InFlight)}
}

// Room says whether another message may be read.
func (q *Queue[P]) Room() bool {
	return q.unacked < q.limits.Unacked && q.bytes < q.limits.Bytes && q.held < maxHeld
}

// Unacked is how many messages were read and not acknowledged.
func (q *Queue[P]) Unacked() int { return q.unacked }

// Add takes the next entry of w.
func (q *Queue[P]) Add(w *Window[P], e *Entry[P]) {
	e.window = w
	w.entries = append(w.entries, e)
	q.held++
	if e.Record == nil {
		q.held -= w.pass()
		return
	}
	q.unacked++
	q.bytes += e.Size
	queue := append(w.keys[e.Key], e)
	w.keys[e.Key] = queue
	if len(queue) == 1 && !w.held {
		q.deliver = append(q.deliver, e)
	}
}

// Ready takes what subscribers are to have; nil while nothing may be handed out.
func (q *Queue[P]) Ready() chan<- *Entry[P] {
	if len(q.deliver) == 0 || q.flying >= q.limits.InFlight {
		return nil
	}
	return q.ready
}

// Head is what is handed out next; nil if there is nothing.
func (q *Queue[P]) Head() *Entry[P] {
	if len(q.deliver) == 0 {
		return nil
	}
	return q.deliver[0]
}

// Handed notes that Head is with a subscriber.
func (q *Queue[P]) Handed() {
	e := q.deliver[0]
	q.deliver = q.deliver[1:]
	q.flying++
	e.flying = true
	e.window.flying++
}

// Results is what became of messages that were handed out.
func (q *Queue[P]) Results() <-chan Result[P] { return q.results }

// SettleAll settles r and all results that wait.
func (q *Queue[P]) SettleAll(r Result[P]) {
	q.settle(r)
	q.SettleWaiting()
}

// SettleWaiting settles all results that wait.
func (q *Queue[P]) SettleWaiting() {
	for len(q.results) > 0 {
		q.settle(<-q.results)
	}
}

func (q *Queue[P]) settle(r Result[P]) {
	e := r.entry
	w := e.window
	q.flying--
	e.flying = false
	w.flying--
	if w.dropped {
		return
	}
	switch r.outcome {
	case returned:
		if !w.held {
			q.deliver = append(q.deliver, e)
		}
	case nacked:
		wait := q.limits.MaxBackoff
		if e.nacks < 16 {
			wait = min(q.limits.MinBackoff<<e.nacks, q.limits.MaxBackoff)
		}
		e.nacks++
		e.due = time.Now().Add(wait)
		heap.Push(&q.delayed, e)
	case acked:
		e.Record = nil
		q.unacked--
		q.bytes -= e.Size
		if queue := w.keys[e.Key][1:]; len(queue) > 0 {
			w.keys[e.Key] = queue
			if !w.held {
				q.deliver = append(q.deliver, queue[0])
			}
		} else {
			delete(w.keys, e.Key)
		}
		q.held -= w.pass()
	}
}

// Due is when Again has something to do; the zero time if nothing was nacked.
func (q *Queue[P]) Due() time.Time {
	if len(q.delayed) == 0 {
		return time.Time{}
	}
	return q.delayed[0].due
}

// Again lets what was nacked be handed out when its pause is over.
func (q *Queue[P]) Again(now time.Time) {
	for len(q.delayed) > 0 && !q.delayed[0].due.After(now) {
		if e := heap.Pop(&q.delayed).(*Entry[P]); !e.window.held {
			q.deliver = append(q.deliver, e)
		}
	}
}

// Hold hands out nothing more of w; what subscribers have of it they keep.
func (q *Queue[P]) Hold(w *Window[P]) {
	w.held = true
	q.deliver = slices.DeleteFunc(q.deliver, func(e *Entry[P]) bool { return e.window == w })
}

// Resume undoes Hold.
func (q *Queue[P]) Resume(w *Window[P]) {
	w.held = false
	for _, queue := range w.keys {
		if e := queue[0]; !e.flying && !slices.Contains(q.delayed, e) {
			q.deliver = append(q.deliver, e)
		}
	}
}

// Drop forgets w, and ends the context of the messages that subscribers have of it: another process may have them next.
func (q *Queue[P]) Drop(w *Window[P]) {
	w.cancel()
	w.dropped = true
	for _, e := range w.entries {
		if e.Record != nil {
			q.unacked--
			q.bytes -= e.Size
		}
	}
	q.held -= len(w.entries)
	w.entries = nil
	of := func(e *Entry[P]) bool { return e.window == w }
	q.deliver = slices.DeleteFunc(q.deliver, of)
	q.delayed = slices.DeleteFunc(q.delayed, of)
	heap.Init(&q.delayed)
}

// entryHeap orders entries by when they are due.
type entryHeap[P any] []*Entry[P]

func (h entryHeap[P]) Len() int           { return len(h) }
func (h entryHeap[P]) Less(i, j int) bool { return h[i].due.Before(h[j].due) }
func (h entryHeap[P]) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *entryHeap[P]) Push(e any)        { *h = append(*h, e.(*Entry[P])) }
func (h *entryHeap[P]) Pop() any {
	last := len(*h) - 1
	e := (*h)[last]
	*h = (*h)[:last]
	return e
}
