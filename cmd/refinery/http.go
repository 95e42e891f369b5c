package main

import (
	"context"
	"net"
	"net/http"
	"time"

	"github.com/google/uuid"

	"github.com/wheelrefinery/refinery/api"
	"github.com/wheelrefinery/refinery/commands"
	"github.com/wheelrefinery/refinery/eventlog"
	"github.com/wheelrefinery/refinery/index"
	"github.com/wheelrefinery/refinery/internal/health"
	"github.com/wheelrefinery/refinery/internal/wheelstore"
	"github.com/wheelrefinery/refinery/policies"
	"github.com/wheelrefinery/refinery/projections"
	"github.com/wheelrefinery/refinery/readapi"
	"github.com/wheelrefinery/refinery/writeapi"
)

// server answers every operation of the strict server.
type server struct {
	*reads
	*writes
}

type (
	reads  = readapi.Server
	writes = writeapi.Server
)

var _ api.StrictServerInterface = server{}

// handler makes the HTTP handler of API and index.
func (p *plane) handler(wheels *wheelstore.Dir) (http.Handler, error) {
	host, _, err := net.SplitHostPort(p.HTTPAddr)
	if err != nil {
		return nil, err
	}
	ip := net.ParseIP(host)
	checker := health.New(health.Parts{
		Writes: p.pool, Reads: p.reads, Bus: p.bus, Backend: p.QueueBackend, Group: handlers, Log: p.log, Projections: p.read, Wheels: wheels,
		Dir: p.dir, Logger: p.logger,
	})
	yanked := &yanked{log: p.log, reads: p.reads, logger: p.logger}
	write := writeapi.New(writeapi.Options{
		Send: func(ctx context.Context, m commands.Meta, c commands.Command) error {
			return p.send(ctx, []policies.Message{{Meta: m, Command: c}})
		},
		SendAll: func(ctx context.Context, all []writeapi.Sending) error {
			messages := make([]policies.Message, len(all))
			for i, one := range all {
				messages[i] = policies.Message(one)
			}
			return p.send(ctx, messages)
		},
		Await: p.await, Jobs: newJobs(p.log, p.reads), Tags: p.tags, Beat: p.beat,
		Cleared: func(ctx context.Context, position int64) (int, error) {
			return projections.ClearCount(ctx, p.reads, position)
		},
		Yanked: yanked.is,
		Twins: func(ctx context.Context, twins []string) (map[string][]string, error) {
			return projections.Twins(ctx, p.reads, twins)
		},
		Matching: p.matching, Projections: p.read.Names(), Parked: p.parked, Operated: p.operated, Webhook: p.WorkerWebhookURL != "",
		Wheels: wheels, LeaseTime: policies.LeaseTime, IndexURL: p.guard.IndexURL(p.url() + "/simple/"), Logger: p.logger,
	})
	covered := func(models ...string) (int64, uint64) { return p.log.Covered(p.models(models)...) }
	var position func() int64
	if p.has(roleReadAPI) || p.has(roleWriteAPI) { // others do without the news of how far everything is
		p.log.Watch(append(p.covering(), projections.OperatorsName)...)
		position = func() int64 { position, _ := covered(); return position }
	}
	read := readapi.New(readapi.Options{
		Pool: p.reads, Log: p.log, Logger: p.logger, Outcomes: p.outcome, Ready: checker.Check, Covered: covered, Status: p.read.Status,
		Config: func(ctx context.Context) (api.Config, error) {
			tags, err := p.tags(ctx)
			return p.config(tags), err
		},
		Wait: func(ctx context.Context, position int64, models ...string) error {
			return p.log.WaitFor(ctx, position, p.models(models)...)
		},
	})
	h, err := api.New(api.Options{
		Logger: p.logger, Guard: p.guard, Metrics: p.metrics.Handler(), Position: position,
		Done: func(r *http.Request, info *api.Request, status int, took time.Duration) {
			p.metrics.Request(info, status, took)
			p.tracer.Answered(r.Context(), info, status)
		},
		Absent:   p.absent(),
		Loopback: host == "localhost" || ip != nil && ip.IsLoopback(),
	}, server{read, write}, index.New(p.reads, wheels))
	return p.tracer.HTTP(h), err
}

// await waits for a command's outcome, and until everything that serves an answer has seen what it did, or what it found done: the read
// models, and the leases, which answer heartbeats. A refusal shows nothing, and is not waited for.
func (p *plane) await(id uuid.UUID) (wait func(context.Context) (eventlog.Outcome, error), forget func()) {
	outcome, forget := p.log.Expect(id)
	return func(ctx context.Context) (eventlog.Outcome, error) {
		o, err := outcome(ctx)
		if err != nil || o.Status != eventlog.Applied {
			return o, err
		}
		position := o.Last
		if position == 0 { // another command did it before
			if err := p.pool.QueryRow(ctx, `select position from head`).Scan(&position); err != nil {
				return o, err
			}
		}
		return o, p.log.WaitFor(ctx, position, p.covering()...)
	}, forget
}

// models is the read models that are named, all where none is.
func (p *plane) models(named []string) []string {
	if len(named) == 0 {
		return p.read.Names()
	}
	return named
}

func (p *plane) covering() []string { return append(p.read.Names(), policies.LeasesName) }

func (p *plane) outcome(ctx context.Context, id uuid.UUID) (eventlog.Outcome, bool, error) {
	found, err := p.log.Outcomes(ctx, id)
	o, ok := found[id]
	return o, ok, err
}

func (p *plane) beat(ctx context.Context, worker string, leases []writeapi.Lease) ([]api.JobAction, error) {
	jobs := make([]policies.Job, len(leases))
	for i, l := range leases {
		jobs[i] = policies.Job(l)
	}
	held, err := p.leases.Beat(ctx, worker, jobs)
	actions := make([]api.JobAction, len(held))
	for i, h := range held {
		actions[i] = api.JobAction(h)
	}
	return actions, err
}
