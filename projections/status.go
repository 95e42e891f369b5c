package projections

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"

	"github.com/google/uuid"

	"github.com/wheelrefinery/refinery/events"
)

// The statuses of a build.
const (
	Planned   = "planned"
	Queued    = "queued"
	Leased    = "leased"
	Building  = "building"
	Retrying  = "retrying" // waits again: an attempt was handed back, its worker was lost, or hints may mend what failed
	Built     = "built"
	Reused    = "reused"
	Failed    = "failed"
	Cancelled = "cancelled"
	Skipped   = "skipped"
)

// Statuses lists every status of a build.
var Statuses = [...]string{Planned, Queued, Leased, Building, Retrying, Built, Reused, Failed, Cancelled, Skipped}

// StatusCounts counts builds by status, in the order of Statuses. There are three for each project that is kept in memory, and a map takes
// seven times the space. Its JSON is an object that leaves zeros out.
type StatusCounts [len(Statuses)]int32

// Of is how many have a status.
func (c StatusCounts) Of(status string) int {
	if i := slices.Index(Statuses[:], status); i >= 0 {
		return int(c[i])
	}
	return 0
}

// moved is c after a build went from one status, "" for a new one, to another.
func (c StatusCounts) moved(before, now string) StatusCounts {
	for i, status := range Statuses {
		if status == before {
			c[i]--
		}
		if status == now {
			c[i]++
		}
	}
	return c
}

// MarshalJSON writes the object.
func (c StatusCounts) MarshalJSON() ([]byte, error) {
	out := []byte{'{'}
	for i, n := range c {
		if n == 0 {
			continue
		}
		if len(out) > 1 {
			out = append(out, ',')
		}
		out = append(append(append(out, '"'), Statuses[i]...), `":`...)
		out = strconv.AppendInt(out, int64(n), 10)
	}
	return append(out, '}'), nil
}

// UnmarshalJSON reads the object and passes over statuses that this program does not know.
func (c *StatusCounts) UnmarshalJSON(data []byte) error {
	var counts map[string]int32
	if err := json.Unmarshal(data, &counts); err != nil {
		return err
	}
	*c = StatusCounts{}
	for i, status := range Statuses {
		c[i] = counts[status]
	}
	return nil
}

func waiting(status string) bool { return status == Queued || status == Retrying }
func leased(status string) bool  { return status == Leased || status == Building }

// after is the status of a build after an event of its stream, "" before the first. What one run plans, reuses or gives up does not
// change a build that is under way for another.
func after(status string, e events.BuildEvent) string {
	switch e := e.(type) {
	case events.BuildPlanned:
		return unlessActive(status, Planned)
	case events.BuildQueued:
		switch {
		case leased(status):
			return status
		case len(e.Hints) > 0:
			return Retrying
		}
		return Queued
	case events.BuildLeased:
		return Leased
	case events.BuildStarted:
		return Building
	case events.BuildReleased:
		return Retrying
	case events.BuildSucceeded:
		return Built
	case events.BuildFailed:
		return Failed
	case events.BuildHinted:
		return status // where it is tried again, BuildQueued follows
	case events.BuildReused:
		return unlessActive(status, Reused)
	case events.BuildSkipped:
		return unlessActive(status, Skipped)
	case events.BuildCancelled:
		return Cancelled
	case events.BuildPriorityChanged:
		return status
	}
	panic(fmt.Sprintf("%T is no event of a build", e))
}

// ended says that a run is through with a build of this status.
func ended(status string) bool {
	return status != Planned && !waiting(status) && !leased(status)
}

func unlessActive(status, otherwise string) string {
	if waiting(status) || leased(status) {
		return status
	}
	return otherwise
}

// concerns says which run alone an event is about, if it is about one.
func concerns(e events.BuildEvent) (uuid.UUID, bool) {
	switch e := e.(type) {
	case events.BuildPlanned:
		return e.Run, true
	case events.BuildReused:
		return e.Run, !e.Own // a wheel of ours serves everybody
	case events.BuildSkipped:
		return e.Run, true
	default:
		return uuid.UUID{}, false
	}
}

// buildEvents are the events of a build's stream.
var buildEvents = []events.Event{
	events.BuildPlanned{},
	events.BuildQueued{},
	events.BuildLeased{},
	events.BuildStarted{},
	events.BuildReleased{},
	events.BuildSucceeded{},
	events.BuildFailed{},
	events.BuildHinted{},
	events.BuildReused{},
	events.BuildSkipped{},
	events.BuildCancelled{},
	events.BuildPriorityChanged{},
}

// Target is a build's identity as columns.
type Target struct {
	Name        string `db:"name" sql:"text"`
	Version     string `db:"version" sql:"text"`
	PythonTag   string `db:"python_tag" sql:"text"`
	PlatformTag string `db:"platform_tag" sql:"text"`
}

// Build is the build's identity.
func (t Target) Build() events.BuildID { return events.BuildID(t) }

// targetOf reads the name of a build's stream.
func targetOf(m events.Recorded) Target {
	id, ok := events.ParseBuild(m.Stream)
	if !ok {
		panic(fmt.Sprintf("%q is not the stream of a build", m.Stream))
	}
	return Target(id)
}

func runOf(m events.Recorded) uuid.UUID {
	id, ok := events.ParseRun(m.Stream)
	if !ok {
		panic(fmt.Sprintf("%q is not the stream of a run", m.Stream))
	}
	return id
}

// list is s, never nil: what was appended by this process may hold an empty slice where what is read from the log holds none.
func list[V any](s []V) []V {
	if len(s) == 0 {
		return []V{}
	}
	return s
}
