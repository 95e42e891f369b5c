package readapi

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"

	"github.com/wheelrefinery/refinery/api"
)

// GetHealth answers GET /health: the process is alive. What it needs is in /ready.
func (s *Server) GetHealth(context.Context, api.GetHealthRequestObject) (api.GetHealthResponseObject, error) {
	return api.GetHealth200JSONResponse{Status: "ok"}, nil
}

// GetReady answers GET /ready: 503 unless every part is ok.
func (s *Server) GetReady(ctx context.Context, _ api.GetReadyRequestObject) (api.GetReadyResponseObject, error) {
	r := api.Readiness{Status: api.Ok, Parts: append([]api.Part{}, s.o.Ready(ctx)...)}
	for _, p := range r.Parts {
		if p.Status == api.Down || r.Status == api.Ok {
			r.Status = p.Status
		}
	}
	if r.Status != api.Ok {
		return api.GetReady503JSONResponse(r), nil
	}
	return api.GetReady200JSONResponse(r), nil
}

// GetConfig answers GET /config.
func (s *Server) GetConfig(ctx context.Context, request api.GetConfigRequestObject) (api.GetConfigResponseObject, error) {
	p := request.Params
	return s.answer(ctx, read{match: p.IfNoneMatch, params: p, aged: true}, func() (any, error) { return s.o.Config(ctx) })
}

// GetCommand answers GET /commands/{id}. Until it is handled, a command cannot be told from one that nobody sent: both are pending.
func (s *Server) GetCommand(ctx context.Context, request api.GetCommandRequestObject) (api.GetCommandResponseObject, error) {
	p := request.Params
	var last int64
	a, err := s.answer(ctx, read{min: p.MinPosition, match: p.IfNoneMatch, params: p, aged: true}, func() (any, error) {
		c := api.Command{ID: request.ID, Status: api.CommandStatusPending}
		o, found, err := s.o.Outcomes(ctx, request.ID)
		if err != nil || !found {
			return c, err
		}
		last = o.Last
		c.Name, c.Status = o.Name, api.CommandStatus(o.Status)
		c.Positions = api.Positions{First: o.First, Last: o.Last}
		if o.Problem != nil {
			c.Problem = api.NewProblem(o.Problem)
		}
		if len(o.Result) > 0 {
			if err := json.Unmarshal(o.Result, &c.Result); err != nil {
				return nil, fmt.Errorf("read the command's result: %w", err)
			}
		}
		return c, nil
	})
	if err != nil {
		return nil, err
	}
	if covered, _ := s.o.Covered(); last > covered {
		a.Header.Set("Refinery-Position", strconv.FormatInt(last, 10))
	}
	return a, nil
}
