package delivery

import (
	"context"
	"errors"
	"sync"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/wheelrefinery/refinery/bus"
)

// Subscribers are those that a bus has made, and closes with itself.
type Subscribers[P any] struct {
	mu     sync.Mutex
	closed bool
	all    []*Subscriber[P]
}

// Add makes a member of a group that ends with ctx. After Close it is bus.ErrClosed.
func (s *Subscribers[P]) Add(ctx context.Context, group string, join Join[P]) (message.Subscriber, error) {
	if err := bus.CheckName("group", group); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, bus.ErrClosed
	}
	sub := NewSubscriber(ctx, join)
	s.all = append(s.all, sub)
	return sub, nil
}

// Close closes them all.
func (s *Subscribers[P]) Close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	var errs []error
	for _, sub := range s.all {
		errs = append(errs, sub.Close())
	}
	return errors.Join(errs...)
}
