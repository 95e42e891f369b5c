package projections

import (
	"slices"

	"github.com/google/uuid"

	"github.com/wheelrefinery/refinery/events"
)

// SummaryBuild is the status of a build.
type SummaryBuild struct {
	Stream string `db:"stream" sql:"text primary key"`
	Status string `db:"status" sql:"text"`
}

// Key is the build's stream.
func (b SummaryBuild) Key() string { return b.Stream }

// SummaryTotals counts what there is, in one row.
type SummaryTotals struct {
	ID           int64        `db:"id" sql:"bigint primary key"`
	Counts       StatusCounts `db:"counts" sql:"json"` // builds by status
	HitsOwn      int          `db:"hits_own" sql:"bigint"`
	HitsUpstream int          `db:"hits_upstream" sql:"bigint"`
	Misses       int          `db:"misses" sql:"bigint"`
}

// Key is always 1.
func (t SummaryTotals) Key() int64 { return t.ID }

// HourKey names one count of an hour.
type HourKey struct {
	Hour   int64  // since 1970 in UTC
	Status string // as in history
}

// SummaryHour counts the history entries of an hour.
type SummaryHour struct {
	Hour   int64  `db:"hour" sql:"bigint primary key"`
	Status string `db:"status" sql:"text primary key"`
	Count  int    `db:"count" sql:"bigint"`
}

// Key is the hour and the status.
func (h SummaryHour) Key() HourKey { return HourKey{h.Hour, h.Status} }

type summaryTables struct {
	builds *table[string, SummaryBuild]
	totals *table[int64, SummaryTotals]
	hours  *table[HourKey, SummaryHour]
	packageTables
	statsTables
}

var summary = define("summary", 2, func(m *models) *summaryTables {
	return &summaryTables{
		newTable[string, SummaryBuild](m, "builds"),
		newTable[int64, SummaryTotals](m, "totals"),
		newTable[HourKey, SummaryHour](m, "hours"),
		newPackageTables(m),
		newStatsTables(m),
	}
}, slices.Concat(onEach((*summaryTables).build, buildEvents...))...)

func (t *summaryTables) build(m events.Recorded) {
	b, _ := t.builds.GetOwn(m.Stream, m)
	sum, _ := t.totals.Get(1)
	e := m.Event.(events.BuildEvent)
	before, now := b.Status, after(b.Status, e)
	counted := sum
	counted.ID = 1
	if now != before {
		counted.Counts = sum.Counts.moved(before, now)
		t.builds.Put(SummaryBuild{m.Stream, now})
	}
	switch e := m.Event.(type) {
	case events.BuildReused:
		if e.Own {
			counted.HitsOwn++
		} else {
			counted.HitsUpstream++
		}
	case events.BuildQueued:
		if e.Run != (uuid.UUID{}) {
			counted.Misses++
		}
	}
	t.totals.Put(counted)
	t.packageTables.build(m, before, now)
	t.ended(m)
	if h, ok := historyOf(m); ok {
		k := HourKey{m.Time.Unix() / 3600, h.Status}
		hour, _ := t.hours.Get(k)
		t.hours.Put(SummaryHour{k.Hour, k.Status, hour.Count + 1})
	}
}
