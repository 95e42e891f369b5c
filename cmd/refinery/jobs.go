package main

import (
	"context"
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/wheelrefinery/refinery/eventlog"
	"github.com/wheelrefinery/refinery/events"
	"github.com/wheelrefinery/refinery/internal/pause"
	"github.com/wheelrefinery/refinery/projections"
	"github.com/wheelrefinery/refinery/writeapi"
)

const (
	jobsAtOnce = 100 // candidates that one look reads, beside those held back
	// lookAtMost spaces the looks of those who wait: many events are no reason for many queries.
	lookAtMost = 20 * time.Millisecond
	// lookAgain finds what was held back for somebody who then did not lease it, and what waited for its time.
	lookAgain = time.Second
	// anyWorker is how long a plan for a certain Python waits for a worker that has it; then any worker may say what is wrong.
	anyWorker = 20 * time.Second
)

// jobs finds what workers may lease, in the read models of queue and runs. All who wait share one look at each state of the log, and no
// two of them are told of the same job.
type jobs struct {
	log   *eventlog.Log
	reads *pgxpool.Pool

	mu    sync.Mutex
	held  map[string]bool // streams
	looks map[[2]string]look
	waits int           // how many wait in Next
	woken chan struct{} // closed by Wake
}

// look is what was found for a worker's tags when the log was at head.
type look struct {
	head   int64
	until  time.Time // when a build may be leased that was not yet; zero: nothing changes by itself
	builds []projections.QueueRow
	plans  []projections.PendingPlan
	smokes []projections.SmokeRow
}

func newJobs(log *eventlog.Log, reads *pgxpool.Pool) *jobs {
	return &jobs{log: log, reads: reads, held: map[string]bool{}, looks: map[[2]string]look{}, woken: make(chan struct{})}
}

// Next implements writeapi.Jobs.
func (j *jobs) Next(ctx context.Context, w writeapi.Worker, wait time.Duration) (*writeapi.Candidate, error) {
	end := time.Now().Add(wait)
	for {
		changed := j.log.Changed()
		head := j.log.Head()
		covered, cancel := context.WithTimeout(ctx, time.Second)
		err := j.log.WaitFor(covered, head, "queue", "runs", "smokes")
		cancel()
		if err != nil && !errors.Is(err, context.DeadlineExceeded) {
			return nil, ignoreEnd(ctx, err)
		}
		c, err := j.pick(ctx, w, head)
		if c != nil || err != nil {
			return c, ignoreEnd(ctx, err)
		}
		left := time.Until(end)
		if left <= 0 {
			return nil, nil
		}
		woken, done := j.waiting()
		select {
		case <-woken:
		case <-changed:
			pause.For(ctx, min(lookAtMost, left))
		case <-time.After(min(lookAgain, left)):
		case <-ctx.Done():
			done()
			return nil, nil
		}
		done()
	}
}

// waiting counts one more who waits, until done.
func (j *jobs) waiting() (woken <-chan struct{}, done func()) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.waits++
	return j.woken, func() {
		j.mu.Lock()
		defer j.mu.Unlock()
		j.waits--
	}
}

// Wake implements writeapi.Jobs.
func (j *jobs) Wake() int {
	j.mu.Lock()
	defer j.mu.Unlock()
	clear(j.looks)
	close(j.woken)
	j.woken = make(chan struct{})
	return j.waits
}

// ignoreEnd forgets an error that only says that ctx has ended.
func ignoreEnd(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// Done implements writeapi.Jobs.
func (j *jobs) Done(c *writeapi.Candidate) {
	j.mu.Lock()
	defer j.mu.Unlock()
	delete(j.held, streamOf(c))
	clear(j.looks)
}

func streamOf(c *writeapi.Candidate) string {
	switch {
	case c.Smoke != uuid.Nil:
		return events.SmokeStream(c.Smoke)
	case c.Build != nil:
		return c.Build.Stream()
	}
	return events.RunStream(c.Run)
}

func (j *jobs) pick(ctx context.Context, w writeapi.Worker, head int64) (*writeapi.Candidate, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	tags := [2]string{w.PythonTag, w.PlatformTag}
	l, ok := j.looks[tags]
	if !ok || l.head != head || !l.until.IsZero() && !time.Now().Before(l.until) {
		var err error
		if l, err = j.look(ctx, w, head); err != nil {
			return nil, err
		}
		j.looks[tags] = l
	}
	if w.Smokes {
		for _, p := range l.smokes {
			if stream := events.SmokeStream(p.ID); !j.held[stream] {
				j.held[stream] = true
				return &writeapi.Candidate{Smoke: p.ID}, nil
			}
		}
	}
	if w.Plans {
		for _, p := range l.plans {
			if stream := events.RunStream(p.ID); !j.held[stream] && fits(p, w) {
				j.held[stream] = true
				return plan(p), nil
			}
		}
	}
	if w.Builds {
		for _, b := range l.builds {
			if !j.held[b.Stream] {
				j.held[b.Stream] = true
				id := b.Build()
				return &writeapi.Candidate{
					Run: b.Run, Attempts: b.Attempts, Build: &id, Sdist: b.Sdist, Constraints: b.Constraints, Recipes: b.Recipes, Class: b.Class,
				}, nil
			}
		}
	}
	return nil, nil
}

func (j *jobs) look(ctx context.Context, w writeapi.Worker, head int64) (look, error) {
	l := look{head: head}
	var err error
	if l.smokes, err = projections.PendingSmokes(ctx, j.reads, jobsAtOnce+len(j.held)); err != nil {
		return l, err
	}
	state, err := projections.Queue(ctx, j.reads)
	if err != nil || state.Paused {
		return l, err
	}
	if state.Length > 0 {
		l.builds, l.until, err = projections.Candidates(ctx, j.reads, w.PythonTag, w.PlatformTag, time.Now(), jobsAtOnce+len(j.held))
		if err != nil {
			return l, err
		}
	}
	l.plans, err = projections.PendingPlans(ctx, j.reads, jobsAtOnce+len(j.held))
	return l, err
}

// fits says that w has the Python and platform that p asks for, or that p has waited long enough for one that has.
func fits(p projections.PendingPlan, w writeapi.Worker) bool {
	python := p.Python == "" || w.PythonVersion == p.Python || strings.HasPrefix(w.PythonVersion, p.Python+".")
	platform := p.Platform == "" || p.Platform == w.PlatformTag
	return python && platform || time.Since(p.CreatedAt) > anyWorker
}

func plan(p projections.PendingPlan) *writeapi.Candidate {
	return &writeapi.Candidate{Run: p.ID, Attempts: p.PlanAttempts, Submitted: events.RunSubmitted{
		Requirements: p.RunRequest.Requirements, Constraints: p.RunRequest.Constraints, Python: p.Python, Platform: p.Platform,
		Strategy: p.Strategy, Build: p.RunRow.Build, Names: p.RunRequest.Names,
	}}
}
