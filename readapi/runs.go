package readapi

import (
	"context"

	"github.com/wheelrefinery/refinery/api"
	"github.com/wheelrefinery/refinery/projections"
)

// ListRuns answers GET /runs.
func (s *Server) ListRuns(ctx context.Context, request api.ListRunsRequestObject) (api.ListRunsResponseObject, error) {
	p := request.Params
	return s.answer(ctx, read{min: p.MinPosition, match: p.IfNoneMatch, models: []string{"runs"}}, func() (any, error) {
		var w where
		if p.State != nil {
			w.and("state = %s", string(*p.State))
		}
		rows, next, err := list(ctx, s, "runs.runs", w, newest,
			func(r projections.RunRow) []int64 { return []int64{r.Position} }, p.Limit, p.Cursor)
		return page{api.RunList{Items: convert(rows, run), Next: next}, link(p, next)}, err
	})
}

// GetRun answers GET /runs/{id}.
func (s *Server) GetRun(ctx context.Context, request api.GetRunRequestObject) (api.GetRunResponseObject, error) {
	p := request.Params
	return s.answer(ctx, read{min: p.MinPosition, match: p.IfNoneMatch, models: []string{"runs"}}, func() (any, error) {
		rows, err := projections.Query[projections.RunRow](ctx, s.DB, "from runs.runs where id = $1", request.ID)
		row, err := one(rows, err, "There is no such run. /runs lists what there is.")
		if err != nil {
			return nil, err
		}
		requests, err := projections.Query[projections.RunRequest](ctx, s.DB, "from runs.requests where id = $1", request.ID)
		asked, err := one(requests, err, "There is no such run. /runs lists what there is.")
		r := run(row)
		r.Requirements, r.Constraints, r.Names = asked.Requirements, asked.Constraints, asked.Names
		return r, err
	})
}

func run(r projections.RunRow) api.Run {
	out := api.Run{
		ID: r.ID, State: api.RunState(r.State), Strategy: api.Strategy(r.Strategy), Build: api.BuildMode(r.Build),
		Python: r.Python, Platform: r.Platform, PlanID: optional(r.Plan), Actor: r.Actor, CreatedAt: r.CreatedAt,
		PlannedAt: optional(r.PlannedAt), FinishedAt: optional(r.FinishedAt), Counts: counts(r.Counts), Total: r.Total,
		Class: api.Class(r.Class), Reason: r.Reason, Detail: r.Detail,
	}
	if out.FinishedAt != nil {
		ms := r.FinishedAt.Sub(r.CreatedAt).Milliseconds()
		out.DurationMS = &ms
	}
	return out
}

// counts has every status.
func counts(of map[string]int) api.Counts {
	all := api.Counts{}
	for _, status := range projections.Statuses {
		all[status] = int64(of[status])
	}
	return all
}

// GetManifest answers GET /manifest.
func (s *Server) GetManifest(ctx context.Context, request api.GetManifestRequestObject) (api.GetManifestResponseObject, error) {
	p := request.Params
	return s.answer(ctx, read{min: p.MinPosition, match: p.IfNoneMatch, models: []string{"manifest", "runs"}}, func() (any, error) {
		tail, args, missing := "from manifest.manifests where finished > 0 order by finished desc limit 1", []any(nil), "No run has ended yet."
		if p.RunID != nil {
			tail, args, missing = "from manifest.manifests where run_id = $1", []any{*p.RunID}, "There is no manifest of this run yet: it has not ended, or there is no such run."
		}
		rows, err := projections.Query[projections.ManifestRow](ctx, s.DB, tail, args...)
		row, err := one(rows, err, missing)
		if err != nil {
			return nil, err
		}
		state := row.State
		if state == "" { // a worker's entries came before the end
			runs, err := projections.Query[projections.RunRow](ctx, s.DB, "from runs.runs where id = $1", row.Run)
			of, err := one(runs, err, "There is no such run.")
			if err != nil {
				return nil, err
			}
			state = of.State
		}
		m := api.Manifest{RunID: row.Run, State: api.RunState(state), Items: []api.ManifestEntry{}}
		for _, e := range row.Entries {
			m.Items = append(m.Items, api.ManifestEntry{
				Name: e.Name, Version: e.Version, PythonTag: e.PythonTag, PlatformTag: e.PlatformTag, Status: api.ManifestStatus(e.Status),
				Wheel: e.Wheel, SHA256: e.SHA256, Size: e.Size, DurationMS: e.DurationMS, Reason: e.Reason,
			})
		}
		return m, nil
	})
}
