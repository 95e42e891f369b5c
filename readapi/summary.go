package readapi

import (
	"context"
	"time"

	"github.com/wheelrefinery/refinery/api"
	"github.com/wheelrefinery/refinery/projections"
)

const (
	defaultWindow   = 24 * time.Hour
	defaultFailures = 10 // the contract's
)

// GetSummary answers GET /summary.
func (s *Server) GetSummary(ctx context.Context, request api.GetSummaryRequestObject) (api.GetSummaryResponseObject, error) {
	p := request.Params
	return s.answer(ctx, read{min: p.MinPosition, match: p.IfNoneMatch, params: p, models: []string{"history", "queue", "runs", "summary"}, aged: true}, func() (any, error) {
		since, failures := time.Now().Add(-defaultWindow).UTC(), defaultFailures
		if p.Since != nil {
			since = p.Since.UTC()
		}
		if p.FailureLimit != nil {
			failures = *p.FailureLimit
		}
		var (
			all    pipeline
			totals []projections.SummaryTotals
			window []statusCount
			failed []projections.HistoryRow
			last   []projections.RunRow
			queue  queueFigures
		)
		ask(&all, &totals, "from summary.totals")
		askWindow(&all, &window, since)
		ask(&all, &failed, "from history.entries where status = 'failed' order by position desc limit $1", failures)
		ask(&all, &last, "from runs.runs order by position desc limit 1")
		queue.ask(&all)
		if err := all.run(ctx, s.o.Pool); err != nil {
			return nil, err
		}
		out := api.Summary{
			Counts: counts(projections.StatusCounts{}.Of), Window: windowOf(since, window), RecentFailures: convert(failed, historyEntry),
			Queue: api.QueueLength{Length: int64(queue.state().Length), OldestAgeSeconds: queue.age()},
		}
		if len(totals) > 0 {
			t := totals[0]
			out.Counts = counts(t.Counts.Of)
			out.Cache = api.CacheCounts{Hits: int64(t.HitsOwn + t.HitsUpstream), Misses: int64(t.Misses)}
		}
		if len(last) > 0 {
			r := run(last[0])
			out.LastRun = &r
		}
		return out, nil
	})
}

// statusCount counts what ended.
type statusCount struct {
	Status string `db:"status"`
	Count  int64  `db:"count"`
}

// askWindow counts what ended since: whole hours by their counts, the broken one at the beginning by the history.
func askWindow(p *pipeline, into *[]statusCount, since time.Time) {
	whole := since.Truncate(time.Hour)
	if whole.Before(since) {
		whole = whole.Add(time.Hour)
	}
	ask(p, into, `from (select status, sum(count)::bigint as count from (
		select status, count from summary.hours where hour >= $1
		union all
		select status, count(*) from history.entries where time >= $2 and time < $3 group by status) parts group by status) w`,
		whole.Unix()/3600, since, whole)
}

func windowOf(since time.Time, rows []statusCount) api.SummaryWindow {
	n := map[string]int64{}
	for _, r := range rows {
		n[r.Status] = r.Count
	}
	return api.SummaryWindow{
		Since: since, Built: n[projections.Built], Reused: n[projections.Reused], Failed: n[projections.Failed],
		Retrying: n[projections.Retrying], Cancelled: n[projections.Cancelled], Skipped: n[projections.Skipped],
	}
}

// counts has every status.
func counts(of func(status string) int) api.Counts {
	all := api.Counts{}
	for _, status := range projections.Statuses {
		all[status] = int64(of(status))
	}
	return all
}
