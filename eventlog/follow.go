package eventlog

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/wheelrefinery/refinery/events"
	"github.com/wheelrefinery/refinery/internal/pause"
)

// Follower reacts to events in order: a projection, a policy, the relay.
type Follower struct {
	Name string
	// Apply handles consecutive, non-empty batches in order, of at most 4,096 events, and calls Save. The events are shared: read them
	// only. After an error Apply is called again with the events after the checkpoint.
	Apply func(ctx context.Context, c *Checkpoint, batch []events.Recorded) error
	// Lead is what else one process at a time does under this name, beside Apply, until ctx ends; nil: nothing. A process that was paused
	// may go on for as long as it takes to notice that another has taken over.
	Lead func(ctx context.Context)
}

// Checkpoint is where a follower stands.
type Checkpoint struct {
	log      *Log
	name     string
	epoch    int64
	saved    int64
	position int64
}

// Position is the last position that is covered.
func (c *Checkpoint) Position() int64 { return c.position }

// Writes is what goes into one transaction: statements, and then rows by COPY, of which the tables have no keys.
type Writes struct {
	pgx.Batch
	Copies []Copy
}

// Copy is new rows of a table.
type Copy struct {
	Table   pgx.Identifier
	Columns []string
	Rows    pgx.CopyFromSource
}

// Run writes within tx.
func (w *Writes) Run(ctx context.Context, tx pgx.Tx) error {
	if err := tx.SendBatch(ctx, &w.Batch).Close(); err != nil {
		return err
	}
	for _, c := range w.Copies {
		if _, err := tx.CopyFrom(ctx, c.Table, c.Columns, c.Rows); err != nil {
			return err
		}
	}
	return nil
}

// Save moves the checkpoint to position and writes w, in one transaction, and without copies in one round trip; the transaction does not
// wait for the disk, since rows and checkpoint are lost or kept together. With nothing to write (nil or empty) the stored checkpoint moves
// later, at the next quiet moment. ErrFenced: another process follows under this name now, and nothing was written.
func (c *Checkpoint) Save(ctx context.Context, position int64, w *Writes) error {
	if w == nil || w.Len() == 0 && len(w.Copies) == 0 {
		c.position = position
		c.log.progress.set(c.name, position, false)
		c.log.tellMoves()
		return nil
	}
	if err := c.write(ctx, position, w); err != nil {
		return err
	}
	c.saved, c.position = position, position
	c.log.progress.set(c.name, position, true)
	c.log.tellMoves()
	return nil
}

func (c *Checkpoint) write(ctx context.Context, position int64, w *Writes) error {
	all := &Writes{Copies: w.Copies}
	all.Queue(`select save_checkpoint($1,$2,$3,$4)`, c.name, c.epoch, c.saved, position)
	all.QueuedQueries = append(all.QueuedQueries, w.QueuedQueries...)
	var err error
	if len(all.Copies) == 0 {
		err = c.log.pool.SendBatch(ctx, &all.Batch).Close()
	} else {
		err = pgx.BeginFunc(ctx, c.log.pool, func(tx pgx.Tx) error { return all.Run(ctx, tx) })
	}
	var pg *pgconn.PgError
	if errors.As(err, &pg) && pg.Code == "RF001" {
		return fmt.Errorf("%s: %w", c.name, ErrFenced)
	}
	if err != nil {
		return fmt.Errorf("%s: save at %d: %w", c.name, position, err)
	}
	return nil
}

// flush stores a checkpoint that moved without statements.
func (c *Checkpoint) flush(ctx context.Context) error {
	if c.saved == c.position {
		return nil
	}
	if err := c.write(ctx, c.position, &Writes{}); err != nil {
		return err
	}
	c.saved = c.position
	return nil
}

const (
	leaseTime  = 10 * time.Second
	renewEvery = 2 * time.Second
	standby    = 500 * time.Millisecond // between two looks at a lease that another process holds
	flushAfter = 50 * time.Millisecond  // of quiet
	flushEvery = time.Second            // when it is never quiet
	paceFor    = 10 * time.Millisecond
	paceBelow  = 250                    // events in a batch
	backOff    = 100 * time.Millisecond // after an error, doubling
	backOffMax = 5 * time.Second
)

// Run follows the log as f.Name until ctx ends, from the stored checkpoint on. One process at a time follows under a name; others stand
// by here. It returns nil when ctx has ended; errors of Apply are logged and tried again.
func (l *Log) Run(ctx context.Context, f Follower) error {
	wait := backOff
	for ctx.Err() == nil {
		following, lose := context.WithCancelCause(ctx)
		c, err := l.acquire(ctx, f.Name, lose)
		if err == nil && c == nil {
			lose(nil)
			l.progress.drop(f.Name) // whoever took it over knows how far it is
			pause.For(ctx, standby)
			continue
		}
		if err == nil {
			start := c.position
			err = l.lead(following, f, c)
			if err == nil {
				err = context.Cause(following)
			}
			if c.position > start {
				wait = backOff
			}
		}
		lose(nil)
		if ctx.Err() != nil {
			break
		}
		l.logger.Error("a follower stopped and starts again", "follower", f.Name, "error", err, "in", wait)
		pause.For(ctx, wait)
		wait = min(2*wait, backOffMax)
	}
	l.progress.drop(f.Name)
	// Whoever stands by need not wait for the lease to run out.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	_, err := l.pool.Exec(ctx, `update followers set leased_until = '-infinity' where name = $1 and owner = $2`, f.Name, l.owner)
	if err != nil {
		l.logger.Warn("a lease was not given back; it runs out", "follower", f.Name, "error", err)
	}
	return nil
}

// lead follows, with what goes on beside it.
func (l *Log) lead(ctx context.Context, f Follower, c *Checkpoint) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	if f.Lead != nil {
		wg.Go(func() { f.Lead(ctx) })
	}
	return l.follow(ctx, f, c)
}

// acquire takes the lease, or returns nil when another process has it. lose is called when it is lost and nothing else has noticed.
func (l *Log) acquire(ctx context.Context, name string, lose context.CancelCauseFunc) (*Checkpoint, error) {
	c := &Checkpoint{log: l, name: name}
	if _, err := l.pool.Exec(ctx, `insert into followers (name) values ($1) on conflict do nothing`, name); err != nil {
		return nil, fmt.Errorf("acquire %s: %w", name, err)
	}
	err := l.pool.QueryRow(ctx, `
		update followers set owner = $2, epoch = epoch + 1, leased_until = now() + $3
		where name = $1 and (owner = $2 or leased_until < now())
		returning epoch, position`, name, l.owner, leaseTime).Scan(&c.epoch, &c.saved)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("acquire %s: %w", name, err)
	}
	c.position = c.saved
	l.progress.took(name, c.position, c.epoch, lose)
	return c, nil
}

func (l *Log) follow(ctx context.Context, f Follower, c *Checkpoint) error {
	flushed := time.Now()
	for {
		quiet := time.Duration(0)
		if c.saved != c.position {
			quiet = flushAfter
		}
		batch, err := l.next(ctx, c.name, c.position, quiet)
		if err != nil {
			if ctx.Err() != nil {
				return c.flush(context.WithoutCancel(ctx))
			}
			return err
		}
		if len(batch) > 0 {
			begin := time.Now()
			if err := f.Apply(ctx, c, batch); err != nil {
				return err
			}
			if l.told.Applied != nil {
				l.told.Applied(f.Name, batch, begin)
			}
			if len(batch) < paceBelow {
				l.progress.pace(ctx, c.position)
			}
		}
		if len(batch) == 0 || time.Since(flushed) > flushEvery {
			if err := c.flush(ctx); err != nil {
				return err
			}
			flushed = time.Now()
		}
	}
}

// renewer keeps the leases of this process.
func (l *Log) renewer(ctx context.Context) {
	for {
		pause.For(ctx, renewEvery)
		if ctx.Err() != nil {
			return
		}
		names := l.progress.names()
		if len(names) == 0 {
			continue
		}
		kept, err := l.renew(ctx, names)
		if err == nil {
			l.progress.lost(slices.DeleteFunc(names, func(n string) bool { return slices.Contains(kept, n) }))
		}
		if err != nil && ctx.Err() == nil {
			l.logger.Warn("leases were not renewed", "error", err)
		}
	}
}

// renew returns the names whose leases this process still has.
func (l *Log) renew(ctx context.Context, names []string) ([]string, error) {
	rows, err := l.pool.Query(ctx, `update followers set leased_until = now() + $3 where name = any($1) and owner = $2 returning name`, names, l.owner, leaseTime)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}
