package pgtest

import (
	"bufio"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// child, when set, says what this binary is to do wrong.
const child = "REFINERY_TEST_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(child) == "hold" {
		s, err := startServer(context.Background())
		if err != nil {
			fmt.Println("error:", err)
			os.Exit(1)
		}
		fmt.Println(s.dir)
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}
	Main(m)
}

// Each test has a database of its own, with the tables of the migrations.
func TestDatabasesAreIsolated(t *testing.T) {
	ctx := t.Context()
	a, b := New(t), New(t)
	if _, err := a.Exec(ctx, "create table only_in_a ()"); err != nil {
		t.Fatal(err)
	}
	count := func(name string) (n int) {
		t.Helper()
		if err := b.QueryRow(ctx, "select count(*) from pg_tables where tablename = $1", name).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	if count("only_in_a") != 0 {
		t.Error("a table of one test's database is in another's")
	}
	if count("goose_db_version") != 1 {
		t.Error("the database is not migrated")
	}
}

func TestDatabaseIsDropped(t *testing.T) {
	var dsn string
	t.Run("uses one", func(t *testing.T) { dsn = DSN(t) })
	conn, err := pgx.Connect(t.Context(), dsn)
	if err == nil {
		_ = conn.Close(t.Context())
		t.Error("the database is still there after the test")
	} else if !strings.Contains(err.Error(), "does not exist") {
		t.Error(err)
	}
}

// Several makers at once make one template; one that a killed maker left half made is replaced.
func TestTemplateRace(t *testing.T) {
	DSN(t) // starts the server
	ctx := t.Context()
	name := "refinery_template_race_" + strings.ToLower(rand.Text())
	if err := admin(ctx, "create database "+name); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, sql := range []string{"alter database " + name + " is_template false", "drop database " + name + " with (force)"} {
			if err := admin(context.Background(), sql); err != nil {
				t.Error(err)
			}
		}
	})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if err := template(ctx, base.dsn, name); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if err := admin(ctx, "alter database "+name+" allow_connections true"); err != nil {
		t.Fatal(err)
	}
	dsn, err := withDatabase(base.dsn, name)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	var n int
	if err := conn.QueryRow(ctx, "select count(*) from pg_tables where tablename = 'goose_db_version'").Scan(&n); err != nil || n != 1 {
		t.Errorf("the template is not migrated: %d, %v", n, err)
	}
}

// The server of a test binary that was killed is stopped by the next one.
func TestSweep(t *testing.T) {
	DSN(t) // Postgres can be had
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), child+"=hold")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	dir := strings.TrimSpace(line)
	if err != nil || !mine(dir) {
		t.Errorf("child: %q, %v", line, err)
	}
	if err := sweep(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(dir); err != nil {
		t.Error("the server of a living test binary was swept away")
	}
	pidFile, err := os.ReadFile(filepath.Join(dir, "pg", "data", "postmaster.pid"))
	if err != nil {
		t.Error(err)
	}
	pid, _, _ := strings.Cut(string(pidFile), "\n")
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // it was killed
	if err := sweep(t.Context()); err != nil {
		t.Error(err)
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) { // another binary may be sweeping it
		left, _ := filepath.Glob(filepath.Join(os.TempDir(), "*"+filepath.Base(dir)+"*"))
		comm, _ := os.ReadFile("/proc/" + pid + "/comm")
		stat, _ := os.ReadFile("/proc/" + pid + "/stat")
		runs := strings.HasPrefix(string(comm), "postgres") && !strings.Contains(string(stat), ") Z ")
		if len(left) == 0 && !runs {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("left: %v, server runs: %v", left, runs)
		}
	}
}

// What Main promises, on this binary itself.
func TestMainReports(t *testing.T) {
	skipped := filepath.Join(t.TempDir(), "skipped")
	for _, c := range []struct {
		what, ci string
		fails    bool
		prints   string
	}{
		{"leak", "", true, "goroutines leaked"},
		{"missing", "", false, "\nSKIPPED TestBad: needs a thing: install it\n"},
		{"missing", "true", true, "needs a thing: install it"},
		{"connection", "", true, "1 connections of the pool were not released"},
	} {
		cmd := exec.Command(os.Args[0], "-test.run", "^TestBad$")
		cmd.Env = append(os.Environ(), child+"="+c.what, "CI="+c.ci, "REFINERY_SKIPPED="+skipped)
		out, err := cmd.CombinedOutput()
		if (err != nil) != c.fails || !strings.Contains("\n"+string(out), c.prints) {
			t.Errorf("%s, CI=%s: %v\n%s", c.what, c.ci, err, out)
		}
	}
	if b, err := os.ReadFile(skipped); err != nil || string(b) != "SKIPPED TestBad: needs a thing: install it\n" {
		t.Errorf("file of skipped tests: %q, %v", b, err)
	}
}

func TestBad(t *testing.T) {
	switch os.Getenv(child) {
	case "leak":
		go func() { select {} }()
	case "missing":
		Missing(t, "a thing", "install it")
	case "connection":
		releaseTimeout = 100 * time.Millisecond
		if _, err := New(t).Acquire(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

func TestWithDatabase(t *testing.T) {
	for dsn, want := range map[string]string{
		"postgres://u:p@h:1/old?sslmode=disable": "postgres://u:p@h:1/new?sslmode=disable",
		"host=h dbname=old":                      "host=h dbname=old dbname=new",
	} {
		if got, err := withDatabase(dsn, "new"); err != nil || got != want {
			t.Errorf("%s: %s, %v", dsn, got, err)
		}
		if cfg, err := pgx.ParseConfig(want); err != nil || cfg.Database != "new" {
			t.Errorf("%s: %v", want, err)
		}
	}
	if _, err := withDatabase("postgres://u:secret@h:x/\n", "new"); err == nil || strings.Contains(err.Error(), "secret") {
		t.Errorf("error: %v", err)
	}
}

// The migrations of two programs on one server do not share a template.
func TestHash(t *testing.T) {
	a, err := hashFS(os.DirFS("."))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "1.sql"), []byte("select 1"), 0o600); err != nil {
		t.Fatal(err)
	}
	b, err := hashFS(os.DirFS(dir))
	if err != nil || a == b || len(b) != 16 {
		t.Errorf("%s, %s, %v", a, b, err)
	}
}
