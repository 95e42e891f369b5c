// Package migrations holds the SQL of the tables that are not disposable: the event log, command outcomes, checkpoints, leases.
package migrations

import (
	"context"
	"database/sql"
	"embed"
	"fmt"

	_ "github.com/jackc/pgx/v5/stdlib" // the driver that goose uses
	"github.com/pressly/goose/v3"
)

// FS holds the migrations, in order of their numbers.
//
//go:embed *.sql
var FS embed.FS

// lockKey keeps two processes from migrating one database at once.
const lockKey = 7236837410

// Up brings the database at dsn to the newest version. Several processes may call it at once: one migrates, the others wait.
func Up(ctx context.Context, dsn string) error {
	db, err := sql.Open("pgx", dsn)
	if err != nil {
		return fmt.Errorf("migrate: %w", err)
	}
	defer db.Close()
	lock, err := db.Conn(ctx)
	if err != nil {
		return fmt.Errorf("migrate: %w", err)
	}
	defer lock.Close() // ends the session, and the lock with it
	if _, err := lock.ExecContext(ctx, "select pg_advisory_lock($1)", lockKey); err != nil {
		return fmt.Errorf("migrate: lock: %w", err)
	}
	defer lock.ExecContext(context.WithoutCancel(ctx), "select pg_advisory_unlock($1)", lockKey)
	p, err := goose.NewProvider(goose.DialectPostgres, db, FS)
	if err != nil {
		return fmt.Errorf("migrate: %w", err)
	}
	if _, err := p.Up(ctx); err != nil {
		return fmt.Errorf("migrate: %w", err)
	}
	return nil
}
