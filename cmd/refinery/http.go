package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/wheelrefinery/refinery/api"
	"github.com/wheelrefinery/refinery/commands"
	"github.com/wheelrefinery/refinery/eventlog"
	"github.com/wheelrefinery/refinery/index"
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
func (p *plane) handler(wheels wheelstore.Store) (http.Handler, error) {
	host, _, err := net.SplitHostPort(p.HTTPAddr)
	if err != nil {
		return nil, err
	}
	ip := net.ParseIP(host)
	covered := func(models ...string) (int64, uint64) { return p.log.Covered(p.models(models)...) }
	return api.New(api.Options{
		Logger: p.logger, Token: p.WorkerToken, Position: func() int64 { position, _ := covered(); return position },
		Loopback: host == "localhost" || ip != nil && ip.IsLoopback(),
	}, server{
		readapi.New(readapi.Options{
			Pool: p.reads, Outcomes: p.outcome, Ready: p.ready, Config: p.config(), Covered: covered, Status: p.read.Status,
			Wait: func(ctx context.Context, position int64, models ...string) error {
				return p.log.WaitFor(ctx, position, p.models(models)...)
			},
		}),
		writeapi.New(writeapi.Options{
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
			Await: p.await, Jobs: newJobs(p.log, p.reads), Beat: p.beat,
			Cleared: func(ctx context.Context, position int64) (int, error) {
				return projections.ClearCount(ctx, p.reads, position)
			},
			Twins: func(ctx context.Context, twins []string) (map[string][]string, error) {
				return projections.Twins(ctx, p.reads, twins)
			},
			Wheels: wheels, LeaseTime: policies.LeaseTime, IndexURL: p.url() + "/simple/", Logger: p.logger,
		}),
	}, index.New(p.reads, wheels))
}

// await waits for a command's outcome, and until everything that serves an answer has seen its events: the read models, and the leases,
// which answer heartbeats.
func (p *plane) await(id uuid.UUID) (wait func(context.Context) (eventlog.Outcome, error), forget func()) {
	outcome, forget := p.log.Expect(id)
	return func(ctx context.Context) (eventlog.Outcome, error) {
		o, err := outcome(ctx)
		if err == nil && o.Last > 0 {
			err = p.log.WaitFor(ctx, o.Last, p.covering()...)
		}
		return o, err
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

const (
	partTime = 2 * time.Second // for a part to say how it is
	lagMost  = 1000            // events a read model may be behind and still be called ready
	seenMost = 30 * time.Second
)

// ready looks at each part. Workers are no part of the control plane: that none is there is said, and is not down.
func (p *plane) ready(ctx context.Context) []api.Part {
	ctx, cancel := context.WithTimeout(ctx, partTime)
	defer cancel()
	down := func(name string, err error) api.Part {
		p.logger.Warn("a part is down", "part", name, "error", err)
		return api.Part{Name: name, Status: api.Down, Detail: "does not answer; the log says more"}
	}
	parts := []api.Part{{Name: "bus", Status: api.Ok, Detail: p.QueueBackend}}
	var workers int
	if err := p.reads.QueryRow(ctx, `select count(*) from workers_seen where seen_at > now() - $1::interval`, seenMost).Scan(&workers); err != nil {
		return append(parts, down("postgres", err))
	}
	parts = append(parts, api.Part{Name: "postgres", Status: api.Ok})
	status, err := p.read.Status(ctx)
	if err != nil {
		return append(parts, down("projections", err))
	}
	projection := api.Part{Name: "projections", Status: api.Ok}
	for _, s := range status {
		if s.Lag > lagMost || s.State == "waiting" {
			projection.Status = api.Starting
			projection.Detail = fmt.Sprintf("%s is %d events behind", s.Name, s.Lag)
		}
	}
	return append(parts, projection, api.Part{Name: "workers", Status: api.Ok, Detail: fmt.Sprintf("%d seen in the last %v", workers, seenMost)})
}

// config is what /config tells: no credentials.
func (p *plane) config() api.Config {
	return api.Config{
		Version: version, QueueBackend: p.QueueBackend, IndexURL: p.url() + "/simple/", Strategy: "pinned",
		Limits: map[string]int64{"lease_seconds": int64(policies.LeaseTime / time.Second)},
		Environment: map[string]string{
			"POSTGRES_DSN": withoutUser(p.PostgresDSN), "HTTP_ADDR": p.HTTPAddr, "UI_ADDR": p.UIAddr, "DATA_DIR": p.dir, "PUBLIC_URL": p.PublicURL,
			"REDIS_URL": withoutUser(p.RedisURL), "KAFKA_BROKERS": p.KafkaBrokers, "WORKER_WEBHOOK_URL": withoutUser(p.WorkerWebhookURL),
		},
		Versions: map[string]string{},
	}
}

// withoutUser is an address as it may be shown: without user, password and parameters, which may hold one.
func withoutUser(address string) string {
	scheme, rest, ok := strings.Cut(address, "://")
	if !ok {
		if address == "" {
			return ""
		}
		return "set"
	}
	rest, _, _ = strings.Cut(rest, "?")
	return scheme + "://" + rest[strings.LastIndex(rest, "@")+1:]
}
