package readapi

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/wheelrefinery/refinery/api"
	"github.com/wheelrefinery/refinery/projections"
)

const (
	defaultWindow   = 24 * time.Hour
	defaultFailures = 10
	mostFailures    = 100
)

// GetSummary answers GET /summary.
func (s *Server) GetSummary(ctx context.Context, request api.GetSummaryRequestObject) (api.GetSummaryResponseObject, error) {
	p := request.Params
	models := []string{"summary", "history", "queue", "runs"}
	return s.answer(ctx, read{min: p.MinPosition, models: models, clock: true}, func() (any, error) {
		since := time.Now().Add(-defaultWindow).UTC()
		if p.Since != nil {
			since = p.Since.UTC()
		}
		failures := defaultFailures
		if p.FailureLimit != nil {
			if failures = *p.FailureLimit; failures < 0 || failures > mostFailures {
				return nil, invalid("failure_limit", "must be from 0 to %d", mostFailures)
			}
		}
		totals, err := projections.Query[projections.SummaryTotals](ctx, s.DB, "from summary.totals")
		if err != nil {
			return nil, err
		}
		var total projections.SummaryTotals
		if len(totals) > 0 {
			total = totals[0]
		}
		window, err := s.window(ctx, since)
		if err != nil {
			return nil, err
		}
		failed, err := projections.Query[projections.HistoryRow](ctx, s.DB,
			"from history.entries where status = 'failed' order by position desc limit $1", failures)
		if err != nil {
			return nil, err
		}
		queue, err := projections.Queue(ctx, s.DB)
		if err != nil {
			return nil, err
		}
		oldest, err := s.oldest(ctx)
		if err != nil {
			return nil, err
		}
		last, err := projections.Query[projections.RunRow](ctx, s.DB, "from runs.runs order by position desc limit 1")
		if err != nil {
			return nil, err
		}
		out := api.Summary{
			Counts: counts(total.Counts), Window: window,
			Cache:          api.CacheCounts{Hits: int64(total.HitsOwn + total.HitsUpstream), Misses: int64(total.Misses)},
			RecentFailures: convert(failed, historyEntry),
			Queue:          api.QueueLength{Length: int64(queue.Length), OldestAgeSeconds: oldest},
		}
		if len(last) > 0 {
			r := run(last[0])
			out.LastRun = &r
		}
		return out, nil
	})
}

// window counts what ended since: whole hours by their counts, the first, broken one by the history.
func (s *Server) window(ctx context.Context, since time.Time) (api.SummaryWindow, error) {
	w := api.SummaryWindow{Since: since}
	whole := since.Truncate(time.Hour).Add(time.Hour)
	rows, err := s.DB.Query(ctx, `
		select status, sum(n)::bigint from (
			select status, count as n from summary.hours where hour >= $1
			union all
			select status, count(*) from history.entries where time >= $2 and time < $3 group by status
		) c group by status`, whole.Unix()/3600, since, whole)
	if err != nil {
		return w, fmt.Errorf("count the window: %w", err)
	}
	var status string
	var n int64
	_, err = pgx.ForEachRow(rows, []any{&status, &n}, func() error {
		switch status {
		case projections.Built:
			w.Built = n
		case projections.Reused:
			w.Reused = n
		case projections.Failed:
			w.Failed = n
		case projections.Retrying:
			w.Retrying = n
		case projections.Cancelled:
			w.Cancelled = n
		case projections.Skipped:
			w.Skipped = n
		}
		return nil
	})
	if err != nil {
		return w, fmt.Errorf("count the window: %w", err)
	}
	return w, nil
}
