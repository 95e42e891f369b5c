package policies

import (
	"context"

	"github.com/wheelrefinery/refinery/commands"
	"github.com/wheelrefinery/refinery/eventlog"
	"github.com/wheelrefinery/refinery/events"
)

// Clear cancels what a queue.cleared event took out of the queue. cleared reads the builds that were queued, or
// leased, at a position; each stream decides whether it was taken out.
func Clear(send Send, cleared func(ctx context.Context, position int64) ([]events.BuildID, error)) eventlog.Follower {
	const name = "policy:clear"
	return eventlog.Follower{Name: name, Apply: func(ctx context.Context, c *eventlog.Checkpoint, batch []events.Recorded) error {
		for _, m := range batch {
			e, ok := m.Event.(events.QueueCleared)
			if !ok {
				continue
			}
			builds, err := cleared(ctx, m.Position)
			if err != nil {
				return err
			}
			messages := make([]Message, len(builds))
			for i, b := range builds {
				messages[i] = reaction(name, m, commands.CancelBuild{
					Build: b, Reason: "the queue was cleared", KeepLeased: !e.IncludeLeased, Cleared: m.Position,
				})
			}
			if err := send(ctx, messages); err != nil {
				return err
			}
		}
		return c.Save(ctx, batch[len(batch)-1].Position, nil)
	}}
}
