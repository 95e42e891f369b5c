package readapi

import (
	"context"
	"fmt"
	"time"

	"github.com/wheelrefinery/refinery/api"
	"github.com/wheelrefinery/refinery/events"
	"github.com/wheelrefinery/refinery/projections"
)

const (
	mostWindow     = 31 * 24 * time.Hour
	defaultSlowest = 20 // the contract's
)

// window is the hour that the statistics begin with, checked.
func window(since *api.Window) (time.Time, error) {
	now := time.Now().UTC()
	if since == nil {
		return now.Add(-defaultWindow).Truncate(time.Hour), nil
	}
	if now.Sub(*since) > mostWindow || since.After(now.Add(time.Hour)) {
		return time.Time{}, invalid("since", "must be within the last 31 days")
	}
	return since.UTC().Truncate(time.Hour), nil
}

func hour(t time.Time) int64 { return t.Unix() / 3600 }

// GetFailureStats answers GET /stats/failures.
func (s *Server) GetFailureStats(ctx context.Context, request api.GetFailureStatsRequestObject) (api.GetFailureStatsResponseObject, error) {
	p := request.Params
	return s.answer(ctx, read{min: p.MinPosition, match: p.IfNoneMatch, params: p, models: []string{"summary"}, aged: true}, func() (any, error) {
		since, err := window(p.Since)
		if err != nil {
			return nil, err
		}
		n := defaultLimit
		if p.Limit != nil {
			n = *p.Limit
		}
		var w where
		w.and("hour >= %s", hour(since))
		equal(&w, "class", (*string)(p.Class))
		var all pipeline
		var classes []classCount
		var reasons []reasonCount
		ask(&all, &classes, "from (select class, sum(count)::bigint as count from summary.failures"+w.String()+" group by class) f order by count desc, class", w.args...)
		ask(&all, &reasons, fmt.Sprintf(`from (select class, reason, sum(count)::bigint as count, max(time) as time,
			(array_agg(build order by position desc))[1] as build from summary.reasons%s group by class, reason) f
			order by count desc, class, reason limit %d`, w.String(), n), w.args...)
		if err := all.run(ctx, s.o.Pool); err != nil {
			return nil, err
		}
		return api.FailureStats{
			Since: since,
			Classes: convert(classes, func(c classCount) api.ClassCount {
				return api.ClassCount{Class: api.Class(c.Class), Count: c.Count}
			}),
			Items: convert(reasons, func(r reasonCount) api.FailureCount {
				id, _ := events.ParseBuild(r.Build) // the read model has parsed it
				return api.FailureCount{
					Class: api.Class(r.Class), Reason: r.Reason, Count: r.Count, LastAt: r.Time,
					LastBuild: api.BuildID{Name: id.Name, Version: id.Version, PythonTag: id.PythonTag, PlatformTag: id.PlatformTag},
				}
			}),
		}, nil
	})
}

// classCount counts the failures of a class.
type classCount struct {
	Class string `db:"class"`
	Count int64  `db:"count"`
}

// reasonCount counts the failures of a class that gave a reason, and has the last of them.
type reasonCount struct {
	Class  string    `db:"class"`
	Reason string    `db:"reason"`
	Count  int64     `db:"count"`
	Time   time.Time `db:"time"`
	Build  string    `db:"build"`
}

// GetSlowestStats answers GET /stats/slowest.
func (s *Server) GetSlowestStats(ctx context.Context, request api.GetSlowestStatsRequestObject) (api.GetSlowestStatsResponseObject, error) {
	p := request.Params
	return s.answer(ctx, read{min: p.MinPosition, match: p.IfNoneMatch, params: p, models: []string{"summary"}, aged: true}, func() (any, error) {
		since, err := window(p.Since)
		if err != nil {
			return nil, err
		}
		n := defaultSlowest
		if p.Limit != nil {
			n = *p.Limit
		}
		rows, err := projections.Query[projections.SlowBuild](ctx, s.db,
			"from summary.slow where hour >= $1 order by duration_ms desc, position desc limit $2", hour(since), n)
		return api.SlowestStats{Since: since, Items: convert(rows, func(r projections.SlowBuild) api.SlowBuild {
			return api.SlowBuild{
				Position: r.Position, Time: r.Time, Name: r.Name, Version: r.Version, PythonTag: r.PythonTag, PlatformTag: r.PlatformTag,
				Status: api.HistoryStatus(r.Status), Attempt: r.Attempt, RunID: optional(r.Run), Worker: r.Worker, DurationMS: r.DurationMS,
			}
		})}, err
	})
}

// hourCount counts what ended within an hour.
type hourCount struct {
	Hour   int64  `db:"hour"`
	Status string `db:"status"`
	Count  int64  `db:"count"`
}

// GetThroughputStats answers GET /stats/throughput.
func (s *Server) GetThroughputStats(ctx context.Context, request api.GetThroughputStatsRequestObject) (api.GetThroughputStatsResponseObject, error) {
	p := request.Params
	return s.answer(ctx, read{min: p.MinPosition, match: p.IfNoneMatch, params: p, models: []string{"summary"}, aged: true}, func() (any, error) {
		since, err := window(p.Since)
		if err != nil {
			return nil, err
		}
		bucket := time.Hour
		if p.Bucket != nil && *p.Bucket == api.Day {
			bucket = 24 * time.Hour
			since = since.Truncate(bucket)
		}
		rows, err := projections.Query[hourCount](ctx, s.db, "from summary.hours where hour >= $1", hour(since))
		if err != nil {
			return nil, err
		}
		ended := map[time.Time]map[string]int64{}
		for _, r := range rows {
			start := time.Unix(r.Hour*3600, 0).UTC().Truncate(bucket)
			if ended[start] == nil {
				ended[start] = map[string]int64{}
			}
			ended[start][r.Status] += r.Count
		}
		items := []api.Throughput{}
		for start, now := since, time.Now(); !start.After(now); start = start.Add(bucket) {
			n := ended[start]
			items = append(items, api.Throughput{
				Start: start, Built: n[projections.Built], Reused: n[projections.Reused], Failed: n[projections.Failed],
				Retrying: n[projections.Retrying], Cancelled: n[projections.Cancelled], Skipped: n[projections.Skipped],
			})
		}
		return api.ThroughputStats{Since: since, BucketSeconds: int(bucket / time.Second), Items: items}, nil
	})
}
