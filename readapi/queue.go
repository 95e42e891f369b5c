package readapi

import (
	"context"
	"time"

	"github.com/google/uuid"

	"github.com/wheelrefinery/refinery/api"
	"github.com/wheelrefinery/refinery/projections"
)

// queued is a build in the queue, without what only a lease needs.
type queued struct {
	projections.Target
	Status    string    `db:"status"`
	Priority  int       `db:"priority"`
	Position  int64     `db:"position"`
	QueuedAt  time.Time `db:"queued_at"`
	Attempts  int       `db:"attempts"`
	Run       uuid.UUID `db:"run_id"`
	NotBefore time.Time `db:"not_before"`
}

// queueList is in lease order. What it is filtered and sorted by is the entries', which have the indexes.
var queueList = list[queued]{
	name: "queue", by: []string{"(-priority)", "position"},
	from: `(select e.python_tag, e.platform_tag, e.priority, e.position, b.name, b.version, b.status, b.queued_at, b.attempts, b.run_id, b.not_before
		from queue.entries e join queue.builds b on b.stream = e.stream) q`,
	keyOf: func(q queued) []int64 { return []int64{int64(-q.Priority), q.Position} },
}

// ListQueue answers GET /queue.
func (s *Server) ListQueue(ctx context.Context, request api.ListQueueRequestObject) (api.ListQueueResponseObject, error) {
	p := request.Params
	return s.answer(ctx, read{min: p.MinPosition, match: p.IfNoneMatch, params: p, models: []string{"queue"}, aged: true}, func() (any, error) {
		var w where
		equal(&w, "python_tag", p.PythonTag)
		equal(&w, "platform_tag", p.PlatformTag)
		rows, next, err := queueList.read(ctx, s.db, w, p.Limit, p.Cursor)
		now := time.Now()
		return page{api.QueueList{Items: convert(rows, func(r queued) api.QueueEntry {
			return api.QueueEntry{
				Name: r.Name, Version: r.Version, PythonTag: r.PythonTag, PlatformTag: r.PlatformTag, Status: api.BuildStatus(r.Status),
				Priority: r.Priority, QueuedAt: r.QueuedAt, AgeSeconds: age(r.QueuedAt, now), Attempts: r.Attempts, RunID: optional(r.Run),
				NotBefore: r.NotBefore,
			}
		}), Next: next}, next}, err
	})
}

// GetQueueStats answers GET /queue/stats.
func (s *Server) GetQueueStats(ctx context.Context, request api.GetQueueStatsRequestObject) (api.GetQueueStatsResponseObject, error) {
	p := request.Params
	return s.answer(ctx, read{min: p.MinPosition, match: p.IfNoneMatch, params: p, models: []string{"queue"}, aged: true}, func() (any, error) {
		var all pipeline
		var q queueFigures
		q.ask(&all)
		if err := all.run(ctx, s.o.Pool); err != nil {
			return nil, err
		}
		state := q.state()
		stats := api.QueueStats{
			Length: int64(state.Length), OldestAgeSeconds: q.age(), Leased: int64(state.Leased), Paused: state.Paused, ByTag: []api.TagLength{},
		}
		for _, t := range state.Tags {
			if t.Length > 0 {
				stats.ByTag = append(stats.ByTag, api.TagLength{PythonTag: t.PythonTag, PlatformTag: t.PlatformTag, Length: int64(t.Length)})
			}
		}
		return stats, nil
	})
}

// queueFigures is the queue as a whole.
type queueFigures struct {
	states []projections.QueueState
	oldest []queuedAt
}

type queuedAt struct {
	At time.Time `db:"queued_at"`
}

func (q *queueFigures) ask(p *pipeline) {
	ask(p, &q.states, "from queue.state")
	// The statuses are those of the index; what a clear took out is not waiting any more.
	ask(p, &q.oldest, `from queue.builds b where status in ('queued', 'retrying')
		and exists (select from queue.entries e where e.stream = b.stream) order by position limit 1`)
}

func (q *queueFigures) state() projections.QueueState {
	if len(q.states) == 0 {
		return projections.QueueState{}
	}
	return q.states[0]
}

// age is that of the build that has waited longest, nil for an empty queue.
func (q *queueFigures) age() *int64 {
	if len(q.oldest) == 0 {
		return nil
	}
	seconds := age(q.oldest[0].At, time.Now())
	return &seconds
}

// age is never negative: clocks of several machines differ.
func age(t, now time.Time) int64 { return max(0, int64(now.Sub(t)/time.Second)) }
