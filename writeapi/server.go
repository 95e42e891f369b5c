// Package writeapi implements the operations tagged write: each decodes, validates, sends a command and waits for its outcome. Nothing
// here touches Postgres: what it must know beside the request is handed in.
package writeapi

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/wheelrefinery/refinery/api"
	"github.com/wheelrefinery/refinery/commands"
	"github.com/wheelrefinery/refinery/eventlog"
	"github.com/wheelrefinery/refinery/events"
	"github.com/wheelrefinery/refinery/internal/fault"
	"github.com/wheelrefinery/refinery/internal/wheelstore"
)

// Options is what the wiring hands in. All of it is needed.
type Options struct {
	// Send puts a command on the bus; it is durable when Send returns nil. An error that is no fault.Error counts as Unavailable.
	Send func(ctx context.Context, m commands.Meta, c commands.Command) error
	// SendAll puts many on the bus, in order, in one go.
	SendAll func(ctx context.Context, all []Sending) error
	// Await prepares, before a command is sent, to wait for its outcome: until it is recorded and every read model covers its events.
	// forget is called once, when nobody waits any more.
	Await func(id uuid.UUID) (wait func(context.Context) (eventlog.Outcome, error), forget func())
	Jobs  Jobs
	// Tags reads which pairs of tags the workers of late have.
	Tags func(ctx context.Context) ([]Tags, error)
	// Matching finds the builds that f means and that have one of these statuses, at most most, and counts all of them.
	Matching func(ctx context.Context, f api.BulkFilter, statuses []api.BuildStatus, most int) (ids []events.BuildID, total int64, err error)
	// Beat extends the leases that worker holds and says how each of them stands.
	Beat func(ctx context.Context, worker string, leases []Lease) ([]api.JobAction, error)
	// Cleared says how many builds the queue.cleared event at position took out of the queue.
	Cleared func(ctx context.Context, position int64) (int, error)
	// Yanked says whether the newest wheel of a build is yanked. It is asked at every enqueue and must be cheap.
	Yanked func(ctx context.Context, build events.BuildID) bool
	// Twins finds the hints that match the same as given ones: ids by events.Hint.Twin.
	Twins func(ctx context.Context, twins []string) (map[string][]string, error)
	// Projections names the read models, Parked reads what one of them has put aside: of a stream, or where none is named of the stream
	// of the event at position. Operated returns when what operators asked for up to position is done, or begun where that takes long.
	Projections []string
	Parked      func(ctx context.Context, projection string, position int64, stream string) (ParkedStream, error)
	Operated    func(ctx context.Context, position int64) error
	Webhook     bool // there is one, which a policy calls
	Wheels      wheelstore.Store
	// LeaseTime is how long a lease holds without a heartbeat.
	LeaseTime time.Duration
	// IndexURL is the refinery's own index, as workers reach it; it may hold a password that lasts as long as a job.
	IndexURL func(context.Context) (string, error)
	Logger   *slog.Logger
}

// Tags are those of a worker.
type Tags struct{ Python, Platform string }

// Sending is a command with what travels with it.
type Sending struct {
	Meta    commands.Meta
	Command commands.Command
}

// Server has a method for each operation tagged write.
type Server struct {
	Options

	mu      sync.Mutex
	workers map[string]commands.RegisterWorker // those that have been registered from here
}

// New makes a Server.
func New(o Options) *Server {
	return &Server{Options: o, workers: map[string]commands.RegisterWorker{}}
}

// patience is how long a write waits for its outcome.
const patience = 5 * time.Second

// namespace is for ids that are made of what a client sent.
var namespace = uuid.MustParse("6f1b0f43-7c5c-4a36-9d0e-8b7a52a0a3c1")

// meta begins the command of a request. With an Idempotency-Key, the same request has the same id whenever it is sent.
func meta(ctx context.Context, worker string) commands.Meta {
	r := api.RequestFrom(ctx)
	m := commands.Meta{Actor: r.Actor}
	if worker != "" {
		m.Actor = workerActor(ctx, worker)
	}
	if r.IdempotencyKey == "" {
		m.ID = uuid.Must(uuid.NewV7())
	} else {
		m.ID = uuid.NewSHA1(namespace, []byte(m.Actor+"\x00"+r.Method+" "+r.Path+"\x00"+r.IdempotencyKey))
	}
	return m
}

// workerActor names a worker, and the token that it showed where that has a name.
func workerActor(ctx context.Context, worker string) string {
	if token := api.RequestFrom(ctx).Token; token != "" {
		return token + "/worker/" + worker
	}
	return "worker/" + worker
}

// digest tells requests apart that have the same id: it covers what the request means, not how it is written.
func digest(ctx context.Context, name string, meaning any) (string, error) {
	data, err := json.Marshal(meaning)
	if err != nil {
		return "", fmt.Errorf("encode %s: %w", name, err)
	}
	r := api.RequestFrom(ctx)
	sum := sha256.Sum256(fmt.Appendf(nil, "%s %s\n%s", r.Method, r.Path, data))
	return hex.EncodeToString(sum[:]), nil
}

// send sends c as the command of the request and waits for its outcome. answer makes the response of the state S that an applied
// command leaves its stream in; a refusal is the error. While there is no outcome, the response is 202.
func send[S any](ctx context.Context, s *Server, m commands.Meta, c commands.Command, answer func(S, eventlog.Outcome) api.Answer) (api.Answer, error) {
	o, err := s.outcome(ctx, m, c, api.RequestFrom(ctx).Async)
	if p, ok := errors.AsType[*pending](err); ok {
		return p.answer(), nil
	}
	if err != nil {
		return api.Answer{}, err
	}
	if o.Status == eventlog.Failed {
		return failed(o), nil
	}
	var state S
	if err := json.Unmarshal(o.Result, &state); err != nil {
		return api.Answer{}, fmt.Errorf("decode the result of %s: %w", c.Name(), err)
	}
	a := answer(state, o)
	if o.Last > 0 {
		if a.Header == nil {
			a.Header = http.Header{}
		}
		a.Header.Set("Refinery-Position", strconv.FormatInt(o.Last, 10))
	}
	return a, nil
}

// pending says that a command is stored and not decided yet.
type pending struct {
	id    uuid.UUID
	name  string
	async bool // as asked for
}

func (p *pending) Error() string { return p.name + " is not decided yet" }

func (p *pending) answer() api.Answer {
	h := http.Header{"Location": {"/commands/" + p.id.String()}}
	if p.async {
		h.Set("Preference-Applied", "respond-async")
	}
	return api.Answer{Status: http.StatusAccepted, Header: h, Body: api.Command{ID: p.id, Name: p.name, Status: api.CommandStatusPending}}
}

// outcome sends c and waits for its outcome. The error is a *pending, or the refusal.
func (s *Server) outcome(ctx context.Context, m commands.Meta, c commands.Command, async bool) (eventlog.Outcome, error) {
	if m.Digest == "" {
		var err error
		if m.Digest, err = digest(ctx, c.Name(), c); err != nil {
			return eventlog.Outcome{}, err
		}
	}
	m.Async = async
	api.RequestFrom(ctx).Note("command", m.ID, "stream", c.Stream())
	wait, forget := s.Await(m.ID)
	defer forget()
	if err := s.store(ctx, m, c); err != nil {
		return eventlog.Outcome{}, err
	}
	if async {
		return eventlog.Outcome{}, &pending{m.ID, c.Name(), true}
	}
	patient, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	o, err := wait(patient)
	switch {
	case ctx.Err() != nil:
		return o, ctx.Err()
	case err != nil:
		// The command is stored: it will be decided, whatever keeps the outcome from being seen.
		if !errors.Is(err, context.DeadlineExceeded) {
			s.Logger.Warn("the outcome of a command cannot be waited for", "command", m.ID, "name", c.Name(), "error", err)
		}
		return o, &pending{m.ID, c.Name(), false}
	case o.Digest != m.Digest:
		return o, fault.New(fault.Invalid, "The Idempotency-Key was used for another request. Use a new one.")
	case o.Status == eventlog.Refused:
		return o, o.Problem
	}
	return o, nil
}

// store sends c and makes Unavailable of what has no code.
func (s *Server) store(ctx context.Context, m commands.Meta, c commands.Command) error {
	return stored(c.Name(), s.Send(ctx, m, c))
}

func stored(what string, err error) error {
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*fault.Error](err); ok {
		return err
	}
	return fmt.Errorf("send %s: %w: %w", what, err, fault.New(fault.Unavailable, "The bus does not take commands now. Try again, with the same Idempotency-Key: it may have taken this one."))
}

// failed is the answer when a command could not be handled. It will not be handled any more.
func failed(o eventlog.Outcome) api.Answer {
	p := api.NewProblem(o.Problem)
	if p.Status < 500 {
		p.Status = http.StatusInternalServerError
	}
	p.Detail = fmt.Sprintf("%s: see /commands/%s.", p.Detail, o.Command)
	return api.Answer{Status: p.Status, Body: p}
}
