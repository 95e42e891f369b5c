package eventlog

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/wheelrefinery/refinery/events"
)

// Follower reacts to events in order: a projection, a policy, the relay.
type Follower struct {
	Name string
	// Apply handles consecutive, non-empty batches in order, of at most 4,096 events, and calls Save. The events are shared: read them
	// only. After an error Apply is called again with the events after the checkpoint.
	Apply func(ctx context.Context, c *Checkpoint, batch []events.Recorded) error
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

// Save moves the checkpoint to position and runs stmts, in one transaction and one round trip; the transaction does not wait for the disk,
// since rows and checkpoint are lost or kept together. Without stmts (nil or empty) the stored checkpoint moves later, at the next
// quiet moment. ErrFenced: another process follows under this name now, and nothing was written.
func (c *Checkpoint) Save(ctx context.Context, position int64, stmts *pgx.Batch) error {
	if stmts == nil || stmts.Len() == 0 {
		c.position = position
		c.log.progress.set(c.name, position)
		return nil
	}
	if err := c.write(ctx, position, stmts); err != nil {
		return err
	}
	c.saved, c.position = position, position
	c.log.progress.set(c.name, position)
	return nil
}

func (c *Checkpoint) write(ctx context.Context, position int64, stmts *pgx.Batch) error {
	b := &pgx.Batch{}
	b.Queue(`select save_checkpoint($1,$2,$3,$4)`, c.name, c.epoch, c.saved, position)
	if stmts != nil {
		b.QueuedQueries = append(b.QueuedQueries, stmts.QueuedQueries...)
	}
	err := c.log.pool.SendBatch(ctx, b).Close()
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
	if err := c.write(ctx, c.position, nil); err != nil {
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
		c, err := l.acquire(ctx, f.Name)
		if err == nil && c == nil {
			pause(ctx, standby)
			continue
		}
		if err == nil {
			start := c.position
			err = l.follow(ctx, f, c)
			if c.position > start {
				wait = backOff
			}
		}
		if ctx.Err() != nil {
			break
		}
		l.logger.Error("a follower stopped and starts again", "follower", f.Name, "error", err, "in", wait)
		pause(ctx, wait)
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

// acquire takes the lease, or returns nil when another process has it.
func (l *Log) acquire(ctx context.Context, name string) (*Checkpoint, error) {
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
	l.progress.set(name, c.position)
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
		pause(ctx, renewEvery)
		if ctx.Err() != nil {
			return
		}
		names := l.progress.names()
		if len(names) == 0 {
			continue
		}
		_, err := l.pool.Exec(ctx, `update followers set leased_until = now() + $3 where name = any($1) and owner = $2`, names, l.owner, leaseTime)
		if err != nil && ctx.Err() == nil {
			l.logger.Warn("leases were not renewed", "error", err)
		}
	}
}

// progress knows how far the followers of this process are, and up to where somebody waits for them.
type progress struct {
	mu     sync.Mutex
	at     map[string]int64
	wake   chan struct{} // closed when a follower moves
	wanted int64
	wish   chan struct{} // closed when wanted moves
}

func (p *progress) init() {
	p.at, p.wake, p.wish = map[string]int64{}, make(chan struct{}), make(chan struct{})
}

// want says that somebody waits for position.
func (p *progress) want(position int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if position > p.wanted {
		p.wanted = position
		close(p.wish)
		p.wish = make(chan struct{})
	}
}

// pace lets a few events gather behind position while nobody waits for them: a transaction costs much more than an event.
func (p *progress) pace(ctx context.Context, position int64) {
	p.mu.Lock()
	wanted, wish := p.wanted, p.wish
	p.mu.Unlock()
	if wanted > position {
		return
	}
	t := time.NewTimer(paceFor)
	defer t.Stop()
	select {
	case <-wish:
	case <-t.C:
	case <-ctx.Done():
	}
}

func (p *progress) set(name string, position int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.at[name] = position
	close(p.wake)
	p.wake = make(chan struct{})
}

func (p *progress) drop(name string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.at, name)
}

func (p *progress) names() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	names := make([]string, 0, len(p.at))
	for n := range p.at {
		names = append(names, n)
	}
	return names
}

// behind returns which of names do not cover position, as far as this process knows, and a channel that is closed at the next move.
func (p *progress) behind(position int64, names []string) (here, elsewhere []string, moved <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, n := range names {
		at, ok := p.at[n]
		switch {
		case !ok:
			elsewhere = append(elsewhere, n)
		case at < position:
			here = append(here, n)
		}
	}
	return here, elsewhere, p.wake
}

// Covered is the last position that all of names have covered, as far as this process knows: those that another process runs count as
// up to date.
func (l *Log) Covered(names ...string) int64 {
	l.progress.mu.Lock()
	defer l.progress.mu.Unlock()
	covered := l.Head()
	for _, n := range names {
		if at, ok := l.progress.at[n]; ok {
			covered = min(covered, at)
		}
	}
	return covered
}

// checkpointPoll is how often the checkpoints of followers in other processes are looked at.
const checkpointPoll = 20 * time.Millisecond

// WaitFor returns when each named follower, whichever process runs it, has covered position, or with ctx's error.
func (l *Log) WaitFor(ctx context.Context, position int64, names ...string) error {
	l.progress.want(min(position, l.Head()))
	for {
		here, elsewhere, moved := l.progress.behind(position, names)
		if len(elsewhere) > 0 {
			rows, err := l.pool.Query(ctx, `select name from followers where name = any($1) and position >= $2`, elsewhere, position)
			if err != nil {
				return fmt.Errorf("read checkpoints: %w", err)
			}
			done, err := pgx.CollectRows(rows, pgx.RowTo[string])
			if err != nil {
				return fmt.Errorf("read checkpoints: %w", err)
			}
			if len(done) == len(elsewhere) {
				elsewhere = nil
			}
		}
		if len(here) == 0 && len(elsewhere) == 0 {
			return nil
		}
		var poll <-chan time.Time
		if len(elsewhere) > 0 {
			poll = time.After(checkpointPoll)
		}
		select {
		case <-moved:
		case <-poll:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
