package writeapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/google/uuid"

	"github.com/wheelrefinery/refinery/api"
	"github.com/wheelrefinery/refinery/commands"
	"github.com/wheelrefinery/refinery/eventlog"
	"github.com/wheelrefinery/refinery/events"
	"github.com/wheelrefinery/refinery/internal/fault"
)

const smokeSeconds = 60 // where the request says nothing

// endOfSmoke is the id of the command that ends a proof, with a report or without: whichever comes first is the only one.
func endOfSmoke(id uuid.UUID) uuid.UUID { return uuid.NewSHA1(id, []byte("end")) }

const smokeDigest = "smoke"

// SmokeWorker is POST /worker/smoke. The proof's id is its command's.
func (s *Server) SmokeWorker(ctx context.Context, r api.SmokeWorkerRequestObject) (api.SmokeWorkerResponseObject, error) {
	seconds := smokeSeconds
	if r.Body != nil && r.Body.TimeoutSeconds > 0 {
		seconds = r.Body.TimeoutSeconds
	}
	m := meta(ctx, "")
	wait, forget := s.Await(endOfSmoke(m.ID))
	defer forget()
	limited, cancel := context.WithTimeout(ctx, time.Duration(seconds)*time.Second)
	defer cancel()
	o, err := s.outcome(ctx, m, commands.RequestSmoke{Smoke: m.ID}, false)
	if _, ok := errors.AsType[*pending](err); ok {
		return nil, fault.New(fault.Unavailable, "Commands take too long now. Try again.")
	}
	if err != nil {
		return nil, err
	}
	if o.Status == eventlog.Failed {
		return failed(o), nil
	}
	o, err = wait(limited)
	if err != nil && ctx.Err() == nil { // the time is over: give it up, or learn that it has ended just now
		end := commands.Meta{ID: endOfSmoke(m.ID), Actor: m.Actor, Correlation: m.ID, Digest: smokeDigest}
		if err := s.store(ctx, end, commands.ExpireSmoke{Smoke: m.ID}); err != nil {
			return nil, err
		}
		patient, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		o, err = wait(patient)
	}
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case err != nil:
		return nil, fault.New(fault.Timeout, "No worker has proved anything within %d s, and the control plane is slow to say why. Try again.", seconds)
	case o.Status == eventlog.Refused:
		return nil, o.Problem
	case o.Status == eventlog.Failed:
		return failed(o), nil
	}
	var state commands.Smoke
	if err := json.Unmarshal(o.Result, &state); err != nil {
		return nil, fmt.Errorf("decode the result of %s: %w", o.Name, err)
	}
	switch {
	case state.Report != nil:
		return api.Answer{
			Status: http.StatusOK, Header: http.Header{"Refinery-Position": {strconv.FormatInt(o.Last, 10)}}, Body: smokeReport(state.Report),
		}, nil
	case state.Worker != "":
		return nil, fault.New(fault.Timeout, "The worker %s took it and has not reported within %d s. Look at its log, or give it longer: timeout_seconds.", state.Worker, seconds)
	}
	return nil, fault.New(fault.Timeout, "No worker took it within %d s: none is there, or all are busy. /queue/stats and /ready say more.", seconds)
}

// RecordSmoke is POST /worker/smoke/{id}.
func (s *Server) RecordSmoke(ctx context.Context, r api.RecordSmokeRequestObject) (api.RecordSmokeResponseObject, error) {
	b := r.Body
	m := commands.Meta{ID: endOfSmoke(r.ID), Actor: workerActor(ctx, b.Worker), Correlation: r.ID, Digest: smokeDigest}
	c := commands.RecordSmoke{Smoke: r.ID, Report: events.SmokeReport{
		Worker: b.Worker, OK: b.Ok, Failures: b.Failures, DurationMS: b.DurationMS, PlanMS: b.PlanMS, BuildMS: b.BuildMS, Wheel: b.Wheel,
		PythonVersion: b.PythonVersion, UV: b.Uv, GCC: b.Gcc, Program: b.Program, User: b.User,
		TimeoutSeconds: b.Limits.TimeoutSeconds, MemoryBytes: b.Limits.MemoryBytes, DiskBytes: b.Limits.DiskBytes, Processes: b.Limits.Processes,
	}}
	o, err := s.outcome(ctx, m, c, api.RequestFrom(ctx).Async)
	if p, ok := errors.AsType[*pending](err); ok {
		return p.answer(), nil
	}
	if err != nil {
		return nil, err
	}
	if o.Status == eventlog.Failed {
		return failed(o), nil
	}
	var state commands.Smoke
	if err := json.Unmarshal(o.Result, &state); err != nil {
		return nil, fmt.Errorf("decode the result of %s: %w", o.Name, err)
	}
	if state.Report == nil {
		return nil, fault.New(fault.Conflict, "nobody waits for it any more: drop it")
	}
	return api.Answer{Status: http.StatusOK, Body: smokeReport(state.Report)}, nil
}

func smokeReport(r *events.SmokeReport) api.SmokeReport {
	out := api.SmokeReport{
		Worker: r.Worker, Ok: r.OK, Failures: r.Failures, DurationMS: r.DurationMS, PlanMS: r.PlanMS, BuildMS: r.BuildMS, Wheel: r.Wheel,
		PythonVersion: r.PythonVersion, Uv: r.UV, Gcc: r.GCC, Program: r.Program, User: r.User,
		Limits: api.SmokeLimits{TimeoutSeconds: r.TimeoutSeconds, MemoryBytes: r.MemoryBytes, DiskBytes: r.DiskBytes, Processes: r.Processes},
	}
	if out.Failures == nil {
		out.Failures = []string{}
	}
	return out
}
