// Package bus carries messages between the rooms of the refinery: one constructor, [Open], for every transport, behind
// watermill's Publisher and Subscriber interfaces, and a router that ends every message in an outcome.
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
	"log/slog"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
)

// Topics of the refinery.
const (
	TopicCommands       = "commands"
	TopicBuildRequested = "build-requested"
	// TopicPoison receives what no handler could process; see [NewRouter].
	TopicPoison = "poison"
)

// KeyMetadata is the metadata entry that holds a message's partition key. Messages without it share the empty key, and so
// are delivered one at a time.
const KeyMetadata = "key"

// MaxMessageBytes limits the UUID, metadata and payload of a message together. Messages to [TopicPoison] may be 64 KiB
// larger, so that the reason for which a message of full size failed can travel with it.
const MaxMessageBytes = 8 << 20

// ErrClosed is returned by everything that is called after Close.
var ErrClosed = errors.New("bus is closed")

// Config chooses and configures a transport.
type Config struct {
	Backend string       // "file"
	Dir     string       // file: directory of the topics; created if missing
	Logger  *slog.Logger // required
}

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
	Bytes        int64     // published, still stored, and not passed by the group
	Unacked      int       // messages that this process has read for the group and nobody has acknowledged
	Oldest       time.Time // when the oldest of these was published; zero: there is none
}

// Open connects to the transport that c names.
func Open(ctx context.Context, c Config) (Bus, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if c.Logger == nil {
		return nil, errors.New("bus: Config.Logger is required")
	}
	switch c.Backend {
	case "file":
		return openFile(c.Dir, c.Logger, defaultTuning())
	default:
		return nil, fmt.Errorf("bus: unknown queue backend %q: the only one that exists is \"file\"", c.Backend)
	}
}
