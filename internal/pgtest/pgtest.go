// Package pgtest gives tests a real Postgres. Only tests import it.
//
// A test binary starts one server at first use, or uses that of POSTGRES_DSN, and each test gets a database of its own, cloned
// from a migrated template. Where no Postgres can be had, tests are skipped and named at the end; with CI=true they fail.
package pgtest

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.uber.org/goleak"

	"github.com/wheelrefinery/refinery/internal/postgres"
	"github.com/wheelrefinery/refinery/migrations"
)

// base is the server of this test binary and its migrated template, or why there is none.
var base struct {
	once     sync.Once
	srv      *server // nil with POSTGRES_DSN
	dsn      string  // of the database that statements about other databases run in
	template string
	err      error
}

var missing struct {
	sync.Mutex
	lines []string
}

var ends []func() error

// AtEnd has Main call f when the tests have run. Test servers of other kinds stop by it.
func AtEnd(f func() error) {
	missing.Lock()
	defer missing.Unlock()
	ends = append(ends, f)
}

// Main runs the tests, stops the servers, fails on goroutines that are still there, names what was skipped, and exits:
//
//	func TestMain(m *testing.M) { pgtest.Main(m) }
//
// leaks excuse goroutines that a library leaves behind.
func Main(m *testing.M, leaks ...goleak.Option) {
	code := m.Run()
	for _, end := range ends {
		if err := end(); err != nil {
			fmt.Fprintln(os.Stderr, "pgtest:", err)
			code = max(code, 1)
		}
	}
	if base.srv != nil {
		if err := base.srv.stop(); err != nil {
			fmt.Fprintln(os.Stderr, "pgtest:", err)
			code = max(code, 1)
		}
	}
	if code == 0 {
		if err := goleak.Find(leaks...); err != nil {
			fmt.Fprintln(os.Stderr, "pgtest: goroutines leaked:", err)
			code = 1
		}
	}
	if err := report(); err != nil {
		fmt.Fprintln(os.Stderr, "pgtest:", err)
		code = max(code, 1)
	}
	os.Exit(code)
}

// Missing ends a test that needs something that this machine lacks: with CI=true it fails, elsewhere it is skipped and Main names
// it at the end, with what to install.
func Missing(t testing.TB, what, install string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf("needs %s: %s", what, install)
	}
	missing.Lock()
	missing.lines = append(missing.lines, fmt.Sprintf("%s: needs %s: %s", t.Name(), what, install))
	missing.Unlock()
	t.Skipf("needs %s: %s", what, install)
}

// report prints what was skipped. go test hides what a passing package prints, so a run over many packages may name a file in
// REFINERY_SKIPPED, to print at its end.
func report() error {
	if len(missing.lines) == 0 {
		return nil
	}
	text := "SKIPPED " + strings.Join(missing.lines, "\nSKIPPED ") + "\n"
	fmt.Print(text)
	path := os.Getenv("REFINERY_SKIPPED")
	if path == "" {
		return nil
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("report of skipped tests: %w", err)
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}

// New returns a pool on a database of its own, which is dropped when the test ends. A connection that the test has not given back
// by then fails it.
func New(t testing.TB) *pgxpool.Pool {
	t.Helper()
	dsn := DSN(t)
	cfg, err := pgxpool.ParseConfig(dsn)
	if err != nil {
		t.Fatal("pgtest:", err)
	}
	cfg.MaxConns = 16
	pool, err := pgxpool.NewWithConfig(context.Background(), cfg)
	if err != nil {
		t.Fatal("pgtest:", err)
	}
	t.Cleanup(func() {
		closed := make(chan struct{})
		go func() { pool.Close(); close(closed) }()
		select {
		case <-closed:
		case <-time.After(releaseTimeout):
			t.Errorf("pgtest: %d connections of the pool were not released", pool.Stat().AcquiredConns())
		}
	})
	return pool
}

var releaseTimeout = 10 * time.Second // a variable for the test of it

// DSN returns the connection string of a database of its own, which is dropped when the test ends, whoever is connected.
func DSN(t testing.TB) string {
	t.Helper()
	base.once.Do(func() { base.err = start() })
	if errors.Is(base.err, postgres.ErrUnavailable) {
		Missing(t, "Postgres", base.err.Error())
	}
	if base.err != nil {
		t.Fatal("pgtest:", base.err)
	}
	db := "refinery_test_" + strings.ToLower(rand.Text())
	if err := admin(context.Background(), "create database "+db+" template "+base.template+" strategy "+strategy); err != nil {
		t.Fatal("pgtest:", err)
	}
	t.Cleanup(func() {
		if err := admin(context.Background(), "drop database "+db+" with (force)"); err != nil {
			t.Error("pgtest:", err)
		}
	})
	dsn, err := withDatabase(base.dsn, db)
	if err != nil {
		t.Fatal("pgtest:", err)
	}
	return dsn
}

// strategy of cloning. Measured with the settings of startServer: 0.1 s against 0.25 s for wal_log.
const strategy = "file_copy"

func start() error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	base.dsn = os.Getenv("POSTGRES_DSN")
	if base.dsn == "" {
		var err error
		if base.srv, err = startServer(ctx); err != nil {
			return err
		}
		base.dsn = base.srv.pg.DSN()
	}
	hash, err := hashFS(migrations.FS)
	if err != nil {
		return err
	}
	base.template = "refinery_template_" + hash
	return template(ctx, base.dsn, base.template)
}

// template makes sure that the migrated database db exists. Its name stands for the state of the migrations. Test binaries that
// share a server find it made, or wait for who makes it; one that was left half made is made again (is_template is the mark of
// completion).
func template(ctx context.Context, server, db string) (err error) {
	conn, err := pgx.Connect(ctx, server)
	if err != nil {
		return fmt.Errorf("template: %w", err)
	}
	defer func() { err = errors.Join(err, conn.Close(ctx)) }()
	if _, err := conn.Exec(ctx, "select pg_advisory_lock(hashtext($1))", db); err != nil { // freed with the connection
		return fmt.Errorf("template: %w", err)
	}
	var made bool
	err = conn.QueryRow(ctx, "select datistemplate from pg_database where datname = $1", db).Scan(&made)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return fmt.Errorf("template: %w", err)
	}
	if made {
		return nil
	}
	dsn, err := withDatabase(server, db)
	if err != nil {
		return err
	}
	for _, sql := range []string{"drop database if exists " + db, "create database " + db + " template template0"} {
		if _, err := conn.Exec(ctx, sql); err != nil {
			return fmt.Errorf("template: %s: %w", sql, err)
		}
	}
	if err := migrations.Up(ctx, dsn); err != nil {
		return fmt.Errorf("template: %w", err)
	}
	if _, err := conn.Exec(ctx, "alter database "+db+" is_template true allow_connections false"); err != nil {
		return fmt.Errorf("template: %w", err)
	}
	return nil
}

func admin(ctx context.Context, sql string) (err error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	conn, err := pgx.Connect(ctx, base.dsn)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close(ctx)) }()
	if _, err := conn.Exec(ctx, sql); err != nil {
		return fmt.Errorf("%s: %w", sql, err)
	}
	return nil
}

// withDatabase returns dsn for another database of the same server.
func withDatabase(dsn, db string) (string, error) {
	if strings.Contains(dsn, "://") {
		u, err := url.Parse(dsn)
		if err != nil {
			return "", errors.New("POSTGRES_DSN is not a URL") // the error would show the password
		}
		u.Path = "/" + db
		return u.String(), nil
	}
	return dsn + " dbname=" + db, nil // of two settings the last one counts
}

// hashFS hashes the names and contents of all files, short enough for a database's name.
func hashFS(files fs.FS) (string, error) {
	h := sha256.New()
	err := fs.WalkDir(files, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := fs.ReadFile(files, path)
		fmt.Fprintf(h, "%s %d\n%s", path, len(b), b)
		return err
	})
	if err != nil {
		return "", fmt.Errorf("migrations: %w", err)
	}
	return fmt.Sprintf("%x", h.Sum(nil)[:8]), nil
}
