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
		return nil
	}
	if err := c.write(ctx, position, w); err != nil {
		return err
	}
	c.saved, c.position = position, position
	c.log.progress.set(c.name, position, true)
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
		c, err := l.acquire(ctx, f.Name)
		if err == nil && c == nil {
			l.progress.drop(f.Name) // whoever took it over knows how far it is
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
	l.progress.took(name, c.position, c.epoch)
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

// progress knows how far followers are, and up to where somebody waits for them.
type progress struct {
	mu     sync.Mutex
	at     map[string]*standing
	wake   chan struct{} // closed when a follower of this process moves
	wanted int64
	wish   chan struct{} // closed when wanted moves
}

// standing is how far a follower is.
type standing struct {
	position int64 // known at once where it runs in this process, otherwise from its checkpoint
	epoch    int64
	version  uint64 // of what it made: goes up whenever that may have changed
	here     bool   // this process runs it
	asked    bool   // its checkpoint is watched
}

func (p *progress) init() {
	p.at, p.wake, p.wish = map[string]*standing{}, make(chan struct{}), make(chan struct{})
}

// of is the standing of name; mu is held.
func (p *progress) of(name string) *standing {
	s, ok := p.at[name]
	if !ok {
		s = &standing{}
		p.at[name] = s
	}
	return s
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

// took notes that this process runs name from now on.
func (p *progress) took(name string, position, epoch int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.of(name).epoch = epoch
	p.moved(name, position, true)
}

// set notes that a follower of this process has come to position, and whether it wrote something.
func (p *progress) set(name string, position int64, wrote bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.moved(name, position, wrote)
}

func (p *progress) moved(name string, position int64, wrote bool) {
	s := p.of(name)
	s.position, s.here = position, true
	if wrote {
		s.version++
	}
	close(p.wake)
	p.wake = make(chan struct{})
}

// drop notes that this process does not run name any more.
func (p *progress) drop(name string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch s, ok := p.at[name]; {
	case !ok:
	case !s.asked:
		delete(p.at, name)
	case s.here:
		s.here = false
		s.version++
	}
}

// names lists the followers of this process.
func (p *progress) names() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	names := make([]string, 0, len(p.at))
	for n, s := range p.at {
		if s.here {
			names = append(names, n)
		}
	}
	return names
}

// behind returns which of names do not cover position, as far as this process knows, and a channel that is closed at the next move.
func (p *progress) behind(position int64, names []string) (here, elsewhere []string, moved <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, n := range names {
		s, ok := p.at[n]
		switch {
		case !ok || !s.here:
			elsewhere = append(elsewhere, n)
		case s.position < position:
			here = append(here, n)
		}
	}
	return here, elsewhere, p.wake
}

// watched lists the followers whose checkpoints are watched, and says whether other processes run some of them.
func (p *progress) watched() (names []string, elsewhere bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for n, s := range p.at {
		if s.asked {
			names = append(names, n)
			elsewhere = elsewhere || !s.here
		}
	}
	return names, elsewhere
}

// saw notes a checkpoint as it was read. Another epoch is another feeder, or other tables.
func (p *progress) saw(name string, position, epoch int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.of(name)
	if epoch != s.epoch || !s.here && position != s.position {
		s.version++
	}
	s.epoch = epoch
	if !s.here {
		s.position = position
	}
}

// Touch says that what followers made was changed other than by Save.
func (l *Log) Touch(names ...string) {
	l.progress.mu.Lock()
	defer l.progress.mu.Unlock()
	for _, n := range names {
		l.progress.of(n).version++
	}
}

// Covered is the last position that all of names are known to have covered, never more, and a version of what they made of the log: while
// it stays, their tables hold the same. What other processes do is known from checkpoints, which are read ten times a second.
func (l *Log) Covered(names ...string) (position int64, version uint64) {
	position = l.Head()
	l.progress.mu.Lock()
	defer l.progress.mu.Unlock()
	for _, n := range names {
		s := l.progress.of(n)
		s.asked = true
		position = min(position, s.position)
		version += s.version
	}
	return position, version
}

const (
	watchElsewhere = 100 * time.Millisecond
	watchHere      = time.Second // somebody else may have put other tables in place
)

// watcher reads the checkpoints that Covered was asked for.
func (l *Log) watcher(ctx context.Context) {
	for ctx.Err() == nil {
		names, elsewhere := l.progress.watched()
		if len(names) > 0 {
			if err := l.watch(ctx, names); err != nil && ctx.Err() == nil {
				l.logger.Warn("checkpoints were not read; trying again", "error", err)
				l.Touch(names...) // nobody knows what they hold
			}
		}
		wait := watchHere
		if elsewhere || len(names) == 0 {
			wait = watchElsewhere
		}
		pause(ctx, wait)
	}
}

func (l *Log) watch(ctx context.Context, names []string) error {
	ctx, cancel := context.WithTimeout(ctx, watchHere)
	defer cancel()
	_, err := l.checkpoints(ctx, names)
	return err
}

// checkpoints reads where followers stand, as stored.
func (l *Log) checkpoints(ctx context.Context, names []string) (map[string]int64, error) {
	rows, err := l.pool.Query(ctx, `select name, position, epoch from followers where name = any($1)`, names)
	if err != nil {
		return nil, fmt.Errorf("read checkpoints: %w", err)
	}
	at := map[string]int64{}
	var name string
	var position, epoch int64
	_, err = pgx.ForEachRow(rows, []any{&name, &position, &epoch}, func() error {
		at[name] = position
		l.progress.saw(name, position, epoch)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read checkpoints: %w", err)
	}
	return at, nil
}

// checkpointPoll is how often the checkpoints of followers in other processes are looked at.
const checkpointPoll = 20 * time.Millisecond

// WaitFor returns when each named follower, whichever process runs it, has covered position, or with ctx's error.
func (l *Log) WaitFor(ctx context.Context, position int64, names ...string) error {
	l.progress.want(min(position, l.Head()))
	for {
		here, elsewhere, moved := l.progress.behind(position, names)
		if len(elsewhere) > 0 {
			at, err := l.checkpoints(ctx, elsewhere)
			if err != nil {
				return err
			}
			elsewhere = slices.DeleteFunc(elsewhere, func(n string) bool {
				reached, ok := at[n]
				return ok && reached >= position
			})
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
