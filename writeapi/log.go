package writeapi

import (
	"context"
	"net/http"

	"github.com/wheelrefinery/refinery/api"
	"github.com/wheelrefinery/refinery/commands"
	"github.com/wheelrefinery/refinery/eventlog"
)

// AppendLog is POST /logs/{name}/{version}.
func (s *Server) AppendLog(ctx context.Context, r api.AppendLogRequestObject) (api.AppendLogResponseObject, error) {
	id, err := buildID(api.BuildID{Name: r.Name, Version: r.Version, PythonTag: r.Params.PythonTag, PlatformTag: r.Params.PlatformTag})
	if err != nil {
		return nil, err
	}
	c := commands.AppendLog{Build: id, Attempt: r.Params.Attempt, Chunk: r.Body.Chunk, Text: r.Body.Text}
	return send(ctx, s, meta(ctx, ""), c, func(l commands.Log, _ eventlog.Outcome) api.Answer {
		return api.Answer{Status: http.StatusOK, Body: api.LogAnswer{NextChunk: l.NextChunk, Lines: l.Lines}}
	})
}
