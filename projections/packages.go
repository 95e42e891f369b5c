package projections

import (
	"slices"
	"time"

	"github.com/wheelrefinery/refinery/events"
)

// PackageRow is what became of the builds of a project.
type PackageRow struct {
	Name            string          `db:"name" sql:"text primary key"` // normalised (PEP 503)
	Position        int64           `db:"position" sql:"bigint"`       // of its first event
	UpdatedAt       time.Time       `db:"updated_at" sql:"timestamptz"`
	UpdatedPosition int64           `db:"updated_position" sql:"bigint"`
	Counts          StatusCounts    `db:"counts" sql:"json"` // builds by status
	Versions        int             `db:"versions" sql:"bigint"`
	Variants        int             `db:"variants" sql:"bigint"`
	Succeeded       int             `db:"succeeded" sql:"bigint"` // attempts
	Failed          int             `db:"failed" sql:"bigint"`
	Durations       Durations       `db:"durations" sql:"json"`
	Failure         *PackageFailure `db:"failure" sql:"json"` // the latest
}

// Key is the project's name.
func (p PackageRow) Key() string { return p.Name }

// Durations is how long the last attempts took that made a wheel.
type Durations struct {
	Count    int   `json:"count"`
	MedianMS int64 `json:"median_ms"`
	P90MS    int64 `json:"p90_ms"`
	MaxMS    int64 `json:"max_ms"`
}

// PackageFailure is an attempt that failed.
type PackageFailure struct {
	Position    int64     `json:"position"`
	Time        time.Time `json:"time"`
	Version     string    `json:"version"`
	PythonTag   string    `json:"python_tag"`
	PlatformTag string    `json:"platform_tag"`
	Attempt     int       `json:"attempt"`
	Class       string    `json:"class"`
	Reason      string    `json:"reason"`
}

// PackageTimes are the durations that Durations is made of, newest last.
type PackageTimes struct {
	Name string  `db:"name" sql:"text primary key"`
	MS   []int64 `db:"ms" sql:"json"`
}

// Key is the project's name.
func (t PackageTimes) Key() string { return t.Name }

// mostTimes is how many durations are looked at.
const mostTimes = 200

// PackagePart says that a project has builds of a version, or for a target. How many of them there are, the builds say.
type PackagePart struct {
	Name string `db:"name" sql:"text primary key"`
	Part string `db:"part" sql:"text primary key"` // the version, or "python_tag platform_tag"
}

// Key is all of it.
func (p PackagePart) Key() PackagePart { return p }

// packageTables are part of the summary: it knows the builds already, and a transaction costs more than rows.
type packageTables struct {
	packages *table[string, PackageRow]
	parts    *table[PackagePart, PackagePart]
	times    *table[string, PackageTimes]
}

func newPackageTables(m *models) packageTables {
	return packageTables{
		newTable[string, PackageRow](m, "packages", "(updated_position)"),
		newTable[PackagePart, PackagePart](m, "parts"),
		newTable[string, PackageTimes](m, "times"),
	}
}

// build notes an event of a build whose status it changes from before, "" for a new one, to now.
func (t *packageTables) build(m events.Recorded, before, now string) {
	id := targetOf(m)
	p, ok := t.packages.Get(id.Name)
	if !ok {
		p.Name, p.Position = id.Name, m.Position
	}
	p.UpdatedAt, p.UpdatedPosition = m.Time, m.Position
	switch e := m.Event.(type) {
	case events.BuildSucceeded:
		p.Succeeded++
		times, _ := t.times.GetUnder(ok, id.Name)
		ms := append(slices.Clone(times.MS), e.DurationMS)
		ms = ms[max(0, len(ms)-mostTimes):]
		t.times.Put(PackageTimes{id.Name, ms})
		p.Durations = durationsOf(ms)
	case events.BuildFailed:
		p.Failed++
		p.Failure = &PackageFailure{
			m.Position, m.Time, id.Version, id.PythonTag, id.PlatformTag, e.Attempt, string(e.Class), e.Reason,
		}
	}
	if now != before {
		p.Counts = p.Counts.moved(before, now)
		if before == "" {
			p.Versions += t.note(ok, PackagePart{id.Name, id.Version})
			p.Variants += t.note(ok, PackagePart{id.Name, id.PythonTag + " " + id.PlatformTag})
		}
	}
	t.packages.Put(p)
}

// note makes part known; it returns 1 if it was not. there: the project has builds already.
func (t *packageTables) note(there bool, part PackagePart) int {
	if _, known := t.parts.GetUnder(there, part); known {
		return 0
	}
	t.parts.Put(part)
	return 1
}

// durationsOf takes percentiles as the smallest value that so many do not exceed.
func durationsOf(ms []int64) Durations {
	sorted := slices.Sorted(slices.Values(ms))
	n := len(sorted)
	return Durations{n, sorted[(n+1)/2-1], sorted[(9*n+9)/10-1], sorted[n-1]}
}
