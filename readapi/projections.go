package readapi

import (
	"context"

	"github.com/wheelrefinery/refinery/api"
	"github.com/wheelrefinery/refinery/projections"
)

// ListProjections answers GET /projections.
func (s *Server) ListProjections(ctx context.Context, request api.ListProjectionsRequestObject) (api.ListProjectionsResponseObject, error) {
	p := request.Params
	return s.answer(ctx, read{min: p.MinPosition, match: p.IfNoneMatch, params: p, aged: true}, func() (any, error) {
		status, err := s.o.Status(ctx)
		return api.ProjectionList{Items: convert(status, projectionOf)}, err
	})
}

func projectionOf(s projections.Status) api.Projection {
	p := api.Projection{
		Name: s.Name, Position: s.Position, Lag: s.Lag, LagSeconds: s.LagSeconds, Generation: s.Generation, State: api.ProjectionState(s.State),
		DeadLetterCount: s.Parked,
		DeadLetters: convert(s.DeadLetters, func(d projections.DeadLetter) api.DeadLetter {
			return api.DeadLetter{ID: d.Position, Position: d.Position, Stream: d.Stream, Error: d.Error, Time: d.At}
		}),
	}
	if s.State == "rebuilding" {
		percent := 100.0
		if head := s.Position + s.Lag; head > 0 {
			percent = min(100, 100*float64(s.Rebuilt)/float64(head))
		}
		p.RebuiltPercent = &percent
	}
	return p
}
