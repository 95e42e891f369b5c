package readapi

import (
	"context"
	"time"

	"github.com/google/uuid"

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
		return s.plan(ctx, w, "There is no plan: none was made yet, or there is no such run.")
	})
}

// GetPlanByID answers GET /plans/{id}.
func (s *Server) GetPlanByID(ctx context.Context, request api.GetPlanByIDRequestObject) (api.GetPlanByIDResponseObject, error) {
	p := request.Params
	return s.answer(ctx, read{min: p.MinPosition, match: p.IfNoneMatch, params: p, models: []string{"builds", "plans"}}, func() (any, error) {
		var w where
		equal(&w, "id", &request.ID)
		return s.plan(ctx, w, "There is no such plan. /plans lists what there is.")
	})
}

// plan is the newest plan that w leaves.
func (s *Server) plan(ctx context.Context, w where, missing string) (any, error) {
	rows, err := projections.Query[projections.PlanRow](ctx, s.db, "from plans.plans"+w.String()+" order by position desc limit 1", w.args...)
	if err != nil {
		return nil, err
	}
	row, err := first(rows, missing)
	if err != nil {
		return nil, err
	}
	streams := convert(row.Document.Nodes, func(n events.Node) string { return n.Build().Stream() })
	builds, err := projections.Query[buildStatus](ctx, s.db, "from builds.builds where stream = any($1::text[])", streams)
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
}

// planSummary is a plan without its nodes, which may be thousands.
type planSummary struct {
	ID          uuid.UUID      `db:"id"`
	Position    int64          `db:"position"`
	Run         uuid.UUID      `db:"run_id"`
	CreatedAt   time.Time      `db:"created_at"`
	PythonTag   string         `db:"python_tag"`
	PlatformTag string         `db:"platform_tag"`
	Worker      string         `db:"worker"`
	DurationMS  int64          `db:"duration_ms"`
	Actions     map[string]int `db:"actions"`
}

var planList = list[planSummary]{
	name: "plans", from: "plans.plans", by: []string{"position"}, desc: true,
	keyOf: func(r planSummary) []int64 { return []int64{r.Position} },
}

// ListPlans answers GET /plans.
func (s *Server) ListPlans(ctx context.Context, request api.ListPlansRequestObject) (api.ListPlansResponseObject, error) {
	p := request.Params
	return s.answer(ctx, read{min: p.MinPosition, match: p.IfNoneMatch, params: p, models: []string{"plans"}}, func() (any, error) {
		var w where
		equal(&w, "run_id", p.RunID)
		rows, next, err := planList.read(ctx, s.db, w, p.Limit, p.Cursor)
		return page{api.PlanList{Items: convert(rows, func(r planSummary) api.PlanSummary {
			return api.PlanSummary{
				ID: r.ID, RunID: r.Run, PythonTag: r.PythonTag, PlatformTag: r.PlatformTag, CreatedAt: r.CreatedAt, Worker: r.Worker,
				DurationMS: r.DurationMS, Actions: r.Actions,
			}
		}), Next: next}, next}, err
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
