package policies

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/wheelrefinery/refinery/commands"
	"github.com/wheelrefinery/refinery/eventlog"
	"github.com/wheelrefinery/refinery/events"
)

// LeaseTime is how long a lease holds after the last heartbeat.
const LeaseTime = time.Minute

const (
	expireEvery = time.Second
	// startGrace keeps leases after a start: while the control plane was away, nobody could send a heartbeat.
	startGrace = 25 * time.Second
)

// Leases knows which leases are out, extends them by heartbeats, and takes back those that have expired.
type Leases struct {
	pool   *pgxpool.Pool
	send   Send
	logger *slog.Logger
}

// NewLeases makes the policy; Follower does its work.
func NewLeases(pool *pgxpool.Pool, send Send, logger *slog.Logger) *Leases {
	return &Leases{pool, send, logger}
}

type lease struct {
	attempt   int
	worker    string
	expires   time.Time
	cancelled bool
	ended     bool
}

// LeasesName is the name under which the policy follows the log.
const LeasesName = "policy:leases"

// Follower keeps the table of leases, and takes back those that have run out.
func (l *Leases) Follower() eventlog.Follower {
	return eventlog.Follower{Name: LeasesName, Apply: l.apply, Lead: l.takeBack}
}

func (l *Leases) apply(ctx context.Context, c *eventlog.Checkpoint, batch []events.Recorded) error {
	changed := map[string]lease{}
	cancelled := map[string]bool{} // leased before this batch
	cancel := func(stream string) {
		if at, ok := changed[stream]; ok {
			at.cancelled = true
			changed[stream] = at
		} else {
			cancelled[stream] = true
		}
	}
	for _, m := range batch {
		switch e := m.Event.(type) {
		case events.BuildLeased:
			changed[m.Stream] = lease{attempt: e.Attempt, worker: e.Worker, expires: e.ExpiresAt}
		case events.RunPlanLeased:
			changed[m.Stream] = lease{attempt: e.Attempt, worker: e.Worker, expires: e.ExpiresAt}
		case events.BuildSucceeded, events.BuildFailed, events.BuildReleased, events.RunPlanned, events.RunPlanFailed, events.RunPlanReleased:
			changed[m.Stream] = lease{ended: true}
		case events.BuildCancelled:
			if e.Attempt > 0 {
				cancel(m.Stream)
			}
		case events.RunCancelled:
			cancel(m.Stream)
		}
	}
	w := &eventlog.Writes{}
	var ended, streams, workers, gone []string
	var attempts []int
	var expires []time.Time
	var flags []bool
	for stream, at := range changed {
		if at.ended {
			ended = append(ended, stream)
			continue
		}
		streams = append(streams, stream)
		attempts = append(attempts, at.attempt)
		workers = append(workers, at.worker)
		expires = append(expires, at.expires)
		flags = append(flags, at.cancelled)
	}
	for stream := range cancelled {
		gone = append(gone, stream)
	}
	if len(gone) > 0 {
		w.Queue(`update leases set cancelled = true where stream = any($1)`, gone)
	}
	if len(ended) > 0 {
		w.Queue(`delete from leases where stream = any($1)`, ended)
	}
	if len(streams) > 0 {
		w.Queue(`insert into leases select * from unnest($1::text[], $2::int[], $3::text[], $4::timestamptz[], $5::boolean[])
			on conflict (stream) do update set attempt = excluded.attempt, worker = excluded.worker,
				expires_at = excluded.expires_at, cancelled = excluded.cancelled`, streams, attempts, workers, expires, flags)
	}
	return c.Save(ctx, batch[len(batch)-1].Position, w)
}

// Held says how a lease stands.
type Held string

// How a lease stands.
const (
	Continue Held = "continue"
	Cancel   Held = "cancel" // nobody wants it: stop
	Lost     Held = "lost"   // it is not this worker's any more: drop it
)

// Job names a lease: the stream of a build or a run, and the attempt.
type Job struct {
	Stream  string
	Attempt int
}

// Beat extends the leases that worker holds and says how each stands. It may be called by any process.
func (l *Leases) Beat(ctx context.Context, worker string, jobs []Job) ([]Held, error) {
	streams, attempts := make([]string, len(jobs)), make([]int, len(jobs))
	for i, j := range jobs {
		streams[i], attempts[i] = j.Stream, j.Attempt
	}
	batch := &pgx.Batch{}
	batch.Queue(`insert into workers_seen values ($1, now(), $2)
		on conflict (worker) do update set seen_at = excluded.seen_at, jobs = excluded.jobs`, worker, len(jobs))
	batch.Queue(`update leases l set expires_at = case when cancelled then expires_at else now() + $4 end
		from unnest($1::text[], $2::bigint[]) j(stream, attempt)
		where l.stream = j.stream and l.attempt = j.attempt and l.worker = $3 returning l.stream, l.attempt, l.cancelled`,
		streams, attempts, worker, LeaseTime)
	results := l.pool.SendBatch(ctx, batch)
	defer results.Close()
	if _, err := results.Exec(); err != nil {
		return nil, fmt.Errorf("note the heartbeat: %w", err)
	}
	rows, err := results.Query()
	if err != nil {
		return nil, fmt.Errorf("extend leases: %w", err)
	}
	cancelled := map[Job]bool{}
	var j Job
	var flag bool
	if _, err := pgx.ForEachRow(rows, []any{&j.Stream, &j.Attempt, &flag}, func() error {
		cancelled[j] = flag
		return nil
	}); err != nil {
		return nil, fmt.Errorf("extend leases: %w", err)
	}
	held := make([]Held, len(jobs))
	for i, j := range jobs {
		switch flag, ok := cancelled[j]; {
		case !ok:
			held[i] = Lost
		case flag:
			held[i] = Cancel
		default:
			held[i] = Continue
		}
	}
	return held, nil
}

// takeBack takes back leases that have run out, until ctx ends. Should two processes do it, their commands are the same.
func (l *Leases) takeBack(ctx context.Context) {
	wait := startGrace
	for {
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return
		}
		wait = expireEvery
		if err := l.expire(ctx); err != nil && ctx.Err() == nil {
			l.logger.Warn("expired leases were not taken back; trying again", "error", err)
		}
	}
}

func (l *Leases) expire(ctx context.Context) error {
	if _, err := l.pool.Exec(ctx, `delete from leases where expires_at < now() and cancelled`); err != nil {
		return err
	}
	rows, err := l.pool.Query(ctx, `select stream, attempt, worker, expires_at from leases where expires_at < now() and not cancelled order by expires_at limit 1000`)
	if err != nil {
		return err
	}
	var messages []Message
	var stream, worker string
	var attempt int
	var expired time.Time
	if _, err := pgx.ForEachRow(rows, []any{&stream, &attempt, &worker, &expired}, func() error {
		reason := "the worker sent no heartbeat for " + LeaseTime.String()
		var c commands.Command
		if id, ok := events.ParseBuild(stream); ok {
			c = commands.ReleaseBuild{Build: id, Attempt: attempt, Worker: worker, Reason: reason, Lost: true}
		} else if run, ok := events.ParseRun(stream); ok {
			c = commands.ReleasePlan{Run: run, Attempt: attempt, Worker: worker, Reason: reason, Lost: true}
		} else {
			return fmt.Errorf("a lease of %q is neither a build's nor a run's", stream)
		}
		messages = append(messages, Message{commands.Meta{
			ID:    uuid.NewSHA1(namespace, fmt.Appendf(nil, "expire %s %d", stream, attempt)),
			Actor: LeasesName,
		}, c})
		return nil
	}); err != nil {
		return err
	}
	if len(messages) == 0 {
		return nil
	}
	return l.send(ctx, messages)
}
