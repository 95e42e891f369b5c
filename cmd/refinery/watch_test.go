package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/wheelrefinery/refinery/api"
	"github.com/wheelrefinery/refinery/internal/pgtest"
)

// safeBuffer is a log that several goroutines write and a test reads.
type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// startTest starts a control plane in this process, as `refinery serve` does.
func startTest(t *testing.T, c controlSettings) (*plane, *safeBuffer) {
	t.Helper()
	log := &safeBuffer{}
	if c.PostgresDSN == "" {
		c.PostgresDSN = pgtest.DSN(t)
	}
	c.QueueBackend, c.HTTPAddr, c.LogLevel, c.MaxAttempts, c.KeepOutcomes = "file", freeAddr(t), "debug", 3, time.Hour
	p, err := startPlane(t.Context(), c, t.TempDir(), c.logger(log, c.WorkerToken, c.ReadToken))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.stop(); err != nil {
			t.Error(err)
		}
	})
	return p, log
}

// call sends a request, with a token unless that is empty.
func (p *plane) call(t *testing.T, method, path, token, body string) (int, string) {
	t.Helper()
	r, err := http.NewRequest(method, p.url()+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer.StatusCode, string(text)
}

func enqueueBody(name string) string {
	return `{"package":"` + name + `","version":"1.0","python_tag":"cp311","platform_tag":"linux_x86_64"}`
}

var sample = regexp.MustCompile(`(?m)^([a-z_]+(?:\{.*\})?) ([0-9.e+-]+)$`)

func (p *plane) scrape(t *testing.T) (map[string]string, string) {
	t.Helper()
	status, text := p.call(t, "GET", "/metrics", "", "")
	if status != 200 {
		t.Fatalf("%d %s", status, text)
	}
	all := map[string]string{}
	for _, m := range sample.FindAllStringSubmatch(text, -1) {
		all[m[1]] = m[2]
	}
	return all, text
}

func TestMetrics(t *testing.T) {
	p, _ := startTest(t, controlSettings{})
	for _, name := range []string{"alpha", "beta"} {
		if status, body := p.call(t, "POST", "/queue/enqueue", "", enqueueBody(name)); status != 201 {
			t.Fatal(status, body)
		}
	}
	for i := range 5 {
		p.call(t, "GET", fmt.Sprintf("/builds/%d/1/a/b", i), "", "")
		p.call(t, "GET", fmt.Sprintf("/nowhere/%d", i), "", "")
		p.call(t, fmt.Sprintf("BREW%d", i), "/queue", "", "")
	}
	status, body := p.call(t, "POST", "/worker/lease", "", `{"worker":"w1","slots":1,"python_tag":"cp311","platform_tag":"linux_x86_64","python_version":"3.11.7","version":"dev","host":"h","wait_seconds":5}`)
	if status != 200 {
		t.Fatal(status, body)
	}
	var job api.Job
	if err := json.Unmarshal([]byte(body), &job); err != nil {
		t.Fatal(err)
	}
	report := fmt.Sprintf(`{"worker":"w1","build":{"name":%q,"version":"1.0","python_tag":"cp311","platform_tag":"linux_x86_64"},"attempt":1,"status":"failed","class":"compiler","reason":"no"}`, job.Build.Name)
	if status, body := p.call(t, "POST", "/worker/result", "", report); status != 200 {
		t.Fatal(status, body)
	}
	got, text := p.scrape(t)
	for name, want := range map[string]string{
		"refinery_queue_builds":                                             "1",
		"refinery_queue_leased":                                             "0",
		`refinery_builds{status="queued"}`:                                  "1",
		`refinery_builds{status="failed"}`:                                  "1",
		`refinery_builds{status="built"}`:                                   "0",
		`refinery_builds_failed{class="compiler"}`:                          "1",
		`refinery_cache_hits_total{source="own"}`:                           "0",
		"refinery_cache_misses_total":                                       "0",
		"refinery_queue_paused":                                             "0",
		`refinery_follower_lag_events{follower="builds"}`:                   "0",
		`refinery_follower_lag_seconds{follower="builds"}`:                  "0",
		`refinery_projection_dead_letters{projection="builds"}`:             "0",
		`refinery_bus_unacked_messages{group="handlers",topic="commands"}`:  "0",
		`refinery_commands_total{command="build.enqueue",status="applied"}`: "2",
		`refinery_http_requests_total{method="GET",route="/builds/{name}/{version}/{python_tag}/{platform_tag}",status="404"}`: "5",
		`refinery_http_requests_total{method="GET",route="",status="404"}`:                                                     "5",
		`refinery_http_requests_total{method="other",route="",status="405"}`:                                                   "5",
		`refinery_http_requests_total{method="POST",route="/queue/enqueue",status="201"}`:                                      "2",
		`refinery_source_up{source="bus"}`:                                                                                     "1",
		"refinery_bus_poisoned_total":                                                                                          "0",
	} {
		if got[name] != want {
			t.Errorf("%s is %q, want %s", name, got[name], want)
		}
	}
	for _, name := range []string{
		"refinery_append_seconds_count", "refinery_append_batch_commands_count", "refinery_command_seconds_count", "refinery_events_total", "refinery_log_head",
		"refinery_queue_oldest_seconds", "go_goroutines", "refinery_process_resident_memory_bytes", `refinery_follower_events_total{follower="builds"}`,
		`refinery_follower_batch_seconds_count{follower="builds"}`, `refinery_http_request_seconds_count{method="POST",route="/queue/enqueue"}`,
	} {
		if v, ok := got[name]; !ok || v == "0" {
			t.Errorf("%s is %q", name, v)
		}
	}
	if strings.Contains(text, "nowhere") || strings.Contains(text, "BREW") {
		t.Error("a label holds what anybody may send")
	}
	if t.Failed() {
		t.Log(text)
	}
}

// proxy passes connections on to a server and can be cut.
type proxy struct {
	net.Listener
	to    string
	mu    sync.Mutex
	cut   bool
	conns []net.Conn
}

func newProxy(t *testing.T, to string) *proxy {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{Listener: l, to: to}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			p.mu.Lock()
			if p.cut {
				c.Close()
			} else if up, err := net.Dial("tcp", to); err != nil {
				c.Close()
			} else {
				p.conns = append(p.conns, c, up)
				go func() { _, _ = io.Copy(up, c); up.Close() }()
				go func() { _, _ = io.Copy(c, up); c.Close() }()
			}
			p.mu.Unlock()
		}
	}()
	t.Cleanup(func() { p.set(true); l.Close() })
	return p
}

// set cuts every connection and refuses new ones, or lets them pass again.
func (p *proxy) set(cut bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cut = cut
	if cut {
		for _, c := range p.conns {
			c.Close()
		}
		p.conns = nil
	}
}

func (p *plane) parts(t *testing.T) (int, map[string]api.Part) {
	t.Helper()
	status, body := p.call(t, "GET", "/ready", "", "")
	var r api.Readiness
	if err := json.Unmarshal([]byte(body), &r); err != nil {
		t.Fatalf("%v: %s", err, body)
	}
	parts := map[string]api.Part{}
	for _, part := range r.Parts {
		parts[part.Name] = part
	}
	return status, parts
}

// When Postgres goes away, /ready says so within two seconds and which part it is, /health goes on, and all comes back by itself.
func TestReadyTellsTheTruth(t *testing.T) {
	dsn, err := url.Parse(pgtest.DSN(t))
	if err != nil {
		t.Fatal(err)
	}
	between := newProxy(t, dsn.Host)
	dsn.Host = between.Addr().String()
	p, log := startTest(t, controlSettings{PostgresDSN: dsn.String()})
	ready := func() error {
		if status, parts := p.parts(t); status != 200 {
			return fmt.Errorf("%d %v", status, parts)
		}
		return nil
	}
	eventually(t, 20*time.Second, ready)
	_, parts := p.parts(t)
	for _, name := range []string{"postgres", "bus", "handlers", "projections", "wheels", "disk", "workers"} {
		if part, ok := parts[name]; !ok || part.Status != api.Ok || part.Detail == "" {
			t.Errorf("%s: %+v", name, part)
		}
	}
	between.set(true)
	begin := time.Now()
	eventually(t, 2*time.Second, func() error {
		if status, parts := p.parts(t); status != 503 || parts["postgres"].Status != api.Down || parts["projections"].Status != api.Down ||
			parts["bus"].Status != api.Ok || parts["wheels"].Status != api.Ok {
			return fmt.Errorf("%d %v", status, parts)
		}
		return nil
	})
	t.Logf("503 after %v", time.Since(begin))
	if status, _ := p.call(t, "GET", "/health", "", ""); status != 200 {
		t.Errorf("/health: %d", status)
	}
	if status, _ := p.call(t, "GET", "/summary", "", ""); status != 503 {
		t.Errorf("/summary: %d", status)
	}
	if status, body := p.call(t, "POST", "/queue/enqueue", "", enqueueBody("patient")); status != 202 {
		t.Errorf("a write meanwhile: %d %s", status, body)
	}
	between.set(false)
	begin = time.Now()
	eventually(t, 20*time.Second, ready)
	t.Logf("200 after %v", time.Since(begin))
	eventually(t, 20*time.Second, func() error { // what was accepted meanwhile is done
		if status, body := p.call(t, "GET", "/builds/patient/1.0/cp311/linux_x86_64", "", ""); status != 200 {
			return fmt.Errorf("%d %s", status, body)
		}
		return nil
	})
	if said := log.String(); !strings.Contains(said, "part=postgres status=down before=ok") || !strings.Contains(said, "part=postgres status=ok before=down") {
		t.Error("the log does not say that a part went and came back")
	}
}

// A bus that cannot be written to, a wheel store that cannot: each is one part.
func TestReadyOfFiles(t *testing.T) {
	p, _ := startTest(t, controlSettings{})
	eventually(t, 20*time.Second, func() error {
		if status, parts := p.parts(t); status != 200 {
			return fmt.Errorf("%d %v", status, parts)
		}
		return nil
	})
	for part, folder := range map[string]string{"bus": "bus/commands", "wheels": "wheels/tmp"} {
		path := filepath.Join(p.dir, folder)
		if err := os.Rename(path, path+".away"); err != nil {
			t.Fatal(err)
		}
		if part == "bus" { // whose folder is held open: what is in it counts
			if err := os.Rename(path+".away", path); err != nil {
				t.Fatal(err)
			}
			if err := os.Remove(filepath.Join(path, "lock")); err != nil {
				t.Fatal(err)
			}
			if err := os.Mkdir(filepath.Join(path, "lock"), 0o700); err != nil {
				t.Fatal(err)
			}
		}
		eventually(t, 2*time.Second, func() error {
			if status, parts := p.parts(t); status != 503 || parts[part].Status != api.Down || parts["postgres"].Status != api.Ok {
				return fmt.Errorf("without %s: %d %v", folder, status, parts)
			}
			return nil
		})
		if part == "wheels" {
			if err := os.Rename(path+".away", path); err != nil {
				t.Fatal(err)
			}
		} else if err := os.Remove(filepath.Join(path, "lock")); err != nil {
			t.Fatal(err)
		}
	}
}

// Headers that come slowly, or are too large, end the connection; over a real one.
func TestSlowAndLargeHeaders(t *testing.T) {
	p, _ := startTest(t, controlSettings{})
	slow, err := net.Dial("tcp", p.HTTPAddr)
	if err != nil {
		t.Fatal(err)
	}
	defer slow.Close()
	begin := time.Now()
	fmt.Fprintf(slow, "GET /health HTTP/1.1\r\nHost: localhost\r\nX-")
	large, err := net.Dial("tcp", p.HTTPAddr)
	if err != nil {
		t.Fatal(err)
	}
	defer large.Close()
	fmt.Fprintf(large, "GET /health HTTP/1.1\r\nHost: localhost\r\nX-Large: %s\r\n\r\n", strings.Repeat("x", 80<<10))
	if answer, err := io.ReadAll(large); err == nil && !strings.HasPrefix(string(answer), "HTTP/1.1 431") {
		t.Errorf("large headers: %q", answer)
	}
	_ = slow.SetReadDeadline(begin.Add(2 * headerTime))
	answer, err := io.ReadAll(slow)
	if err != nil || strings.HasPrefix(string(answer), "HTTP/1.1 200") {
		t.Errorf("slow headers: %q %v", answer, err)
	}
	if took := time.Since(begin); took < headerTime/2 || took > headerTime+5*time.Second {
		t.Errorf("they were waited for for %v", took)
	}
}
