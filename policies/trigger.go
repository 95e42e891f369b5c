package policies

import (
	"context"
	"log/slog"
	"time"

	"github.com/google/uuid"

	"github.com/wheelrefinery/refinery/commands"
	"github.com/wheelrefinery/refinery/eventlog"
	"github.com/wheelrefinery/refinery/events"
)

const (
	triggerName = "policy:trigger"
	triggerPoll = time.Second
)

// triggerWaits are the pauses between attempts; after the last there is none.
var triggerWaits = []time.Duration{2 * time.Second, 10 * time.Second, time.Minute}

// DueTrigger is a wake-up whose webhook must be called, after so many attempts. Its id is that of the command that asked.
type DueTrigger struct {
	ID       uuid.UUID
	Position int64 // of the request
	Attempts int
}

// Triggers calls the webhook for each wake-up that asks for it, again and with growing pauses when that fails, and reports each attempt.
type Triggers struct {
	webhook *Webhook
	send    Send
	due     func(context.Context) ([]DueTrigger, error)
	logger  *slog.Logger
	asked   chan struct{}
	sent    map[uuid.UUID]int // attempts that are on their way into the log
}

// NewTriggers makes the policy; Follower does its work. due reads what must be called now, as new as the log is.
func NewTriggers(webhook *Webhook, send Send, due func(context.Context) ([]DueTrigger, error), logger *slog.Logger) *Triggers {
	return &Triggers{webhook, send, due, logger, make(chan struct{}, 1), nil}
}

// Follower calls; it looks as soon as somebody asks.
func (t *Triggers) Follower() eventlog.Follower {
	return eventlog.Follower{Name: triggerName, Lead: t.run, Apply: func(ctx context.Context, c *eventlog.Checkpoint, batch []events.Recorded) error {
		for _, m := range batch {
			if e, ok := m.Event.(events.TriggerRequested); ok && !e.Local {
				select {
				case t.asked <- struct{}{}:
				default: // it is due to look
				}
			}
		}
		return c.Save(ctx, batch[len(batch)-1].Position, nil)
	}}
}

// run calls until ctx ends. What it is told of an attempt that is recorded already changes nothing.
func (t *Triggers) run(ctx context.Context) {
	for {
		if err := t.round(ctx); err != nil && ctx.Err() == nil {
			t.logger.Warn("the webhook's calls wait; trying again", "error", err)
		}
		select {
		case <-t.asked:
		case <-time.After(triggerPoll):
		case <-ctx.Done():
			return
		}
	}
}

func (t *Triggers) round(ctx context.Context) error {
	due, err := t.due(ctx)
	if err != nil {
		return err
	}
	sent := t.sent
	t.sent = map[uuid.UUID]int{}
	for _, d := range due {
		if t.sent[d.ID] = sent[d.ID]; sent[d.ID] > d.Attempts {
			continue
		}
		began := time.Now()
		status, reason := t.webhook.call(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		c := commands.RecordTrigger{
			Trigger: d.ID, Attempt: d.Attempts + 1, Status: status, Reason: reason, DurationMS: time.Since(began).Milliseconds(),
		}
		if reason != "" && d.Attempts < len(triggerWaits) {
			c.RetryAt = time.Now().Add(triggerWaits[d.Attempts]).UTC().Truncate(time.Microsecond)
		}
		if err := t.send(ctx, []Message{{commands.Meta{
			ID: commands.RecordTriggerID(d.ID, c.Attempt), Actor: triggerName, Correlation: d.ID, Causation: d.Position,
		}, c}}); err != nil {
			return err
		}
		t.sent[d.ID] = c.Attempt
	}
	return nil
}
