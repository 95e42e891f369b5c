package delivery

import (
	"context"
	"sync"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/wheelrefinery/refinery/bus"
)

type outcome int

const (
	acked outcome = iota
	nacked
	returned // the subscription ended
)

// Result is what became of a message that was handed out.
type Result[P any] struct {
	entry   *Entry[P]
	outcome outcome
}

// Join makes a subscriber's process read a topic for its group, until leave is called, after all results were sent.
type Join[P any] func(topic string) (q *Queue[P], leave func(), err error)

// Subscriber is a member of a group, on any number of topics.
type Subscriber[P any] struct {
	join   Join[P]
	ctx    context.Context // ends with the subscriber
	cancel context.CancelFunc

	mu     sync.Mutex
	closed bool
	active sync.WaitGroup // subscriptions
}

// NewSubscriber makes a subscriber that ends with ctx.
func NewSubscriber[P any](ctx context.Context, join Join[P]) *Subscriber[P] {
	s := &Subscriber[P]{join: join}
	s.ctx, s.cancel = context.WithCancel(ctx)
	return s
}

// Subscribe is message.Subscriber's.
func (s *Subscriber[P]) Subscribe(ctx context.Context, topic string) (<-chan *message.Message, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, bus.ErrClosed
	}
	q, leave, err := s.join(topic)
	if err != nil {
		return nil, err
	}
	sub := &subscription[P]{queue: q, out: make(chan *message.Message)}
	sub.ctx, sub.cancel = context.WithCancel(ctx)
	stop := context.AfterFunc(s.ctx, sub.cancel)
	s.active.Go(func() {
		defer stop()
		defer sub.cancel()
		sub.run()
		leave()
		close(sub.out)
	})
	return sub.out, nil
}

// Close ends all subscriptions. It is idempotent.
func (s *Subscriber[P]) Close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.cancel()
	s.active.Wait()
	return nil
}

// subscription hands the messages of a group to one output channel.
type subscription[P any] struct {
	queue     *Queue[P]
	ctx       context.Context // the caller's; ends with the subscription
	cancel    context.CancelFunc
	out       chan *message.Message
	delivered sync.WaitGroup
}

func (s *subscription[P]) run() {
	defer s.delivered.Wait()
	for {
		select {
		case <-s.ctx.Done():
			return
		case e := <-s.queue.ready:
			m := e.Record.Message()
			ctx, cancel := context.WithCancel(s.ctx)
			stop := context.AfterFunc(e.window.ctx, cancel)
			m.SetContext(ctx)
			select {
			case <-ctx.Done():
				stop()
				cancel()
				s.queue.results <- Result[P]{e, returned}
			case s.out <- m:
				s.delivered.Go(func() {
					result := Result[P]{e, wait(ctx, m)}
					stop()
					cancel()
					s.queue.results <- result
				})
			}
		}
	}
}

// wait waits for what becomes of a message that was delivered.
func wait(ctx context.Context, m *message.Message) outcome {
	select {
	case <-m.Acked():
		return acked
	case <-m.Nacked():
		return nacked
	case <-ctx.Done():
	}
	select {
	case <-m.Acked(): // an ack before the end counts
		return acked
	default:
		return returned
	}
}
