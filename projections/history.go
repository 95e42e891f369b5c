package projections

import (
	"time"

	"github.com/google/uuid"

	"github.com/wheelrefinery/refinery/events"
)

// HistoryRow says how an attempt, or the wish for a build, ended.
type HistoryRow struct {
	Position int64     `db:"position" sql:"bigint primary key"`
	Time     time.Time `db:"time" sql:"timestamptz"` // never before that of the entry before
	Target
	VersionKey string    `db:"version_key" sql:"text"`
	Status     string    `db:"status" sql:"text"`    // built, reused, failed, retrying, cancelled, skipped
	Attempt    int       `db:"attempt" sql:"bigint"` // 0: none
	Run        uuid.UUID `db:"run_id" sql:"uuid"`    // unknown for retrying
	Worker     string    `db:"worker" sql:"text"`
	Class      string    `db:"class" sql:"text"`
	Reason     string    `db:"reason" sql:"text"`
	Wheel      string    `db:"wheel" sql:"text"`
	SHA256     string    `db:"sha256" sql:"text"`
	Size       int64     `db:"size" sql:"bigint"`
	DurationMS int64     `db:"duration_ms" sql:"bigint"`
}

// HistoryHint says that a hint matched the failed attempt of a history entry, or that its recipes made an attempt succeed.
type HistoryHint struct {
	Position int64  `db:"position" sql:"bigint primary key"` // of the entry
	Hint     string `db:"hint" sql:"text primary key"`
}

// Key is all of it.
func (h HistoryHint) Key() HistoryHint { return h }

// HistoryClock is the time of the newest entry, in one row. Processes whose clocks differ append to one log; here positions in order have
// times in order, so that a span of time is a span of positions.
type HistoryClock struct {
	ID   int64     `db:"id" sql:"bigint primary key"`
	Time time.Time `db:"time" sql:"timestamptz"`
}

// Key is always 1.
func (c HistoryClock) Key() int64 { return c.ID }

type historyTables struct {
	entries *journal[HistoryRow]
	hints   *table[HistoryHint, HistoryHint]
	clock   *table[int64, HistoryClock]
}

var history = define("history", 1, func(m *models) *historyTables {
	return &historyTables{
		newJournal[HistoryRow](m, "entries",
			"(name, position)", "(version_key, position)", "(status, position)", "(run_id, position) where run_id is not null",
			"(python_tag, position)", "(platform_tag, position)", "(time, position) include (status)"),
		newTable[HistoryHint, HistoryHint](m, "hints", "(hint, position)"),
		newTable[int64, HistoryClock](m, "clock"),
	}
}, onEach((*historyTables).add, buildEvents...)...)

func (t *historyTables) add(m events.Recorded) {
	if row, ok := historyOf(m); ok {
		clock, _ := t.clock.Get(1)
		if row.Time.Before(clock.Time) {
			row.Time = clock.Time
		} else {
			t.clock.Put(HistoryClock{1, row.Time})
		}
		row.VersionKey = VersionKey(row.Version)
		t.entries.Insert(row)
	}
	switch e := m.Event.(type) {
	case events.BuildHinted:
		for _, h := range hintIDs(e.Hints) {
			t.hints.Put(HistoryHint{m.Causation, h}) // what the verdict is on is what caused it
		}
	case events.BuildSucceeded:
		for _, h := range e.Hints {
			t.hints.Put(HistoryHint{m.Position, h})
		}
	}
}

// historyOf is the history entry of an event, if it makes one.
func historyOf(m events.Recorded) (HistoryRow, bool) {
	row := HistoryRow{Position: m.Position, Time: m.Time}
	wheel := func(f events.File) { row.Wheel, row.SHA256, row.Size = f.Filename, f.SHA256, f.Size }
	switch e := m.Event.(type) {
	case events.BuildSucceeded:
		row.Status, row.Attempt, row.Run, row.Worker, row.DurationMS = Built, e.Attempt, e.Run, e.Worker, e.DurationMS
		wheel(e.Wheel)
	case events.BuildReused:
		row.Status, row.Run = Reused, e.Run
		wheel(e.Wheel)
	case events.BuildFailed:
		row.Status, row.Attempt, row.Run, row.Worker, row.DurationMS = Failed, e.Attempt, e.Run, e.Worker, e.DurationMS
		row.Class, row.Reason = string(e.Class), e.Reason
	case events.BuildReleased:
		row.Status, row.Attempt, row.Worker, row.Reason = Retrying, e.Attempt, e.Worker, e.Reason
		if e.Lost {
			row.Class = string(events.ClassLostWorker)
		}
	case events.BuildCancelled:
		row.Status, row.Attempt, row.Run, row.Reason = Cancelled, e.Attempt, e.Run, e.Reason
	case events.BuildSkipped:
		row.Status, row.Run, row.Reason = Skipped, e.Run, e.Reason
	default:
		return row, false
	}
	row.Target = targetOf(m)
	return row, true
}
