package main

import (
	"context"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/wheelrefinery/refinery/eventlog"
	"github.com/wheelrefinery/refinery/hints"
	"github.com/wheelrefinery/refinery/policies"
)

const (
	mostLogRead = 8 << 20         // bytes of a failed attempt's log that are looked at: the end of it
	firstWait   = 2 * time.Second // before the second attempt
)

// hints is the policy that judges failed attempts.
func (p *plane) hints() eventlog.Follower {
	return policies.Hints(policies.HintsOptions{
		Send: p.send, Known: p.read.Hints, Most: p.MaxAttempts, Wait: firstWait,
		Log: func(ctx context.Context, stream string, position int64) (io.Reader, int, error) {
			text, first, err := p.read.LogTail(ctx, stream, position, mostLogRead)
			return strings.NewReader(text), first, err
		},
	})
}

// catalogue brings the program's own hints, unless an earlier start has.
func (p *plane) catalogue(ctx context.Context) error {
	messages, err := policies.Catalogue(hints.Catalogue())
	if err != nil {
		return err
	}
	ids := make([]uuid.UUID, len(messages))
	for i, m := range messages {
		ids[i] = m.Meta.ID
	}
	known, err := p.log.Outcomes(ctx, ids...)
	if err != nil {
		return err
	}
	messages = slices.DeleteFunc(messages, func(m policies.Message) bool {
		_, ok := known[m.Meta.ID]
		return ok
	})
	if len(messages) == 0 {
		return nil
	}
	return p.send(ctx, messages)
}
