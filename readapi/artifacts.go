package readapi

import (
	"context"

	"github.com/wheelrefinery/refinery/api"
	"github.com/wheelrefinery/refinery/events"
	"github.com/wheelrefinery/refinery/projections"
)

// ListArtifacts answers GET /artifacts.
func (s *Server) ListArtifacts(ctx context.Context, request api.ListArtifactsRequestObject) (api.ListArtifactsResponseObject, error) {
	p := request.Params
	return s.answer(ctx, read{min: p.MinPosition, match: p.IfNoneMatch, models: []string{"artifacts"}}, func() (any, error) {
		var w where
		if p.Package != nil {
			w.and("project = %s", events.NormalizeName(*p.Package))
		}
		w.version(p.Version)
		rows, next, err := list(ctx, s, "artifacts.files", w, newest,
			func(r projections.ArtifactRow) []int64 { return []int64{r.Position} }, p.Limit, p.Cursor)
		return page{api.ArtifactList{Items: convert(rows, artifact), Next: next}, link(p, next)}, err
	})
}

func artifact(r projections.ArtifactRow) api.Artifact {
	return api.Artifact{
		Filename: r.Filename, URL: artifactURL(r.Filename), SHA256: r.SHA256, Size: r.Size, Project: r.Project, Version: r.Version,
		Tags: r.Tags, RequiresPython: r.RequiresPython, Attempt: r.Attempt, Yanked: r.Yanked, UploadedAt: r.UploadedAt,
		Build: api.BuildID{Name: r.BuildName, Version: r.BuildVersion, PythonTag: r.PythonTag, PlatformTag: r.PlatformTag},
	}
}
