package main

import (
	"context"
	"sync"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/wheelrefinery/refinery/eventlog"
	"github.com/wheelrefinery/refinery/events"
	"github.com/wheelrefinery/refinery/projections"
)

// yanked knows the builds whose wheels are yanked, few as they are, and reads them again only when the index has changed: enqueueing
// asks, and must not cost a query.
type yanked struct {
	log   *eventlog.Log
	reads *pgxpool.Pool

	mu      sync.Mutex
	version uint64
	builds  map[events.BuildID]bool // nil: not read yet
}

// is says whether the newest wheel of a build is yanked.
func (y *yanked) is(ctx context.Context, build events.BuildID) (bool, error) {
	_, version := y.log.Covered("artifacts") // before the rows: these may be newer, never older
	y.mu.Lock()
	defer y.mu.Unlock()
	if y.builds == nil || y.version != version {
		builds, err := projections.Yanked(ctx, y.reads)
		if err != nil {
			return false, err
		}
		y.builds, y.version = builds, version
	}
	return y.builds[build], nil
}
