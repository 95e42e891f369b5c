package eventlog

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/wheelrefinery/refinery/events"
	"github.com/wheelrefinery/refinery/internal/pause"
)

// What the tail keeps in memory for followers that are nearly up to date.
const (
	tailEvents = 16_384
	tailBytes  = 16 << 20
)

// tail holds the newest events that this process appended, decoded once for all who follow. It is without holes: when another process
// has appended in between, it begins anew behind that.
type tail struct {
	mu    sync.Mutex
	ring  []events.Recorded // consecutive positions, ending at last
	bytes int
	last  int64 // newest known position; behind it the ring may be shorter or empty
	wake  chan struct{}
}

func (t *tail) init(head int64) { t.last, t.wake = head, make(chan struct{}) }

func (t *tail) head() int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.last
}

func (t *tail) changed() <-chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.wake
}

func (t *tail) push(recorded []events.Recorded) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n := len(t.ring); n > 0 && t.ring[n-1].Position+1 != recorded[0].Position {
		t.ring, t.bytes = nil, 0
	}
	t.ring = append(t.ring, recorded...)
	for _, r := range recorded {
		t.bytes += r.Size
	}
	// Dropped from the front by slicing; append moves what is left to a new array from time to time, and what was handed out stays as it is.
	for len(t.ring) > tailEvents || (t.bytes > tailBytes && len(t.ring) > 1) {
		t.bytes -= t.ring[0].Size
		t.ring = t.ring[1:]
	}
	t.moved(recorded[len(recorded)-1].Position)
}

// saw notes that another process has appended up to position.
func (t *tail) saw(position int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.moved(position)
}

func (t *tail) moved(position int64) {
	if position > t.last {
		t.last = position
		close(t.wake)
		t.wake = make(chan struct{})
	}
}

// after returns what the ring holds directly after position, at most n events. Empty: nothing new, or it has to be read.
func (t *tail) after(position int64, n int) []events.Recorded {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.ring) == 0 {
		return nil
	}
	i := position + 1 - t.ring[0].Position
	if i < 0 || i >= int64(len(t.ring)) {
		return nil
	}
	end := min(int(i)+n, len(t.ring))
	return t.ring[i:end:end]
}

// Recent returns what is kept in memory of the events directly after position, at most n. Empty: there is nothing new, or it has to be
// read. The events are shared: read them only.
func (l *Log) Recent(position int64, n int) []events.Recorded { return l.tail.after(position, n) }

// Batches of those who are behind.
const (
	leastEvents = 64    // of a page that is full
	mostEvents  = 4_096 // a power of two times leastEvents
	mostBytes   = 8 << 20
	pagesKept   = 4               // which bounds the memory
	holdMost    = 2 * time.Second // longer than any but an overloaded follower works on a page
)

// pages reads the log for those who are behind: one query and one decoding for all, and the next page is read while this one is worked
// on. Pages end at multiples of their size, so that who starts elsewhere falls in with the others, and who is ahead is held back rather
// than make the others read for themselves.
type pages struct {
	log     *Log
	mu      sync.Mutex
	cache   map[int64]*page // by the position that the page follows
	order   []int64         // keys of cache, oldest first
	limit   int             // size of the next page
	readers map[string]reader
	moved   chan struct{} // closed when a reader moves on
	ended   time.Time     // when a page was read that was not full
}

type page struct {
	ready chan struct{}
	batch []events.Recorded
	full  bool // there may be more behind it
	err   error
}

// reader is a follower that reads pages: where, and since when.
type reader struct {
	position int64
	since    time.Time
}

func (p *pages) init(l *Log) {
	p.log, p.cache, p.limit = l, map[int64]*page{}, 512
	p.readers, p.moved = map[string]reader{}, make(chan struct{})
}

// get returns the page behind a position, for the follower name. At the end of the log it may be empty.
func (p *pages) get(ctx context.Context, name string, after int64) ([]events.Recorded, error) {
	if err := p.hold(ctx, name, after); err != nil {
		return nil, err
	}
	pg := p.start(after)
	select {
	case <-pg.ready:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if pg.full {
		p.start(pg.batch[len(pg.batch)-1].Position)
	}
	return pg.batch, pg.err
}

// hold notes that name has come to a position, and waits while some follower is too far behind it: the pages that it works towards would
// be dropped.
func (p *pages) hold(ctx context.Context, name string, after int64) error {
	p.mu.Lock()
	if p.readers[name].position != after {
		close(p.moved)
		p.moved = make(chan struct{})
	}
	p.readers[name] = reader{after, time.Now()}
	timeout := time.NewTimer(holdMost)
	defer timeout.Stop()
	for p.ahead(name, after) {
		moved := p.moved
		p.mu.Unlock()
		select {
		case <-moved:
		case <-timeout.C:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
		p.mu.Lock()
	}
	p.mu.Unlock()
	return nil
}

// leave says that name is not behind any more, so that nobody waits for it.
func (p *pages) leave(name string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, ok := p.readers[name]; ok {
		delete(p.readers, name)
		close(p.moved)
		p.moved = make(chan struct{})
	}
}

// ahead says that some follower is more than a page behind a position.
func (p *pages) ahead(name string, after int64) bool {
	for other, r := range p.readers {
		if other != name && after-r.position > mostEvents && time.Since(r.since) < holdMost {
			return true
		}
	}
	return false
}

// start returns a page that is there or being read.
func (p *pages) start(after int64) *page {
	p.mu.Lock()
	defer p.mu.Unlock()
	if pg, ok := p.cache[after]; ok {
		return pg
	}
	pg := &page{ready: make(chan struct{})}
	p.cache[after] = pg
	p.order = append(p.order, after)
	if len(p.order) > pagesKept {
		delete(p.cache, p.order[0])
		p.order = p.order[1:]
	}
	size := p.limit
	p.log.wg.Go(func() { p.read(pg, after, size) })
	return pg
}

func (p *pages) read(pg *page, after int64, size int) {
	defer close(pg.ready)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	p.mu.Lock()
	rest := tellAtMost - time.Since(p.ended)
	p.mu.Unlock()
	if rest > 0 { // the more processes append, the more often there is a little to read
		pause.For(ctx, rest)
	}
	limit := size - int(after%int64(size))
	pg.batch, pg.err = p.log.Read(ctx, after, limit)
	pg.full = pg.err == nil && len(pg.batch) == limit
	bytes := 0
	for _, r := range pg.batch {
		bytes += r.Size
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	// Log text makes some stretches a hundred times heavier than others: aim at mostBytes a page.
	switch {
	case bytes > mostBytes:
		p.limit = max(leastEvents, size/2)
	case bytes < mostBytes/4 && pg.full:
		p.limit = min(mostEvents, size*2)
	}
	if pg.full {
		return
	}
	p.ended = time.Now()
	if p.cache[after] == pg { // an error, or the end of the log: the next to ask must read again
		delete(p.cache, after)
		p.order = slices.DeleteFunc(p.order, func(a int64) bool { return a == after })
	}
}

const eventColumns = `position, stream, version, command, correlation, causation, actor, recorded_at, type, data::text`

// damaged says that an event was read and does not decode.
type damaged struct {
	position int64
	err      error
}

func (d *damaged) Error() string {
	return fmt.Sprintf("the event at %d cannot be read: %v", d.position, d.err)
}
func (d *damaged) Unwrap() error { return d.err }

// scanEvent reads an event; the error is *damaged where only its data is at fault.
func scanEvent(row pgx.CollectableRow) (events.Recorded, error) {
	var r events.Recorded
	var name string
	var data []byte
	err := row.Scan(&r.Position, &r.Stream, &r.Version, &r.Command, &r.Correlation, &r.Causation, &r.Actor, &r.Time, &name, &data)
	if err != nil {
		return r, err
	}
	r.Time, r.Size = r.Time.UTC(), len(data)
	if r.Event, err = events.Decode(name, data); err != nil {
		return r, &damaged{r.Position, err}
	}
	return r, nil
}

// Read returns the events directly after position, at most limit, in order. Positions are gapless: a hole is an error.
func (l *Log) Read(ctx context.Context, after int64, limit int) ([]events.Recorded, error) {
	rows, err := l.pool.Query(ctx, `select `+eventColumns+` from events where position > $1 and position <= $2 order by position`, after, after+int64(limit))
	if err != nil {
		return nil, fmt.Errorf("read events after %d: %w", after, err)
	}
	batch, err := pgx.AppendRows(make([]events.Recorded, 0, limit), rows, scanEvent)
	if err != nil {
		return nil, fmt.Errorf("read events after %d: %w", after, err)
	}
	for i, r := range batch {
		if r.Position != after+1+int64(i) {
			return nil, fmt.Errorf("the event log has a hole: %d follows %d", r.Position, after+int64(i))
		}
	}
	return batch, nil
}

// Stream is a stream as it was read: its version and events.
type Stream struct {
	Version int64
	Events  []events.Recorded
	Err     error // the first event that does not decode; it is left out of Events
}

// Load reads streams whole, with one query; a stream that does not exist has version 0.
func (l *Log) Load(ctx context.Context, streams ...string) (map[string]Stream, error) {
	m := make(map[string]Stream, len(streams))
	// streams first: one that is not there costs no look into events, and the bounds leave out partitions. materialized and the
	// lateral join keep the planner from reading the partitions for all streams at once.
	rows, err := l.pool.Query(ctx, `
		with s as materialized (select stream, first_position, last_position from streams where stream = any($1))
		select e.position, e.stream, e.version, e.command, e.correlation, e.causation, e.actor, e.recorded_at, e.type, e.data::text
		from s cross join lateral (
			select * from events e where e.stream = s.stream and e.position between s.first_position and s.last_position
		) e order by e.position`, streams)
	if err != nil {
		return nil, fmt.Errorf("load streams: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		r, err := scanEvent(rows)
		bad, isDamaged := errors.AsType[*damaged](err)
		if err != nil && !isDamaged {
			return nil, fmt.Errorf("load streams: %w", err)
		}
		s := m[r.Stream]
		switch s.Version = r.Version; {
		case !isDamaged:
			s.Events = append(s.Events, r)
		case s.Err == nil:
			s.Err = bad
		}
		m[r.Stream] = s
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("load streams: %w", err)
	}
	return m, nil
}

// next waits until there are events after position and returns some, for the follower name; nil when quiet has passed first (0: no limit).
func (l *Log) next(ctx context.Context, name string, position int64, quiet time.Duration) ([]events.Recorded, error) {
	var timeout <-chan time.Time
	if quiet > 0 {
		t := time.NewTimer(quiet)
		defer t.Stop()
		timeout = t.C
	}
	for {
		changed := l.Changed()
		if batch := l.tail.after(position, mostEvents); len(batch) > 0 {
			l.pages.leave(name)
			return batch, nil
		}
		if l.Head() > position {
			batch, err := l.pages.get(ctx, name, position)
			if len(batch) > 0 || err != nil {
				return batch, err
			}
		}
		select {
		case <-changed:
		case <-timeout:
			return nil, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}
