package projections

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/wheelrefinery/refinery/eventlog"
	"github.com/wheelrefinery/refinery/internal/fault"
	"github.com/wheelrefinery/refinery/internal/pause"
)

// all lists every projection.
var all = []projection{artifacts, builds, bulks, hints, history, logs, manifest, plans, queue, runs, smokes, summary, triggers, workers}

// Runner feeds the read models and rebuilds them. Any number of processes may run one; each projection is fed by one of them.
type Runner struct {
	log         *eventlog.Log
	pool        *pgxpool.Pool
	logger      *slog.Logger
	projections []projection
	begun       map[string]chan struct{} // a rebuild was begun
}

// New makes a Runner; pool has write access.
func New(log *eventlog.Log, pool *pgxpool.Pool, logger *slog.Logger) *Runner {
	begun := map[string]chan struct{}{}
	for _, p := range all {
		begun[p.name] = make(chan struct{}, 1)
	}
	return &Runner{log, pool, logger, all, begun}
}

// Names lists the projections, and so the followers that Wait waits for.
func (r *Runner) Names() []string {
	names := make([]string, len(r.projections))
	for i, p := range r.projections {
		names[i] = p.name
	}
	return names
}

// Wait returns when every read model shows the log up to position, or with ctx's error.
func (r *Runner) Wait(ctx context.Context, position int64) error {
	return r.log.WaitFor(ctx, position, r.Names()...)
}

const (
	setupLock = 7236837 // with a projection's name: makes, drops and swaps its generations one at a time
	retryWait = time.Second
	next      = "_next" // schema and follower of a generation that is being filled
	old       = "_old"  // schema of the generation before
)

// Setup makes the tables of projections that have none, empty. Run does it too; a process that only reads needs no other start.
func (r *Runner) Setup(ctx context.Context) error {
	err := r.locked(ctx, "", func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `create table if not exists projections (
			name text primary key, -- of the schema
			generation bigint not null,
			hash text not null -- of what made it: another hash means that it must be made again
		)`)
		return err
	})
	for _, p := range r.projections {
		if err == nil {
			_, err = r.stored(ctx, r.pool, p.name)
		}
		if errors.Is(err, pgx.ErrNoRows) {
			err = r.locked(ctx, p.name, func(tx pgx.Tx) error {
				if _, err := r.stored(ctx, tx, p.name); !errors.Is(err, pgx.ErrNoRows) {
					return err
				}
				return create(ctx, tx, p, p.name, 1, true)
			})
		}
	}
	return err
}

// locked runs f in a transaction, one at a time for each projection over all processes.
func (r *Runner) locked(ctx context.Context, projection string, f func(pgx.Tx) error) error {
	return pgx.BeginFunc(ctx, r.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `select pg_advisory_xact_lock($1, hashtext($2))`, setupLock, projection); err != nil {
			return err
		}
		return f(tx)
	})
}

type stamp struct {
	generation int64
	hash       string
}

func (r *Runner) stored(ctx context.Context, q interface {
	QueryRow(context.Context, string, ...any) pgx.Row
}, schema string,
) (s stamp, err error) {
	err = q.QueryRow(ctx, `select generation, hash from projections where name = $1 and exists (select from pg_namespace where nspname = $1)`,
		schema).Scan(&s.generation, &s.hash)
	return s, err
}

// create makes the tables of p in a new schema, in place of what is there, with the follower at the start of the log.
func create(ctx context.Context, tx pgx.Tx, p projection, schema string, generation int64, indexes bool) error {
	sql := []string{"drop schema if exists " + schema + " cascade", "create schema " + schema}
	for _, t := range p.open().tables {
		sql = append(sql, t.create(schema))
		if indexes {
			sql = append(sql, t.createIndexes(schema)...)
		}
	}
	for _, s := range sql {
		if _, err := tx.Exec(ctx, s); err != nil {
			return fmt.Errorf("create %s: %w", schema, err)
		}
	}
	if _, err := tx.Exec(ctx, `update followers set position = 0, epoch = epoch + 1 where name = $1`, schema); err != nil {
		return err
	}
	_, err := tx.Exec(ctx, `insert into projections values ($1, $2, $3)
		on conflict (name) do update set generation = excluded.generation, hash = excluded.hash`, schema, generation, p.hash())
	return err
}

// Run feeds every projection until ctx ends. One whose definition changed is rebuilt; a rebuild that was interrupted goes on.
func (r *Runner) Run(ctx context.Context) error {
	for {
		err := r.Setup(ctx)
		if err == nil {
			break
		}
		if ctx.Err() != nil {
			return nil
		}
		r.logger.Error("the read models' tables were not made; trying again", "error", err)
		pause.For(ctx, retryWait)
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	for _, p := range r.projections {
		wg.Go(func() { r.keep(ctx, p) })
	}
	return nil
}

// keep brings one projection to its present definition and feeds it until ctx ends.
func (r *Runner) keep(ctx context.Context, p projection) {
	var wg sync.WaitGroup
	defer wg.Wait()
	for ctx.Err() == nil {
		live, err := r.stored(ctx, r.pool, p.name)
		if err == nil && live.hash != p.hash() {
			r.logger.Info("a read model's definition has changed: rebuilding", "projection", p.name)
			if err = r.prepare(ctx, p, false); err == nil {
				err = r.rebuild(ctx, p)
			}
		} else if err == nil {
			wg.Go(func() {
				for ctx.Err() == nil {
					if err := r.resume(ctx, p); err == nil {
						select {
						case <-r.begun[p.name]:
						case <-ctx.Done():
						}
					} else if ctx.Err() == nil {
						r.logger.Error("a rebuild was interrupted; it goes on", "projection", p.name, "error", err)
						pause.For(ctx, retryWait)
					}
				}
			})
			err = r.log.Run(ctx, r.follower(p, p.name))
		}
		if err != nil && ctx.Err() == nil {
			r.logger.Error("a read model is not fed; trying again", "projection", p.name, "error", err)
			pause.For(ctx, retryWait)
		}
	}
}

// follower feeds the generation of p that lies in schema.
func (r *Runner) follower(p projection, schema string) eventlog.Follower {
	g := &generation{projection: p, schema: schema, db: r.pool, fold: p.open()}
	g.check = func(ctx context.Context) error {
		s, err := r.stored(ctx, r.pool, schema)
		switch {
		case errors.Is(err, pgx.ErrNoRows) && schema == p.name:
			return cmp.Or(r.Setup(ctx), fmt.Errorf("the tables of %s were gone: they are made again from the start of the log", schema))
		case err != nil:
			return fmt.Errorf("find the tables of %s: %w", schema, err)
		case s.hash == p.hash():
			return nil
		}
		// The program that made them may be standing by.
		_, err = r.pool.Exec(ctx, `update followers set owner = '', leased_until = '-infinity' where name = $1`, schema)
		return cmp.Or(err, fmt.Errorf("the tables of %s were made by another version of this program, which must feed them", schema))
	}
	return eventlog.Follower{Name: schema, Apply: g.apply}
}

// Rebuild makes the projection again from the whole log, beside the one that is served, and swaps them. It returns after the swap; when
// ctx ends earlier, the rebuild goes on with the next Run or Rebuild of a process.
func (r *Runner) Rebuild(ctx context.Context, name string) error {
	i := slices.IndexFunc(r.projections, func(p projection) bool { return p.name == name })
	if i < 0 {
		return fault.New(fault.NotFound, "there is no projection of this name; the projections are %v", r.Names())
	}
	if err := r.prepare(ctx, r.projections[i], true); err != nil {
		return err
	}
	return r.rebuild(ctx, r.projections[i])
}

// prepare makes the empty next generation. One that is there already and of the same definition stays, unless fresh.
func (r *Runner) prepare(ctx context.Context, p projection, fresh bool) error {
	return r.locked(ctx, p.name, func(tx pgx.Tx) error {
		live, err := r.stored(ctx, tx, p.name)
		if err != nil {
			return err
		}
		begun, err := r.stored(ctx, tx, p.name+next)
		if err == nil && begun.hash == p.hash() && !fresh {
			return nil
		}
		if err != nil && !errors.Is(err, pgx.ErrNoRows) {
			return err
		}
		if _, err := tx.Exec(ctx, `drop schema if exists `+p.name+old+` cascade`); err != nil {
			return err
		}
		return create(ctx, tx, p, p.name+next, live.generation+1, false)
	})
}

// resume goes on with a rebuild that was begun, if there is one.
func (r *Runner) resume(ctx context.Context, p projection) error {
	begun, err := r.stored(ctx, r.pool, p.name+next)
	if errors.Is(err, pgx.ErrNoRows) || err == nil && begun.hash != p.hash() {
		return nil
	}
	if err != nil {
		return err
	}
	return r.rebuild(ctx, p)
}

// rebuild fills the next generation and swaps it in. Several processes may be at it; one feeds, one swaps, all return.
func (r *Runner) rebuild(ctx context.Context, p projection) error {
	following, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { _ = r.log.Run(following, r.follower(p, p.name+next)) }) // ends with nil
	err := r.fill(ctx, p)
	stop()
	wg.Wait()
	if err != nil {
		return fmt.Errorf("rebuild %s: %w", p.name, err)
	}
	// Run may have made the follower's row again after the swap took it away.
	return r.locked(ctx, p.name, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `delete from followers where name = $1 and not exists (select from projections where name = $1)`, p.name+next)
		return err
	})
}

const (
	coverWait = time.Second     // between two looks whether somebody else has swapped
	swapWait  = 5 * time.Second // how long a swap may hold up the log
)

func (r *Runner) fill(ctx context.Context, p projection) error {
	for indexed := false; ; {
		if _, err := r.stored(ctx, r.pool, p.name+next); errors.Is(err, pgx.ErrNoRows) {
			return nil // swapped by another process
		} else if err != nil {
			return err
		}
		covering, cancel := context.WithTimeout(ctx, coverWait)
		err := r.log.WaitFor(covering, r.log.Head(), p.name+next)
		cancel()
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, context.DeadlineExceeded): // not yet
		case err != nil:
			return err
		case !indexed: // last, since filling a table with its indexes takes twice as long
			if err := r.index(ctx, p); err != nil {
				return err
			}
			indexed = true
		default:
			err := r.swap(ctx, p)
			var pg *pgconn.PgError
			deadlock := errors.As(err, &pg) && pg.Code == "40P01" // with the renewal of leases
			if ctx.Err() != nil || !deadlock && !errors.Is(err, context.DeadlineExceeded) {
				return err
			}
			r.logger.Warn("a rebuilt read model was not swapped in; trying again", "projection", p.name, "error", err)
		}
	}
}

func (r *Runner) index(ctx context.Context, p projection) error {
	return r.locked(ctx, p.name, func(tx pgx.Tx) error {
		if _, err := r.stored(ctx, tx, p.name+next); err != nil {
			if errors.Is(err, pgx.ErrNoRows) {
				return nil
			}
			return err
		}
		for _, t := range p.open().tables {
			for _, sql := range t.createIndexes(p.name + next) {
				if _, err := tx.Exec(ctx, sql); err != nil {
					return fmt.Errorf("index %s: %w", p.name+next, err)
				}
			}
		}
		return nil
	})
}

// swap puts the next generation in the place of the live one, while no event can be appended. Whoever feeds the live one is fenced and
// goes on with the new one, from where that stands.
func (r *Runner) swap(ctx context.Context, p projection) error {
	ctx, cancel := context.WithTimeout(ctx, swapWait)
	defer cancel()
	err := r.locked(ctx, p.name, func(tx pgx.Tx) error {
		if _, err := r.stored(ctx, tx, p.name+next); err != nil {
			if errors.Is(err, pgx.ErrNoRows) {
				return nil
			}
			return err
		}
		if _, err := tx.Exec(ctx, `select pg_advisory_xact_lock($1)`, eventlog.AppendLock); err != nil {
			return err
		}
		var head int64
		if err := tx.QueryRow(ctx, `select position from head`).Scan(&head); err != nil {
			return err
		}
		if err := r.log.WaitFor(ctx, head, p.name+next); err != nil {
			return err
		}
		for _, s := range []string{
			`delete from followers where name = '` + p.name + next + `'`,
			fmt.Sprintf(`insert into followers (name, position, epoch) values ('%s', %d, 1)
				on conflict (name) do update set position = excluded.position, epoch = followers.epoch + 1`, p.name, head),
			`drop schema if exists ` + p.name + old + ` cascade`,
			`alter schema ` + p.name + ` rename to ` + p.name + old,
			`alter schema ` + p.name + next + ` rename to ` + p.name,
			`delete from projections where name = '` + p.name + `'`,
			`update projections set name = '` + p.name + `' where name = '` + p.name + next + `'`,
		} {
			if _, err := tx.Exec(ctx, s); err != nil {
				return fmt.Errorf("swap: %w", err)
			}
		}
		return nil
	})
	if err == nil {
		r.log.Touch(p.name)
		r.logger.Info("a read model was rebuilt", "projection", p.name)
	}
	return err
}

// Status is how a projection stands.
type Status struct {
	Name       string
	Position   int64  // the log is shown up to here
	Lag        int64  // events behind the log
	LagSeconds int64  // how long the oldest of them has been there
	Generation int64  // how often it was built from the start, from 1
	State      string // live, rebuilding, waiting (nobody has made its tables)
	Rebuilt    int64  // position of the next generation while rebuilding
	Parked     int64  // dead letters

	DeadLetters []DeadLetter // the first mostLetters of them
}

const mostLetters = 50

// Status reads how each projection stands, in the order of Names. Positions of projections that other processes feed may be up to a second old.
func (r *Runner) Status(ctx context.Context) ([]Status, error) {
	var out []Status
	for _, p := range r.projections {
		s := Status{Name: p.name, State: "waiting"}
		live, err := r.stored(ctx, r.pool, p.name)
		if err == nil {
			s.Generation = live.generation
			err = r.pool.QueryRow(ctx, `select coalesce((select position from followers where name = $1), 0),
				coalesce((select position from followers where name = $2), 0),
				case when exists (select from projections where name = $2) then 'rebuilding' else 'live' end,
				(select count(*) from `+p.name+`.dead_letters),
				coalesce((select greatest(0, extract(epoch from now() - recorded_at))::bigint from events
					where position = (select position from followers where name = $1) + 1), 0)`,
				p.name, p.name+next).Scan(&s.Position, &s.Rebuilt, &s.State, &s.Parked, &s.LagSeconds)
		}
		if err == nil && s.Parked > 0 {
			s.DeadLetters, err = Query[DeadLetter](ctx, r.pool, "from "+p.name+".dead_letters order by position limit $1", mostLetters)
		}
		if err != nil && !errors.Is(err, pgx.ErrNoRows) {
			return nil, fmt.Errorf("status of %s: %w", p.name, err)
		}
		s.Lag = max(0, r.log.Head()-s.Position)
		out = append(out, s)
	}
	return out, nil
}
