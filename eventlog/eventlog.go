// Package eventlog is the Postgres event table: Append, Load, Tail.
//
// Positions are gapless, from 1, and in commit order: whoever reads "position > n" never misses an event, and a hole is an alarm.
// Append is the only writer of the tables of this package; followers (projections, policies, the relay) read the log in order, each
// from its own checkpoint, one process at a time.
package eventlog

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/wheelrefinery/refinery/events"
	"github.com/wheelrefinery/refinery/internal/fault"
)

// AppendLock is the advisory lock under which events are appended; whoever holds it sees no position move.
const AppendLock int64 = 7236837411

// Status says what became of a command.
type Status string

// The statuses.
const (
	Applied Status = "applied" // decided; its events, if any, are in the log
	Refused Status = "refused" // decided against, with a reason; nothing happened
	Failed  Status = "failed"  // could not be handled: undecodable, or it kept failing
)

// Outcome is what became of a command. It is recorded once, in the transaction that appends the command's events, and never changes.
type Outcome struct {
	Command uuid.UUID
	Name    string
	Stream  string
	Actor   string
	Status  Status
	First   int64           // position of its first event, 0 when it has none
	Last    int64           // position of its last event
	Digest  string          // of the request that sent it
	Problem *fault.Error    // when refused or failed
	Result  json.RawMessage // when applied: the stream's state after it
	Time    time.Time
}

type detail struct {
	Problem *fault.Error    `json:"problem,omitempty"`
	Result  json.RawMessage `json:"result,omitempty"`
}

// Entry is one command's outcome and its events, to be appended together or not at all.
type Entry struct {
	Outcome  Outcome // First, Last and Time are set by Append
	Expected int64   // the version of the stream that the decision was made on
	// Beside is a second stream that the decision looked at, and the version at which it did; "": none.
	Beside        string
	BesideVersion int64
	Events        []events.Event
	Correlation   uuid.UUID
	Causation     int64
}

// Result is what Append did with an entry. Exactly one of these holds: Err is nil and the entry is in the log; Err is ErrDuplicate
// and Outcome is the one recorded earlier; Err is ErrConflict and nothing happened; Err is another error and nothing happened.
type Result struct {
	Outcome Outcome
	Err     error
}

var (
	// ErrDuplicate says that the command has an outcome already.
	ErrDuplicate = errors.New("the command is known")
	// ErrConflict says that the stream is not at the expected version.
	ErrConflict = errors.New("the stream has moved on")
	// ErrFenced says that another process follows under this name now.
	ErrFenced = errors.New("another process has taken over")
)

// Options configures a Log.
type Options struct {
	// Owner names this instance among those that share the database. A new process with the name of a dead one takes over its
	// leases at once; two live ones must never share a name. Empty: a random name.
	Owner  string
	Logger *slog.Logger
	// Appended is told of every transaction of Append, Applied of every batch that a follower has applied: on the goroutine on which it
	// happened, so they must be quick and keep nothing. nil: nobody wants to know.
	Appended func(outcomes []Outcome, events int, begin time.Time)
	Applied  func(follower string, batch []events.Recorded, begin time.Time)
}

// Log is one process's access to the event log. Close it after everything that uses it.
type Log struct {
	pool   *pgxpool.Pool
	owner  string
	logger *slog.Logger
	told   Options

	queue     chan *request
	notify    chan struct{} // there is something to tell other processes
	heard     chan struct{} // another process has told something
	watchedAt atomic.Int64  // when one that watches did last, in Unix nanoseconds
	curious   chan struct{} // closed when this process first wants to know what others tell
	ask       sync.Once     // closes it
	stop      context.CancelFunc
	wg        sync.WaitGroup
	tail      tail
	pages     pages
	progress  progress

	mu      sync.Mutex
	waiting map[uuid.UUID][]chan Outcome

	// Of the writer's goroutine alone.
	partitions int64 // first position that has no partition yet
	now        time.Time
}

// partitionSize is how many positions one partition holds; see migrations/00001.
const partitionSize = 5_000_000

// Pool connects to dsn, with at most so many connections and the settings that the log and its followers want. Each of change may have
// others.
func Pool(ctx context.Context, dsn string, most int, change ...func(*pgxpool.Config)) (*pgxpool.Pool, error) {
	c, err := pgxpool.ParseConfig(dsn)
	if err != nil { // which may quote the password
		return nil, fault.New(fault.Invalid, "POSTGRES_DSN does not parse: see the form postgres://user:password@host:port/database")
	}
	c.MaxConns = int32(most)
	c.ConnConfig.RuntimeParams["jit"] = "off"
	c.ConnConfig.RuntimeParams["enable_seqscan"] = "off" // a plan made while a table was empty serves when it is not
	c.ConnConfig.RuntimeParams["application_name"] = "refinery"
	for _, f := range change {
		f(c)
	}
	pool, err := pgxpool.NewWithConfig(ctx, c)
	if err != nil {
		return nil, fmt.Errorf("connect to Postgres: %w", err)
	}
	if err := pool.Ping(ctx); err != nil {
		pool.Close()
		return nil, fault.New(fault.Unavailable, "Postgres does not answer at %s:%d: start it, or correct POSTGRES_DSN: %w",
			c.ConnConfig.Host, c.ConnConfig.Port, err)
	}
	return pool, nil
}

// Open starts the writer and the wake-up. The pool must stay open until Close has returned.
func Open(ctx context.Context, pool *pgxpool.Pool, o Options) (*Log, error) {
	if o.Owner == "" {
		o.Owner = uuid.NewString()
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	l := &Log{
		pool: pool, owner: o.Owner, logger: o.Logger, told: o,
		queue: make(chan *request, 1024), notify: make(chan struct{}, 1), heard: make(chan struct{}, 1), curious: make(chan struct{}),
		waiting: map[uuid.UUID][]chan Outcome{},
	}
	var head int64
	if err := pool.QueryRow(ctx, `select position from head`).Scan(&head); err != nil {
		return nil, fmt.Errorf("read the head of the log: %w", err)
	}
	if err := l.findPartitions(ctx); err != nil {
		return nil, err
	}
	l.tail.init(head)
	l.pages.init(l)
	l.progress.init()
	ctx, l.stop = context.WithCancel(context.WithoutCancel(ctx))
	l.wg.Go(func() { l.writer(ctx) })
	l.wg.Go(func() { l.notifier(ctx) })
	l.wg.Go(func() { l.listener(ctx) })
	l.wg.Go(func() { l.resolver(ctx) })
	l.wg.Go(func() { l.renewer(ctx) })
	l.wg.Go(func() { l.watcher(ctx) })
	return l, nil
}

// Close finishes what Append was asked for and stops.
func (l *Log) Close() {
	l.stop()
	l.wg.Wait()
}

// Head is the last position that is known to be committed. Positions committed by other processes are known within a second, most
// often at once where something waits for them.
func (l *Log) Head() int64 { return l.tail.head() }

// Changed returns a channel that is closed when Head moves next.
func (l *Log) Changed() <-chan struct{} {
	l.wonder()
	return l.tail.changed()
}

// wonder has this process learn what others tell.
func (l *Log) wonder() { l.ask.Do(func() { close(l.curious) }) }

const outcomeColumns = `id, name, stream, actor, status, first_position, last_position, digest, detail, recorded_at`

func scanOutcome(row pgx.CollectableRow) (Outcome, error) {
	var o Outcome
	var d detail
	err := row.Scan(&o.Command, &o.Name, &o.Stream, &o.Actor, &o.Status, &o.First, &o.Last, &o.Digest, &d, &o.Time)
	o.Problem, o.Result, o.Time = d.Problem, d.Result, o.Time.UTC()
	return o, err
}

// Outcomes reads the recorded outcomes of ids; one that is not there yet is not in the map.
func (l *Log) Outcomes(ctx context.Context, ids ...uuid.UUID) (map[uuid.UUID]Outcome, error) {
	rows, err := l.pool.Query(ctx, `select `+outcomeColumns+` from commands where id = any($1)`, ids)
	if err != nil {
		return nil, fmt.Errorf("read outcomes: %w", err)
	}
	all, err := pgx.CollectRows(rows, scanOutcome)
	if err != nil {
		return nil, fmt.Errorf("read outcomes: %w", err)
	}
	m := make(map[uuid.UUID]Outcome, len(all))
	for _, o := range all {
		m[o.Command] = o
	}
	return m, nil
}

// Expect prepares to wait for the outcome of a command, before it is sent. The returned wait gives the outcome, whichever process
// records it, or ctx's error; forget must be called once.
func (l *Log) Expect(id uuid.UUID) (wait func(ctx context.Context) (Outcome, error), forget func()) {
	l.wonder()
	ch := make(chan Outcome, 1)
	l.mu.Lock()
	l.waiting[id] = append(l.waiting[id], ch)
	l.mu.Unlock()
	wait = func(ctx context.Context) (Outcome, error) {
		select {
		case o := <-ch:
			return o, nil
		case <-ctx.Done():
			return Outcome{}, ctx.Err()
		}
	}
	forget = func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		left := slices.DeleteFunc(l.waiting[id], func(c chan Outcome) bool { return c == ch })
		if l.waiting[id] = left; len(left) == 0 {
			delete(l.waiting, id)
		}
	}
	return wait, forget
}

// resolve tells those who wait in this process.
func (l *Log) resolve(o Outcome) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, ch := range l.waiting[o.Command] {
		select {
		case ch <- o:
		default: // has one already
		}
	}
}

// expected lists the commands whose outcomes somebody waits for.
func (l *Log) expected() []uuid.UUID {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Collect(maps.Keys(l.waiting))
}
