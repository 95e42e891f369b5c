package writeapi

import (
	"context"
	"net/http"

	"github.com/wheelrefinery/refinery/api"
	"github.com/wheelrefinery/refinery/commands"
	"github.com/wheelrefinery/refinery/eventlog"
)

// ClearQueue is POST /queue/clear.
func (s *Server) ClearQueue(ctx context.Context, r api.ClearQueueRequestObject) (api.ClearQueueResponseObject, error) {
	c := commands.ClearQueue{}
	if b := r.Body; b != nil {
		c = commands.ClearQueue{IncludeLeased: b.IncludeLeased, Reason: b.Reason}
	}
	var position int64
	a, err := send(ctx, s, meta(ctx, ""), c, func(_ commands.Queue, o eventlog.Outcome) api.Answer {
		position = o.Last
		return api.Answer{Status: http.StatusOK}
	})
	if err != nil || position == 0 { // refused, or not decided yet
		return a, err
	}
	n, err := s.Cleared(ctx, position)
	if err != nil {
		return nil, err
	}
	a.Body = api.ClearAnswer{Cleared: n}
	return a, nil
}

// PauseQueue is POST /queue/pause.
func (s *Server) PauseQueue(ctx context.Context, r api.PauseQueueRequestObject) (api.PauseQueueResponseObject, error) {
	return send(ctx, s, meta(ctx, ""), commands.PauseQueue{Reason: reason(r.Body)}, queueState)
}

// ResumeQueue is POST /queue/resume.
func (s *Server) ResumeQueue(ctx context.Context, _ api.ResumeQueueRequestObject) (api.ResumeQueueResponseObject, error) {
	return send(ctx, s, meta(ctx, ""), commands.ResumeQueue{}, queueState)
}

func queueState(q commands.Queue, _ eventlog.Outcome) api.Answer {
	return api.Answer{Status: http.StatusOK, Body: api.QueueState{Paused: q.Paused}}
}
