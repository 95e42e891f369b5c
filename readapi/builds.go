package readapi

import (
	"context"

	"github.com/wheelrefinery/refinery/api"
	"github.com/wheelrefinery/refinery/events"
	"github.com/wheelrefinery/refinery/projections"
)

var buildList = list[projections.BuildRow]{
	name: "builds", from: "builds.builds", by: []string{"updated_position"}, desc: true,
	keyOf: func(r projections.BuildRow) []int64 { return []int64{r.UpdatedPosition} },
}

// ListBuilds answers GET /builds. A build that changes while a client pages moves before the first page.
func (s *Server) ListBuilds(ctx context.Context, request api.ListBuildsRequestObject) (api.ListBuildsResponseObject, error) {
	p := request.Params
	return s.answer(ctx, read{min: p.MinPosition, match: p.IfNoneMatch, params: p, models: []string{"builds"}}, func() (any, error) {
		var w where
		if p.Version != nil && p.Package == nil {
			return nil, invalid("version", "goes with package: add the one that you mean")
		}
		w.project("name", p.Package)
		w.version(p.Version)
		oneOf(&w, "status", p.Status)
		equal(&w, "run_id", p.RunID)
		rows, next, err := buildList.read(ctx, s.db, w, p.Limit, p.Cursor)
		return page{api.BuildList{Items: convert(rows, s.build), Next: next}, next}, err
	})
}

const noBuild = "There is no build of this name, version and tags. /builds lists what there is."

// GetBuild answers GET /builds/{name}/{version}/{python_tag}/{platform_tag}.
func (s *Server) GetBuild(ctx context.Context, request api.GetBuildRequestObject) (api.GetBuildResponseObject, error) {
	p := request.Params
	return s.answer(ctx, read{min: p.MinPosition, match: p.IfNoneMatch, params: p, models: []string{"builds"}}, func() (any, error) {
		streams := convert(versions(request.Version), func(version string) string {
			return events.BuildID{
				Name: events.NormalizeName(request.Name), Version: version, PythonTag: request.PythonTag, PlatformTag: request.PlatformTag,
			}.Stream()
		})
		rows, err := projections.Query[projections.BuildRow](ctx, s.db,
			"from builds.builds where stream = any($1::text[]) order by array_position($1::text[], stream) limit 1", streams)
		if err != nil {
			return nil, err
		}
		row, err := first(rows, noBuild)
		return s.build(row), err
	})
}

func (s *Server) build(r projections.BuildRow) api.Build {
	b := api.Build{
		Name: r.Name, Version: r.Version, PythonTag: r.PythonTag, PlatformTag: r.PlatformTag, Status: api.BuildStatus(r.Status),
		Attempt: r.Attempt, Priority: r.Priority, RunID: optional(r.Run), QueuedAt: optional(r.QueuedAt), UpdatedAt: r.UpdatedAt,
		Class: api.Class(r.Class), Reason: r.Reason, Evidence: r.Evidence, Recipes: convert(r.Recipes, recipe), Hints: convert(r.Hints, same),
		Attempts: convert(r.Attempts, func(a projections.Attempt) api.BuildAttempt {
			out := api.BuildAttempt{
				Number: a.Number, Worker: a.Worker, Status: a.Status, Class: api.Class(a.Class), Reason: a.Reason,
				LeasedAt: a.LeasedAt, EndedAt: optional(a.EndedAt), LogLines: a.LogLines, Hints: convert(a.Hints, hintMatch),
			}
			if out.EndedAt != nil {
				out.DurationMS = &a.DurationMS
			}
			return out
		}),
	}
	if r.Wheel != nil {
		b.Wheel = api.BuiltWheel{Filename: r.Wheel.Filename, SHA256: r.Wheel.SHA256, Size: r.Wheel.Size, URL: r.Wheel.URL}
		if b.Wheel.URL == "" {
			b.Wheel.URL = s.artifactURL(r.Wheel.Filename)
		}
	}
	return b
}
