package projections

import (
	"time"

	"github.com/google/uuid"

	"github.com/wheelrefinery/refinery/events"
)

// PlanRow is a plan.
type PlanRow struct {
	ID          uuid.UUID      `db:"id" sql:"uuid primary key"`
	Position    int64          `db:"position" sql:"bigint"` // the highest is the latest
	Run         uuid.UUID      `db:"run_id" sql:"uuid"`
	CreatedAt   time.Time      `db:"created_at" sql:"timestamptz"`
	PythonTag   string         `db:"python_tag" sql:"text"`
	PlatformTag string         `db:"platform_tag" sql:"text"`
	Worker      string         `db:"worker" sql:"text"`
	DurationMS  int64          `db:"duration_ms" sql:"bigint"`
	Actions     map[string]int `db:"actions" sql:"jsonb"` // nodes by action
	Document    PlanDocument   `db:"document" sql:"jsonb"`
}

// Key is the plan's id.
func (p PlanRow) Key() uuid.UUID { return p.ID }

// PlanDocument is what was planned.
type PlanDocument struct {
	Nodes    []events.Node `json:"nodes"`
	Edges    []events.Edge `json:"edges"`
	Warnings []string      `json:"warnings"`
}

type planTables struct{ plans *table[uuid.UUID, PlanRow] }

var plans = define("plans", 1, func(m *models) *planTables {
	return &planTables{newTable[uuid.UUID, PlanRow](m, "plans", "(position)", "(run_id, position)")}
}, on((*planTables).planned))

func (t *planTables) planned(e events.RunPlanned, m events.Recorded) {
	actions := map[string]int{}
	for _, n := range e.Nodes {
		actions[n.Action]++
	}
	t.plans.Put(PlanRow{
		e.Plan, m.Position, runOf(m), m.Time, e.PythonTag, e.PlatformTag, e.Worker, e.DurationMS, actions,
		PlanDocument{list(e.Nodes), list(e.Edges), list(e.Warnings)},
	})
}
