package writeapi_test

import (
	"archive/zip"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"

	"github.com/wheelrefinery/refinery/api"
	"github.com/wheelrefinery/refinery/api/apitest"
	"github.com/wheelrefinery/refinery/bus"
	"github.com/wheelrefinery/refinery/bus/transport"
	"github.com/wheelrefinery/refinery/commands"
	"github.com/wheelrefinery/refinery/eventlog"
	"github.com/wheelrefinery/refinery/events"
	"github.com/wheelrefinery/refinery/internal/fault"
	"github.com/wheelrefinery/refinery/internal/pgtest"
	"github.com/wheelrefinery/refinery/internal/wheelstore"
	"github.com/wheelrefinery/refinery/policies"
	"github.com/wheelrefinery/refinery/writeapi"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// jobs gives out what a test puts in; the wiring's reads the read models.
type jobs struct {
	mu    sync.Mutex
	list  []*writeapi.Candidate
	asked []writeapi.Worker
	done  int
}

func (j *jobs) put(c ...*writeapi.Candidate) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.list = append(j.list, c...)
}

func (j *jobs) Next(_ context.Context, w writeapi.Worker, _ time.Duration) (*writeapi.Candidate, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.asked = append(j.asked, w)
	if len(j.list) == 0 {
		return nil, nil
	}
	c := j.list[0]
	j.list = j.list[1:]
	return c, nil
}

func (*jobs) Wake() int { return 3 }

func (j *jobs) Done(*writeapi.Candidate) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.done++
}

// plane is the write path with its real parts: bus, handler, log, leases, store.
type plane struct {
	t       *testing.T
	log     *eventlog.Log
	handler http.Handler
	bare    http.Handler // without the check of answers
	jobs    *jobs
	store   string
	cleared int64
	yanked  bool // every build's wheel is
	twins   map[string][]string
}

// gate lets a test make Send and Await fail.
type gate struct {
	send  func(commands.Meta, commands.Command) error
	await func(uuid.UUID) (func(context.Context) (eventlog.Outcome, error), func())
}

// start starts a plane; tests that start it more than once share nothing.
func start(t *testing.T, g gate) *plane {
	t.Helper()
	pool := pgtest.New(t)
	logger := slog.New(slog.DiscardHandler)
	log, err := eventlog.Open(t.Context(), pool, eventlog.Options{Logger: logger})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(log.Close)
	b, err := transport.Open(t.Context(), transport.Config{Backend: "file", Dir: t.TempDir(), Logger: logger})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	h := commands.NewHandler(log, logger)
	router, err := bus.NewRouter(b, logger, "handlers",
		func(m *message.Message, reason error) error { return h.Fail(m.Context(), m.UUID, m.Payload, reason) },
		map[string]bus.Handler{bus.TopicCommands: func(m *message.Message) error { return h.Handle(m.Context(), m.Payload) }})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	leases := policies.NewLeases(pool, nil, logger)
	wg.Go(func() { _ = h.Run(ctx) })
	wg.Go(func() { _ = router.Run(ctx) })
	wg.Go(func() { _ = log.Run(ctx, leases.Follower()) })
	t.Cleanup(func() {
		_ = router.Close()
		cancel()
		wg.Wait()
	})
	p := &plane{t: t, log: log, jobs: &jobs{}, store: filepath.Join(t.TempDir(), "wheels")}
	store, err := wheelstore.Open(p.store)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	o := writeapi.Options{
		Send: func(_ context.Context, m commands.Meta, c commands.Command) error {
			if g.send != nil {
				if err := g.send(m, c); err != nil {
					return err
				}
			}
			payload, err := commands.Encode(m, c)
			if err != nil {
				return err
			}
			return b.Publish(bus.TopicCommands, bus.NewMessage(m.ID.String(), c.Stream(), payload))
		},
		SendAll: func(_ context.Context, all []writeapi.Sending) error {
			messages := make([]*message.Message, len(all))
			for i, one := range all {
				if g.send != nil {
					if err := g.send(one.Meta, one.Command); err != nil {
						return err
					}
				}
				payload, err := commands.Encode(one.Meta, one.Command)
				if err != nil {
					return err
				}
				messages[i] = bus.NewMessage(one.Meta.ID.String(), one.Command.Stream(), payload)
			}
			return b.Publish(bus.TopicCommands, messages...)
		},
		Yanked: func(context.Context, events.BuildID) bool { return p.yanked },
		Twins: func(_ context.Context, twins []string) (map[string][]string, error) {
			found := map[string][]string{}
			for _, twin := range twins {
				found[twin] = p.twins[twin]
			}
			return found, nil
		},
		Await: func(id uuid.UUID) (func(context.Context) (eventlog.Outcome, error), func()) {
			expect, forget := log.Expect(id)
			return func(ctx context.Context) (eventlog.Outcome, error) {
				o, err := expect(ctx)
				if err != nil {
					return o, err
				}
				return o, log.WaitFor(ctx, o.Last, "policy:leases")
			}, forget
		},
		Jobs: p.jobs,
		Tags: func(ctx context.Context) (all []writeapi.Tags, err error) {
			recorded, err := log.Read(ctx, 0, 1000)
			for _, r := range recorded {
				if e, ok := r.Event.(events.WorkerRegistered); ok && !slices.Contains(all, writeapi.Tags{Python: e.PythonTag, Platform: e.PlatformTag}) {
					all = append(all, writeapi.Tags{Python: e.PythonTag, Platform: e.PlatformTag})
				}
			}
			return all, err
		},
		Beat: func(ctx context.Context, worker string, held []writeapi.Lease) ([]api.JobAction, error) {
			list := make([]policies.Job, len(held))
			for i, l := range held {
				list[i] = policies.Job(l)
			}
			states, err := leases.Beat(ctx, worker, list)
			actions := make([]api.JobAction, len(states))
			for i, s := range states {
				actions[i] = api.JobAction(s)
			}
			return actions, err
		},
		Cleared: func(_ context.Context, position int64) (int, error) {
			p.cleared = position
			return 7, nil
		},
		Matching: func(context.Context, api.BulkFilter, []api.BuildStatus, int) ([]events.BuildID, int64, error) {
			return []events.BuildID{markup}, 10_001, nil
		},
		Wheels: store, LeaseTime: time.Minute, IndexURL: func(context.Context) (string, error) { return "http://localhost/simple/", nil }, Logger: logger,
	}
	if g.await != nil {
		o.Await = g.await
	}
	p.bare = serve(t, writeapi.New(o))
	p.handler = apitest.Check(t, p.bare)
	return p
}

// reads stands where the read operations are.
type reads struct{ api.StrictServerInterface }

func serve(t *testing.T, s *writeapi.Server) http.Handler {
	h, err := api.New(api.Options{Logger: slog.New(slog.DiscardHandler)}, struct {
		reads
		*writeapi.Server
	}{reads{}, s}, http.NotFoundHandler())
	if err != nil {
		t.Fatal(err)
	}
	return h
}

type answer struct {
	*httptest.ResponseRecorder
	t *testing.T
}

// into decodes the body.
func into[T any](a answer) T {
	a.t.Helper()
	var v T
	if err := json.Unmarshal(a.Body.Bytes(), &v); err != nil {
		a.t.Fatalf("%v: %s", err, a.Body)
	}
	return v
}

// send sends a request; headers are pairs. It fails the test when the status is not want.
func (p *plane) send(want int, method, target string, body any, headers ...string) answer {
	p.t.Helper()
	var r *http.Request
	switch b := body.(type) {
	case nil:
		r = httptest.NewRequest(method, target, nil)
	case io.Reader:
		r = httptest.NewRequest(method, target, b)
	case string:
		r = httptest.NewRequest(method, target, strings.NewReader(b))
		r.Header.Set("Content-Type", "application/json")
	default:
		data, err := json.Marshal(b)
		if err != nil {
			p.t.Fatal(err)
		}
		r = httptest.NewRequest(method, target, bytes.NewReader(data))
		r.Header.Set("Content-Type", "application/json")
	}
	for pair := range slices.Chunk(headers, 2) {
		r.Header.Set(pair[0], pair[1])
	}
	w := httptest.NewRecorder()
	p.handler.ServeHTTP(w, r)
	if w.Code != want {
		p.t.Fatalf("%s %s: %d, want %d: %s", method, target, w.Code, want, w.Body)
	}
	return answer{w, p.t}
}

// stream returns a stream's events.
func (p *plane) stream(name string) []events.Recorded {
	p.t.Helper()
	m, err := p.log.Load(p.t.Context(), name)
	if err != nil {
		p.t.Fatal(err)
	}
	return m[name].Events
}

func names(evs []events.Recorded) []string {
	var all []string
	for _, e := range evs {
		all = append(all, e.Event.Name())
	}
	return all
}

// says fails the test unless the problem's detail or one of its errors has text.
func (a answer) says(text string) {
	a.t.Helper()
	p := into[api.Problem](a)
	found := strings.Contains(p.Detail, text)
	for _, e := range p.Errors {
		found = found || strings.Contains(e.Pointer+" "+e.Detail, text)
	}
	if !found {
		a.t.Errorf("no %q in %s", text, a.Body)
	}
}

const wheelName = "markupsafe-2.1.5-cp311-cp311-linux_x86_64.whl"

// makeWheel makes a small real wheel; extra makes its bytes differ.
func makeWheel(t *testing.T, version, extra string) (content []byte, sum string) {
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for name, text := range map[string]string{
		"markupsafe/__init__.py":               extra,
		"markupsafe-2.1.5.dist-info/METADATA":  "Metadata-Version: 2.1\nName: MarkupSafe\nVersion: " + version + "\nRequires-Python: >=3.7\n",
		"markupsafe-2.1.5.dist-info/WHEEL":     "Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: cp311-cp311-linux_x86_64\n",
		"markupsafe-2.1.5.dist-info/RECORD":    "",
		"markupsafe-2.1.5.dist-info/empty.txt": "",
	} {
		w, err := z.Create(name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, text); err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	hash := sha256.Sum256(b.Bytes())
	return b.Bytes(), hex.EncodeToString(hash[:])
}

var (
	errDown   = &fault.Error{Code: fault.Unavailable, Message: "the bus is down"}
	markup    = events.BuildID{Name: "markupsafe", Version: "2.1.5", PythonTag: "cp311", PlatformTag: "linux_x86_64"}
	markupAPI = api.BuildID{Name: "MarkupSafe", Version: "2.1.5", PythonTag: "cp311", PlatformTag: "linux_x86_64"}
	leaseAsk  = api.LeaseRequest{Worker: "w1", Slots: 2, PythonTag: "cp311", PlatformTag: "linux_x86_64", PythonVersion: "3.11.7", Version: "dev", Host: "h"}
)
