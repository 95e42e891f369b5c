// Package health says of each part of a control plane how it stands, by trying it.
package health

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sys/unix"

	"github.com/wheelrefinery/refinery/api"
	"github.com/wheelrefinery/refinery/bus"
	"github.com/wheelrefinery/refinery/eventlog"
	"github.com/wheelrefinery/refinery/projections"
)

const (
	partTime = 1500 * time.Millisecond // for a part to say how it is
	keptFor  = 500 * time.Millisecond  // who asks more often gets the answer before: anybody may ask
	lagMost  = 1000                    // events that a read model may be behind
	lateMost = 30 * time.Second        // and how long it may be behind at all
	seenMost = 30 * time.Second        // since a worker's heartbeat
	diskMost = 256 << 20               // bytes that must be free
	waitMost = 30 * time.Second        // for a command to be handled
)

// Parts are what is tried. All must be set.
type Parts struct {
	Writes, Reads *pgxpool.Pool
	Bus           bus.Bus
	Backend       string // of the bus
	Group         string // that handles commands
	Log           interface {
		Standings(context.Context) ([]eventlog.Standing, error)
	}
	Projections interface {
		Names() []string
		Status(context.Context) ([]projections.Status, error)
	}
	Wheels interface{ Writable() error }
	Dir    string // of the data, whose file system must not be full
	Logger *slog.Logger
}

// Checker tries the parts.
type Checker struct {
	parts Parts
	tries []*try

	mu   sync.Mutex
	at   time.Time
	kept []api.Part
	said map[string]string // what the log was told of a part last
}

// New makes a Checker.
func New(p Parts) *Checker {
	c := &Checker{parts: p, said: map[string]string{}}
	c.tries = []*try{
		{name: "postgres", f: c.postgres},
		{name: "bus", f: c.bus},
		{name: "handlers", f: c.handlers},
		{name: "projections", f: c.projections},
		{name: "wheels", f: c.wheels},
		{name: "disk", f: c.disk},
		{name: "workers", f: c.workers},
	}
	return c
}

// fine is a part that is all right, with a detail.
func fine(format string, args ...any) api.Part {
	return api.Part{Status: api.Ok, Detail: fmt.Sprintf(format, args...)}
}

func behind(format string, args ...any) api.Part {
	return api.Part{Status: api.Starting, Detail: fmt.Sprintf(format, args...)}
}

func down(format string, args ...any) api.Part {
	return api.Part{Status: api.Down, Detail: fmt.Sprintf(format, args...)}
}

// trouble is the detail of a part that failed; the log has the error, which may name what is nobody's business.
const trouble = "it does not answer; the log says more"

// Check tries every part at once and says how each stands. It takes at most partTime.
func (c *Checker) Check(ctx context.Context) []api.Part {
	c.mu.Lock()
	defer c.mu.Unlock()
	if time.Since(c.at) < keptFor {
		return c.kept
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), partTime) // the answer serves others too
	defer cancel()
	answers := make([]chan answer, len(c.tries))
	for i, t := range c.tries {
		answers[i] = t.start(ctx)
	}
	out := make([]api.Part, len(c.tries))
	for i, t := range c.tries {
		var a answer
		select {
		case a = <-answers[i]:
		case <-ctx.Done():
			a.err = ctx.Err()
		}
		if a.err != nil {
			a.part = down(trouble)
		}
		a.part.Name = t.name
		c.say(a.part, a.err)
		out[i] = a.part
	}
	c.kept, c.at = out, time.Now()
	return out
}

// try is a part and how it is tried. A file system that hangs keeps one goroutine, not one for each time that somebody asks.
type try struct {
	name string
	f    func(context.Context) (api.Part, error)
	busy atomic.Bool
}

type answer struct {
	part api.Part
	err  error
}

func (t *try) start(ctx context.Context) chan answer {
	done := make(chan answer, 1)
	if !t.busy.CompareAndSwap(false, true) {
		done <- answer{err: errors.New("the try before has not ended")}
		return done
	}
	go func() {
		defer t.busy.Store(false)
		part, err := t.f(ctx)
		done <- answer{part, err}
	}()
	return done
}

// say logs what has changed.
func (c *Checker) say(p api.Part, err error) {
	now := string(p.Status)
	if before := cmp.Or(c.said[p.Name], string(api.Ok)); now != before {
		level := slog.LevelWarn
		if p.Status == api.Ok {
			level = slog.LevelInfo
		}
		args := []any{"part", p.Name, "status", now, "before", before, "detail", p.Detail}
		if err != nil {
			args = append(args, "error", err)
		}
		c.parts.Logger.Log(context.Background(), level, "a part's state has changed", args...)
	}
	c.said[p.Name] = now
}

// postgres asks on a connection of each pool.
func (c *Checker) postgres(ctx context.Context) (api.Part, error) {
	var errs [2]error
	var wg sync.WaitGroup
	for i, pool := range []*pgxpool.Pool{c.parts.Writes, c.parts.Reads} {
		wg.Go(func() {
			var readOnly bool
			errs[i] = pool.QueryRow(ctx, `select pg_is_in_recovery()`).Scan(&readOnly)
			if errs[i] == nil && readOnly {
				errs[i] = errors.New("it is a standby: it takes no writes")
			}
		})
	}
	wg.Wait()
	w, r := c.parts.Writes.Stat(), c.parts.Reads.Stat()
	return fine("connections in use: %d of %d for writes, %d of %d for reads", w.AcquiredConns(), w.MaxConns(), r.AcquiredConns(), r.MaxConns()),
		errors.Join(errs[:]...)
}

func (c *Checker) bus(ctx context.Context) (api.Part, error) {
	return fine("%s", c.parts.Backend), c.parts.Bus.Check(ctx)
}

// handlers looks whether commands are handled: the oldest one that is not must be young.
func (c *Checker) handlers(context.Context) (api.Part, error) {
	stats, err := c.parts.Bus.Stats()
	for _, s := range stats {
		if s.Topic != bus.TopicCommands || s.Group != c.parts.Group {
			continue
		}
		if s.Oldest.IsZero() {
			return fine("nothing waits"), err
		}
		who := "commands wait"
		if s.Unacked > 0 { // of those that another process handles only the first is known
			who = fmt.Sprint(s.Unacked, " ", who)
		}
		wait := time.Since(s.Oldest).Round(time.Second)
		if wait > waitMost {
			return down("%s, the first for %v", who, wait), err
		}
		return fine("%s, the first for %v", who, wait), err
	}
	return behind("they have not begun"), err
}

// projections looks how far behind the read models are.
func (c *Checker) projections(ctx context.Context) (api.Part, error) {
	standings, err := c.parts.Log.Standings(ctx)
	if err != nil {
		return api.Part{}, err
	}
	status, err := c.parts.Projections.Status(ctx)
	if err != nil {
		return api.Part{}, err
	}
	at := map[string]eventlog.Standing{}
	for _, s := range standings {
		at[s.Name] = s
	}
	state, stuck := api.Ok, false
	var notes []string
	for _, p := range status {
		s, there := at[p.Name]
		switch {
		case !there || p.State == "waiting":
			state = api.Starting
			notes = append(notes, p.Name+" is not fed yet")
		case s.Lag > lagMost:
			state = api.Starting
			notes = append(notes, fmt.Sprintf("%s is %d events and %v behind", p.Name, s.Lag, s.Late.Round(time.Second)))
		case s.Late > lateMost:
			stuck = true
			notes = append(notes, fmt.Sprintf("%s is stuck %d events and %v behind", p.Name, s.Lag, s.Late.Round(time.Second)))
		}
		if p.State == "rebuilding" {
			notes = append(notes, p.Name+" is rebuilt, at "+fmt.Sprint(p.Rebuilt))
		}
		if p.Parked > 0 {
			notes = append(notes, fmt.Sprintf("%s has put %d events aside", p.Name, p.Parked))
		}
	}
	if len(notes) == 0 {
		notes = []string{fmt.Sprintf("%d read models are up to date", len(status))}
	}
	slices.Sort(notes)
	p := api.Part{Status: state, Detail: strings.Join(notes, "; ")}
	if stuck {
		p.Status = api.Down
	}
	return p, nil
}

func (c *Checker) wheels(context.Context) (api.Part, error) {
	return fine("writable"), c.parts.Wheels.Writable()
}

func (c *Checker) disk(context.Context) (api.Part, error) {
	var s unix.Statfs_t
	if err := unix.Statfs(c.parts.Dir, &s); err != nil {
		return api.Part{}, fmt.Errorf("look at the data folder's disk: %w", err)
	}
	free := s.Bavail * uint64(s.Bsize)
	if free < diskMost {
		return down("%d MiB are free: make room", free>>20), nil
	}
	return fine("%d MiB are free", free>>20), nil
}

// workers are no part of the control plane: that none is there is said, and is not down.
func (c *Checker) workers(ctx context.Context) (api.Part, error) {
	var n int
	err := c.parts.Reads.QueryRow(ctx, `select count(*) from workers_seen where seen_at > now() - $1::interval`, seenMost).Scan(&n)
	if err != nil {
		return fine("not known: Postgres does not answer"), nil
	}
	return fine("%d seen in the last %v", n, seenMost), nil
}
