package eventlog

import (
	"context"
	"fmt"
	"time"

	"github.com/wheelrefinery/refinery/internal/pause"
)

const (
	pruneBlocks = 256 // of a table's pages, 2 MiB, that one statement looks through
	prunePause  = 100 * time.Millisecond
	pruneGrace  = time.Minute // after a start, in which the bus delivers what it holds
	pruneEvery  = 24 * time.Hour
)

// Prune forgets outcomes that are older than keep, until ctx ends. It walks through the table in small steps, without an index, which
// every append would pay for. No outcome goes that a policy may still need: one that is behind may send its commands again, and they must
// be known then.
func (l *Log) Prune(ctx context.Context, keep time.Duration) error {
	for wait := pruneGrace; ; wait = pruneEvery {
		pause.For(ctx, wait)
		if ctx.Err() != nil {
			return nil
		}
		n, err := l.prune(ctx, keep, prunePause)
		if err != nil && ctx.Err() == nil {
			l.logger.Warn("old outcomes were not forgotten; trying again", "error", err, "in", pruneEvery)
		} else if n > 0 {
			l.logger.Info("old outcomes are forgotten", "outcomes", n)
		}
	}
}

// prune walks through the table once and says how many outcomes are gone.
func (l *Log) prune(ctx context.Context, keep, between time.Duration) (gone int64, err error) {
	var before time.Time
	var blocks int64
	err = l.pool.QueryRow(ctx, `select least(now() - $1::interval,
			(select recorded_at from events where position =
				(select min(position) + 1 from followers where name like 'policy:%' and leased_until > now()))),
		pg_relation_size('commands') / current_setting('block_size')::int`, keep).Scan(&before, &blocks)
	if err != nil {
		return 0, fmt.Errorf("prune outcomes: %w", err)
	}
	for block := int64(0); block < blocks; block += pruneBlocks {
		tag, err := l.pool.Exec(ctx, `delete from commands where ctid >= $1::text::tid and ctid < $2::text::tid and recorded_at < $3`,
			fmt.Sprintf("(%d,0)", block), fmt.Sprintf("(%d,0)", block+pruneBlocks), before)
		if err != nil {
			return gone, fmt.Errorf("prune outcomes: %w", err)
		}
		gone += tag.RowsAffected()
		if pause.For(ctx, between); ctx.Err() != nil {
			return gone, ctx.Err()
		}
	}
	return gone, nil
}
