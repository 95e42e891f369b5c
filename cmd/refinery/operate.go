package main

import (
	"context"
	"errors"
	"time"

	"github.com/wheelrefinery/refinery/api"
	"github.com/wheelrefinery/refinery/events"
	"github.com/wheelrefinery/refinery/readapi"
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

func (p *plane) matching(ctx context.Context, f api.BulkFilter, statuses []api.BuildStatus, most int) ([]events.BuildID, int64, error) {
	if err := p.fresh(ctx, "builds"); err != nil {
		return nil, 0, err
	}
	return readapi.Matching(ctx, p.reads, f, statuses, most)
}
