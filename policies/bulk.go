package policies

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/wheelrefinery/refinery/commands"
	"github.com/wheelrefinery/refinery/eventlog"
	"github.com/wheelrefinery/refinery/events"
)

const (
	bulkName    = "policy:bulk"
	bulkAtATime = 500 // commands between two reports of progress
	bulkPoll    = 20 * time.Millisecond
)

// Bulk sends a command for each build of a bulk action, and reports what became of them. outcomes reads those that are there.
func Bulk(send Send, outcomes func(ctx context.Context, ids ...uuid.UUID) (map[uuid.UUID]eventlog.Outcome, error)) eventlog.Follower {
	return eventlog.Follower{Name: bulkName, Apply: func(ctx context.Context, c *eventlog.Checkpoint, batch []events.Recorded) error {
		for _, m := range batch {
			e, ok := m.Event.(events.BulkRequested)
			if !ok {
				continue
			}
			id, ok := events.ParseBulk(m.Stream)
			if !ok {
				return fmt.Errorf("%q is not the stream of a bulk action", m.Stream)
			}
			for from := 0; from < len(e.Builds); from += bulkAtATime {
				if err := bulkPart(ctx, send, outcomes, m, id, e, from); err != nil {
					return err
				}
			}
		}
		return c.Save(ctx, batch[len(batch)-1].Position, nil)
	}}
}

// bulkPart does what begins at build number from. Doing it again is doing it once.
func bulkPart(ctx context.Context, send Send, outcomes func(context.Context, ...uuid.UUID) (map[uuid.UUID]eventlog.Outcome, error),
	m events.Recorded, bulk uuid.UUID, e events.BulkRequested, from int,
) error {
	builds := e.Builds[from:min(from+bulkAtATime, len(e.Builds))]
	messages, ids := make([]Message, len(builds)), make([]uuid.UUID, len(builds))
	for i, b := range builds {
		messages[i] = reaction(bulkName, m, bulkCommand(e, b))
		ids[i] = messages[i].Meta.ID
	}
	if err := send(ctx, messages); err != nil {
		return err
	}
	done := commands.ProgressBulk{Bulk: bulk}
	for len(ids) > 0 {
		found, err := outcomes(ctx, ids...)
		if err != nil {
			return err
		}
		left := ids[:0]
		for _, id := range ids {
			switch o, ok := found[id]; {
			case !ok:
				left = append(left, id)
			case o.Status == eventlog.Applied:
				done.Applied++
			default:
				done.Refused++
			}
		}
		if ids = left; len(ids) > 0 {
			select {
			case <-time.After(bulkPoll):
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
	report := reaction(bulkName, m, done)
	report.Meta.ID = uuid.NewSHA1(namespace, fmt.Appendf(nil, "%s %d progress %d", bulkName, m.Position, from))
	return send(ctx, []Message{report})
}

func bulkCommand(e events.BulkRequested, b events.BuildID) commands.Command {
	switch e.Action {
	case commands.BulkRetry:
		return commands.RetryBuild{Build: b, Recipes: e.Recipes, Priority: e.Priority}
	case commands.BulkPriority:
		return commands.ChangePriority{Build: b, Priority: *e.Priority}
	default:
		reason := e.Reason
		if reason == "" {
			reason = "cancelled with others"
		}
		return commands.CancelBuild{Build: b, Reason: reason}
	}
}
