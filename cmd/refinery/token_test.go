package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/wheelrefinery/refinery/api"
	"github.com/wheelrefinery/refinery/internal/access"
	"github.com/wheelrefinery/refinery/writeapi"
)

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
	c := p.config([]writeapi.Tags{{Python: "cp311", Platform: "linux_x86_64"}})
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
	if who, err := g.Check(t.Context(), "", []string{lines[0]}, nil); err != nil || who == nil || who.Name != "ci" || !who.May(access.Worker) {
		t.Errorf("%+v %v", who, err)
	}
	for _, args := range [][]string{{"token", "new", "operator"}, {"token", "new", "ci", "--scope", "everything"}, {"token", "new", "a b"}} {
		if code := run(args, io.Discard, io.Discard); code != exitTrouble {
			t.Errorf("%v: %d", args, code)
		}
	}
}
