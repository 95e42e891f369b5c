package readapi

import (
	"context"
	"time"

	"github.com/wheelrefinery/refinery/api"
	"github.com/wheelrefinery/refinery/events"
	"github.com/wheelrefinery/refinery/projections"
)

// How long ago a live worker, and one that is late, was heard of. A heartbeat comes every 10 seconds; a lease lasts 60.
const (
	liveFor = 30 * time.Second
	lateFor = 60 * time.Second
)

// workerSeen is a worker with when it was heard of, which is no event.
type workerSeen struct {
	projections.WorkerRow
	SeenAt time.Time `db:"seen_at"`
}

var workerList = list[workerSeen]{
	name: "workers", by: []string{"position"}, desc: true,
	from:  "(select w.*, s.seen_at from workers.workers w left join workers_seen s on s.worker = w.id) w",
	keyOf: func(r workerSeen) []int64 { return []int64{r.Position} },
}

// leaseRow is a lease that is out.
type leaseRow struct {
	Worker    string    `db:"worker"`
	Stream    string    `db:"stream"`
	Attempt   int64     `db:"attempt"`
	ExpiresAt time.Time `db:"expires_at"`
	Cancelled bool      `db:"cancelled"`
}

// ListWorkers answers GET /workers.
func (s *Server) ListWorkers(ctx context.Context, request api.ListWorkersRequestObject) (api.ListWorkersResponseObject, error) {
	p := request.Params
	return s.answer(ctx, read{min: p.MinPosition, match: p.IfNoneMatch, params: p, aged: true}, func() (any, error) {
		now := time.Now()
		var w where
		equal(&w, "python_tag", p.PythonTag)
		equal(&w, "platform_tag", p.PlatformTag)
		if p.State != nil {
			switch *p.State {
			case api.WorkerStateLive:
				w.and("seen_at >= %s", now.Add(-liveFor))
			case api.WorkerStateLate:
				w.and("seen_at < %s", now.Add(-liveFor))
				w.and("seen_at >= %s", now.Add(-lateFor))
			case api.WorkerStateLost:
				w.and("coalesce(seen_at, '-infinity') < %s", now.Add(-lateFor))
			}
		}
		rows, next, err := workerList.read(ctx, s.db, w, p.Limit, p.Cursor)
		if err != nil {
			return nil, err
		}
		ids := convert(rows, func(r workerSeen) string { return r.ID })
		leases, err := projections.Query[leaseRow](ctx, s.db, "from leases where worker = any($1) order by expires_at, stream", ids)
		if err != nil {
			return nil, err
		}
		jobs := map[string][]api.WorkerJob{}
		for _, l := range leases {
			jobs[l.Worker] = append(jobs[l.Worker], workerJob(l))
		}
		return page{api.WorkerList{Items: convert(rows, func(r workerSeen) api.Worker {
			return api.Worker{
				ID: r.ID, State: workerState(r.SeenAt, now), PythonTag: r.PythonTag, PlatformTag: r.PlatformTag, Slots: r.Slots, Version: r.Version,
				Host: r.Host, RegisteredAt: r.RegisteredAt, LastSeenAt: optional(r.SeenAt), Jobs: append([]api.WorkerJob{}, jobs[r.ID]...),
			}
		}), Next: next}, next}, nil
	})
}

func workerState(seen, now time.Time) api.WorkerState {
	switch {
	case seen.Before(now.Add(-lateFor)):
		return api.WorkerStateLost
	case seen.Before(now.Add(-liveFor)):
		return api.WorkerStateLate
	}
	return api.WorkerStateLive
}

func workerJob(l leaseRow) api.WorkerJob {
	j := api.WorkerJob{Kind: api.JobKindPlan, Attempt: int(l.Attempt), ExpiresAt: l.ExpiresAt, Cancelled: l.Cancelled}
	if id, ok := events.ParseBuild(l.Stream); ok {
		j.Kind = api.JobKindBuild
		j.Build = api.BuildID{Name: id.Name, Version: id.Version, PythonTag: id.PythonTag, PlatformTag: id.PlatformTag}
	} else if run, ok := events.ParseRun(l.Stream); ok {
		j.RunID = run
	}
	return j
}
