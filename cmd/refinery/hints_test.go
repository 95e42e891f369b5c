package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/wheelrefinery/refinery/api"
	"github.com/wheelrefinery/refinery/eventlog"
	"github.com/wheelrefinery/refinery/events"
	"github.com/wheelrefinery/refinery/internal/pgtest"
)

// serving starts the program until the test ends, with more in its environment.
func (p *program) serving(args []string, env ...string) {
	p.t.Helper()
	c := p.command(args...)
	c.Env = append(c.Env, env...)
	var out strings.Builder
	c.Stdout, c.Stderr = &out, &out
	if err := c.Start(); err != nil {
		p.t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { _ = c.Wait(); close(ended) }()
	p.t.Cleanup(func() {
		_ = c.Process.Signal(os.Interrupt)
		select {
		case <-ended:
		case <-time.After(20 * time.Second):
			p.t.Errorf("it does not stop:\n%s", p.logTail())
			_ = c.Process.Kill()
			<-ended
		}
	})
	for range 1200 {
		if status, _, err := get("http://" + p.api + "/ready"); err == nil && status == http.StatusOK {
			return
		}
		select {
		case <-ended:
			p.t.Fatalf("it ended:\n%s\n%s", &out, p.logTail())
		case <-time.After(50 * time.Millisecond):
		}
	}
	p.t.Fatalf("it is not ready:\n%s\n%s", &out, p.logTail())
}

// read decodes what the API answers.
func read[T any](p *program, path string) (v T) {
	p.t.Helper()
	status, body, err := get("http://" + p.api + path)
	if err != nil || status != http.StatusOK {
		p.t.Fatalf("%s: %d, %v: %s", path, status, err, body)
	}
	if err := json.Unmarshal(body, &v); err != nil {
		p.t.Fatalf("%s: %v: %s", path, err, body)
	}
	return v
}

// post sends JSON and fails unless the status is want.
func (p *program) post(want int, path, body string) []byte {
	p.t.Helper()
	answer, err := http.Post("http://"+p.api+path, "application/json", strings.NewReader(body))
	if err != nil {
		p.t.Fatal(err)
	}
	defer answer.Body.Close()
	var text json.RawMessage
	if err := json.NewDecoder(answer.Body).Decode(&text); err != nil || answer.StatusCode != want {
		p.t.Fatalf("POST %s: %d, %v: %s", path, answer.StatusCode, err, text)
	}
	return text
}

// TestHintsMendRealBuilds builds what needs packages of the system that are not there: the first attempt fails, a hint of the program's own
// catalogue says what is missing, the worker installs it, the second attempt succeeds, and the event log says which hint did it.
func TestHintsMendRealBuilds(t *testing.T) {
	_, err := exec.LookPath("apt-get")
	if err != nil || os.Getuid() != 0 || os.Getenv("CI") != "true" && os.Getenv("REFINERY_TEST_APT") == "" {
		pgtest.Missing(t, "root on Debian or its kin", "run it as root with REFINERY_TEST_APT=1: it removes and installs libpq-dev and default-libmysqlclient-dev")
	}
	for _, name := range []string{"libpq-dev", "default-libmysqlclient-dev", "libmariadb-dev", "libmariadb-dev-compat", "libmysqlclient-dev"} {
		if exec.Command("dpkg-query", "--show", "--", name).Run() != nil {
			continue
		}
		if out, err := exec.Command("apt-get", "--quiet", "--yes", "--option", "DPkg::Lock::Timeout=300", "purge", "--", name).CombinedOutput(); err != nil {
			t.Fatalf("%s is not removed: %v\n%s", name, err, out)
		}
	}
	for _, header := range []string{"postgresql/libpq-fe.h", "mysql/mysql.h", "mariadb/mysql.h"} {
		if _, err := os.Stat("/usr/include/" + header); err == nil {
			t.Fatalf("%s is there, so the builds would not fail", header)
		}
	}
	p := newProgram(t)
	p.serving([]string{"up"}, "ALLOW_SYSTEM_PACKAGES=1", "WORKER_SLOTS=2")
	for _, b := range [][2]string{{"psycopg2", "2.9.10"}, {"mysqlclient", "2.2.7"}} {
		p.mended(b[0], b[1])
	}
}

// mended asks for a build and checks how it came to be.
func (p *program) mended(name, version string) {
	t := p.t
	t.Helper()
	worker := func() bool { // whose tags are meant
		status, body, err := get("http://" + p.api + "/ready")
		return err == nil && status == http.StatusOK && !strings.Contains(string(body), "0 seen")
	}
	for i := 0; !worker(); i++ {
		if i > 2400 {
			t.Fatalf("no worker comes:\n%s", p.logTail())
		}
		time.Sleep(50 * time.Millisecond)
	}
	var asked api.EnqueueAnswer
	if err := json.Unmarshal(p.post(http.StatusCreated, "/queue/enqueue", fmt.Sprintf(`{"package": %q, "version": %q}`, name, version)), &asked); err != nil {
		t.Fatal(err)
	}
	b := asked.Build
	id := events.BuildID{Name: b.Name, Version: b.Version, PythonTag: b.PythonTag, PlatformTag: b.PlatformTag}
	var build api.Build
	for end := time.Now().Add(8 * time.Minute); ; time.Sleep(200 * time.Millisecond) {
		build = read[api.Build](p, "/builds/"+id.String())
		if build.Status == api.BuildStatusBuilt {
			break
		}
		final := build.Status == api.BuildStatusFailed && build.Attempt > 1
		if final || time.Now().After(end) {
			t.Fatalf("%s is %s: %+v\n%s", id, build.Status, build, p.logOf(id, build.Attempt))
		}
	}
	if build.Attempt < 2 || len(build.Attempts[0].Hints) == 0 || len(build.Hints) == 0 {
		t.Fatalf("%s was built without a hint: %+v", id, build)
	}

	// The log of events says it all.
	pool, err := eventlog.Pool(t.Context(), p.dsn, 2)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	log, err := eventlog.Open(t.Context(), pool, eventlog.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	streams, err := log.Load(t.Context(), id.Stream())
	if err != nil {
		t.Fatal(err)
	}
	var names, did []string
	for _, m := range streams[id.Stream()].Events {
		names = append(names, m.Event.Name())
		if e, ok := m.Event.(events.BuildSucceeded); ok {
			did = e.Hints
		}
	}
	t.Logf("%s: %v did it: %v", id, did, names)
	if len(did) == 0 {
		t.Fatalf("%s: the event log does not say which hint did it: %v", id, names)
	}
	for _, hint := range did {
		if h := read[api.Hint](p, "/hints/"+hint); h.Matched < 1 || h.Tried < 1 || h.Helped < 1 || !h.Shipped {
			t.Errorf("%+v", h)
		}
		history := read[api.HistoryList](p, "/history?hint_id="+hint+"&package="+name)
		if len(history.Items) < 2 || history.Items[0].Status != api.HistoryStatusBuilt {
			t.Errorf("/history?hint_id=%s: %+v", hint, history.Items)
		}
	}
}

func (p *program) logOf(id events.BuildID, attempt int) string {
	_, body, _ := get(fmt.Sprintf("http://%s/logs/%s/%s?format=text&attempt=%d", p.api, id.Name, id.Version, attempt))
	return string(body)
}
