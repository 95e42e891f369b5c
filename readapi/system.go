package readapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"

	"github.com/jackc/pgx/v5"

	"github.com/wheelrefinery/refinery/api"
	"github.com/wheelrefinery/refinery/internal/fault"
)

// GetHealth answers GET /health: the process is alive. What it needs is in /ready.
func (s *Server) GetHealth(context.Context, api.GetHealthRequestObject) (api.GetHealthResponseObject, error) {
	return api.GetHealth200JSONResponse{Status: "ok"}, nil
}

// GetReady answers GET /ready: 503 unless every part is ok.
func (s *Server) GetReady(ctx context.Context, _ api.GetReadyRequestObject) (api.GetReadyResponseObject, error) {
	r := api.Readiness{Status: api.Ok, Parts: append([]api.Part{}, s.Parts(ctx)...)}
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
func (s *Server) GetConfig(ctx context.Context, _ api.GetConfigRequestObject) (api.GetConfigResponseObject, error) {
	c, err := s.Config(ctx)
	return api.GetConfig200JSONResponse(c), err
}

// GetCommand answers GET /commands/{id}. A command that has no outcome yet, and one that nobody sent, is pending.
func (s *Server) GetCommand(ctx context.Context, request api.GetCommandRequestObject) (api.GetCommandResponseObject, error) {
	c := api.Command{ID: request.ID, Status: api.CommandStatusPending}
	var detail struct {
		Problem *fault.Error    `json:"problem"`
		Result  json.RawMessage `json:"result"`
	}
	err := s.DB.QueryRow(ctx, `select name, status, first_position, last_position, detail from commands where id = $1`, request.ID).
		Scan(&c.Name, &c.Status, &c.Positions.First, &c.Positions.Last, &detail)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return nil, fmt.Errorf("read the command: %w", err)
	}
	if detail.Problem != nil {
		c.Problem = api.NewProblem(detail.Problem)
	}
	if len(detail.Result) > 0 {
		if err := json.Unmarshal(detail.Result, &c.Result); err != nil {
			return nil, fmt.Errorf("read the command's result: %w", err)
		}
	}
	return api.Answer{Status: http.StatusOK, Header: http.Header{"Refinery-Position": {strconv.FormatInt(c.Positions.Last, 10)}}, Body: c}, nil
}
