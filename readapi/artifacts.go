package readapi

import (
	"context"
	"net/url"

	"github.com/wheelrefinery/refinery/api"
	"github.com/wheelrefinery/refinery/projections"
)

var artifactList = list[projections.ArtifactRow]{
	name: "artifacts", from: "artifacts.files", by: []string{"position"}, desc: true,
	keyOf: func(r projections.ArtifactRow) []int64 { return []int64{r.Position} },
}

// ListArtifacts answers GET /artifacts.
func (s *Server) ListArtifacts(ctx context.Context, request api.ListArtifactsRequestObject) (api.ListArtifactsResponseObject, error) {
	p := request.Params
	return s.answer(ctx, read{min: p.MinPosition, match: p.IfNoneMatch, params: p, models: []string{"artifacts"}}, func() (any, error) {
		var w where
		w.project("project", p.Package)
		w.version(p.Version)
		rows, next, err := artifactList.read(ctx, s.db, w, p.Limit, p.Cursor)
		return page{api.ArtifactList{Items: convert(rows, s.artifact), Next: next}, next}, err
	})
}

func (s *Server) artifact(r projections.ArtifactRow) api.Artifact {
	return api.Artifact{
		Filename: r.Filename, URL: s.artifactURL(r.Filename), SHA256: r.SHA256, Size: r.Size, Project: r.Project, Version: r.Version,
		Tags: r.Tags, RequiresPython: r.RequiresPython, Attempt: r.Attempt, Yanked: r.Yanked, YankReason: r.YankReason, UploadedAt: r.UploadedAt,
		Build: api.BuildID{Name: r.BuildName, Version: r.BuildVersion, PythonTag: r.PythonTag, PlatformTag: r.PlatformTag},
	}
}

// artifactURL is where the API serves a wheel.
func (s *Server) artifactURL(filename string) string {
	return s.o.URL + "/artifacts/" + url.PathEscape(filename)
}
