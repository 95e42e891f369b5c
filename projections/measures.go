package projections

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// QueueAge reads the state of the queue, and when the build that waits longest was queued; zero: none waits.
func QueueAge(ctx context.Context, q Querier) (QueueState, time.Time, error) {
	state, err := Queue(ctx, q)
	if err != nil {
		return state, time.Time{}, err
	}
	// The statuses are those of the index; what a clear took out is not waiting any more.
	oldest, err := Query[queuedAt](ctx, q, `from queue.builds b where status in ('queued', 'retrying')
		and exists (select from queue.entries e where e.stream = b.stream) order by position limit 1`)
	if err != nil || len(oldest) == 0 {
		return state, time.Time{}, err
	}
	return state, oldest[0].At, nil
}

type queuedAt struct {
	At time.Time `db:"queued_at"`
}

// Totals reads what summary counts; zero before the first event.
func Totals(ctx context.Context, q Querier) (SummaryTotals, error) {
	rows, err := Query[SummaryTotals](ctx, q, "from summary.totals")
	if err != nil || len(rows) == 0 {
		return SummaryTotals{}, err
	}
	return rows[0], nil
}

// FailedByClass counts the builds that stand as failed by the class of their failure.
func FailedByClass(ctx context.Context, q Querier) (map[string]int64, error) {
	rows, err := q.Query(ctx, "select class, count(*) from builds.builds where status = 'failed' group by class")
	if err != nil {
		return nil, fmt.Errorf("count failures: %w", err)
	}
	classes := map[string]int64{}
	var class string
	var n int64
	if _, err := pgx.ForEachRow(rows, []any{&class, &n}, func() error { classes[class] = n; return nil }); err != nil {
		return nil, fmt.Errorf("count failures: %w", err)
	}
	return classes, nil
}
