package readapi

import (
	"context"
	"time"

	"github.com/wheelrefinery/refinery/api"
	"github.com/wheelrefinery/refinery/projections"
)

// ListQueue answers GET /queue.
func (s *Server) ListQueue(ctx context.Context, request api.ListQueueRequestObject) (api.ListQueueResponseObject, error) {
	p := request.Params
	return s.answer(ctx, read{min: p.MinPosition, models: []string{"queue"}, clock: true}, func() (any, error) {
		var w where
		if p.PythonTag != nil {
			w.and("e.python_tag = %s", *p.PythonTag)
		}
		if p.PlatformTag != nil {
			w.and("e.platform_tag = %s", *p.PlatformTag)
		}
		now := time.Now()
		entries, next, err := list(ctx, s, "queue.entries e", w, keys{columns: "(-priority), position", n: 2},
			func(e projections.QueueEntry) []int64 { return []int64{int64(-e.Priority), e.Position} }, p.Limit, p.Cursor)
		if err != nil {
			return nil, err
		}
		streams := convert(entries, projections.QueueEntry.Key)
		rows, err := projections.Query[projections.QueueRow](ctx, s.DB, "from queue.builds where stream = any($1) order by -priority, position", streams)
		return page{api.QueueList{Items: convert(rows, func(r projections.QueueRow) api.QueueEntry {
			return api.QueueEntry{
				Name: r.Name, Version: r.Version, PythonTag: r.PythonTag, PlatformTag: r.PlatformTag, Status: api.BuildStatus(r.Status),
				Priority: r.Priority, QueuedAt: r.QueuedAt, AgeSeconds: age(r.QueuedAt, now), Attempts: r.Attempts, RunID: optional(r.Run),
			}
		}), Next: next}, link(p, next)}, err
	})
}

// GetQueueStats answers GET /queue/stats.
func (s *Server) GetQueueStats(ctx context.Context, request api.GetQueueStatsRequestObject) (api.GetQueueStatsResponseObject, error) {
	p := request.Params
	return s.answer(ctx, read{min: p.MinPosition, models: []string{"queue"}, clock: true}, func() (any, error) {
		state, err := projections.Queue(ctx, s.DB)
		if err != nil {
			return nil, err
		}
		oldest, err := s.oldest(ctx)
		stats := api.QueueStats{
			Length: int64(state.Length), OldestAgeSeconds: oldest, Leased: int64(state.Leased), Paused: state.Paused, ByTag: []api.TagLength{},
		}
		for _, t := range state.Tags {
			if t.Length > 0 {
				stats.ByTag = append(stats.ByTag, api.TagLength{PythonTag: t.PythonTag, PlatformTag: t.PlatformTag, Length: int64(t.Length)})
			}
		}
		return stats, err
	})
}

// oldest is the age of the build that was queued first, nil for an empty queue.
func (s *Server) oldest(ctx context.Context) (*int64, error) {
	rows, err := projections.Query[projections.QueueRow](ctx, s.DB,
		"from queue.builds where stream = (select stream from queue.entries order by position limit 1)")
	if err != nil || len(rows) == 0 {
		return nil, err
	}
	seconds := age(rows[0].QueuedAt, time.Now())
	return &seconds, nil
}

func age(t, now time.Time) int64 { return max(0, int64(now.Sub(t)/time.Second)) }
