package bus

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/wheelrefinery/refinery/eventlog"
	"github.com/wheelrefinery/refinery/events"
)

// BuildRequested is what the relay publishes on TopicBuildRequested: this build waits for a worker. It wakes workers; what they build is
// decided by a lease, so a lost or repeated message does no harm.
type BuildRequested struct {
	Position int64          `json:"position"` // of the event
	Build    events.BuildID `json:"build"`
	Priority int            `json:"priority"`
}

// Relay follows the log and publishes what workers wait for. Key is the stream, message id the event's position: consumers that must
// not see one twice dedupe by it.
func Relay(p message.Publisher) eventlog.Follower {
	return eventlog.Follower{Name: "relay:" + TopicBuildRequested, Apply: func(ctx context.Context, c *eventlog.Checkpoint, batch []events.Recorded) error {
		var messages []*message.Message
		for _, m := range batch {
			var priority int
			switch e := m.Event.(type) {
			case events.BuildQueued:
				priority = e.Priority
			case events.BuildReleased: // its priority stands in the queue
			default:
				continue
			}
			id, ok := events.ParseBuild(m.Stream)
			if !ok {
				return fmt.Errorf("relay: the event at %d is not of a build's stream", m.Position)
			}
			payload, err := json.Marshal(BuildRequested{m.Position, id, priority})
			if err != nil {
				return fmt.Errorf("relay: %w", err)
			}
			messages = append(messages, NewMessage(strconv.FormatInt(m.Position, 10), m.Stream, payload))
		}
		if len(messages) > 0 {
			if err := p.Publish(TopicBuildRequested, messages...); err != nil {
				return fmt.Errorf("relay: %w", err)
			}
		}
		return c.Save(ctx, batch[len(batch)-1].Position, nil)
	}}
}
