package projections

import (
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/wheelrefinery/refinery/events"
)

// FailureKey names the failures of one class within an hour.
type FailureKey struct {
	Hour  int64 // since 1970 in UTC
	Class string
}

// FailureHour counts the failures of one class within an hour.
type FailureHour struct {
	Hour    int64  `db:"hour" sql:"bigint primary key"`
	Class   string `db:"class" sql:"text primary key"`
	Count   int    `db:"count" sql:"bigint"`
	Reasons int    `db:"reasons" sql:"bigint"` // that are counted, at most mostReasons
}

// Key is the hour and the class.
func (f FailureHour) Key() FailureKey { return FailureKey{f.Hour, f.Class} }

// ReasonKey names the failures of one class that gave one reason within an hour.
type ReasonKey struct {
	Hour          int64
	Class, Reason string
}

// FailureReason counts the failures that gave one reason within an hour, and has the last of them.
type FailureReason struct {
	Hour     int64     `db:"hour" sql:"bigint primary key"`
	Class    string    `db:"class" sql:"text primary key"`
	Reason   string    `db:"reason" sql:"text primary key"` // the beginning
	Count    int       `db:"count" sql:"bigint"`
	Position int64     `db:"position" sql:"bigint"`
	Time     time.Time `db:"time" sql:"timestamptz"`
	Build    string    `db:"build" sql:"text"` // stream
}

// Key is the reason within its hour.
func (r FailureReason) Key() ReasonKey { return ReasonKey{r.Hour, r.Class, r.Reason} }

// What one hour keeps, whatever is in it.
const (
	mostReasons = 50
	reasonBytes = 200
	mostSlow    = 50
)

// SlowKey names a place among the slowest of an hour.
type SlowKey struct{ Hour, Place int64 }

// SlowBuild is one of the slowest attempts of an hour, with a wheel or without.
type SlowBuild struct {
	Hour     int64     `db:"hour" sql:"bigint primary key"`
	Place    int64     `db:"place" sql:"bigint primary key"` // in no order
	Position int64     `db:"position" sql:"bigint"`
	Time     time.Time `db:"time" sql:"timestamptz"`
	Target
	Status     string    `db:"status" sql:"text"`
	Attempt    int       `db:"attempt" sql:"bigint"`
	Run        uuid.UUID `db:"run_id" sql:"uuid"`
	Worker     string    `db:"worker" sql:"text"`
	DurationMS int64     `db:"duration_ms" sql:"bigint"`
}

// Key is the place.
func (s SlowBuild) Key() SlowKey { return SlowKey{s.Hour, s.Place} }

// SlowHour has the durations of an hour's places.
type SlowHour struct {
	Hour int64   `db:"hour" sql:"bigint primary key"`
	MS   []int64 `db:"ms" sql:"json"`
}

// Key is the hour.
func (s SlowHour) Key() int64 { return s.Hour }

// statsTables are part of the summary.
type statsTables struct {
	failures *table[FailureKey, FailureHour]
	reasons  *table[ReasonKey, FailureReason]
	slow     *table[SlowKey, SlowBuild]
	slowest  *table[int64, SlowHour]
}

func newStatsTables(m *models) statsTables {
	return statsTables{
		newTable[FailureKey, FailureHour](m, "failures"),
		newTable[ReasonKey, FailureReason](m, "reasons"),
		newTable[SlowKey, SlowBuild](m, "slow"),
		newTable[int64, SlowHour](m, "slow_hours"),
	}
}

func (t *statsTables) ended(m events.Recorded) {
	switch e := m.Event.(type) {
	case events.BuildSucceeded:
		t.timed(m)
	case events.BuildFailed:
		t.timed(m)
		t.failed(e, m)
	}
}

func (t *statsTables) failed(e events.BuildFailed, m events.Recorded) {
	k := FailureKey{m.Time.Unix() / 3600, string(e.Class)}
	f, _ := t.failures.Get(k)
	f.Hour, f.Class, f.Count = k.Hour, k.Class, f.Count+1
	reason := e.Reason
	if len(reason) > reasonBytes {
		reason = strings.ToValidUTF8(reason[:reasonBytes], "") + "…"
	}
	r, known := t.reasons.Get(ReasonKey{k.Hour, k.Class, reason})
	if known || f.Reasons < mostReasons {
		t.reasons.Put(FailureReason{k.Hour, k.Class, reason, r.Count + 1, m.Position, m.Time, m.Stream})
	}
	if !known && f.Reasons < mostReasons {
		f.Reasons++
	}
	t.failures.Put(f)
}

// timed gives an attempt a place among the slowest of its hour: a free one, or that of the quickest there.
func (t *statsTables) timed(m events.Recorded) {
	row, _ := historyOf(m)
	h, _ := t.slowest.Get(m.Time.Unix() / 3600)
	h.Hour, h.MS = m.Time.Unix()/3600, slices.Clone(h.MS)
	place := len(h.MS)
	if place < mostSlow {
		h.MS = append(h.MS, 0)
	} else {
		quickest := slices.Min(h.MS)
		if row.DurationMS <= quickest {
			return
		}
		place = slices.Index(h.MS, quickest)
	}
	h.MS[place] = row.DurationMS
	t.slowest.Put(h)
	t.slow.Put(SlowBuild{
		h.Hour, int64(place), m.Position, m.Time, row.Target, row.Status, row.Attempt, row.Run, row.Worker, row.DurationMS,
	})
}
