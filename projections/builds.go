package projections

import (
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/wheelrefinery/refinery/events"
)

// BuildRow is a build as it stands.
type BuildRow struct {
	Stream   string `db:"stream" sql:"text primary key"`
	Position int64  `db:"position" sql:"bigint"` // of its first event
	Target
	VersionKey      string          `db:"version_key" sql:"text"`
	Status          string          `db:"status" sql:"text"`
	Attempt         int             `db:"attempt" sql:"bigint"` // the last, 0 before the first
	Priority        int             `db:"priority" sql:"bigint"`
	Run             uuid.UUID       `db:"run_id" sql:"uuid"` // that asked last
	QueuedAt        time.Time       `db:"queued_at" sql:"timestamptz"`
	QueuedPosition  int64           `db:"queued_position" sql:"bigint"` // of the last event that queued it; 0: none
	UpdatedAt       time.Time       `db:"updated_at" sql:"timestamptz"`
	UpdatedPosition int64           `db:"updated_position" sql:"bigint"`
	Wheel           *events.File    `db:"wheel" sql:"json"`
	Class           string          `db:"class" sql:"text"` // of the last failure, until it is queued again
	Reason          string          `db:"reason" sql:"text"`
	Evidence        []string        `db:"evidence" sql:"json"`
	Attempts        []Attempt       `db:"attempts" sql:"json"` // the last mostAttempts
	Recipes         []events.Recipe `db:"recipes" sql:"json"`  // in effect since it was queued last
	Hints           []string        `db:"hints" sql:"json"`    // those that the last failed attempt matched; once it is built, those that did it
}

// Key is the build's stream.
func (b BuildRow) Key() string { return b.Stream }

// Attempt is one lease of a build and how it ended.
type Attempt struct {
	Number     int                `json:"number"`
	Worker     string             `json:"worker"`
	Status     string             `json:"status"` // leased, building, built, failed, released, lost, cancelled
	Class      string             `json:"class,omitempty"`
	Reason     string             `json:"reason,omitempty"`
	LeasedAt   time.Time          `json:"leased_at"`
	EndedAt    time.Time          `json:"ended_at,omitzero"`
	DurationMS int64              `json:"duration_ms,omitempty"`
	LogLines   int                `json:"log_lines,omitempty"`
	Hints      []events.HintMatch `json:"hints,omitempty"` // that its log matched
}

const mostAttempts = 100

type buildTables struct{ builds *table[string, BuildRow] }

var builds = define("builds", 1, func(m *models) *buildTables {
	return &buildTables{newTable[string, BuildRow](m, "builds",
		"(updated_position)", "(status, updated_position)", "(name, updated_position)",
		"(run_id, updated_position) where run_id is not null")}
}, onEach((*buildTables).build, buildEvents...)...)

func (t *buildTables) build(m events.Recorded) {
	b, ok := t.builds.GetOwn(m.Stream, m)
	if !ok {
		b.Stream, b.Position, b.Target = m.Stream, m.Position, targetOf(m)
		b.VersionKey = VersionKey(b.Version)
	}
	status := after(b.Status, m.Event.(events.BuildEvent))
	b.UpdatedAt, b.UpdatedPosition = m.Time, m.Position
	switch e := m.Event.(type) {
	case events.BuildPlanned:
		b.Run = e.Run
	case events.BuildQueued:
		b.Priority, b.Recipes = e.Priority, e.Recipes
		if e.Run != (uuid.UUID{}) {
			b.Run = e.Run
		}
		if !waiting(b.Status) {
			b.QueuedAt, b.QueuedPosition = m.Time, m.Position
			if len(e.Hints) == 0 {
				b.Class, b.Reason, b.Evidence, b.Hints = "", "", nil, nil
			}
		}
	case events.BuildLeased:
		b.Attempt = e.Attempt
		b.Attempts = append(slices.Clone(b.Attempts), Attempt{Number: e.Attempt, Worker: e.Worker, LeasedAt: m.Time, Status: Leased})
		b.Attempts = b.Attempts[max(0, len(b.Attempts)-mostAttempts):]
	case events.BuildStarted:
		b.attempt(e.Attempt, func(a *Attempt) { a.Status = Building })
	case events.BuildReleased:
		b.Reason = e.Reason
		b.attempt(e.Attempt, func(a *Attempt) {
			a.Status, a.Reason, a.EndedAt = "released", e.Reason, m.Time
			if e.Lost {
				a.Status, a.Class = "lost", string(events.ClassLostWorker)
			}
		})
	case events.BuildSucceeded:
		b.Wheel, b.Class, b.Reason, b.Evidence, b.Hints = &e.Wheel, "", "", nil, e.Hints
		b.attempt(e.Attempt, func(a *Attempt) {
			a.Status, a.EndedAt, a.DurationMS, a.LogLines = Built, m.Time, e.DurationMS, e.LogLines
		})
	case events.BuildFailed:
		b.Class, b.Reason, b.Evidence = string(e.Class), e.Reason, e.Evidence
		b.attempt(e.Attempt, func(a *Attempt) {
			a.Status, a.EndedAt, a.DurationMS, a.LogLines = Failed, m.Time, e.DurationMS, e.LogLines
			a.Class, a.Reason = string(e.Class), e.Reason
		})
	case events.BuildHinted:
		b.Hints = hintIDs(e.Hints)
		b.attempt(e.Attempt, func(a *Attempt) { a.Hints = e.Hints })
	case events.BuildPriorityChanged:
		b.Priority = e.Priority
	case events.BuildReused:
		b.Run, b.Wheel = e.Run, &e.Wheel
	case events.BuildSkipped:
		if status == Skipped {
			b.Reason = e.Reason
		}
	case events.BuildCancelled:
		b.Reason = e.Reason
		if e.Attempt > 0 {
			b.attempt(e.Attempt, func(a *Attempt) { a.Status, a.Reason, a.EndedAt = Cancelled, e.Reason, m.Time })
		}
	}
	b.Status = status
	t.builds.Put(b)
}

// attempt changes an attempt in a copy of the list.
func (b *BuildRow) attempt(number int, change func(*Attempt)) {
	if i := slices.IndexFunc(b.Attempts, func(a Attempt) bool { return a.Number == number }); i >= 0 {
		b.Attempts = slices.Clone(b.Attempts)
		change(&b.Attempts[i])
	}
}
