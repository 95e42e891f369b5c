package policies

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/wheelrefinery/refinery/commands"
	"github.com/wheelrefinery/refinery/eventlog"
	"github.com/wheelrefinery/refinery/events"
	"github.com/wheelrefinery/refinery/internal/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

var noon = time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)

func hash(s string) string { return fmt.Sprintf("%064x", s) }

func sdist(name string) *events.File {
	return &events.File{Filename: name + "-1.tar.gz", URL: "https://files.example/" + name, SHA256: hash("s" + name)}
}

func wheel(name string) *events.File {
	return &events.File{Filename: name + "-1-py3-none-any.whl", SHA256: hash("w" + name), Size: 7}
}

// build is a node that is to be built.
func build(name string) events.Node {
	return events.Node{Name: name, Version: "1", PythonTag: "cp311", PlatformTag: "any", Action: "build", Reason: "asked", Sdist: sdist(name)}
}

// reuse is a node whose wheel is published elsewhere.
func reuse(name string) events.Node {
	n := build(name)
	n.Action, n.Reason, n.Wheel = "reuse", "published-wheel", wheel(name)
	return n
}

func skip(name string) events.Node {
	n := build(name)
	n.Action, n.Reason = "skip", "marker"
	return n
}

func id(name string) events.BuildID { return build(name).Build() }

// needs makes build edges: "a>b c>b".
func needs(spec string) (edges []events.Edge) {
	for _, part := range strings.Fields(spec) {
		from, to, _ := strings.Cut(part, ">")
		edges = append(edges, events.Edge{From: from + "/1", To: to + "/1", Kind: "build"})
	}
	return edges
}

// world is a real log with a real handler, and policies that send into a slice; in a closed loop, what they send is handled as well.
type world struct {
	*testing.T
	pool    *pgxpool.Pool
	log     *eventlog.Log
	handler *commands.Handler
	loop    bool

	mu   sync.Mutex
	sent []Message
	fail error // what send answers, after it has sent
	stop []func()
}

func newWorld(t *testing.T) *world {
	w := &world{T: t, pool: pgtest.New(t)}
	w.open()
	t.Cleanup(w.close)
	return w
}

// open starts log and handler, as a new process would.
func (w *world) open() {
	w.Helper()
	var err error
	if w.log, err = eventlog.Open(w.Context(), w.pool, eventlog.Options{Owner: "me"}); err != nil {
		w.Fatal(err)
	}
	w.stop = append(w.stop, w.log.Close)
	w.handler = commands.NewHandler(w.log, slog.New(slog.DiscardHandler))
	w.background(w.handler.Run)
}

func (w *world) background(run func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	w.stop = append(w.stop, func() {
		cancel()
		if err := <-done; err != nil {
			w.Error(err)
		}
	})
}

func (w *world) follow(f eventlog.Follower) {
	log := w.log
	w.background(func(ctx context.Context) error { return log.Run(ctx, f) })
}

func (w *world) close() {
	for _, stop := range slices.Backward(w.stop) {
		stop()
	}
	w.stop = nil
}

// send is what policies get.
func (w *world) send(ctx context.Context, messages []Message) error {
	w.mu.Lock()
	w.sent = append(w.sent, messages...)
	fail, loop := w.fail, w.loop
	w.mu.Unlock()
	for _, m := range messages {
		payload, err := commands.Encode(m.Meta, m.Command)
		if err != nil {
			w.Errorf("a policy sends what is not valid: %s: %v", m.Command.Name(), err)
			return err
		}
		if loop {
			if err := w.handler.Handle(ctx, payload); err != nil {
				return err
			}
		}
	}
	return fail
}

// closeLoop has what policies send handled from now on.
func (w *world) closeLoop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.loop = true
}

func (w *world) failing(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.fail = err
}

// do has commands from outside handled; each must be applied.
func (w *world) do(cs ...commands.Command) {
	w.Helper()
	for _, c := range cs {
		m := Message{commands.Meta{ID: uuid.New(), Actor: "tester"}, c}
		if o := w.handle(m); o.Status != eventlog.Applied {
			w.Fatalf("%s %s: %v", c.Name(), c.Stream(), o.Problem)
		}
	}
}

func (w *world) handle(m Message) eventlog.Outcome {
	w.Helper()
	payload, err := commands.Encode(m.Meta, m.Command)
	if err != nil {
		w.Fatal(err)
	}
	if err := w.handler.Handle(w.Context(), payload); err != nil {
		w.Fatal(err)
	}
	found, err := w.log.Outcomes(w.Context(), m.Meta.ID)
	if err != nil {
		w.Fatal(err)
	}
	return found[m.Meta.ID]
}

// plan brings a run to its plan.
func (w *world) plan(edges []events.Edge, nodes ...events.Node) uuid.UUID {
	w.Helper()
	run := uuid.New()
	w.do(
		commands.SubmitRun{Run: run, Requirements: "x", Strategy: "pinned", Build: "all"},
		commands.LeasePlan{Run: run, Worker: "w", ExpiresAt: noon},
		commands.RecordPlan{Run: run, Attempt: 1, Plan: uuid.New(), Worker: "w", PythonTag: "cp311", PlatformTag: "any", Nodes: nodes, Edges: edges},
	)
	return run
}

// succeed and failed are a worker's attempts at a build that waits; to the failed one no hint applies.
func (w *world) succeed(names ...string) {
	w.Helper()
	for _, name := range names {
		a := w.lease(name)
		w.do(commands.SucceedBuild{Build: id(name), Attempt: a, Worker: "w", Wheel: *wheel(name), SdistSHA256: sdist(name).SHA256, DurationMS: 5})
	}
}

func (w *world) failed(name string) {
	w.Helper()
	a := w.lease(name)
	w.do(
		commands.FailBuild{Build: id(name), Attempt: a, Worker: "w", Class: events.ClassCompiler, Reason: "no gcc"},
		commands.HintBuild{Build: id(name), Attempt: a, Most: 1, FailedAt: noon},
	)
}

func (w *world) lease(name string) (attempt int) {
	w.Helper()
	w.do(commands.LeaseBuild{Build: id(name), Worker: "w", ExpiresAt: time.Now().Add(time.Hour)})
	return w.build(name).Attempt
}

func (w *world) build(name string) (b commands.Build) {
	w.Helper()
	for _, e := range w.stream(id(name).Stream()) {
		b = b.Fold(e.(events.BuildEvent))
	}
	return b
}

func (w *world) stream(name string) (all []events.Event) {
	w.Helper()
	streams, err := w.log.Load(w.Context(), name)
	if err != nil {
		w.Fatal(err)
	}
	for _, e := range streams[name].Events {
		all = append(all, e.Event)
	}
	return all
}

// settle waits until each policy has reacted to everything; in a closed loop their commands make new events.
func (w *world) settle(names ...string) {
	w.Helper()
	ctx, cancel := context.WithTimeout(w.Context(), 20*time.Second)
	defer cancel()
	for head := int64(-1); head != w.log.Head(); {
		head = w.log.Head()
		if err := w.log.WaitFor(ctx, head, names...); err != nil {
			w.Fatalf("%v do not come to %d: %v", names, head, err)
		}
	}
}

// take returns what was sent since the last time, as "enqueue a, skip b".
func (w *world) take() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var lines []string
	for _, m := range w.sent {
		lines = append(lines, short(m))
	}
	w.sent = nil
	return strings.Join(lines, ", ")
}

func short(m Message) string {
	_, verb, _ := strings.Cut(m.Command.Name(), ".")
	if id, ok := events.ParseBuild(m.Command.Stream()); ok {
		return verb + " " + id.Name
	}
	return verb
}

func (w *world) messages() []Message {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.sent)
}

// wants fails unless exactly this was sent since the last time.
func (w *world) wants(what string) {
	w.Helper()
	w.settle(runs)
	if got := w.take(); got != what {
		w.Errorf("sent %q, want %q", got, what)
	}
}

// finished returns how the run ended; it must have, once.
func (w *world) finished(run uuid.UUID) events.RunFinished {
	w.Helper()
	var all []events.RunFinished
	for _, e := range w.stream(events.RunStream(run)) {
		if e, ok := e.(events.RunFinished); ok {
			all = append(all, e)
		}
	}
	if len(all) != 1 {
		w.Fatalf("the run ended %d times", len(all))
	}
	return all[0]
}

// manifest is "a built, b failed".
func manifest(entries []events.ManifestEntry) string {
	var lines []string
	for _, e := range entries {
		lines = append(lines, e.Name+" "+e.Status)
	}
	return strings.Join(lines, ", ")
}

var errCrash = errors.New("the process died here")
