package readapi

import (
	"context"

	"github.com/wheelrefinery/refinery/api"
	"github.com/wheelrefinery/refinery/events"
	"github.com/wheelrefinery/refinery/projections"
)

// buildStatus is how a build stands now.
type buildStatus struct {
	Stream string `db:"stream"`
	Status string `db:"status"`
}

// GetPlan answers GET /plan.
func (s *Server) GetPlan(ctx context.Context, request api.GetPlanRequestObject) (api.GetPlanResponseObject, error) {
	p := request.Params
	return s.answer(ctx, read{min: p.MinPosition, match: p.IfNoneMatch, params: p, models: []string{"builds", "plans"}}, func() (any, error) {
		var w where
		equal(&w, "run_id", p.RunID)
		rows, err := projections.Query[projections.PlanRow](ctx, s.o.Pool, "from plans.plans"+w.String()+" order by position desc limit 1", w.args...)
		if err != nil {
			return nil, err
		}
		row, err := first(rows, "There is no plan: none was made yet, or there is no such run.")
		if err != nil {
			return nil, err
		}
		streams := convert(row.Document.Nodes, func(n events.Node) string { return n.Build().Stream() })
		builds, err := projections.Query[buildStatus](ctx, s.o.Pool, "from builds.builds where stream = any($1::text[])", streams)
		if err != nil {
			return nil, err
		}
		now := make(map[string]string, len(builds))
		for _, b := range builds {
			now[b.Stream] = b.Status
		}
		return api.Plan{
			ID: row.ID, RunID: row.Run, PythonTag: row.PythonTag, PlatformTag: row.PlatformTag, CreatedAt: row.CreatedAt,
			Nodes: convert(row.Document.Nodes, func(n events.Node) api.PlanNode { return planNode(n, now) }),
			Edges: convert(row.Document.Edges, func(e events.Edge) api.Edge {
				return api.Edge{From: e.From, To: e.To, Kind: api.EdgeKind(e.Kind)}
			}),
			Warnings: convert(row.Document.Warnings, func(w string) string { return w }),
		}, nil
	})
}

func planNode(n events.Node, now map[string]string) api.PlanNode {
	status, known := now[n.Build().Stream()]
	switch {
	case n.Action == "skip":
		status = projections.Skipped
	case known:
	case n.Action == "reuse":
		status = projections.Reused
	default:
		status = projections.Planned
	}
	return api.PlanNode{
		Name: n.Name, Version: n.Version, PythonTag: n.PythonTag, PlatformTag: n.PlatformTag, Action: api.Action(n.Action),
		Reason: n.Reason, Root: n.Root, Sdist: file(n.Sdist), Wheel: file(n.Wheel), Own: n.Own, RequiresPython: n.RequiresPython,
		Constraints: n.Constraints, Status: api.BuildStatus(status),
	}
}

func file(f *events.File) api.File {
	if f == nil {
		return api.File{}
	}
	return api.File{Filename: f.Filename, URL: f.URL, SHA256: f.SHA256, Size: f.Size}
}
