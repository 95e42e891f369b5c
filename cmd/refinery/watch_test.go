package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	coltrace "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	otlp "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/wheelrefinery/refinery/api"
	"github.com/wheelrefinery/refinery/internal/access"
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
	c.QueueBackend, c.HTTPAddr, c.LogLevel = "file", freeAddr(t), "debug"
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

// The name of a token is who did it, in the log of events; and whoever has no business here is told so.
func TestTokensFile(t *testing.T) {
	token, lease := access.NewToken(), access.NewToken()
	lines := []string{"# who may do what"}
	for _, c := range []struct {
		name, token string
		scope       access.Scope
	}{{"ci", token, access.Write}, {"rack-7", lease, access.Worker}} {
		line, err := access.Line(c.name, []access.Scope{c.scope}, c.token)
		if err != nil {
			t.Fatal(err)
		}
		lines = append(lines, line)
	}
	file := filepath.Join(t.TempDir(), "tokens")
	if err := os.WriteFile(file, []byte(strings.Join(lines, "\n")), 0o600); err != nil {
		t.Fatal(err)
	}
	p, log := startTest(t, controlSettings{TokensFile: file, ReadToken: "only-reading"})
	if status, _ := p.call(t, "POST", "/queue/enqueue", "", enqueueBody("anon")); status != 401 {
		t.Errorf("without a token: %d", status)
	}
	if status, body := p.call(t, "POST", "/queue/enqueue", token, enqueueBody("flask")); status != 201 {
		t.Fatalf("%d %s", status, body)
	}
	status, body := p.call(t, "POST", "/worker/lease", lease, `{"worker":"w1","slots":1,"python_tag":"cp311","platform_tag":"linux_x86_64","python_version":"3.11.7","version":"dev","host":"h","wait_seconds":5}`)
	if status != 200 {
		t.Fatalf("%d %s", status, body)
	}
	var job api.Job
	if err := json.Unmarshal([]byte(body), &job); err != nil {
		t.Fatal(err)
	}
	// What a job gets opens the index and nothing else, and is none of the tokens.
	at, err := url.Parse(job.IndexURL)
	if err != nil || at.User == nil {
		t.Fatalf("index_url %q, %v", job.IndexURL, err)
	}
	if password, _ := at.User.Password(); password == "only-reading" || password == "" {
		t.Errorf("the job's password is %q", password)
	}
	if status, _, err := get(job.IndexURL); err != nil || status != 200 {
		t.Errorf("the index with what the job got: %d %v", status, err)
	}
	if answer, err := http.Post(strings.TrimSuffix(job.IndexURL, "simple/")+"queue/resume", "application/json", nil); err != nil || answer.StatusCode != 401 {
		t.Errorf("a write with what the job got: %v %v", answer, err)
	} else {
		answer.Body.Close()
	}
	if status, _, err := get(p.url() + "/simple/"); err != nil || status != 401 {
		t.Errorf("the index without it: %d %v", status, err)
	}
	rows, err := p.pool.Query(t.Context(), `select type || ' ' || actor from events order by position`)
	if err != nil {
		t.Fatal(err)
	}
	var actors []string
	for rows.Next() {
		var a string
		if err := rows.Scan(&a); err != nil {
			t.Fatal(err)
		}
		actors = append(actors, a)
	}
	for _, want := range []string{"build.queued.v1 ci", "build.leased.v1 rack-7/worker/w1", "worker.registered.v1 rack-7/worker/w1"} {
		if !slices.Contains(actors, want) {
			t.Errorf("no event %q in %v", want, actors)
		}
	}
	if said := log.String(); strings.Contains(said, token) || strings.Contains(said, lease) || !strings.Contains(said, "actor=ci") || !strings.Contains(said, "command=") {
		t.Error("the log holds a token, or lacks the actor or the command")
	}
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

// Whatever is set, /config shows no secret, and all that is no secret.
func TestConfigShowsNoSecret(t *testing.T) {
	p := &plane{dir: "/data", controlSettings: controlSettings{
		PostgresDSN: "postgres://user:s3cret@db.example:5432/refinery?password=s3cret&sslmode=disable", RedisURL: "redis://:s3cret@redis.example/0#s3cret",
		KafkaBrokers: "a.example:9092,b.example:9092", WorkerToken: "s3cret", ReadToken: "s3cret", TokensFile: "/etc/s3cret",
		WorkerWebhookURL: "https://hooks.example/s3cret", HTTPAddr: "127.0.0.1:8080", PublicURL: "https://me:s3cret@refinery.example/?token=s3cret",
		QueueBackend: "file",
	}}
	for name, value := range map[string]string{
		"UV_INDEX_URL": "https://s3cret@index.example/simple", "PIP_EXTRA_INDEX_URL": "https://u:s3cret@a.example/simple https://b.example/simple?key=s3cret",
		"UV_INDEX": "corp=https://u:s3cret@c.example/simple", "HTTPS_PROXY": "http://u:s3cret@proxy.example:3128", "UV_DEFAULT_INDEX": "", "PIP_INDEX_URL": "u:s3cret@odd",
	} {
		t.Setenv(name, value)
	}
	c := p.config("cp311", "linux_x86_64")
	data, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(data), "s3cret") {
		t.Errorf("it holds a secret: %s", data)
	}
	for name, want := range map[string]string{
		"POSTGRES_DSN": "postgres://db.example:5432/refinery", "REDIS_URL": "redis://redis.example/0", "KAFKA_BROKERS": "a.example:9092,b.example:9092",
		"WORKER_TOKEN": "set", "READ_TOKEN": "set", "TOKENS_FILE": "set", "WORKER_WEBHOOK_URL": "set", "HTTP_ADDR": "127.0.0.1:8080",
		"UV_INDEX_URL": "https://index.example/simple", "PIP_EXTRA_INDEX_URL": "https://a.example/simple https://b.example/simple",
		"UV_INDEX": "https://c.example/simple", "HTTPS_PROXY": "http://proxy.example:3128", "PIP_INDEX_URL": "set", "LOG_LEVEL": "", "UI_ADDR": "",
	} {
		if got, ok := c.Environment[name]; !ok || got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	if c.UpstreamIndex != "https://index.example/simple" || c.Python != "cp311" || c.Limits["lease_seconds"] == 0 || strings.Contains(c.IndexURL, "s3cret") {
		t.Errorf("%+v", c)
	}
	for dsn, want := range map[string]string{"host=db password=s3cret": "set", "postgres://u:p%zz@db/x": "set", "": ""} {
		if got := shown("POSTGRES_DSN", dsn); got != want {
			t.Errorf("%q is shown as %q", dsn, got)
		}
	}
	p2, _ := startTest(t, controlSettings{})
	status, body := p2.call(t, "GET", "/config", "", "")
	if status != 200 || !regexp.MustCompile(`"postgres":"1[0-9]\.`).MatchString(body) || !strings.Contains(body, `"schema":"`) || !strings.Contains(body, `"go":"go1.`) {
		t.Errorf("/config: %d %s", status, body)
	}
}

// A library's error may quote what the log must not hold.
func TestLogHidesSecrets(t *testing.T) {
	for _, form := range []string{"text", "json"} {
		var log bytes.Buffer
		s := settings{LogLevel: "debug", LogFormat: form}
		l := s.logger(&log, "t0p+s3cret", "")
		l.Error("failed with t0p+s3cret", "error", fmt.Errorf("dial postgres://me:pa55@db/x: %w", io.EOF), "url", "/a?x=1&token=abc%20d&y=2",
			"query", "token=t0p%2Bs3cret", slog.Group("group", "address", &url.URL{Scheme: "http", User: url.UserPassword("u", "pa55"), Host: "h"}))
		said := log.String()
		for _, secret := range []string{"t0p", "pa55", "abc"} {
			if strings.Contains(said, secret) {
				t.Errorf("%s: %q in %s", form, secret, said)
			}
		}
		if !strings.Contains(said, "y=2") || !strings.Contains(said, "@db/x: EOF") {
			t.Errorf("%s: too much is hidden: %s", form, said)
		}
		if form == "json" && !json.Valid(log.Bytes()) {
			t.Errorf("no JSON: %s", said)
		}
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
	if status, _ := p.call(t, "POST", "/queue/enqueue", "", enqueueBody("patient")); status != 202 && status != 503 {
		t.Errorf("a write meanwhile: %d", status)
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

// One write is one trace: request, publish, handling, append, and each read model that shows it. The receiver is a real one, over HTTP.
func TestTrace(t *testing.T) {
	var mu sync.Mutex
	var spans []*otlp.Span
	var resources []string
	receiver := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		data, err := io.ReadAll(r.Body)
		var request coltrace.ExportTraceServiceRequest
		if err == nil {
			err = proto.Unmarshal(data, &request)
		}
		if err != nil || r.URL.Path != "/v1/traces" {
			t.Errorf("%s: %v", r.URL.Path, err)
		}
		mu.Lock()
		defer mu.Unlock()
		for _, rs := range request.ResourceSpans {
			resources = append(resources, rs.Resource.String())
			for _, s := range rs.ScopeSpans {
				spans = append(spans, s.Spans...)
			}
		}
		w.Header().Set("Content-Type", "application/x-protobuf")
	}))
	defer receiver.Close()
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.URL)
	t.Setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
	p, _ := startTest(t, controlSettings{})
	r, err := http.NewRequest("POST", p.url()+"/queue/enqueue", strings.NewReader(enqueueBody("traced")))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	answer.Body.Close()
	if answer.StatusCode != 201 {
		t.Fatal(answer.Status)
	}
	p.call(t, "GET", "/health", "", "")
	find := func() (map[string]*otlp.Span, error) {
		mu.Lock()
		defer mu.Unlock()
		found := map[string]*otlp.Span{}
		for _, s := range spans {
			if fmt.Sprintf("%x", s.TraceId) == "0af7651916cd43dd8448eb211c80319c" {
				found[s.Name] = s
			}
			if strings.Contains(s.Name, "health") {
				return nil, fmt.Errorf("/health is traced")
			}
		}
		for _, name := range append([]string{"POST /queue/enqueue", "publish commands", "handle command", "append"}, applies(p.read.Names())...) {
			if found[name] == nil {
				return nil, fmt.Errorf("no span %q among %d", name, len(found))
			}
		}
		return found, nil
	}
	eventually(t, 10*time.Second, func() error { _, err := find(); return err })
	found, err := find()
	if err != nil {
		t.Fatal(err)
	}
	for child, parent := range map[string]string{
		"publish commands": "POST /queue/enqueue", "handle command": "publish commands", "append": "handle command", "apply builds": "handle command", "apply queue": "handle command",
	} {
		if !bytes.Equal(found[child].ParentSpanId, found[parent].SpanId) {
			t.Errorf("%s is not below %s", child, parent)
		}
		if found[child].EndTimeUnixNano < found[child].StartTimeUnixNano || found[child].StartTimeUnixNano < found[parent].StartTimeUnixNano {
			t.Errorf("%s begins or ends too early", child)
		}
	}
	if got := fmt.Sprintf("%x", found["POST /queue/enqueue"].ParentSpanId); got != "b7ad6b7169203331" {
		t.Errorf("the request's parent is %s", got)
	}
	if !strings.Contains(strings.Join(resources, " "), "refinery") {
		t.Errorf("the resource is %v", resources)
	}
}

func applies(names []string) []string {
	out := make([]string, len(names))
	for i, n := range names {
		out[i] = "apply " + n
	}
	return out
}

// Without an exporter in the environment there are no traces, and what cannot be is said.
func TestTraceIsOff(t *testing.T) {
	p, _ := startTest(t, controlSettings{})
	if p.tracer != nil {
		t.Error("traces are made for nobody")
	}
	t.Setenv("OTEL_TRACES_EXPORTER", "zipkin")
	_, err := startPlane(context.Background(), controlSettings{HTTPAddr: freeAddr(t), QueueBackend: "file"}, t.TempDir(), slog.New(slog.DiscardHandler))
	if err == nil || !strings.Contains(err.Error(), "OTEL_TRACES_EXPORTER") {
		t.Errorf("an exporter that is not known: %v", err)
	}
}

func TestTokenNew(t *testing.T) {
	var out, said bytes.Buffer
	if code := run([]string{"token", "new", "ci", "--scope", "write,worker"}, &out, &said); code != 0 {
		t.Fatalf("%d %s", code, &said)
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != 2 || !strings.HasPrefix(lines[1], "ci write,worker ") || strings.Contains(lines[1], lines[0]) {
		t.Fatalf("%q", lines)
	}
	file := filepath.Join(t.TempDir(), "tokens")
	if err := os.WriteFile(file, []byte(lines[1]+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	g, err := access.New(access.Config{File: file})
	if err != nil {
		t.Fatal(err)
	}
	if who, err := g.Check("", []string{lines[0]}, nil); err != nil || who == nil || who.Name != "ci" || !who.May(access.Worker) {
		t.Errorf("%+v %v", who, err)
	}
	for _, args := range [][]string{{"token", "new", "operator"}, {"token", "new", "ci", "--scope", "everything"}, {"token", "new", "a b"}} {
		if code := run(args, io.Discard, io.Discard); code != exitTrouble {
			t.Errorf("%v: %d", args, code)
		}
	}
}
