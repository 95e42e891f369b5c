// Package gather lets publishers share writes: what arrives while one is under way is the next, so nobody waits for company (group commit).
package gather

import (
	"sync"

	"github.com/wheelrefinery/refinery/bus"
)

// Request is something that a publisher waits for to be written.
type Request[T any] struct {
	What T
	Size int // in bytes, as it was given
	done chan error
}

// Answer lets the publisher go on. It must be called once for each request.
func (r Request[T]) Answer(err error) { r.done <- err }

// Writer hands what waits to a function that writes it.
type Writer[T any] struct {
	most int

	mu     sync.Mutex
	queue  []Request[T]
	closed bool
	wake   chan struct{}
	done   chan struct{}
}

// New starts a writer. Its goroutine calls write with what waits, in order: of at most so many bytes together, but for a single larger
// request.
func New[T any](most int, write func([]Request[T])) *Writer[T] {
	w := &Writer[T]{most: most, wake: make(chan struct{}, 1), done: make(chan struct{})}
	go w.run(write)
	return w
}

// Write returns what is answered to something of so many bytes. After Close it is bus.ErrClosed.
func (w *Writer[T]) Write(what T, size int) error {
	r := Request[T]{what, size, make(chan error, 1)}
	w.mu.Lock()
	if w.closed {
		w.mu.Unlock()
		return bus.ErrClosed
	}
	w.queue = append(w.queue, r)
	w.mu.Unlock()
	w.signal()
	return <-r.done
}

// Close has what waits written, and returns when it is.
func (w *Writer[T]) Close() {
	w.mu.Lock()
	w.closed = true
	w.mu.Unlock()
	w.signal()
	<-w.done
}

func (w *Writer[T]) signal() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

func (w *Writer[T]) run(write func([]Request[T])) {
	defer close(w.done)
	for range w.wake {
		for {
			batch, closed := w.take()
			if len(batch) == 0 {
				if closed {
					return
				}
				break
			}
			write(batch)
		}
	}
}

func (w *Writer[T]) take() (batch []Request[T], closed bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	n, size := 0, 0
	for n < len(w.queue) && (n == 0 || size+w.queue[n].Size <= w.most) {
		size += w.queue[n].Size
		n++
	}
	batch = w.queue[:n:n]
	if w.queue = w.queue[n:]; len(w.queue) == 0 {
		w.queue = nil // let what was written go
	}
	return batch, w.closed
}
