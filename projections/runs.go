package projections

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/wheelrefinery/refinery/events"
)

// RunRow is a run as it stands.
type RunRow struct {
	ID           uuid.UUID      `db:"id" sql:"uuid primary key"`
	Position     int64          `db:"position" sql:"bigint"` // of its first event
	State        string         `db:"state" sql:"text"`      // submitted, planning, planned, building, built, failed, cancelled
	Build        string         `db:"build" sql:"text"`
	Strategy     string         `db:"strategy" sql:"text"`
	Python       string         `db:"python" sql:"text"`
	Platform     string         `db:"platform" sql:"text"`
	Plan         uuid.UUID      `db:"plan_id" sql:"uuid"`
	Actor        string         `db:"actor" sql:"text"`
	CreatedAt    time.Time      `db:"created_at" sql:"timestamptz"`
	PlannedAt    time.Time      `db:"planned_at" sql:"timestamptz"`
	FinishedAt   time.Time      `db:"finished_at" sql:"timestamptz"`
	Counts       map[string]int `db:"counts" sql:"json"`  // of its builds, by status; one without builds may be missing
	Total        int            `db:"total" sql:"bigint"` // builds of the plan, those that are not needed left out
	Reason       string         `db:"reason" sql:"text"`
	Class        string         `db:"class" sql:"text"`
	Detail       []string       `db:"detail" sql:"json"`
	PlanAttempts int            `db:"plan_attempts" sql:"bigint"` // leases for planning so far
	Closed       bool           `db:"closed" sql:"boolean"`       // nothing will change any more
}

// Key is the run's id.
func (r RunRow) Key() uuid.UUID { return r.ID }

// RunRequest is what was submitted. It may be long and never changes, so it stands apart.
type RunRequest struct {
	ID           uuid.UUID `db:"id" sql:"uuid primary key"`
	Requirements string    `db:"requirements" sql:"text"`
	Constraints  string    `db:"constraints" sql:"text"`
	Names        []string  `db:"names" sql:"json"`
}

// Key is the run's id.
func (r RunRequest) Key() uuid.UUID { return r.ID }

// RunNode names the runs that still wait for a build, and the build's status as each sees it.
type RunNode struct {
	Stream string    `db:"stream" sql:"text primary key"`
	Runs   []RunWant `db:"runs" sql:"json"`
}

// RunWant is a build's status as one run sees it.
type RunWant struct {
	Run    uuid.UUID `json:"run"`
	Status string    `json:"status"`
}

// Key is the build's stream.
func (n RunNode) Key() string { return n.Stream }

// The states of a run; a finished one has the state that run.finished says: built, failed or cancelled.
const (
	RunSubmitted = "submitted"
	RunPlanning  = "planning"
	RunPlanned   = "planned"
	RunBuilding  = "building"
)

type runTables struct {
	runs     *table[uuid.UUID, RunRow]
	requests *table[uuid.UUID, RunRequest]
	nodes    *table[string, RunNode]
}

var runs = define("runs", 1, func(m *models) *runTables {
	return &runTables{
		newTable[uuid.UUID, RunRow](m, "runs", "(position)", "(state, position)"),
		newTable[uuid.UUID, RunRequest](m, "requests"),
		newTable[string, RunNode](m, "nodes"),
	}
}, slices.Concat(onEach((*runTables).build, buildEvents...), []subscription[runTables]{
	on((*runTables).submitted),
	on((*runTables).leased),
	on((*runTables).released),
	on((*runTables).planned),
	on((*runTables).planFailed),
	on((*runTables).cancelled),
	on((*runTables).finished),
})...)

func (t *runTables) submitted(e events.RunSubmitted, m events.Recorded) {
	t.runs.Put(RunRow{
		ID: runOf(m), Position: m.Position, State: RunSubmitted, Build: e.Build, Strategy: e.Strategy, Python: e.Python,
		Platform: e.Platform, Actor: m.Actor, CreatedAt: m.Time,
	})
	t.requests.Put(RunRequest{runOf(m), e.Requirements, e.Constraints, e.Names})
}

// change changes the run that the event belongs to.
func (t *runTables) change(m events.Recorded, f func(*RunRow)) {
	r, ok := t.runs.Get(runOf(m))
	if !ok {
		return
	}
	f(&r)
	t.runs.Put(r)
}

func (t *runTables) leased(e events.RunPlanLeased, m events.Recorded) {
	t.change(m, func(r *RunRow) { r.State, r.PlanAttempts = RunPlanning, e.Attempt })
}

func (t *runTables) released(e events.RunPlanReleased, m events.Recorded) {
	t.change(m, func(r *RunRow) { r.State, r.Reason = RunSubmitted, e.Reason })
}

func (t *runTables) planned(e events.RunPlanned, m events.Recorded) {
	t.change(m, func(r *RunRow) {
		r.State, r.Reason, r.Plan, r.PlannedAt = RunPlanned, "", e.Plan, m.Time
		r.Counts, r.Total = map[string]int{}, 0
		for _, n := range e.Nodes {
			switch n.Action {
			case "skip": // not needed
				continue
			case "reuse":
				r.Total++
				r.Counts[Reused]++
				continue
			}
			node, _ := t.nodes.Get(n.Build().Stream())
			if slices.ContainsFunc(node.Runs, func(w RunWant) bool { return w.Run == r.ID }) {
				continue
			}
			status := Planned
			for _, w := range node.Runs {
				status = unlessActive(w.Status, status) // under way for another run
			}
			r.Total++
			r.Counts[status]++
			node.Stream, node.Runs = n.Build().Stream(), append(slices.Clone(node.Runs), RunWant{r.ID, status})
			t.nodes.Put(node)
		}
	})
}

func (t *runTables) planFailed(e events.RunPlanFailed, m events.Recorded) {
	t.change(m, func(r *RunRow) {
		r.State, r.FinishedAt, r.Closed = Failed, m.Time, true
		r.Class, r.Reason, r.Detail = string(e.Class), e.Reason, e.Detail
	})
}

func (t *runTables) cancelled(e events.RunCancelled, m events.Recorded) {
	t.change(m, func(r *RunRow) {
		r.State, r.Reason, r.FinishedAt = Cancelled, e.Reason, m.Time
		r.Closed = r.Plan == uuid.UUID{} // with a plan, run.finished follows
	})
}

func (t *runTables) finished(e events.RunFinished, m events.Recorded) {
	t.change(m, func(r *RunRow) {
		r.State, r.FinishedAt, r.Closed = e.State, m.Time, true
		r.Counts = e.Counts
	})
}

func (t *runTables) build(m events.Recorded) {
	node, ok := t.nodes.Get(m.Stream)
	if !ok {
		return
	}
	e := m.Event.(events.BuildEvent)
	only, one := concerns(e)
	_, judging := e.(events.BuildFailed) // whether that was the last attempt, the verdict says
	if hinted, ok := e.(events.BuildHinted); ok {
		judging = hinted.Retry
	}
	wants := make([]RunWant, 0, len(node.Runs))
	changed := false
	for _, w := range node.Runs {
		r, ok := t.runs.Get(w.Run)
		if !ok || r.Closed {
			changed = true
			continue
		}
		status := w.Status
		if !one || only == w.Run {
			status = after(w.Status, e)
		}
		if status != w.Status {
			r.Counts = maps.Clone(r.Counts)
			r.Counts[w.Status]--
			r.Counts[status]++
			if r.State == RunPlanned {
				r.State = RunBuilding
			}
			t.runs.Put(r)
			w.Status, changed = status, true
		}
		if ended(status) && !(judging && status == Failed) {
			continue // what happens to the build from here on is no matter of this run
		}
		wants = append(wants, w)
	}
	switch {
	case len(wants) == 0:
		t.nodes.Delete(m.Stream)
	case changed:
		t.nodes.Put(RunNode{m.Stream, wants})
	}
}

// PendingPlan is a run that waits for a worker to plan it.
type PendingPlan struct {
	RunRow
	RunRequest RunRequest
}

// PendingPlans reads the runs that wait to be planned, the oldest first. An empty Python or Platform fits every worker.
func PendingPlans(ctx context.Context, q Querier, limit int) ([]PendingPlan, error) {
	rows, err := Query[RunRow](ctx, q, "from runs.runs where state = $1 order by position limit $2", RunSubmitted, limit)
	if err != nil || len(rows) == 0 {
		return nil, err
	}
	ids := make([]uuid.UUID, len(rows))
	for i, r := range rows {
		ids[i] = r.ID
	}
	requests, err := Query[RunRequest](ctx, q, "from runs.requests where id = any($1)", ids)
	if err != nil {
		return nil, err
	}
	var pending []PendingPlan
	for _, r := range rows {
		if i := slices.IndexFunc(requests, func(q RunRequest) bool { return q.ID == r.ID }); i >= 0 {
			pending = append(pending, PendingPlan{r, requests[i]})
		}
	}
	return pending, nil
}
