package policies

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/wheelrefinery/refinery/commands"
	"github.com/wheelrefinery/refinery/eventlog"
	"github.com/wheelrefinery/refinery/events"
)

const runs = "policy:runs"

// yanked is the reason of a node that is built although our index has its wheel: that one should not be chosen any more.
const yanked = "yanked"

// Runs carries plans out: it asks for a build as soon as the wheels that it needs are there, longest path first, gives up what depends on
// a failure, and closes a run when all its wheels have ended.
func Runs(pool *pgxpool.Pool, send Send) eventlog.Follower {
	p := &runsPolicy{pool: pool, send: send}
	return eventlog.Follower{Name: runs, Apply: p.apply}
}

type runsPolicy struct {
	pool       *pgxpool.Pool
	send       Send
	checkpoint *eventlog.Checkpoint // that the memory below belongs to
	open       map[uuid.UUID]*openRun
	wanted     map[string][]*openRun // by build stream
}

// openRun is a run that has a plan and has not ended.
type openRun struct {
	Run       uuid.UUID        `json:"run"`
	Cancelled bool             `json:"cancelled,omitempty"`
	Nodes     map[string]*node `json:"nodes"`
	dirty     bool
}

// node is a wheel of a run. Status is "" before it is asked for, "asked" then, and how it ended at last.
type node struct {
	events.Node
	Needs      []string    `json:"needs,omitempty"`
	Depth      int         `json:"depth,omitempty"`
	Status     string      `json:"status,omitempty"`
	Result     events.File `json:"result"`
	DurationMS int64       `json:"duration_ms,omitempty"`
	Why        string      `json:"why,omitempty"`
	Failed     int         `json:"failed,omitempty"` // the attempt that failed and waits for its verdict
}

func (n *node) ended() bool { return n.Status != "" && n.Status != "asked" }
func (n *node) there() bool { return n.Status == "built" || n.Status == "reused" }

func (p *runsPolicy) apply(ctx context.Context, c *eventlog.Checkpoint, batch []events.Recorded) error {
	if c != p.checkpoint {
		if err := p.restore(ctx); err != nil {
			return err
		}
		p.checkpoint = c
	}
	var out []Message
	closed := map[uuid.UUID]bool{}
	for _, m := range batch {
		touched := p.react(m, &out)
		for _, r := range touched {
			r.dirty = true
			if done, ok := r.finish(); ok {
				out = append(out, reaction(runs, m, done))
				p.forget(r)
				closed[r.Run] = true
			}
		}
	}
	err := p.save(ctx, c, batch[len(batch)-1].Position, out, closed)
	if err != nil {
		p.checkpoint = nil // memory is ahead of the table
	}
	return err
}

func (p *runsPolicy) save(ctx context.Context, c *eventlog.Checkpoint, position int64, out []Message, closed map[uuid.UUID]bool) error {
	if len(out) > 0 {
		if err := p.send(ctx, out); err != nil {
			return err
		}
	}
	w := &eventlog.Writes{}
	for _, r := range p.open {
		if !r.dirty {
			continue
		}
		state, err := json.Marshal(r)
		if err != nil {
			return fmt.Errorf("run %s: %w", r.Run, err)
		}
		w.Queue(`insert into open_runs values ($1, $2) on conflict (run) do update set state = excluded.state`, r.Run, state)
		r.dirty = false
	}
	for run := range closed {
		w.Queue(`delete from open_runs where run = $1`, run)
	}
	return c.Save(ctx, position, w)
}

func (p *runsPolicy) restore(ctx context.Context) error {
	p.open, p.wanted = map[uuid.UUID]*openRun{}, map[string][]*openRun{}
	rows, err := p.pool.Query(ctx, `select state from open_runs`)
	if err != nil {
		return fmt.Errorf("read open runs: %w", err)
	}
	states, err := pgx.CollectRows(rows, pgx.RowTo[*openRun])
	if err != nil {
		return fmt.Errorf("read open runs: %w", err)
	}
	for _, r := range states {
		p.remember(r)
	}
	return nil
}

func (p *runsPolicy) remember(r *openRun) {
	p.open[r.Run] = r
	for _, n := range r.Nodes {
		s := n.Build().Stream()
		p.wanted[s] = append(p.wanted[s], r)
	}
}

func (p *runsPolicy) forget(r *openRun) {
	delete(p.open, r.Run)
	for _, n := range r.Nodes {
		s := n.Build().Stream()
		p.wanted[s] = slices.DeleteFunc(p.wanted[s], func(o *openRun) bool { return o == r })
		if len(p.wanted[s]) == 0 {
			delete(p.wanted, s)
		}
	}
}

// react takes one event into account and returns the runs that it changed.
func (p *runsPolicy) react(m events.Recorded, out *[]Message) (touched []*openRun) {
	switch e := m.Event.(type) {
	case events.RunPlanned:
		run, _ := events.ParseRun(m.Stream)
		r := begin(run, e)
		p.remember(r)
		r.advance(m, out)
		return []*openRun{r}
	case events.RunCancelled:
		run, _ := events.ParseRun(m.Stream)
		if r := p.open[run]; r != nil {
			p.cancel(r, m, e.Reason, out)
			return []*openRun{r}
		}
		return nil
	case events.BuildEvent:
		for _, r := range slices.Clone(p.wanted[m.Stream]) {
			if r.learn(m, e) {
				r.advance(m, out)
				touched = append(touched, r)
			}
		}
	}
	return touched
}

func begin(run uuid.UUID, e events.RunPlanned) *openRun {
	r := &openRun{Run: run, Nodes: make(map[string]*node, len(e.Nodes))}
	needs := commands.Needs(e.Nodes, e.Edges)
	depths, _ := commands.Depths(needs) // without cycles: the command was refused otherwise
	for _, n := range e.Nodes {
		r.Nodes[n.Key()] = &node{Node: n, Needs: needs[n.Key()], Depth: depths[n.Key()]}
	}
	return r
}

// learn takes an event of one of the run's builds into account, and says whether that changed anything.
func (r *openRun) learn(m events.Recorded, e events.BuildEvent) bool {
	id, ok := events.ParseBuild(m.Stream)
	if !ok {
		return false
	}
	n := r.Nodes[id.Name+"/"+id.Version]
	if n == nil || n.Action != "build" || n.ended() {
		return false
	}
	switch e := e.(type) {
	case events.BuildSucceeded:
		n.Status, n.Why, n.Result, n.DurationMS = "built", "", e.Wheel, e.DurationMS
	case events.BuildReused:
		if e.Run != r.Run && !e.Own {
			return false // another run is content with a wheel from elsewhere
		}
		n.Status, n.Why, n.Result = "reused", "", e.Wheel
	case events.BuildFailed:
		if n.Status == "" {
			return false // an attempt for another run: this one has not asked yet, and will
		}
		n.Failed, n.Why, n.DurationMS = e.Attempt, e.Reason, e.DurationMS // whether that was the last attempt, the verdict says
	case events.BuildHinted:
		if e.Attempt != n.Failed {
			return false // nor does this run care for the verdict on an attempt for another
		}
		n.Failed = 0
		if !e.Retry {
			n.Status = "failed"
		}
	case events.BuildCancelled:
		if e.Run != uuid.Nil && e.Run != r.Run {
			return false // another run gave it up before it knew of this one, which asks for it after that
		}
		n.Status, n.Why = "cancelled", e.Reason
	case events.BuildSkipped, events.BuildPlanned, events.BuildQueued, events.BuildLeased, events.BuildStarted, events.BuildReleased,
		events.BuildPriorityChanged:
		return false
	}
	return true
}

// advance asks for what can be built now, and gives up what cannot be any more.
func (r *openRun) advance(m events.Recorded, out *[]Message) {
	send := func(c commands.Command) { *out = append(*out, reaction(runs, m, c)) }
	planned := false
	if _, ok := m.Event.(events.RunPlanned); ok {
		planned = true
	}
	for again := true; again; {
		again = false
		for _, n := range r.sorted() {
			if n.Status != "" {
				continue
			}
			switch n.Action {
			case "skip":
				n.Status = "not-needed"
				continue
			case "reuse":
				n.Status, n.Result = "reused", *n.Wheel
				send(commands.ReuseBuild{Build: n.Build(), Run: r.Run, Wheel: *n.Wheel, Own: n.Own})
				continue
			}
			missing, lost := 0, ""
			for _, key := range n.Needs {
				switch d := r.Nodes[key]; {
				case d.there():
				case d.ended():
					lost = fmt.Sprintf("needs %s %s, which is %s", d.Name, d.Version, d.Status)
				default:
					missing++
				}
			}
			switch {
			case lost != "":
				n.Status, n.Why = "skipped", lost
				send(commands.SkipBuild{Build: n.Build(), Run: r.Run, Reason: lost})
				again = true // what needs this one
			case missing == 0:
				n.Status = "asked"
				send(commands.EnqueueBuild{
					Build: n.Build(), Run: r.Run, Sdist: n.Sdist, Constraints: n.Constraints, Priority: n.Depth,
					Rebuild: n.Reason == yanked,
				})
			case planned && n.Reason != yanked: // its wheel is there, so it would be reused
				send(commands.PlanBuild{Build: n.Build(), Run: r.Run, Sdist: n.Sdist})
			}
		}
		planned = false
	}
}

// sorted lists the nodes, the longest path first.
func (r *openRun) sorted() []*node {
	nodes := make([]*node, 0, len(r.Nodes))
	for _, n := range r.Nodes {
		nodes = append(nodes, n)
	}
	slices.SortFunc(nodes, func(a, b *node) int {
		return cmp.Or(cmp.Compare(b.Depth, a.Depth), cmp.Compare(a.Key(), b.Key()))
	})
	return nodes
}

// cancel stops what has not ended, unless another run wants it too.
func (p *runsPolicy) cancel(r *openRun, m events.Recorded, reason string, out *[]Message) {
	r.Cancelled = true
	for _, n := range r.sorted() {
		if n.ended() {
			continue
		}
		n.Status, n.Why = "cancelled", cmp.Or(reason, "the run was cancelled")
		elsewhere := slices.ContainsFunc(p.wanted[n.Build().Stream()], func(o *openRun) bool {
			return o != r && !o.Nodes[n.Key()].ended()
		})
		if !elsewhere {
			*out = append(*out, reaction(runs, m, commands.CancelBuild{Build: n.Build(), Run: r.Run, Reason: "its run was cancelled"}))
		}
	}
}

// manifestReasons bounds the reasons of a manifest together, in bytes. A command that is too large could never be sent, and the policy
// would stand still for every run.
const manifestReasons = 300_000

// finish says how the run ended, once every wheel has.
func (r *openRun) finish() (commands.FinishRun, bool) {
	done := commands.FinishRun{Run: r.Run, State: "built", Counts: map[string]int{}, Manifest: []events.ManifestEntry{}}
	nodes := r.sorted()
	slices.SortFunc(nodes, func(a, b *node) int { return cmp.Compare(a.Key(), b.Key()) })
	mostReason := manifestReasons / (len(nodes) + 1)
	for _, n := range nodes {
		if !n.ended() {
			return done, false
		}
		if n.Status == "not-needed" {
			continue
		}
		done.Counts[n.Status]++
		done.Manifest = append(done.Manifest, events.ManifestEntry{
			Name: n.Name, Version: n.Version, PythonTag: n.PythonTag, PlatformTag: n.PlatformTag, Status: n.Status,
			Wheel: n.Result.Filename, SHA256: n.Result.SHA256, Size: n.Result.Size, DurationMS: n.DurationMS,
			Reason: strings.ToValidUTF8(n.Why[:min(len(n.Why), mostReason)], ""),
		})
	}
	switch {
	case r.Cancelled:
		done.State = "cancelled"
	case done.Counts["failed"]+done.Counts["skipped"] > 0:
		done.State = "failed"
	case done.Counts["cancelled"] > 0:
		done.State = "cancelled"
	}
	return done, true
}
