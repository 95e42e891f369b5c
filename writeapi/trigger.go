package writeapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/wheelrefinery/refinery/api"
	"github.com/wheelrefinery/refinery/commands"
	"github.com/wheelrefinery/refinery/eventlog"
	"github.com/wheelrefinery/refinery/internal/fault"
)

// webhookPatience is how long an answer waits for the first call of the webhook, which has a limit of its own.
const webhookPatience = 12 * time.Second

// TriggerWorkers is POST /worker/trigger. The trigger's id is its command's.
func (s *Server) TriggerWorkers(ctx context.Context, _ api.TriggerWorkersRequestObject) (api.TriggerWorkersResponseObject, error) {
	m := meta(ctx, "")
	if !s.Webhook {
		var err error
		if m.Digest, err = digest(ctx, "trigger", m.ID); err != nil { // how many it wakes is no part of the request
			return nil, err
		}
		c := commands.RequestTrigger{Trigger: m.ID, Local: true, Woken: s.Jobs.Wake()}
		return send(ctx, s, m, c, func(t commands.Trigger, _ eventlog.Outcome) api.Answer {
			return api.Answer{Status: http.StatusOK, Body: api.TriggerAnswer{ID: m.ID, How: api.Local, Attempts: 1, Woken: t.Woken}}
		})
	}
	attempt := commands.RecordTriggerID(m.ID, 1)
	wait, forget := s.Await(attempt)
	defer forget()
	o, err := s.outcome(ctx, m, commands.RequestTrigger{Trigger: m.ID}, api.RequestFrom(ctx).Async)
	if p, ok := errors.AsType[*pending](err); ok {
		return p.answer(), nil
	}
	if err != nil {
		return nil, err
	}
	if o.Status == eventlog.Failed {
		return failed(o), nil
	}
	patient, cancel := context.WithTimeout(ctx, webhookPatience)
	defer cancel()
	if o, err = wait(patient); err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return (&pending{attempt, commands.RecordTrigger{}.Name(), false}).answer(), nil
	}
	if o.Status != eventlog.Applied {
		return failed(o), nil
	}
	var t commands.Trigger
	if err := json.Unmarshal(o.Result, &t); err != nil {
		return nil, fmt.Errorf("decode the result of %s: %w", o.Name, err)
	}
	if t.State != "succeeded" {
		return nil, fault.New(fault.Upstream, "%s. It is called again a few times; look at WORKER_WEBHOOK_URL and what answers there.", t.Reason)
	}
	return api.Answer{
		Status: http.StatusOK, Header: http.Header{"Refinery-Position": {strconv.FormatInt(o.Last, 10)}},
		Body: api.TriggerAnswer{ID: m.ID, How: api.Webhook, Attempts: t.Attempts, Status: t.Status, DurationMS: t.DurationMS},
	}, nil
}
