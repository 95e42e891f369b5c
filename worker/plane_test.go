package worker

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"go.uber.org/goleak"

	"github.com/wheelrefinery/refinery/api"
)

const testToken = "secret-token-4711"

// shared is one data folder for all tests, so that the virtual environment is made once.
var shared string

func TestMain(m *testing.M) {
	if url := os.Getenv("REFINERY_TEST_VICTIM"); url != "" {
		victim(url, os.Getenv("REFINERY_TEST_DIR"))
	}
	given := os.Getenv("REFINERY_TEST_SHARED") // by the test that runs the tests again
	if shared = given; given == "" {
		var err error
		if shared, err = os.MkdirTemp("", "worker-test-"); err != nil {
			panic(err)
		}
		if err := os.Chmod(shared, 0o755); err != nil {
			panic(err)
		}
	}
	os.Setenv("REFINERY_TEST_TOKEN", testToken) // what builds must not see
	code := m.Run()
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	if given != "" {
		os.Exit(code)
	}
	if err := os.RemoveAll(shared); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// victim is a worker in a process of its own, to be killed.
func victim(url, dir string) {
	w, err := New(Config{
		URL: url, Token: testToken, ID: "victim", Dir: dir, Slots: 1, UpstreamIndex: url + "/upstream/", Logger: slog.New(slog.DiscardHandler),
	})
	if err == nil {
		err = w.Run(context.Background())
	}
	panic(err)
}

// plane is a control plane that remembers what it was told, with its own index, and an upstream index for packages that a test makes.
type plane struct {
	t   *testing.T
	url string

	mu       sync.Mutex
	queue    []api.Job
	wake     chan struct{}
	calls    []string // "result building x", "log x 0", …
	results  []api.ResultReport
	plans    []api.PlanReport
	logs     map[string]string // by name
	chunks   map[string]int
	wheels   map[string][]byte
	sdists   map[string]map[string][]byte // project → filename → content
	action   map[string]api.JobAction     // for a build's name
	beats    int
	down     func(r *http.Request) bool // answers 503
	problems map[string]string          // filename → detail of a 409
	gone     map[string]bool            // builds whose calls are answered 409
	yanked   map[string]any             // path → what the index says of the file
}

func newPlane(t *testing.T) *plane {
	p := &plane{
		t: t, wake: make(chan struct{}, 100), logs: map[string]string{}, chunks: map[string]int{}, wheels: map[string][]byte{},
		sdists: map[string]map[string][]byte{}, action: map[string]api.JobAction{}, problems: map[string]string{}, gone: map[string]bool{},
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /worker/lease", p.lease)
	mux.HandleFunc("POST /worker/heartbeat", p.heartbeat)
	mux.HandleFunc("POST /worker/result", p.result)
	mux.HandleFunc("POST /plan", p.plan)
	mux.HandleFunc("POST /logs/{name}/{version}", p.log)
	mux.HandleFunc("PUT /artifacts/{filename}", p.put)
	mux.HandleFunc("GET /artifacts/{filename}", func(w http.ResponseWriter, r *http.Request) {
		p.mu.Lock()
		data := p.wheels[r.PathValue("filename")]
		p.mu.Unlock()
		p.file(w, r, data)
	})
	mux.HandleFunc("GET /simple/{project}/", func(w http.ResponseWriter, r *http.Request) {
		files := map[string][]byte{}
		p.mu.Lock()
		defer p.mu.Unlock()
		for name, data := range p.wheels {
			if strings.HasPrefix(name, strings.ReplaceAll(r.PathValue("project"), "-", "_")+"-") {
				files[name] = data
			}
		}
		p.page(w, files, "/artifacts/")
	})
	mux.HandleFunc("GET /upstream/{project}/", func(w http.ResponseWriter, r *http.Request) {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.page(w, p.sdists[r.PathValue("project")], "/files/"+r.PathValue("project")+"/")
	})
	mux.HandleFunc("GET /files/{project}/{filename}", func(w http.ResponseWriter, r *http.Request) {
		p.mu.Lock()
		data := p.sdists[r.PathValue("project")][r.PathValue("filename")]
		p.mu.Unlock()
		p.file(w, r, data)
	})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.mu.Lock()
		down := p.down != nil && p.down(r)
		p.mu.Unlock()
		switch {
		case down:
			problem(w, http.StatusServiceUnavailable, "starting")
		case r.Method != http.MethodGet && r.Method != http.MethodHead && r.Header.Get("X-Worker-Token") != testToken:
			problem(w, http.StatusUnauthorized, "no token")
		default:
			mux.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(server.Close)
	p.url = server.URL
	return p
}

func problem(w http.ResponseWriter, status int, detail string) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(api.Problem{Type: "about:blank", Title: http.StatusText(status), Status: status, Detail: detail})
}

func answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}

func (p *plane) lease(w http.ResponseWriter, r *http.Request) {
	var request api.LeaseRequest
	if err := json.NewDecoder(r.Body).Decode(&request); err != nil {
		p.t.Errorf("lease: %v", err)
	}
	timeout := time.After(time.Duration(request.WaitSeconds) * time.Second)
	for {
		p.mu.Lock()
		if len(p.queue) > 0 {
			job := p.queue[0]
			p.queue = p.queue[1:]
			p.mu.Unlock()
			answer(w, http.StatusOK, job)
			return
		}
		p.mu.Unlock()
		select {
		case <-p.wake:
		case <-r.Context().Done():
			return
		case <-timeout:
			w.WriteHeader(http.StatusNoContent)
			return
		}
	}
}

func (p *plane) heartbeat(w http.ResponseWriter, r *http.Request) {
	var request api.HeartbeatRequest
	_ = json.NewDecoder(r.Body).Decode(&request)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.beats++
	reply := api.HeartbeatAnswer{Action: api.WorkerActionContinue, IntervalSeconds: 1, Jobs: []api.JobState{}}
	for _, j := range request.Jobs {
		action := or(p.action[j.Build.Name], api.JobActionContinue)
		reply.Jobs = append(reply.Jobs, api.JobState{Action: action, Attempt: j.Attempt, Build: j.Build, Kind: j.Kind, RunID: j.RunID})
	}
	answer(w, http.StatusOK, reply)
}

func (p *plane) result(w http.ResponseWriter, r *http.Request) {
	var report api.ResultReport
	if err := json.NewDecoder(r.Body).Decode(&report); err != nil {
		p.t.Errorf("result: %v", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.gone[report.Build.Name] {
		problem(w, http.StatusConflict, "the attempt is not the leased one")
		return
	}
	p.calls = append(p.calls, fmt.Sprintf("result %s %s", report.Status, report.Build.Name))
	if report.Status != api.ResultStatusBuilding {
		p.results = append(p.results, report)
	}
	answer(w, http.StatusOK, map[string]any{"build": report.Build, "status": "building", "attempt": report.Attempt})
}

func (p *plane) plan(w http.ResponseWriter, r *http.Request) {
	var report api.PlanReport
	if err := json.NewDecoder(r.Body).Decode(&report); err != nil {
		p.t.Errorf("plan: %v", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.plans = append(p.plans, report)
	answer(w, http.StatusCreated, map[string]any{"run_id": report.RunID, "state": "planned"})
}

func (p *plane) log(w http.ResponseWriter, r *http.Request) {
	var chunk api.LogChunk
	if err := json.NewDecoder(r.Body).Decode(&chunk); err != nil {
		p.t.Errorf("log: %v", err)
	}
	name := r.PathValue("name")
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.gone[name] {
		problem(w, http.StatusConflict, "the attempt is not the leased one")
		return
	}
	if len(chunk.Text) > maxChunk || !strings.HasSuffix(chunk.Text, "\n") || strings.ContainsRune(chunk.Text, 0) {
		p.t.Errorf("chunk %d of %s: %d bytes, ends with %q", chunk.Chunk, name, len(chunk.Text), chunk.Text[max(0, len(chunk.Text)-20):])
	}
	if chunk.Chunk == p.chunks[name] {
		p.chunks[name]++
		p.logs[name] += chunk.Text
		p.calls = append(p.calls, fmt.Sprintf("log %s %d", name, chunk.Chunk))
	} else if chunk.Chunk > p.chunks[name] {
		p.t.Errorf("chunk %d of %s, expected %d", chunk.Chunk, name, p.chunks[name])
	}
	answer(w, http.StatusOK, map[string]any{"next_chunk": p.chunks[name], "lines": 0})
}

func (p *plane) put(w http.ResponseWriter, r *http.Request) {
	data, err := io.ReadAll(r.Body)
	sum := sha256.Sum256(data)
	name := r.PathValue("filename")
	p.mu.Lock()
	defer p.mu.Unlock()
	if detail, ok := p.problems[name]; ok {
		problem(w, http.StatusConflict, detail)
		return
	}
	if err != nil || hex.EncodeToString(sum[:]) != r.Header.Get("X-Content-SHA256") || r.Header.Get("X-Attempt") != "1" {
		problem(w, http.StatusUnprocessableEntity, "the hash does not agree")
		return
	}
	p.wheels[name] = data
	p.calls = append(p.calls, "put "+name)
	answer(w, http.StatusCreated, api.ArtifactAnswer{Filename: name, SHA256: hex.EncodeToString(sum[:]), Size: int64(len(data)), URL: p.url + "/artifacts/" + name})
}

func (p *plane) file(w http.ResponseWriter, r *http.Request, data []byte) {
	if data == nil {
		http.NotFound(w, r)
		return
	}
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
}

// page answers as PEP 691 says.
func (p *plane) page(w http.ResponseWriter, content map[string][]byte, base string) {
	if len(content) == 0 {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	files := []map[string]any{}
	for _, name := range slices.Sorted(maps.Keys(content)) {
		sum := sha256.Sum256(content[name])
		files = append(files, map[string]any{
			"filename": name, "url": base + name, "hashes": map[string]string{"sha256": hex.EncodeToString(sum[:])}, "size": len(content[name]),
		})
		if yanked, ok := p.yanked[base+name]; ok {
			files[len(files)-1]["yanked"] = yanked
		}
	}
	w.Header().Set("Content-Type", "application/vnd.pypi.simple.v1+json")
	w.Header().Set("Cache-Control", "no-cache")
	_ = json.NewEncoder(w).Encode(map[string]any{"meta": map[string]string{"api-version": "1.0"}, "name": "x", "files": files})
}

// add queues a build, from the sdist that publish made where there is one.
func (p *plane) add(w *Worker, name, version string, change ...func(*api.Job)) {
	job := api.Job{
		Kind: api.JobKindBuild, Attempt: 1, LeaseSeconds: 60, ExpiresAt: time.Now().Add(time.Minute), IndexURL: p.url + "/simple/",
		Build: api.BuildID{Name: name, Version: version, PythonTag: w.tags.PythonTag, PlatformTag: w.tags.PlatformTag},
	}
	for _, f := range change {
		f(&job)
	}
	p.push(job)
}

func (p *plane) push(job api.Job) {
	p.mu.Lock()
	p.queue = append(p.queue, job)
	p.mu.Unlock()
	p.wake <- struct{}{}
}

// start runs a worker on the plane until the test ends, or stop is called.
func (p *plane) start(change ...func(*Config)) (w *Worker, stop func()) {
	p.t.Helper()
	c := Config{
		URL: p.url, Token: testToken, ID: "test-worker", Dir: shared, Slots: 2, UpstreamIndex: p.url + "/upstream/",
		Logger: slog.New(slog.NewTextHandler(testWriter{p.t}, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	for _, f := range change {
		f(&c)
	}
	w, err := New(c)
	if err != nil {
		p.t.Fatal(err)
	}
	if err := w.Prepare(p.t.Context()); err != nil {
		p.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			p.t.Errorf("run: %v", err)
		}
	})
	p.t.Cleanup(stop)
	return w, stop
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}

// ended waits for the result of a build.
func (p *plane) ended(name string, within time.Duration) api.ResultReport {
	p.t.Helper()
	var found api.ResultReport
	p.eventually(within, "the result of "+name, func() bool {
		for _, r := range p.results {
			if r.Build.Name == name {
				found = r
				return true
			}
		}
		return false
	})
	return found
}

func (p *plane) eventually(within time.Duration, what string, cond func() bool) {
	p.t.Helper()
	for deadline := time.Now().Add(within); ; time.Sleep(10 * time.Millisecond) {
		p.mu.Lock()
		ok := cond()
		p.mu.Unlock()
		if ok {
			return
		}
		if time.Now().After(deadline) {
			p.t.Fatalf("%s: not within %s", what, within)
		}
	}
}

func (p *plane) text(name string) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.logs[name]
}

// planned asks for a plan and waits for it.
func (p *plane) planned(job api.Job) api.PlanReport {
	p.t.Helper()
	job.Kind, job.Attempt, job.RunID = api.JobKindPlan, 1, uuid.New()
	job.IndexURL, job.ExpiresAt = p.url+"/simple/", time.Now().Add(time.Minute)
	job.BuildMode = or(job.BuildMode, "missing")
	job.Strategy = or(job.Strategy, "pinned")
	p.push(job)
	var found api.PlanReport
	p.eventually(90*time.Second, "the plan", func() bool {
		for _, r := range p.plans {
			if r.RunID == job.RunID {
				found = r
				return true
			}
		}
		return false
	})
	return found
}

// running lists processes whose command line holds text.
func running(text string) (found []string) {
	for _, p := range processes() {
		line, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(p.pid), "cmdline"))
		if err == nil && strings.Contains(string(line), text) {
			found = append(found, strings.ReplaceAll(string(line), "\x00", " "))
		}
	}
	return found
}
