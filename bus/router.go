package bus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"strings"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/message/router/middleware"
	"github.com/google/uuid"
)

// ErrPermanent marks an error that no retry can mend, such as a payload that cannot be decoded.
var ErrPermanent = errors.New("permanent failure")

// Handler handles one message of a topic; its context, m.Context(), ends when the router closes. The message is
// acknowledged when it returns nil. An error that wraps [ErrPermanent] sends the message to [TopicPoison] at once; after
// any other, and after a panic, it is called again with the same message, up to five times within about two seconds, and
// then the message goes to TopicPoison. It may be called for messages of different keys at the same time, and more than
// once for the same message.
type Handler func(m *message.Message) error

// OnPoison records that a message could not be processed, and why, so that somebody sees it. It is called before the
// message goes to TopicPoison and is acknowledged; if it fails, the message comes again, to the handler first. So it too may
// be called more than once for the same message.
type OnPoison func(m *message.Message, reason error) error

const (
	maxRetries   = 5
	closeTimeout = 5 * time.Second
	maxReason    = 4 << 10 // bytes; a reason must fit into the poison message's headroom
)

// NewRouter returns a router that hands every message of the topics in handlers to its handler, as a member of the consumer
// group. The caller runs and closes it, and closes it before b. A message whose handling ends because the router closes is
// given back to the group.
func NewRouter(b Bus, logger *slog.Logger, group string, onPoison OnPoison, handlers map[string]Handler) (*message.Router, error) {
	if onPoison == nil {
		return nil, errors.New("bus: a router needs an OnPoison")
	}
	if _, ok := handlers[TopicPoison]; ok {
		return nil, fmt.Errorf("bus: a router cannot handle topic %q: what fails there would go round for ever", TopicPoison)
	}
	wlog := watermill.NewSlogLogger(logger)
	router, err := message.NewRouter(message.RouterConfig{CloseTimeout: closeTimeout}, wlog)
	if err != nil {
		return nil, fmt.Errorf("bus: new router: %w", err)
	}
	poison, err := middleware.PoisonQueueWithFilter(b, TopicPoison, func(err error) bool {
		var p *poisoned
		return errors.As(err, &p)
	})
	if err != nil {
		return nil, fmt.Errorf("bus: new router: %w", err)
	}
	// Retries wait 50, 100, 200, 400 and 800 ms, give or take a tenth. Watermill's Retry takes two steps of the back-off for
	// each wait, one of them to tell ShouldRetry.
	retry := middleware.Retry{
		MaxRetries:          maxRetries,
		InitialInterval:     35 * time.Millisecond,
		MaxInterval:         time.Second,
		Multiplier:          math.Sqrt2,
		RandomizationFactor: 0.1,
		ShouldRetry:         func(p middleware.RetryParams) bool { return !errors.Is(p.Err, ErrPermanent) },
		Logger:              wlog,
	}
	// The first is the outermost. Recoverer stands inside Retry and PoisonQueue, since both pass a panic on unseen; and
	// PoisonQueue outside Retry, since it hides the error from what is outside of it.
	router.AddMiddleware(poison, report(logger, onPoison), retry.Middleware, middleware.Recoverer)

	for topic, handle := range handlers {
		sub, err := b.Subscriber(group)
		if err != nil {
			return nil, fmt.Errorf("bus: subscriber for %s: %w", topic, err)
		}
		router.AddConsumerHandler(group+"/"+topic, topic, sub, message.NoPublishHandlerFunc(handle))
	}
	return router, nil
}

// poisoned is the error of a message that onPoison has been told of. Its text travels in the poison message's metadata.
type poisoned struct{ reason string }

func (p *poisoned) Error() string { return p.reason }

// report calls onPoison with what the retries ended with, and marks the error for the poison queue.
func report(logger *slog.Logger, onPoison OnPoison) message.HandlerMiddleware {
	return func(h message.HandlerFunc) message.HandlerFunc {
		return func(m *message.Message) ([]*message.Message, error) {
			out, err := h(m)
			if err == nil {
				return out, nil
			}
			if m.Context().Err() != nil { // the router closes: says nothing about the message
				return nil, context.Cause(m.Context())
			}
			var p middleware.RecoveredPanicError
			if errors.As(err, &p) {
				logger.Error("Message handler panicked", "message_uuid", m.UUID, "panic", p.V, "stack", p.Stacktrace)
				err = fmt.Errorf("handler panicked: %v", p.V)
			}
			if err := onPoison(m, err); err != nil {
				return nil, fmt.Errorf("record poisoned message: %w", err)
			}
			return nil, &poisoned{reasonText(err)}
		}
	}
}

// NewForeign makes the message for [TopicPoison] of something that stood on a topic and is no message, as seen by a transport: where it
// stood, the same for each reading of it, and what it was.
func NewForeign(topic, where string, raw []byte, reason error) *message.Message {
	m := NewMessage(uuid.NewSHA1(uuid.NameSpaceOID, []byte(where)).String(), topic, raw[:min(len(raw), MaxMessageBytes)])
	m.Metadata.Set(middleware.PoisonedTopicKey, topic)
	m.Metadata.Set(middleware.ReasonForPoisonedKey, reasonText(fmt.Errorf("not a message: %s: %w", where, reason)))
	return m
}

// reasonText is an error's text as it fits beside a message.
func reasonText(err error) string {
	text := err.Error()
	return strings.ToValidUTF8(text[:min(len(text), maxReason)], "\uFFFD")
}
