package projections

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/wheelrefinery/refinery/events"
)

// TriggerRow is a wake-up of workers that is not done with: its webhook must be called, for the first time or again.
type TriggerRow struct {
	ID       uuid.UUID `db:"id" sql:"uuid primary key"`
	Position int64     `db:"position" sql:"bigint"` // of the request
	Attempts int       `db:"attempts" sql:"bigint"` // so far
	DueAt    time.Time `db:"due_at" sql:"timestamptz"`
}

// Key is the wake-up's id.
func (r TriggerRow) Key() uuid.UUID { return r.ID }

type triggerTables struct {
	pending *table[uuid.UUID, TriggerRow]
}

var triggers = define("triggers", 1, func(m *models) *triggerTables {
	return &triggerTables{newTable[uuid.UUID, TriggerRow](m, "pending", "(due_at)")}
}, on((*triggerTables).requested), on((*triggerTables).succeeded), on((*triggerTables).failed))

func triggerOf(m events.Recorded) uuid.UUID {
	id, ok := events.ParseTrigger(m.Stream)
	if !ok {
		panic(fmt.Sprintf("%q is not the stream of a wake-up", m.Stream))
	}
	return id
}

func (t *triggerTables) requested(e events.TriggerRequested, m events.Recorded) {
	if !e.Local {
		t.pending.Put(TriggerRow{ID: triggerOf(m), Position: m.Position, DueAt: m.Time})
	}
}

func (t *triggerTables) succeeded(_ events.TriggerSucceeded, m events.Recorded) { t.end(m) }

func (t *triggerTables) failed(e events.TriggerFailed, m events.Recorded) {
	if e.RetryAt.IsZero() {
		t.end(m)
		return
	}
	r, _ := t.pending.Get(triggerOf(m))
	r.ID, r.Attempts, r.DueAt = triggerOf(m), e.Attempt, e.RetryAt
	t.pending.Put(r)
}

func (t *triggerTables) end(m events.Recorded) {
	if _, ok := t.pending.Get(triggerOf(m)); ok {
		t.pending.Delete(triggerOf(m))
	}
}

// DueTriggers reads the wake-ups whose webhook must be called now, the oldest first.
func DueTriggers(ctx context.Context, q Querier) ([]TriggerRow, error) {
	return Query[TriggerRow](ctx, q, "from triggers.pending where due_at <= now() order by due_at limit 20")
}
