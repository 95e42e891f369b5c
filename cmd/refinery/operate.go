package main

import (
	"context"
	"errors"
	"time"

	"github.com/wheelrefinery/refinery/api"
	"github.com/wheelrefinery/refinery/events"
	"github.com/wheelrefinery/refinery/internal/fault"
	"github.com/wheelrefinery/refinery/policies"
	"github.com/wheelrefinery/refinery/projections"
	"github.com/wheelrefinery/refinery/readapi"
	"github.com/wheelrefinery/refinery/writeapi"
)

// freshMost is how long what is read for a write waits for the read models to be as new as the log.
const freshMost = time.Second

// fresh waits until a read model shows what is in the log now. One that is behind is used as it is: the streams decide.
func (p *plane) fresh(ctx context.Context, names ...string) error {
	covered, cancel := context.WithTimeout(ctx, freshMost)
	defer cancel()
	if err := p.log.WaitFor(covered, p.log.Head(), names...); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return ctx.Err()
}

// tags reads which tags the workers of late have.
func (p *plane) tags(ctx context.Context) ([]writeapi.Tags, error) {
	pairs, err := projections.WorkerTags(ctx, p.reads)
	all := make([]writeapi.Tags, len(pairs))
	for i, t := range pairs {
		all[i] = writeapi.Tags{Python: t[0], Platform: t[1]}
	}
	return all, err
}

func (p *plane) matching(ctx context.Context, f api.BulkFilter, statuses []api.BuildStatus, most int) ([]events.BuildID, int64, error) {
	if err := p.fresh(ctx, "builds"); err != nil {
		return nil, 0, err
	}
	return readapi.Matching(ctx, p.reads, f, statuses, most)
}

// parked reads what a read model has put aside: of a stream, or where none is named of the stream of the event at position.
func (p *plane) parked(ctx context.Context, name string, position int64, stream string) (writeapi.ParkedStream, error) {
	letters, err := projections.Parked(ctx, p.reads, name, position, stream)
	if err != nil || len(letters) == 0 {
		return writeapi.ParkedStream{}, err
	}
	return writeapi.ParkedStream{Stream: letters[0].Stream, First: letters[0].Position, Error: letters[0].Error, Count: len(letters)}, nil
}

// operatedMost is how long an answer waits until what an operator asked for is done.
const operatedMost = 20 * time.Second

func (p *plane) operated(ctx context.Context, position int64) error {
	waiting, cancel := context.WithTimeout(ctx, operatedMost)
	defer cancel()
	err := p.log.WaitFor(waiting, position, projections.OperatorsName)
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
		return fault.New(fault.Timeout, "It is in the log at %d and not done yet: it will be. /projections shows it.", position)
	}
	return err
}

// triggers calls the webhook where there is one.
func (p *plane) triggers() (*policies.Triggers, error) {
	if p.WorkerWebhookURL == "" {
		return nil, nil
	}
	webhook, err := policies.NewWebhook(p.WorkerWebhookURL, p.WorkerToken, p.WebhookAllowLinkLocal)
	if err != nil {
		return nil, err
	}
	return policies.NewTriggers(webhook, p.send, func(ctx context.Context) ([]policies.DueTrigger, error) {
		if err := p.fresh(ctx, "triggers"); err != nil {
			return nil, err
		}
		rows, err := projections.DueTriggers(ctx, p.reads)
		due := make([]policies.DueTrigger, len(rows))
		for i, r := range rows {
			due[i] = policies.DueTrigger{ID: r.ID, Position: r.Position, Attempts: r.Attempts}
		}
		return due, err
	}, p.logger), nil
}
