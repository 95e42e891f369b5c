package projections

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/wheelrefinery/refinery/events"
)

// WorkerRow is a worker as it described itself last. When it was heard of, and what it holds, is in workers_seen and leases.
type WorkerRow struct {
	ID           string    `db:"id" sql:"text primary key"`
	Position     int64     `db:"position" sql:"bigint"` // of its first event
	PythonTag    string    `db:"python_tag" sql:"text"`
	PlatformTag  string    `db:"platform_tag" sql:"text"`
	Slots        int       `db:"slots" sql:"bigint"`
	Version      string    `db:"version" sql:"text"`
	Host         string    `db:"host" sql:"text"`
	RegisteredAt time.Time `db:"registered_at" sql:"timestamptz"` // first
}

// Key is the worker's id.
func (w WorkerRow) Key() string { return w.ID }

// WorkerTags reads which pairs of tags the workers have that were here in the last day, python and platform.
func WorkerTags(ctx context.Context, q Querier) ([][2]string, error) {
	rows, err := q.Query(ctx, `select distinct python_tag, platform_tag from workers.workers w left join workers_seen s on s.worker = w.id
		where coalesce(s.seen_at, w.registered_at) > now() - interval '1 day' order by 1, 2`)
	if err != nil {
		return nil, fmt.Errorf("read the workers' tags: %w", err)
	}
	tags, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (t [2]string, err error) { return t, row.Scan(&t[0], &t[1]) })
	if err != nil {
		return nil, fmt.Errorf("read the workers' tags: %w", err)
	}
	return tags, nil
}

type workerTables struct{ workers *table[string, WorkerRow] }

var workers = define("workers", 1, func(m *models) *workerTables {
	return &workerTables{newTable[string, WorkerRow](m, "workers", "(position)", "(python_tag, position)", "(platform_tag, position)")}
}, on((*workerTables).registered))

func (t *workerTables) registered(e events.WorkerRegistered, m events.Recorded) {
	id := strings.TrimPrefix(m.Stream, events.WorkerStream(""))
	w, ok := t.workers.Get(id)
	if !ok {
		w.ID, w.Position, w.RegisteredAt = id, m.Position, m.Time
	}
	w.PythonTag, w.PlatformTag, w.Slots, w.Version, w.Host = e.PythonTag, e.PlatformTag, e.Slots, e.Version, e.Host
	t.workers.Put(w)
}
