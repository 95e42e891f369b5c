package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.uber.org/goleak"

	"github.com/wheelrefinery/refinery/eventlog"
	"github.com/wheelrefinery/refinery/internal/pgtest"
	"github.com/wheelrefinery/refinery/projections"
)

// With this variable the test binary is the program itself.
const asProgram = "REFINERY_TEST_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
	}
	// toxiproxy leaves the goroutines of connections that are delayed when they close.
	pgtest.Main(m, goleak.IgnoreAnyFunction("github.com/Shopify/toxiproxy/v2/toxics.(*LatencyToxic).Pipe"))
}

// Small, real, and quick to build; markupsafe has a C extension.
const requirements = "markupsafe==3.0.2\nitsdangerous==2.2.0\n"

// program is a refinery on a data folder of its own, and a durable Postgres that the test can look into.
type program struct {
	t        testing.TB
	dir, dsn string
	api, ui  string
	env      []string // more of the environment
}

func newProgram(t *testing.T) *program {
	dir, err := pgtest.TempDir()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return &program{t: t, dir: dir, dsn: pgtest.DSN(t), api: freeAddr(t), ui: freeAddr(t)}
}

func freeAddr(t testing.TB) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func (p *program) command(args ...string) *exec.Cmd {
	self, err := os.Executable()
	if err != nil {
		p.t.Fatal(err)
	}
	c := exec.Command(self, args...)
	c.Env = append(c.Environ(), asProgram+"=1", "DATA_DIR="+p.dir, "POSTGRES_DSN="+p.dsn, "HTTP_ADDR="+p.api, "UI_ADDR="+p.ui, "LOG_LEVEL=debug")
	c.Env = append(c.Env, p.env...)
	return c
}

// up runs the main job to its end.
func (p *program) up(want int) string {
	p.t.Helper()
	file := filepath.Join(p.t.TempDir(), "requirements.txt")
	if err := os.WriteFile(file, []byte(requirements), 0o644); err != nil {
		p.t.Fatal(err)
	}
	c := p.command("up", "-r", file, "--build", "all", "--once")
	done := time.AfterFunc(5*time.Minute, func() { c.Process.Kill() })
	out, err := c.CombinedOutput()
	done.Stop()
	if code := c.ProcessState.ExitCode(); code != want {
		p.t.Fatalf("up ended with %d (%v), want %d:\n%s\n%s", code, err, want, out, p.logTail())
	}
	return string(out)
}

func (p *program) logTail() string {
	data, _ := os.ReadFile(filepath.Join(p.dir, "refinery.log"))
	return string(data[max(0, len(data)-6000):])
}

func get(url string) (int, []byte, error) {
	answer, err := http.Get(url)
	if err != nil {
		return 0, nil, err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	return answer.StatusCode, body, err
}

// TestMainJob is what a new user does: requirements in, wheels out, pip install from the index alone.
func TestMainJob(t *testing.T) {
	p := newProgram(t)
	out := p.up(0)
	for _, line := range []string{
		"API    http://" + p.api, "Page   http://" + p.ui, "Index  http://" + p.api + "/simple/", "Data   " + p.dir, "Log    " + p.dir,
		"wheels are there: 2 built", "pip install",
	} {
		if !strings.Contains(out, line) {
			t.Errorf("the output lacks %q:\n%s", line, out)
		}
	}
	// The second time there is nothing to build, and the server stays on.
	serve := p.command("up")
	serve.Stdout, serve.Stderr = os.Stderr, os.Stderr
	if err := serve.Start(); err != nil {
		t.Fatal(err)
	}
	defer serve.Process.Kill()
	eventually(t, 30*time.Second, func() error { return p.ready() })

	venv := filepath.Join(t.TempDir(), "venv")
	if out, err := exec.Command("python3", "-m", "venv", venv).CombinedOutput(); err != nil {
		t.Fatalf("venv: %v %s", err, out)
	}
	pip := exec.Command(filepath.Join(venv, "bin", "pip"), "--isolated", "install", "--no-cache-dir", "--only-binary", ":all:",
		"--index-url", "http://"+p.api+"/simple/", "markupsafe", "itsdangerous")
	if out, err := pip.CombinedOutput(); err != nil {
		t.Fatalf("pip: %v\n%s", err, out)
	}
	script := "import markupsafe._speedups, itsdangerous; print(markupsafe.escape('<'))"
	if out, err := exec.Command(filepath.Join(venv, "bin", "python"), "-c", script).CombinedOutput(); err != nil || string(out) != "&lt;\n" {
		t.Errorf("the installed wheels give %q, %v", out, err)
	}
	if status, body, err := get("http://" + p.ui + "/"); err != nil || status != http.StatusOK || !strings.Contains(string(body), "Wheel Refinery") {
		t.Errorf("the page: %d %v", status, err)
	}
	if status, _, err := get("http://" + p.ui + "/api/summary"); err != nil || status != http.StatusOK {
		t.Errorf("the page's API: %d %v", status, err)
	}
	begin := time.Now()
	if err := serve.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := serve.Wait(); err != nil {
		t.Errorf("Ctrl-C ends with %v", err)
	}
	if took := time.Since(begin); took > 10*time.Second {
		t.Errorf("Ctrl-C took %v", took)
	}
	if out := p.up(0); !strings.Contains(out, "0 built, 2 reused") {
		t.Errorf("the second run:\n%s", out)
	}
	p.consistent()
}

func (p *program) ready() error {
	status, body, err := get("http://" + p.api + "/ready")
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("ready is %d: %s", status, body)
	}
	return err
}

func eventually(t testing.TB, most time.Duration, f func() error) {
	t.Helper()
	var err error
	for begin := time.Now(); time.Since(begin) < most; time.Sleep(50 * time.Millisecond) {
		if err = f(); err == nil {
			return
		}
	}
	t.Fatal(err)
}

// TestKill kills the whole program at random moments and starts it again: the run ends with the same wheels, no build succeeds twice,
// positions have no hole, and read models equal a replay.
func TestKill(t *testing.T) {
	p := newProgram(t)
	file := filepath.Join(t.TempDir(), "requirements.txt")
	if err := os.WriteFile(file, []byte(requirements), 0o644); err != nil {
		t.Fatal(err)
	}
	p.up(0) // so that what follows is about killing, not about making virtual environments
	pool := p.pool()
	if _, err := pool.Exec(t.Context(), `delete from leases`); err != nil {
		t.Fatal(err)
	}
	pool.Close()
	p.dsn = pgtest.DSN(t) // the same worker, an empty control plane
	for _, folder := range []string{"bus", "wheels"} {
		if err := os.RemoveAll(filepath.Join(p.dir, folder)); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 5 {
		c := p.command("up", "-r", file, "--build", "all", "--once")
		c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		after := time.Duration(500+rand.IntN(5000)) * time.Millisecond
		kill := time.AfterFunc(after, func() { syscall.Kill(-c.Process.Pid, syscall.SIGKILL) })
		err := c.Wait()
		kill.Stop()
		t.Logf("start %d: %v after %v", i, err, after)
		if err == nil {
			break
		}
	}
	p.up(0)
	p.consistent()
	var built, twice int
	pool = p.pool()
	defer pool.Close()
	err := pool.QueryRow(t.Context(), `select count(*), count(*) - count(distinct stream) from events where type = 'build.succeeded.v1'`).Scan(&built, &twice)
	if err != nil || built != 2 || twice != 0 {
		t.Errorf("%d builds succeeded, %d of them again, %v; want 2, each once", built, twice, err)
	}
}

func (p *program) pool() *pgxpool.Pool {
	p.t.Helper()
	pool, err := eventlog.Pool(p.t.Context(), p.dsn, 8)
	if err != nil {
		p.t.Fatal(err)
	}
	return pool
}

// consistent checks what must hold of every log at rest.
func (p *program) consistent() {
	p.t.Helper()
	pool := p.pool()
	defer pool.Close()
	ctx := p.t.Context()
	var holes, doubled, orphans int
	err := pool.QueryRow(ctx, `select
		(select position from head) - (select count(*) from events),
		(select count(*) from (select 1 from events group by stream, version having count(*) > 1) d),
		(select count(*) from events e where not exists (select from commands c where c.id = e.command and e.position between c.first_position and c.last_position))`,
	).Scan(&holes, &doubled, &orphans)
	if err != nil || holes != 0 || doubled != 0 || orphans != 0 {
		p.t.Errorf("%d holes, %d doubled versions, %d events without their command, %v", holes, doubled, orphans, err)
	}
	log, err := eventlog.Open(ctx, pool, eventlog.Options{})
	if err != nil {
		p.t.Fatal(err)
	}
	defer log.Close()
	runner := projections.New(log, pool, slog.New(slog.DiscardHandler))
	live := func() map[string]string {
		ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
		defer cancel()
		if err := runner.Setup(ctx); err != nil {
			p.t.Fatal(err)
		}
		var wg sync.WaitGroup
		running, stop := context.WithCancel(ctx)
		wg.Go(func() {
			if err := runner.Run(running); err != nil {
				p.t.Error(err)
			}
		})
		if err := runner.Wait(ctx, log.Head()); err != nil {
			p.t.Error(err)
		}
		stop()
		wg.Wait()
		return p.tables(ctx, pool, runner.Names())
	}
	before := live()
	for _, name := range runner.Names() {
		if _, err := pool.Exec(ctx, `drop schema `+name+` cascade`); err != nil {
			p.t.Fatal(err)
		}
	}
	if _, err := pool.Exec(ctx, `drop table projections`); err != nil {
		p.t.Fatal(err)
	}
	if _, err := pool.Exec(ctx, `delete from followers where name = any($1)`, runner.Names()); err != nil {
		p.t.Fatal(err)
	}
	if d := cmp.Diff(before, live()); d != "" {
		p.t.Errorf("read models differ from a replay (-live +replay):\n%s", d)
	}
	if len(before) < 10 {
		p.t.Errorf("only %d read tables were compared", len(before))
	}
}

func (p *program) tables(ctx context.Context, pool *pgxpool.Pool, schemas []string) map[string]string {
	p.t.Helper()
	rows, err := pool.Query(ctx, `select table_schema || '.' || table_name from information_schema.tables where table_schema = any($1)`, schemas)
	if err != nil {
		p.t.Fatal(err)
	}
	var names []string
	for rows.Next() {
		var n string
		if err := rows.Scan(&n); err != nil {
			p.t.Fatal(err)
		}
		names = append(names, n)
	}
	rows.Close()
	all := map[string]string{}
	for _, n := range names {
		var lines []string
		if err := pool.QueryRow(ctx, `select coalesce(array_agg(to_json(t)::text order by to_json(t)::text), '{}') from `+n+` t`).Scan(&lines); err != nil {
			p.t.Fatal(n, err)
		}
		all[n] = strings.Join(lines, "\n")
	}
	return all
}

// Trouble at the start is said in one line that says what to do.
func TestTrouble(t *testing.T) {
	p := newProgram(t)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for name, c := range map[string]struct {
		args []string
		env  []string
		want string
	}{
		"port taken":       {[]string{"serve"}, []string{"HTTP_ADDR=" + taken.Addr().String()}, "set HTTP_ADDR to another address"},
		"page's port":      {[]string{"serve"}, []string{"UI_ADDR=" + taken.Addr().String()}, "set UI_ADDR to another address"},
		"no Python":        {[]string{"up"}, []string{"WORKER_PYTHON=/nonexistent/python3"}, "/nonexistent/python3"},
		"no Postgres":      {[]string{"serve"}, []string{"POSTGRES_DSN=postgres://me:secret@127.0.0.1:1/x"}, "Postgres does not answer"},
		"unknown backend":  {[]string{"serve"}, []string{"QUEUE_BACKEND=carrier-pigeon"}, "file"},
		"unknown command":  {[]string{"fly"}, nil, "--help"},
		"no file":          {[]string{"build", "-r", "/nonexistent.txt"}, nil, "/nonexistent.txt"},
		"no control plane": {[]string{"build", "-r", os.Args[0], "--url", "http://127.0.0.1:1"}, nil, "refinery up"},
		"once without":     {[]string{"up", "--once"}, nil, "-r requirements.txt"},
		"data folder":      {[]string{"serve"}, []string{"DATA_DIR=/proc/nowhere"}, "set DATA_DIR"},
	} {
		t.Run(name, func(t *testing.T) {
			cmd := p.command(c.args...)
			cmd.Env = append(cmd.Env, c.env...)
			kill := time.AfterFunc(time.Minute, func() { cmd.Process.Kill() })
			defer kill.Stop()
			out, err := cmd.CombinedOutput()
			var code *exec.ExitError
			if !errors.As(err, &code) || code.ExitCode() != exitTrouble {
				t.Errorf("ended with %v, want exit code %d", err, exitTrouble)
			}
			if !strings.Contains(string(out), c.want) || strings.Contains(string(out), "secret") {
				t.Errorf("said %q, want %q in it and no password", out, c.want)
			}
		})
	}
}

// Several programs share a data folder where they share a database elsewhere; one with a database of its own in it would spoil theirs.
// What serves logs to stderr, for whoever started it to keep.
func TestSharedFolder(t *testing.T) {
	p := newProgram(t)
	first := p.command("serve")
	var log strings.Builder
	first.Stderr = &log
	if err := first.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		first.Process.Signal(os.Interrupt)
		if err := first.Wait(); err != nil {
			t.Errorf("the first ended with %v", err)
		}
		if !strings.Contains(log.String(), "path=/ready") {
			t.Errorf("the log lacks its requests: %s", &log)
		}
	}()
	eventually(t, 30*time.Second, func() error { return p.ready() })
	second := p.command("serve")
	second.Env = append(second.Env, "HTTP_ADDR="+freeAddr(t), "UI_ADDR=", "POSTGRES_DSN=")
	if out, err := second.CombinedOutput(); err == nil || !strings.Contains(string(out), "another refinery runs on") {
		t.Errorf("the second: %v %s", err, out)
	}
}
