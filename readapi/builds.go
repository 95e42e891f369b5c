package readapi

import (
	"context"
	"net/url"

	"github.com/wheelrefinery/refinery/api"
	"github.com/wheelrefinery/refinery/events"
	"github.com/wheelrefinery/refinery/projections"
)

// ListBuilds answers GET /builds.
func (s *Server) ListBuilds(ctx context.Context, request api.ListBuildsRequestObject) (api.ListBuildsResponseObject, error) {
	p := request.Params
	return s.answer(ctx, read{min: p.MinPosition, match: p.IfNoneMatch, models: []string{"builds"}}, func() (any, error) {
		var w where
		w.name(p.Package)
		w.version(p.Version)
		if p.Status != nil {
			w.and("status = any(%s::text[])", texts(*p.Status))
		}
		if p.RunID != nil {
			w.and("run_id = %s", *p.RunID)
		}
		rows, next, err := list(ctx, s, "builds.builds", w, keys{columns: "updated_position", n: 1, descending: true},
			func(r projections.BuildRow) []int64 { return []int64{r.UpdatedPosition} }, p.Limit, p.Cursor)
		return page{api.BuildList{Items: convert(rows, build), Next: next}, link(p, next)}, err
	})
}

// GetBuild answers GET /builds/{name}/{version}/{python_tag}/{platform_tag}.
func (s *Server) GetBuild(ctx context.Context, request api.GetBuildRequestObject) (api.GetBuildResponseObject, error) {
	p := request.Params
	return s.answer(ctx, read{min: p.MinPosition, match: p.IfNoneMatch, models: []string{"builds"}}, func() (any, error) {
		id := events.BuildID{
			Name: events.NormalizeName(request.Name), Version: normalVersion(request.Version),
			PythonTag: request.PythonTag, PlatformTag: request.PlatformTag,
		}
		rows, err := projections.Query[projections.BuildRow](ctx, s.DB, "from builds.builds where stream = $1", id.Stream())
		row, err := one(rows, err, "There is no build of this name, version and tags. /builds lists what there is.")
		return build(row), err
	})
}

func build(r projections.BuildRow) api.Build {
	b := api.Build{
		Name: r.Name, Version: r.Version, PythonTag: r.PythonTag, PlatformTag: r.PlatformTag, Status: api.BuildStatus(r.Status),
		Attempt: r.Attempt, Priority: r.Priority, RunID: optional(r.Run), QueuedAt: optional(r.QueuedAt), UpdatedAt: r.UpdatedAt,
		Class: api.Class(r.Class), Reason: r.Reason, Evidence: r.Evidence,
		Attempts: convert(r.Attempts, func(a projections.Attempt) api.BuildAttempt {
			return api.BuildAttempt{
				Number: a.Number, Worker: a.Worker, Status: a.Status, Class: api.Class(a.Class), Reason: a.Reason,
				LeasedAt: a.LeasedAt, EndedAt: optional(a.EndedAt), DurationMS: optional(a.DurationMS), LogLines: a.LogLines,
			}
		}),
	}
	if r.Wheel != nil {
		b.Wheel = api.BuiltWheel{Filename: r.Wheel.Filename, SHA256: r.Wheel.SHA256, Size: r.Wheel.Size, URL: r.Wheel.URL}
		if b.Wheel.URL == "" {
			b.Wheel.URL = artifactURL(r.Wheel.Filename)
		}
	}
	return b
}

// artifactURL is where the API serves a wheel.
func artifactURL(filename string) string { return "/artifacts/" + url.PathEscape(filename) }
