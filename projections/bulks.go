package projections

import (
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/wheelrefinery/refinery/events"
)

// BulkRow is a bulk action and how far it is.
type BulkRow struct {
	ID          uuid.UUID `db:"id" sql:"uuid primary key"`
	Action      string    `db:"action" sql:"text"`
	Reason      string    `db:"reason" sql:"text"`
	Actor       string    `db:"actor" sql:"text"`
	RequestedAt time.Time `db:"requested_at" sql:"timestamptz"`
	FinishedAt  time.Time `db:"finished_at" sql:"timestamptz"`
	Total       int       `db:"total" sql:"bigint"`
	Applied     int       `db:"applied" sql:"bigint"`
	Refused     int       `db:"refused" sql:"bigint"`
}

// Key is the action's id.
func (r BulkRow) Key() uuid.UUID { return r.ID }

type bulkTables struct{ bulks *table[uuid.UUID, BulkRow] }

var bulks = define("bulks", 1, func(m *models) *bulkTables {
	return &bulkTables{newTable[uuid.UUID, BulkRow](m, "bulks")}
}, on((*bulkTables).requested), on((*bulkTables).progressed))

func bulkOf(m events.Recorded) uuid.UUID {
	id, ok := events.ParseBulk(m.Stream)
	if !ok {
		panic(fmt.Sprintf("%q is not the stream of a bulk action", m.Stream))
	}
	return id
}

func (t *bulkTables) requested(e events.BulkRequested, m events.Recorded) {
	r := BulkRow{ID: bulkOf(m), Action: e.Action, Reason: e.Reason, Actor: m.Actor, RequestedAt: m.Time, Total: len(e.Builds)}
	if r.Total == 0 {
		r.FinishedAt = m.Time
	}
	t.bulks.Put(r)
}

func (t *bulkTables) progressed(e events.BulkProgressed, m events.Recorded) {
	r, _ := t.bulks.Get(bulkOf(m))
	r.Applied, r.Refused = r.Applied+e.Applied, r.Refused+e.Refused
	if r.Applied+r.Refused >= r.Total {
		r.FinishedAt = m.Time
	}
	t.bulks.Put(r)
}
