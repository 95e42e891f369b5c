package readapi_test

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/wheelrefinery/refinery/api"
	"github.com/wheelrefinery/refinery/api/apitest"
	"github.com/wheelrefinery/refinery/eventlog"
	"github.com/wheelrefinery/refinery/events"
	"github.com/wheelrefinery/refinery/internal/pgtest"
	"github.com/wheelrefinery/refinery/projections"
	"github.com/wheelrefinery/refinery/readapi"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// fixture is a read API over real read models.
type fixture struct {
	t        testing.TB
	pool     *pgxpool.Pool // may write
	log      *eventlog.Log
	runner   *projections.Runner
	reads    *pgxpool.Pool
	options  *readapi.Options // may be changed while no request runs
	handler  http.Handler
	url      string
	versions map[string]int64
}

// writes stands for the other half of the contract, which these tests do not call.
type writes struct{ api.StrictServerInterface }

func start(t testing.TB) *fixture {
	t.Helper()
	dsn := pgtest.DSN(t)
	pool, err := eventlog.Pool(t.Context(), dsn, 16)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	f := &fixture{t: t, pool: pool, versions: map[string]int64{}}
	if f.reads, err = readapi.Pool(t.Context(), dsn, 4); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.reads.Close)
	if f.log, err = eventlog.Open(t.Context(), pool, eventlog.Options{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.log.Close)
	quiet := slog.New(slog.DiscardHandler)
	f.runner = projections.New(f.log, pool, quiet)
	if err := f.runner.Setup(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- f.runner.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	f.options = &readapi.Options{
		Pool: f.reads, Log: f.log, Logger: quiet, Status: f.runner.Status,
		Wait: func(ctx context.Context, position int64, models ...string) error {
			return f.log.WaitFor(ctx, position, f.models(models)...)
		},
		Covered: func(models ...string) (int64, uint64) { return f.log.Covered(f.models(models)...) },
		Outcomes: func(ctx context.Context, id uuid.UUID) (eventlog.Outcome, bool, error) {
			all, err := f.log.Outcomes(ctx, id)
			o, ok := all[id]
			return o, ok, err
		},
		Ready: func(context.Context) []api.Part { return []api.Part{{Name: "postgres", Status: api.Ok}} },
		Config: func(context.Context) (api.Config, error) {
			return api.Config{QueueBackend: "file", Environment: map[string]string{}, Limits: map[string]int64{}, Versions: map[string]string{}}, nil
		},
		URL: base + "/",
	}
	f.serve()
	return f
}

func (f *fixture) models(named []string) []string {
	if len(named) == 0 {
		return f.runner.Names()
	}
	return named
}

const base = "http://refinery.test"

// serve makes the handler of the options as they are now.
func (f *fixture) serve() {
	f.t.Helper()
	var err error
	f.handler, err = api.New(api.Options{
		Logger:   slog.New(slog.NewTextHandler(f.t.Output(), nil)),
		Position: func() int64 { position, _ := f.options.Covered(); return position },
	}, struct {
		*readapi.Server
		writes
	}{readapi.New(*f.options), writes{}}, http.NotFoundHandler())
	if err != nil {
		f.t.Fatal(err)
	}
	s := httptest.NewServer(apitest.Check(f.t, f.handler))
	f.t.Cleanup(func() { s.Close(); http.DefaultClient.CloseIdleConnections() })
	f.url = s.URL
}

// add appends events and waits until the read models show them.
func (f *fixture) add(stream string, es ...events.Event) int64 {
	f.t.Helper()
	last := f.append(stream, es...)
	ctx, cancel := context.WithTimeout(f.t.Context(), 10*time.Second)
	defer cancel()
	if err := f.runner.Wait(ctx, last); err != nil {
		f.t.Fatal(err)
	}
	return last
}

// append appends events and returns the position of the last.
func (f *fixture) append(stream string, es ...events.Event) int64 {
	f.t.Helper()
	results, err := f.log.Append(f.t.Context(), eventlog.Entry{
		Outcome:  eventlog.Outcome{Command: uuid.New(), Name: "test", Stream: stream, Actor: "tester", Status: eventlog.Applied},
		Expected: f.versions[stream], Events: es,
	})
	if err != nil || results[0].Err != nil {
		f.t.Fatal(err, results)
	}
	f.versions[stream] += int64(len(es))
	return results[0].Outcome.Last
}

// get answers with the status, the headers and the body, decoded where it is JSON.
func (f *fixture) get(path string, header ...string) (int, http.Header, any) {
	f.t.Helper()
	r, err := http.NewRequestWithContext(f.t.Context(), http.MethodGet, f.url+path, nil)
	if err != nil {
		f.t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		f.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		f.t.Fatal(err)
	}
	var v any
	if !strings.Contains(resp.Header.Get("Content-Type"), "json") {
		return resp.StatusCode, resp.Header, string(body)
	}
	if err := json.Unmarshal(body, &v); err != nil {
		f.t.Fatalf("%s: %v\n%s", path, err, body)
	}
	return resp.StatusCode, resp.Header, v
}

// raw answers with the status and the body as they are, whatever the contract says of them.
func (f *fixture) raw(path string) (int, string) {
	f.t.Helper()
	w := httptest.NewRecorder()
	f.handler.ServeHTTP(w, httptest.NewRequestWithContext(f.t.Context(), http.MethodGet, path, nil))
	return w.Code, w.Body.String()
}

func (f *fixture) expect(path string, status int) any {
	f.t.Helper()
	got, _, body := f.get(path)
	if got != status {
		f.t.Errorf("%s: %d, want %d: %v", path, got, status, body)
	}
	return body
}

// pick follows keys and indexes into decoded JSON.
func pick(v any, path ...any) any {
	for _, p := range path {
		switch p := p.(type) {
		case string:
			m, _ := v.(map[string]any)
			v = m[p]
		case int:
			l, _ := v.([]any)
			if p >= len(l) {
				return nil
			}
			v = l[p]
		}
	}
	return v
}

func (f *fixture) same(want, got any) {
	f.t.Helper()
	if n, ok := want.(int); ok {
		want = float64(n)
	}
	if n, ok := got.(int); ok {
		got = float64(n)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		f.t.Errorf("want (-), got (+):\n%s", diff)
	}
}

func id(name string) events.BuildID {
	return events.BuildID{Name: name, Version: "1.0", PythonTag: "cp311", PlatformTag: "linux_x86_64"}
}

var (
	runID = uuid.MustParse("00000000-0000-0000-0000-0000000000aa")
	wheel = events.File{Filename: "flask-1.0-py3-none-any.whl", SHA256: strings.Repeat("ab", 32), Size: 10}
)
