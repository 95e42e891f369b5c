package pgtest

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/wheelrefinery/refinery/internal/postgres"
	"github.com/wheelrefinery/refinery/migrations"
)

// Durable returns a pool on a migrated database of a server of its own, with the settings of the embedded default: what is committed
// is on disk. For measurements; tests use New, which is faster.
func Durable(t testing.TB) *pgxpool.Pool {
	t.Helper()
	cfg, err := pgxpool.ParseConfig(DurableDSN(t))
	if err != nil {
		t.Fatal("pgtest:", err)
	}
	cfg.MaxConns = 24
	cfg.ConnConfig.RuntimeParams["jit"] = "off"
	pool, err := pgxpool.NewWithConfig(context.Background(), cfg)
	if err != nil {
		t.Fatal("pgtest:", err)
	}
	t.Cleanup(pool.Close)
	return pool
}

// DurableDSN returns the connection string of such a database.
func DurableDSN(t testing.TB) string {
	t.Helper()
	cache, err := CacheDir()
	if err != nil {
		t.Fatal("pgtest:", err)
	}
	dir, err := TempDir()
	if err != nil {
		t.Fatal("pgtest:", err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error("pgtest:", err)
		}
	})
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	pg, err := postgres.Start(ctx, filepath.Join(dir, "pg"), postgres.Options{CacheDir: cache})
	if err != nil {
		t.Fatal("pgtest:", err)
	}
	t.Cleanup(func() {
		if err := pg.Stop(context.Background()); err != nil {
			t.Error("pgtest:", err)
		}
	})
	if err := migrations.Up(ctx, pg.DSN()); err != nil {
		t.Fatal("pgtest:", err)
	}
	return pg.DSN()
}
