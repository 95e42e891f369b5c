package api_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/getkin/kin-openapi/openapi3"

	"github.com/wheelrefinery/refinery/api"
	"github.com/wheelrefinery/refinery/api/apitest"
	"github.com/wheelrefinery/refinery/internal/fault"
	"github.com/wheelrefinery/refinery/internal/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// server answers a few operations; the rest panics, which is an internal error.
type server struct {
	api.StrictServerInterface
	run     func(api.SubmitRunRequestObject) (api.SubmitRunResponseObject, error)
	enqueue *api.EnqueueRequest
	summary error
	put     func(io.Reader) error
}

func (s *server) Enqueue(_ context.Context, r api.EnqueueRequestObject) (api.EnqueueResponseObject, error) {
	s.enqueue = r.Body
	return api.Answer{Status: http.StatusCreated, Header: http.Header{"Location": {"/builds/x"}}, Body: api.EnqueueAnswer{
		Build: api.BuildID{Name: "flask", Version: "3.0", PythonTag: "cp311", PlatformTag: "linux_x86_64"}, Status: "queued",
	}}, nil
}

func (s *server) SubmitRun(_ context.Context, r api.SubmitRunRequestObject) (api.SubmitRunResponseObject, error) {
	return s.run(r)
}

func (s *server) GetQueueStats(context.Context, api.GetQueueStatsRequestObject) (api.GetQueueStatsResponseObject, error) {
	return api.GetQueueStats200JSONResponse{Body: api.QueueStats{ByTag: []api.TagLength{}}}, s.summary
}

func (s *server) ListRuns(context.Context, api.ListRunsRequestObject) (api.ListRunsResponseObject, error) {
	return api.ListRuns200JSONResponse{Body: api.RunList{Items: []api.Run{}}}, nil
}

func (s *server) ResumeQueue(context.Context, api.ResumeQueueRequestObject) (api.ResumeQueueResponseObject, error) {
	return api.Answer{Status: http.StatusOK, Body: api.QueueState{}}, nil
}

func (s *server) GetBuild(_ context.Context, r api.GetBuildRequestObject) (api.GetBuildResponseObject, error) {
	return nil, fault.New(fault.NotFound, "version is %s", r.Version)
}

func (s *server) PutArtifact(_ context.Context, r api.PutArtifactRequestObject) (api.PutArtifactResponseObject, error) {
	if err := s.put(r.Body); err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	return api.Answer{Status: http.StatusCreated, Body: api.ArtifactAnswer{}}, nil
}

func serve(t testing.TB, o api.Options, s *server) http.Handler {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	index := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		fmt.Fprint(w, "index of "+r.URL.Path)
	})
	h, err := api.New(o, s, index)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

const enqueueFlask = `{"package":"Flask","version":"3.0"}`

func TestRequests(t *testing.T) {
	build := "/builds/a/1.0/cp311/linux_x86_64"
	for _, c := range []struct {
		name, method, target, body string
		header                     map[string]string
		chunked                    bool
		status                     int
		pointer, detail            string
	}{
		{name: "good", method: "POST", target: "/queue/enqueue", body: enqueueFlask, status: 201},
		{name: "charset", method: "POST", target: "/queue/enqueue", body: enqueueFlask, header: map[string]string{"Content-Type": "Application/JSON; charset=utf-8"}, status: 201},
		{name: "unknown path", method: "GET", target: "/nothing", status: 404},
		{name: "slash too many", method: "GET", target: "//queue", status: 404},
		{name: "encoded slash", method: "GET", target: "/builds/a%2Fb/1.0/cp311/linux_x86_64", status: 404},
		{name: "dots", method: "GET", target: "/builds/a/../cp311/linux_x86_64", status: 400, pointer: "path:version"},
		{name: "escaped epoch", method: "GET", target: "/builds/a/1%211.0+local/cp311/linux_x86_64", status: 404, detail: "version is 1!1.0+local"},
		{name: "wrong method", method: "DELETE", target: "/queue", status: 405},
		{name: "wrong content type", method: "POST", target: "/queue/enqueue", body: enqueueFlask, header: map[string]string{"Content-Type": "text/plain"}, status: 415},
		{name: "wheel's content type", method: "PUT", target: "/artifacts/a-1-py3-none-any.whl", body: "x", status: 415},
		{name: "unknown field", method: "POST", target: "/queue/enqueue", body: `{"package":"a","version":"1","wheel":1}`, status: 400, pointer: "/wheel", detail: "not known"},
		{name: "missing field", method: "POST", target: "/queue/enqueue", body: `{"package":"a"}`, status: 400, pointer: "/version", detail: "missing"},
		{name: "wrong type", method: "POST", target: "/queue/enqueue", body: `{"package":7,"version":"1"}`, status: 400, pointer: "/package", detail: "type string"},
		{name: "null", method: "POST", target: "/queue/enqueue", body: `{"package":null,"version":"1"}`, status: 400, pointer: "/package"},
		{name: "nested", method: "POST", target: "/queue/enqueue", body: `{"package":"a","version":"1","recipes":[{"kind":"brew","items":[]}]}`, status: 400, pointer: "/recipes/0/kind", detail: "one of"},
		{name: "too large a number", method: "POST", target: "/queue/enqueue", body: `{"package":"a","version":"1","priority":1e99}`, status: 400, pointer: "/priority"},
		{name: "fraction", method: "POST", target: "/queue/enqueue", body: `{"package":"a","version":"1","priority":1.5}`, status: 400, pointer: "/priority"},
		{name: "not JSON", method: "POST", target: "/queue/enqueue", body: `{"package":`, status: 400, detail: "not JSON"},
		{name: "more than JSON", method: "POST", target: "/queue/enqueue", body: enqueueFlask + "{}", status: 400, detail: "not JSON"},
		{name: "NUL", method: "POST", target: "/queue/enqueue", body: `{"package":"a\u0000","version":"1"}`, status: 400, detail: "NUL"},
		{name: "NUL in a key", method: "POST", target: "/queue/enqueue", body: `{"package":"a","version":"1","x\u0000":1}`, status: 400, detail: "NUL"},
		{name: "NUL in the query", method: "GET", target: "/queue?cursor=a%00", status: 400, pointer: "query:cursor"},
		{name: "NUL in the path", method: "GET", target: "/builds/a/1%00/cp311/linux_x86_64", status: 400, pointer: "path:version"},
		{name: "not UTF-8", method: "POST", target: "/queue/enqueue", body: "{\"package\":\"a\xff\",\"version\":\"1\"}", status: 400, detail: "UTF-8"},
		{name: "no body", method: "POST", target: "/queue/enqueue", status: 400, detail: "body is expected"},
		{name: "body where none is", method: "POST", target: "/queue/resume", body: `{"a":1}`, status: 400, detail: "no body"},
		{name: "empty object where no body is", method: "POST", target: "/queue/resume", body: `{}`, status: 200},
		{name: "large", method: "POST", target: "/queue/enqueue", body: enqueueFlask + strings.Repeat(" ", 1<<20), status: 413},
		{name: "large, chunked", method: "POST", target: "/queue/enqueue", body: enqueueFlask + strings.Repeat(" ", 1<<20), chunked: true, status: 413},
		{name: "large log, chunked", method: "POST", target: "/logs/a/1?python_tag=cp311&platform_tag=any&attempt=1", body: strings.Repeat(" ", 256<<10+1), chunked: true, status: 413},
		{name: "limit 0", method: "GET", target: "/runs?limit=0", status: 400, pointer: "query:limit", detail: "at least 1"},
		{name: "limit 501", method: "GET", target: "/runs?limit=501", status: 400, pointer: "query:limit", detail: "at most 500"},
		{name: "limit no number", method: "GET", target: "/runs?limit=ten", status: 400, pointer: "query:limit"},
		{name: "limit empty", method: "GET", target: "/runs?limit=", status: 400, pointer: "query:limit"},
		{name: "limit twice", method: "GET", target: "/runs?limit=1&limit=2", status: 400, pointer: "query:limit"},
		{name: "unknown parameter", method: "GET", target: "/runs?sort=name", status: 400, detail: "not known"},
		{name: "date", method: "GET", target: "/history?from=yesterday", status: 400, pointer: "query:from"},
		{name: "id", method: "GET", target: "/runs/42", status: 400, pointer: "path:id"},
		{name: "bad query", method: "GET", target: "/runs?limit=%zz", status: 400},
		{name: "HEAD", method: "HEAD", target: "/queue/stats", status: 200},
		{name: "empty list", method: "GET", target: "/runs", status: 200},
		{name: "cross-origin", method: "POST", target: "/queue/enqueue", body: enqueueFlask, header: map[string]string{"Origin": "https://evil.example"}, status: 403},
		{name: "cross-site", method: "POST", target: "/queue/enqueue", body: enqueueFlask, header: map[string]string{"Sec-Fetch-Site": "cross-site"}, status: 403},
		{name: "same origin", method: "POST", target: "/queue/enqueue", body: enqueueFlask, header: map[string]string{"Origin": "http://example.com"}, status: 201},
		{name: "panic", method: "GET", target: "/config", status: 500},
		{name: "not found", method: "GET", target: build, status: 404},
		{name: "idempotency key", method: "POST", target: "/queue/enqueue", body: enqueueFlask, header: map[string]string{"Idempotency-Key": "a b"}, status: 400, pointer: "header:Idempotency-Key"},
		{name: "index", method: "GET", target: "/simple/flask/", status: 200},
		{name: "contract", method: "GET", target: "/openapi.yaml", status: 200},
		{name: "health has no body", method: "GET", target: "/queue/stats", body: "x", status: 400},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := apitest.Check(t, serve(t, api.Options{}, &server{}))
			var body io.Reader = strings.NewReader(c.body)
			if c.chunked {
				body = io.MultiReader(body) // of unknown length
			}
			r := httptest.NewRequest(c.method, c.target, body)
			if c.body != "" {
				r.Header.Set("Content-Type", "application/json")
			}
			for k, v := range c.header {
				r.Header.Set(k, v)
			}
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			if w.Code != c.status {
				t.Fatalf("status %d, want %d: %s", w.Code, c.status, w.Body)
			}
			if c.method == "HEAD" && w.Body.Len() != 0 {
				t.Errorf("HEAD has a body: %s", w.Body)
			}
			if c.status == http.StatusMethodNotAllowed && w.Header().Get("Allow") != "GET, HEAD" {
				t.Errorf("Allow is %q", w.Header().Get("Allow"))
			}
			if c.pointer != "" || c.detail != "" {
				var p api.Problem
				if err := json.Unmarshal(w.Body.Bytes(), &p); err != nil {
					t.Fatal(err)
				}
				found := c.pointer == "" && strings.Contains(p.Detail, c.detail)
				for _, e := range p.Errors {
					found = found || (c.pointer == "" || e.Pointer == c.pointer) && strings.Contains(e.Detail, c.detail)
				}
				if !found {
					t.Errorf("no error at %q with %q in %s", c.pointer, c.detail, w.Body)
				}
			}
		})
	}
}

// What was sent must not come back: it may be a secret in the wrong field, or a script.
func TestProblemsDoNotEcho(t *testing.T) {
	h := serve(t, api.Options{}, &server{})
	const secret = "hunter2-secret"
	for _, c := range []struct{ target, body string }{
		{"/queue/enqueue", `{"package":"` + secret + `!","version":"1"}`},
		{"/queue/enqueue", `{"package":"a","version":"1","priority":"` + secret + `"}`},
		{"/queue/enqueue", `{"package":"a","version":"1","recipes":[{"kind":"` + secret + `","items":[]}]}`},
		{"/queue/enqueue?" + secret + "=1", enqueueFlask},
		{"/queue/enqueue?token=" + secret, `[]`},
		{"/" + secret, `[]`},
	} {
		r := httptest.NewRequest("POST", c.target, strings.NewReader(c.body))
		r.Header.Set("Content-Type", "application/json")
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code < 400 || strings.Contains(w.Body.String(), secret) {
			t.Errorf("%s: %d %s", c.target, w.Code, w.Body)
		}
	}
}

func TestErrorsBecomeProblems(t *testing.T) {
	var log bytes.Buffer
	s := &server{}
	h := apitest.Check(t, serve(t, api.Options{Logger: slog.New(slog.NewTextHandler(&log, nil))}, s))
	for _, c := range []struct {
		err    error
		status int
		header string
	}{
		{fault.New(fault.Invalid, "the cursor is not one of ours"), 400, ""},
		{fault.New(fault.NotFound, "x"), 404, ""},
		{fault.New(fault.Conflict, "x"), 409, ""},
		{fault.New(fault.Unavailable, "x"), 503, "Retry-After"},
		{fmt.Errorf("wrapped: %w", fault.New(fault.Timeout, "x")), 504, ""},
		{errors.New("password=hunter2"), 500, ""},
		{fault.New(fault.Internal, "password=hunter2"), 500, ""},
		{fault.New("unheard-of", "password=hunter2"), 500, ""},
	} {
		log.Reset()
		s.summary = c.err
		r := httptest.NewRequest("GET", "/queue/stats", nil)
		r.Header.Set("X-Request-Id", "my-id")
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code != c.status || c.header != "" && w.Header().Get(c.header) == "" {
			t.Errorf("%v: %d %v", c.err, w.Code, w.Header())
		}
		if c.status == 500 {
			if strings.Contains(w.Body.String(), "hunter2") || !strings.Contains(w.Body.String(), "my-id") {
				t.Errorf("%v: %s", c.err, w.Body)
			}
			if !strings.Contains(log.String(), "hunter2") || !strings.Contains(log.String(), "my-id") {
				t.Errorf("the log lacks the error or the id: %s", log.String())
			}
		} else if log.Len() != 0 && c.status != 503 {
			t.Errorf("%v is logged: %s", c.err, log.String())
		}
	}
}

func TestLoopbackRefusesOtherNames(t *testing.T) {
	h := serve(t, api.Options{Loopback: true}, &server{})
	for host, want := range map[string]int{
		"localhost:8080": 200, "127.0.0.1:8080": 200, "[::1]:8080": 200, "LOCALHOST": 200, "[::1]": 200,
		"evil.example:8080": 403, "localhost.evil.example": 403, "": 403,
	} {
		r := httptest.NewRequest("GET", "/queue/stats", nil)
		r.Host = host
		w := httptest.NewRecorder()
		if h.ServeHTTP(w, r); w.Code != want {
			t.Errorf("%q: %d, want %d", host, w.Code, want)
		}
	}
}

func load(t testing.TB) *openapi3.T {
	doc, err := openapi3.NewLoader().LoadFromData(api.OpenAPI)
	if err != nil {
		t.Fatal(err)
	}
	if err := doc.Validate(t.Context()); err != nil {
		t.Fatal(err)
	}
	return doc
}

// The validator's older code, which checks requests, knows nothing of these keywords. See newContract.
func TestRequestsNeedNothingNewerThanOpenAPI30(t *testing.T) {
	schemas := 0
	for path, item := range load(t).Paths.Map() {
		for method, op := range item.Operations() {
			var roots []*openapi3.SchemaRef
			for _, p := range slices.Concat(item.Parameters, op.Parameters) {
				roots = append(roots, p.Value.Schema)
			}
			if stream, _ := op.Extensions["x-stream"].(bool); op.RequestBody != nil && !stream { // what is streamed its handler checks
				for _, c := range op.RequestBody.Value.Content {
					roots = append(roots, c.Schema)
				}
			}
			for _, root := range roots {
				err := root.WalkSubtree(func(at string, s *openapi3.SchemaRef) error {
					schemas++
					v := s.Value
					if len(v.AnyOf) > 0 {
						return nil // its branches are walked too
					}
					if v.Type == nil || len(*v.Type) != 1 {
						return fmt.Errorf("%s: not exactly one type", at)
					}
					if v.Const != nil || v.ExclusiveMin.Value != nil || v.ExclusiveMax.Value != nil || v.If != nil || v.Contains != nil ||
						v.PropertyNames != nil || len(v.PatternProperties) > 0 || len(v.PrefixItems) > 0 || len(v.DependentRequired) > 0 ||
						v.UnevaluatedProperties.Has != nil || v.UnevaluatedProperties.Schema != nil {
						return fmt.Errorf("%s: a newer keyword", at)
					}
					if v.Type.Is("object") && (v.AdditionalProperties.Has == nil || *v.AdditionalProperties.Has) {
						return fmt.Errorf("%s: unknown fields are not refused", at)
					}
					if v.Type.Is("string") && v.MaxLength == nil && v.Format == "" && len(v.Enum) == 0 && v.Pattern == "" {
						return fmt.Errorf("%s: a text without a limit", at)
					}
					if v.Type.Is("array") && v.MaxItems == nil {
						return fmt.Errorf("%s: an array without a limit", at)
					}
					return nil
				})
				if err != nil {
					t.Errorf("%s %s: %v", method, path, err)
				}
			}
		}
	}
	if schemas < 100 {
		t.Errorf("only %d schemas were seen", schemas)
	}
}

// Against a real server: a body that is too large is answered, not only cut, and a long answer is not cut by the body's deadline.
func TestTooLargeOverTheWire(t *testing.T) {
	srv := httptest.NewServer(serve(t, api.Options{}, &server{}))
	defer srv.Close()
	defer srv.Client().CloseIdleConnections()
	r, err := http.NewRequestWithContext(t.Context(), "POST", srv.URL+"/queue/enqueue", io.LimitReader(endless{}, 2<<20))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	resp, err := srv.Client().Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != 413 || resp.Header.Get("Content-Type") != "application/problem+json" {
		t.Errorf("%d %s", resp.StatusCode, resp.Header.Get("Content-Type"))
	}
}

// A handler sees the beginning of a wheel before its end is sent: nothing on the way holds it in memory.
func TestUploadsAreStreamed(t *testing.T) {
	begun := make(chan struct{})
	srv := httptest.NewServer(serve(t, api.Options{}, &server{put: func(r io.Reader) error {
		if _, err := r.Read(make([]byte, 1)); err != nil {
			return err
		}
		close(begun)
		_, err := io.Copy(io.Discard, r)
		return err
	}}))
	defer srv.Close()
	defer srv.Client().CloseIdleConnections()
	body, end := io.Pipe()
	go func() {
		_, _ = end.Write(make([]byte, 100_000))
		select {
		case <-begun:
			end.Close()
		case <-time.After(10 * time.Second):
			end.CloseWithError(errors.New("the handler does not see the beginning"))
		}
	}()
	r, err := http.NewRequestWithContext(t.Context(), "PUT", srv.URL+"/artifacts/a-1-py3-none-any.whl", body)
	if err != nil {
		t.Fatal(err)
	}
	for k, v := range map[string]string{
		"Content-Type": "application/octet-stream", "X-Content-SHA256": strings.Repeat("a", 64), "X-Build": "a/1/cp311/any", "X-Attempt": "1",
	} {
		r.Header.Set(k, v)
	}
	resp, err := srv.Client().Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != 201 {
		t.Error(resp.Status)
	}
}

type endless struct{}

func (endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = ' '
	}
	return len(p), nil
}

func BenchmarkEnqueue(b *testing.B) {
	h := serve(b, api.Options{}, &server{})
	for b.Loop() {
		r := httptest.NewRequest("POST", "/queue/enqueue", strings.NewReader(`{"package":"Flask","version":"3.0.0","python_tag":"cp311","platform_tag":"linux_x86_64","priority":3}`))
		r.Header.Set("Content-Type", "application/json")
		w := httptest.NewRecorder()
		if h.ServeHTTP(w, r); w.Code != 201 {
			b.Fatal(w.Code, w.Body)
		}
	}
}

func BenchmarkQueueStats(b *testing.B) {
	h := serve(b, api.Options{}, &server{})
	for b.Loop() {
		w := httptest.NewRecorder()
		if h.ServeHTTP(w, httptest.NewRequest("GET", "/queue/stats", nil)); w.Code != 200 {
			b.Fatal(w.Code, w.Body)
		}
	}
}
