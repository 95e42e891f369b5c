package writeapi

import (
	"context"
	"net/http"
	"slices"
	"strings"

	"github.com/wheelrefinery/refinery/api"
	"github.com/wheelrefinery/refinery/commands"
	"github.com/wheelrefinery/refinery/eventlog"
	"github.com/wheelrefinery/refinery/internal/fault"
)

// ParkedStream is a stream that a read model has put aside.
type ParkedStream struct {
	Stream string
	First  int64  // position of the event that it is parked at
	Error  string // what that fails with
	Count  int    // dead letters; 0: it is not parked
}

func (s *Server) projection(name string) error {
	if !slices.Contains(s.Projections, name) {
		return fault.New(fault.NotFound, "There is no read model of this name. There are %s.", strings.Join(s.Projections, ", "))
	}
	return nil
}

// RebuildProjection is POST /projections/{name}/rebuild.
func (s *Server) RebuildProjection(ctx context.Context, r api.RebuildProjectionRequestObject) (api.RebuildProjectionResponseObject, error) {
	if err := s.projection(r.Name); err != nil {
		return nil, err
	}
	var position int64
	a, err := send(ctx, s, meta(ctx, ""), commands.RebuildProjection{Projection: r.Name}, func(_ commands.Projection, o eventlog.Outcome) api.Answer {
		position = o.Last
		return api.Answer{Status: http.StatusOK, Body: api.ProjectionAnswer{Name: r.Name, State: api.RebuildStateRebuilding}}
	})
	if err == nil && position > 0 {
		err = s.Operated(ctx, position)
	}
	return a, err
}

// RetryDeadLetter is POST /projections/{name}/dead-letters/{id}/retry.
func (s *Server) RetryDeadLetter(ctx context.Context, r api.RetryDeadLetterRequestObject) (api.RetryDeadLetterResponseObject, error) {
	return s.mend(ctx, r.Name, r.ID, false)
}

// SkipDeadLetter is POST /projections/{name}/dead-letters/{id}/skip.
func (s *Server) SkipDeadLetter(ctx context.Context, r api.SkipDeadLetterRequestObject) (api.SkipDeadLetterResponseObject, error) {
	return s.mend(ctx, r.Name, r.ID, true)
}

func (s *Server) mend(ctx context.Context, name string, id int64, skip bool) (api.Answer, error) {
	if err := s.projection(name); err != nil {
		return api.Answer{}, err
	}
	before, err := s.Parked(ctx, name, id, "")
	switch {
	case err != nil:
		return api.Answer{}, err
	case before.Count == 0:
		return api.Answer{}, fault.New(fault.NotFound, "The read model has no dead letter of this id. /projections lists what there is.")
	case skip && before.First != id:
		return api.Answer{}, fault.New(fault.Conflict, "Its stream is parked at the event at %d: skip that one first.", before.First)
	}
	var position int64
	a, err := send(ctx, s, meta(ctx, ""), commands.MendProjection{Projection: name, Position: id, Skip: skip},
		func(_ commands.Projection, o eventlog.Outcome) api.Answer {
			position = o.Last
			return api.Answer{Status: http.StatusOK}
		})
	if err != nil || position == 0 {
		return a, err
	}
	if err := s.Operated(ctx, position); err != nil {
		return api.Answer{}, err
	}
	left, err := s.Parked(ctx, name, id, before.Stream)
	if err != nil {
		return api.Answer{}, err
	}
	a.Body = api.DeadLetterAnswer{
		Name: name, Stream: before.Stream, Applied: max(0, before.Count-left.Count), Parked: left.Count, Error: left.Error,
	}
	return a, nil
}
