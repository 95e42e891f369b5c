package readapi

import (
	"context"

	"github.com/wheelrefinery/refinery/api"
	"github.com/wheelrefinery/refinery/events"
	"github.com/wheelrefinery/refinery/projections"
)

var runList = list[projections.RunRow]{
	name: "runs", from: "runs.runs", by: []string{"position"}, desc: true,
	keyOf: func(r projections.RunRow) []int64 { return []int64{r.Position} },
}

// ListRuns answers GET /runs.
func (s *Server) ListRuns(ctx context.Context, request api.ListRunsRequestObject) (api.ListRunsResponseObject, error) {
	p := request.Params
	return s.answer(ctx, read{min: p.MinPosition, match: p.IfNoneMatch, params: p, models: []string{"runs"}}, func() (any, error) {
		var w where
		equal(&w, "state", (*string)(p.State))
		rows, next, err := runList.read(ctx, s.db, w, p.Limit, p.Cursor)
		return page{api.RunList{Items: convert(rows, run), Next: next}, next}, err
	})
}

// GetRun answers GET /runs/{id}.
func (s *Server) GetRun(ctx context.Context, request api.GetRunRequestObject) (api.GetRunResponseObject, error) {
	p := request.Params
	return s.answer(ctx, read{min: p.MinPosition, match: p.IfNoneMatch, params: p, models: []string{"runs"}}, func() (any, error) {
		var all pipeline
		var rows []projections.RunRow
		var asked []projections.RunRequest
		ask(&all, &rows, "from runs.runs where id = $1", request.ID)
		ask(&all, &asked, "from runs.requests where id = $1", request.ID)
		if err := all.run(ctx, s.o.Pool); err != nil {
			return nil, err
		}
		row, err := first(rows, "There is no such run. /runs lists what there is.")
		if err != nil {
			return nil, err
		}
		r := run(row)
		if len(asked) > 0 {
			r.Requirements, r.Constraints, r.Names = asked[0].Requirements, asked[0].Constraints, asked[0].Names
		}
		return r, nil
	})
}

func run(r projections.RunRow) api.Run {
	out := api.Run{
		ID: r.ID, State: api.RunState(r.State), Strategy: api.Strategy(r.Strategy), Build: api.BuildMode(r.Build),
		Python: r.Python, Platform: r.Platform, PlanID: optional(r.Plan), Actor: r.Actor, CreatedAt: r.CreatedAt,
		PlannedAt: optional(r.PlannedAt), FinishedAt: optional(r.FinishedAt), Counts: counts(func(status string) int { return r.Counts[status] }), Total: r.Total,
		Class: api.Class(r.Class), Reason: r.Reason, Detail: r.Detail,
	}
	if out.FinishedAt != nil {
		ms := r.FinishedAt.Sub(r.CreatedAt).Milliseconds()
		out.DurationMS = &ms
	}
	return out
}

// manifestRow is a manifest with the run's state; a worker's entries may come before the run's end.
type manifestRow struct {
	projections.ManifestRow
	RunState string `db:"run_state"`
}

// GetManifest answers GET /manifest.
func (s *Server) GetManifest(ctx context.Context, request api.GetManifestRequestObject) (api.GetManifestResponseObject, error) {
	p := request.Params
	return s.answer(ctx, read{min: p.MinPosition, match: p.IfNoneMatch, params: p, models: []string{"manifest", "runs"}}, func() (any, error) {
		const from = `from (select m.*, coalesce(nullif(m.state, ''), r.state, 'submitted') as run_state
			from manifest.manifests m left join runs.runs r on r.id = m.run_id) m `
		tail, args, missing := from+"where finished > 0 order by finished desc limit 1", []any(nil), "No run has ended yet."
		if p.RunID != nil {
			tail, args, missing = from+"where run_id = $1", []any{*p.RunID}, "There is no manifest of this run: it has not ended, or there is no such run."
		}
		rows, err := projections.Query[manifestRow](ctx, s.db, tail, args...)
		if err != nil {
			return nil, err
		}
		row, err := first(rows, missing)
		return api.Manifest{RunID: row.Run, State: api.RunState(row.RunState), Items: convert(row.Entries, manifestEntry)}, err
	})
}

func manifestEntry(e events.ManifestEntry) api.ManifestEntry {
	return api.ManifestEntry{
		Name: e.Name, Version: e.Version, PythonTag: e.PythonTag, PlatformTag: e.PlatformTag, Status: api.ManifestStatus(e.Status),
		Wheel: e.Wheel, SHA256: e.SHA256, Size: e.Size, DurationMS: e.DurationMS, Reason: e.Reason,
	}
}
