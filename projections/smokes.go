package projections

import (
	"context"
	"fmt"

	"github.com/google/uuid"

	"github.com/wheelrefinery/refinery/events"
)

// SmokeRow is a proof that waits for a worker.
type SmokeRow struct {
	ID       uuid.UUID `db:"id" sql:"uuid primary key"`
	Position int64     `db:"position" sql:"bigint"`
}

// Key is the proof's id.
func (r SmokeRow) Key() uuid.UUID { return r.ID }

type smokeTables struct{ pending *table[uuid.UUID, SmokeRow] }

var smokes = define("smokes", 1, func(m *models) *smokeTables {
	return &smokeTables{newTable[uuid.UUID, SmokeRow](m, "pending")}
}, append(onEach((*smokeTables).taken, events.SmokeLeased{}, events.SmokeEnded{}, events.SmokeExpired{}), on((*smokeTables).requested))...)

func smokeOf(m events.Recorded) uuid.UUID {
	id, ok := events.ParseSmoke(m.Stream)
	if !ok {
		panic(fmt.Sprintf("%q is not the stream of a proof", m.Stream))
	}
	return id
}

func (t *smokeTables) requested(_ events.SmokeRequested, m events.Recorded) {
	t.pending.Put(SmokeRow{smokeOf(m), m.Position})
}

func (t *smokeTables) taken(m events.Recorded) {
	if _, ok := t.pending.Get(smokeOf(m)); ok {
		t.pending.Delete(smokeOf(m))
	}
}

// PendingSmokes reads the proofs that wait for a worker, the oldest first.
func PendingSmokes(ctx context.Context, q Querier, limit int) ([]SmokeRow, error) {
	return Query[SmokeRow](ctx, q, "from smokes.pending order by position limit $1", limit)
}
