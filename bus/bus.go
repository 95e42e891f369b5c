// Package bus carries messages between the rooms of the refinery: what every transport promises, behind watermill's Publisher
// and Subscriber interfaces, and a router that ends every message in an outcome. Package transport opens one.
//
// What a transport promises, and what its users may rely on:
//
//   - When Publish returns nil, the message is durable. When it returns an error, the message may still be delivered.
//   - Delivery is at least once: after a crash, a closed subscriber or a nack a message comes again. Consumers deduplicate
//     by message UUID.
//   - Messages with the same [KeyMetadata] are delivered in the order in which they were published, each one after the one
//     before it was acknowledged. Messages of different keys are delivered side by side.
//   - A consumer group sees every message of a topic that is still stored when the group subscribes for the first time, and
//     every later one. Its subscribers share its messages.
package bus

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"time"
	"unicode/utf8"

	"github.com/ThreeDotsLabs/watermill/message"
)

// Topics of the refinery.
const (
	TopicCommands       = "commands"
	TopicBuildRequested = "build-requested"
	// TopicPoison receives what no handler could process; see [NewRouter].
	TopicPoison = "poison"
)

// ReadByOne says that one process of a group reads the topic, and others stand by until that one is gone. Commands are appended one batch
// after the other whoever decides them: shared out, the batches are smaller and there are more of them.
func ReadByOne(topic string) bool { return topic == TopicCommands }

// KeyMetadata is the metadata entry that holds a message's partition key. Messages without it share the empty key, and so
// are delivered one at a time.
const KeyMetadata = "key"

// MaxMessageBytes limits the UUID, metadata and payload of a message together. Messages to [TopicPoison] may be larger by
// PoisonHeadroom, so that the reason for which a message of full size failed can travel with it.
const (
	MaxMessageBytes = 8 << 20
	PoisonHeadroom  = 64 << 10
)

// ErrClosed is returned by everything that is called after Close.
var ErrClosed = errors.New("bus is closed")

// Bus is one process's connection to a transport. Its methods may be called from any goroutine.
type Bus interface {
	// Publish returns when all messages are durable. Messages of one call keep their order. UUID and metadata must be
	// valid UTF-8.
	message.Publisher
	// Subscriber returns a member of a consumer group. The subscriber belongs to the bus, whose Close closes it too.
	// Closing a subscriber, or cancelling the context of a subscription, gives its unacknowledged messages back to the
	// group; a later Ack of one of them has no effect.
	Subscriber(group string) (message.Subscriber, error)
	// Stats says how each group stands on each topic, and how much a topic holds that has no group.
	Stats() ([]Stats, error)
	// Check says why messages could not be published now, by writing something. It waits for others until ctx ends.
	Check(ctx context.Context) error
	// Close closes all subscribers, waits for publishes under way, and frees everything that Open took. It is idempotent.
	Close() error
}

// Stats is how a consumer group stands on a topic.
type Stats struct {
	Topic, Group string    // Group is empty for a topic without one
	Bytes        int64     // published, still stored, and not passed by the group, as the transport can tell: 0 if there is nothing
	Unacked      int       // messages that this process has read for the group and nobody has acknowledged
	Oldest       time.Time // when the oldest message that the group has not passed was published; zero: there is none
}

var validName = regexp.MustCompile(`^[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}$`)

// CheckName says why a topic or group (kind) cannot have this name. Transports call it.
func CheckName(kind, name string) error {
	if !validName.MatchString(name) {
		return fmt.Errorf("bus: invalid %s name %q: use 1 to 200 letters, digits, '.', '_' and '-', not starting with '.'", kind, name)
	}
	return nil
}

// CheckMessage says why a message cannot be published to a topic. Transports call it.
func CheckMessage(topic string, m *message.Message) error {
	limit := MaxMessageBytes
	if topic == TopicPoison {
		limit += PoisonHeadroom
	}
	size := len(m.UUID) + len(m.Payload)
	valid := utf8.ValidString(m.UUID)
	for k, v := range m.Metadata {
		size += len(k) + len(v)
		valid = valid && utf8.ValidString(k) && utf8.ValidString(v)
	}
	if size > limit {
		return fmt.Errorf("bus: message %q has %d bytes, the limit is %d", m.UUID, size, limit)
	}
	if !valid {
		return fmt.Errorf("bus: message %q: UUID and metadata must be valid UTF-8", m.UUID)
	}
	return nil
}

// NewMessage makes a message that is delivered in order with others of its key.
func NewMessage(id, key string, payload []byte) *message.Message {
	m := message.NewMessage(id, payload)
	m.Metadata.Set(KeyMetadata, key)
	return m
}
