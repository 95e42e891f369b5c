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

// Jobs finds what a worker may lease.
type Jobs interface {
	// Next returns a job that fits w and holds it back from other callers until Done. It looks once at least, waits for one for as long
	// as wait, and then, or when ctx ends, returns nil without an error.
	Next(ctx context.Context, w Worker, wait time.Duration) (*Candidate, error)
	// Done says that c was leased, and the read models know it, or that it cannot be.
	Done(c *Candidate)
	// Wake has all who wait in Next look again at once, and says how many they are.
	Wake() int
}

// Worker is who asks for a job.
type Worker struct {
	ID, PythonTag, PlatformTag string
	PythonVersion              string // such as 3.11.7
	Plans, Builds, Smokes      bool   // the kinds of jobs that it takes
}

// Candidate is a job that waits: a build, the planning of a run, or a proof.
type Candidate struct {
	Run      uuid.UUID // of a plan, or the one that asked for a build last
	Attempts int       // so far

	Build       *events.BuildID // nil: a plan
	Sdist       *events.File
	Constraints []string
	Recipes     []events.Recipe
	Class       string // of its last failure

	Submitted events.RunSubmitted // of a plan

	Smoke uuid.UUID // not zero: a proof that workers work
}

// Lease names a lease: the stream of a build or a run, and the attempt.
type Lease struct {
	Stream  string
	Attempt int
}

// mostRefused bounds how many candidates that others were quicker to lease one request tries.
const mostRefused = 20

// Lease is POST /worker/lease.
func (s *Server) Lease(ctx context.Context, r api.LeaseRequestObject) (api.LeaseResponseObject, error) {
	b := r.Body
	if err := s.register(ctx, b); err != nil {
		return nil, err
	}
	w := Worker{ID: b.Worker, PythonTag: b.PythonTag, PlatformTag: b.PlatformTag, PythonVersion: b.PythonVersion}
	for _, k := range b.Kinds {
		w.Plans, w.Builds, w.Smokes = w.Plans || k == api.JobKindPlan, w.Builds || k == api.JobKindBuild, w.Smokes || k == api.JobKindSmoke
	}
	if len(b.Kinds) == 0 {
		w.Plans, w.Builds = true, true
	}
	end := time.Now().Add(time.Duration(b.WaitSeconds) * time.Second)
	for range mostRefused {
		c, err := s.Jobs.Next(ctx, w, time.Until(end))
		if err != nil {
			return nil, err
		}
		if c == nil {
			break
		}
		a, err := s.lease(ctx, w, c)
		if code := fault.CodeOf(err); code == fault.Conflict || code == fault.NotFound {
			continue
		}
		return a, err
	}
	return api.Lease204Response{}, nil
}

// fresh begins a command that no key repeats.
func fresh(ctx context.Context, worker string) commands.Meta {
	return commands.Meta{ID: uuid.Must(uuid.NewV7()), Actor: workerActor(ctx, worker)}
}

// lease tries to lease c. A refusal is the error.
func (s *Server) lease(ctx context.Context, w Worker, c *Candidate) (api.Answer, error) {
	defer s.Jobs.Done(c)
	// It goes on when the worker goes: a lease that nobody knows of would last its whole time.
	sure := context.WithoutCancel(ctx)
	expires := time.Now().Add(s.LeaseTime).UTC().Truncate(time.Microsecond)
	index, err := s.IndexURL(ctx)
	if err != nil {
		return api.Answer{}, err
	}
	job := api.Job{
		Attempt: c.Attempts + 1, ExpiresAt: expires, LeaseSeconds: int(s.LeaseTime.Seconds()), IndexURL: index, RunID: c.Run,
	}
	var cmd commands.Command
	var release func(attempt int) commands.Command
	const gone = "the worker went away while the lease was made"
	switch {
	case c.Smoke != uuid.Nil:
		job.Kind, job.SmokeID = api.JobKindSmoke, c.Smoke
		cmd = commands.LeaseSmoke{Smoke: c.Smoke, Worker: w.ID}
		release = func(int) commands.Command { return commands.ExpireSmoke{Smoke: c.Smoke} }
	case c.Build != nil:
		job.Kind, job.Build, job.Constraints = api.JobKindBuild, named(*c.Build), c.Constraints
		job.FailedBefore = api.Class(c.Class)
		if c.Sdist != nil {
			job.Sdist = api.File{Filename: c.Sdist.Filename, URL: c.Sdist.URL, SHA256: c.Sdist.SHA256, Size: c.Sdist.Size}
		}
		for _, recipe := range c.Recipes {
			job.Recipes = append(job.Recipes, api.Recipe{Kind: api.RecipeKind(recipe.Kind), Items: recipe.Items})
		}
		cmd = commands.LeaseBuild{Build: *c.Build, Worker: w.ID, ExpiresAt: expires}
		release = func(attempt int) commands.Command {
			return commands.ReleaseBuild{Build: *c.Build, Attempt: attempt, Worker: w.ID, Reason: gone}
		}
	default:
		run := c.Submitted
		job.Kind, job.Requirements, job.ConstraintsText = api.JobKindPlan, run.Requirements, run.Constraints
		job.Python, job.Platform, job.Names = run.Python, run.Platform, run.Names
		job.Strategy, job.BuildMode = api.Strategy(run.Strategy), api.BuildMode(run.Build)
		cmd = commands.LeasePlan{Run: c.Run, Worker: w.ID, ExpiresAt: expires}
		release = func(attempt int) commands.Command {
			return commands.ReleasePlan{Run: c.Run, Attempt: attempt, Worker: w.ID, Reason: gone}
		}
	}
	o, err := s.outcome(sure, fresh(ctx, w.ID), cmd, false)
	if _, ok := errors.AsType[*pending](err); ok {
		return api.Answer{}, fault.New(fault.Unavailable, "Leases take too long now. Try again.")
	}
	if err != nil {
		return api.Answer{}, err
	}
	if o.Status == eventlog.Failed {
		return failed(o), nil
	}
	var state struct {
		Attempt int `json:"attempt"`
	}
	if err := json.Unmarshal(o.Result, &state); err != nil {
		return api.Answer{}, fmt.Errorf("decode the result of %s: %w", cmd.Name(), err)
	}
	if state.Attempt > 0 {
		job.Attempt = state.Attempt
	}
	if ctx.Err() != nil {
		if err := s.store(sure, fresh(ctx, w.ID), release(job.Attempt)); err != nil {
			return api.Answer{}, fmt.Errorf("release a lease whose worker has gone: %w", err)
		}
		return api.Answer{}, ctx.Err()
	}
	return api.Answer{Status: http.StatusOK, Header: http.Header{"Refinery-Position": {strconv.FormatInt(o.Last, 10)}}, Body: job}, nil
}

// mostWorkers bounds the memory of registered workers.
const mostWorkers = 10_000

// register records what a worker can do, when that is new to this process.
func (s *Server) register(ctx context.Context, b *api.LeaseRequest) error {
	c := commands.RegisterWorker{
		Worker: b.Worker, PythonTag: b.PythonTag, PlatformTag: b.PlatformTag, Slots: b.Slots, Version: b.Version, Host: b.Host,
	}
	s.mu.Lock()
	known := s.workers[b.Worker] == c
	s.mu.Unlock()
	if known {
		return nil
	}
	if _, err := s.outcome(ctx, fresh(ctx, b.Worker), c, false); err != nil {
		if _, ok := errors.AsType[*pending](err); ok {
			return nil // it is stored, and leasing waits for no read model
		}
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.workers) >= mostWorkers {
		clear(s.workers)
	}
	s.workers[b.Worker] = c
	return nil
}

// tags returns the tags of the workers, where all have the same.
func (s *Server) tags(ctx context.Context) (python, platform string, err error) {
	all, err := s.Tags(ctx)
	switch {
	case err != nil:
		return "", "", err
	case len(all) == 0:
		return "", "", fault.New(fault.Invalid, "Give python_tag and platform_tag, such as cp311 and linux_x86_64: no worker has been here that could say its own.")
	case len(all) > 1:
		return "", "", fault.New(fault.Invalid, "Give python_tag and platform_tag: the workers have different ones.")
	}
	return all[0].Python, all[0].Platform, nil
}

// heartbeatSeconds is how often a worker sends a heartbeat.
const heartbeatSeconds = 10

// Heartbeat is POST /worker/heartbeat.
func (s *Server) Heartbeat(ctx context.Context, r api.HeartbeatRequestObject) (api.HeartbeatResponseObject, error) {
	b := r.Body
	leases := make([]Lease, len(b.Jobs))
	for i, j := range b.Jobs {
		leases[i] = Lease{Stream: events.RunStream(j.RunID), Attempt: j.Attempt}
		if j.Kind == api.JobKindBuild {
			id, err := buildID(j.Build)
			if err != nil {
				return nil, err
			}
			leases[i].Stream = id.Stream()
		}
	}
	actions, err := s.Beat(ctx, b.Worker, leases)
	if err != nil {
		return nil, err
	}
	answer := api.HeartbeatAnswer{Action: api.WorkerActionContinue, Jobs: make([]api.JobState, len(b.Jobs)), IntervalSeconds: heartbeatSeconds}
	for i, j := range b.Jobs {
		answer.Jobs[i] = api.JobState{Kind: j.Kind, Build: j.Build, RunID: j.RunID, Attempt: j.Attempt, Action: actions[i]}
	}
	return api.Answer{Status: http.StatusOK, Body: answer}, nil
}
