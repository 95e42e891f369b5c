package main

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/wheelrefinery/refinery/eventlog"
	"github.com/wheelrefinery/refinery/events"
	"github.com/wheelrefinery/refinery/projections"
)

// yanked knows the builds whose wheels are yanked, few as they are, and reads them again only when the index has changed: enqueueing
// asks, and must not cost a query. A write needs no database: while that does not answer, what was known last counts.
type yanked struct {
	log    *eventlog.Log
	reads  *pgxpool.Pool
	logger *slog.Logger

	mu      sync.Mutex
	version uint64
	failed  time.Time // when it could not be read
	builds  map[events.BuildID]bool
}

const (
	yankedWait  = 500 * time.Millisecond // of an enqueue, at the most
	yankedAgain = 2 * time.Second        // after a failure
)

// is says whether the newest wheel of a build is yanked.
func (y *yanked) is(ctx context.Context, build events.BuildID) bool {
	_, version := y.log.Covered("artifacts") // before the rows: these may be newer, never older
	y.mu.Lock()
	defer y.mu.Unlock()
	if (y.builds == nil || y.version != version) && time.Since(y.failed) > yankedAgain {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), yankedWait)
		defer cancel()
		if builds, err := projections.Yanked(ctx, y.reads); err == nil {
			y.builds, y.version = builds, version
		} else {
			y.failed = time.Now()
			y.logger.Warn("which wheels are yanked was not read; what was known last counts", "error", err)
		}
	}
	return y.builds[build]
}
