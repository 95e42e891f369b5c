// Package file is the transport that needs no server: topics are directories of append-only segments.
package file

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/wheelrefinery/refinery/bus"
	"github.com/wheelrefinery/refinery/bus/delivery"
)

// tuning is what tests change about the file transport: sizes and times, and the two calls that can fail.
type tuning struct {
	segmentSize int64 // a segment of this size or more is not written to any more
	delivery.Limits
	writeAt func(f *os.File, b []byte, off int64) (int, error)
	sync    func(f *os.File) error
}

func defaultTuning() tuning {
	return tuning{
		segmentSize: 16 << 20,
		Limits:      delivery.DefaultLimits(),
		writeAt:     (*os.File).WriteAt,
		sync:        (*os.File).Sync,
	}
}

// fileBus keeps topics as directories of append-only segments:
//
//	<dir>/<topic>/lock                              flock: whoever appends, removes segments or adds a group
//	<dir>/<topic>/segments/<position>.jsonl         named after the position of its first byte
//	<dir>/<topic>/groups/<group>/lock               flock: the process that consumes for the group
//	<dir>/<topic>/groups/<group>/offset             everything before this position is acknowledged
//
// A position counts bytes from the start of the topic and never comes twice for different bytes that a reader may have
// seen. A segment is sealed once there is one with a higher position.
//
// Segments are removed when every group that ever subscribed has passed them. So nothing is removed from a topic that
// nobody ever subscribed to, save the two that only tell what the event log knows anyway (bus.TopicBuildRequested and
// bus.TopicPoison keep their newest segments then), nor from one with a group that does not come back: such a group ends by
// removing its directory while no process uses it.
type fileBus struct {
	logger *slog.Logger
	tuning tuning
	ctx    context.Context // ends with the bus
	cancel context.CancelFunc

	mu          sync.Mutex
	closed      bool
	root        *os.Root
	topics      map[string]*topic
	subscribers delivery.Subscribers[int64]
}

// Open opens the topics in dir, which is created if missing. Any number of processes may use one directory at a time.
func Open(dir string, logger *slog.Logger) (bus.Bus, error) {
	return openFile(dir, logger, defaultTuning())
}

func openFile(dir string, logger *slog.Logger, tn tuning) (*fileBus, error) {
	if dir == "" {
		return nil, errors.New("bus: the file backend needs a directory")
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("bus: create directory: %w", err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("bus: open directory: %w", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	return &fileBus{logger: logger, tuning: tn, ctx: ctx, cancel: cancel, root: root, topics: map[string]*topic{}}, nil
}

// topic returns the topic with this name, and creates it if need be.
func (b *fileBus) topic(name string) (*topic, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil, bus.ErrClosed
	}
	if t := b.topics[name]; t != nil {
		return t, nil
	}
	if err := bus.CheckName("topic", name); err != nil {
		return nil, err
	}
	t, err := openTopic(b.root, name, b.logger, &b.tuning)
	if err != nil {
		return nil, fmt.Errorf("bus: open topic %s: %w", name, err)
	}
	b.topics[name] = t
	return t, nil
}

func (b *fileBus) Publish(topicName string, messages ...*message.Message) error {
	t, err := b.topic(topicName)
	if err != nil {
		return err
	}
	if len(messages) == 0 {
		return nil
	}
	var buf bytes.Buffer
	now := time.Now()
	for _, m := range messages {
		if err := encodeLine(&buf, topicName, m, now); err != nil {
			return err
		}
	}
	if err := t.writer.Write(buf.Bytes(), buf.Len()); err != nil {
		return fmt.Errorf("bus: publish to %s: %w", topicName, err)
	}
	return nil
}

func (b *fileBus) Subscriber(group string) (message.Subscriber, error) {
	return b.subscribers.Add(b.ctx, group, func(topicName string) (*delivery.Queue[int64], func(), error) {
		t, err := b.topic(topicName)
		if err != nil {
			return nil, nil, err
		}
		g, err := t.join(group)
		if err != nil {
			return nil, nil, fmt.Errorf("bus: subscribe to %s: %w", topicName, err)
		}
		return g.queue, func() { t.leave(g) }, nil
	})
}

func (b *fileBus) Close() error {
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		return nil
	}
	b.closed = true
	b.mu.Unlock()

	b.cancel()
	errs := []error{b.subscribers.Close()}
	for _, t := range b.topics {
		errs = append(errs, t.close())
	}
	return errors.Join(append(errs, b.root.Close())...)
}
