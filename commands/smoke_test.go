package commands

import (
	"testing"

	"github.com/wheelrefinery/refinery/events"
	"github.com/wheelrefinery/refinery/internal/fault"
)

var (
	smokeAsked  = events.SmokeRequested{}
	smokeLeased = events.SmokeLeased{Worker: "w1"}
	smokeReport = events.SmokeReport{
		Worker: "w1", Failures: []string{"no gcc"}, DurationMS: 3, PlanMS: 1, BuildMS: 1, Wheel: "a.whl", User: "nobody",
		PythonVersion: "3.11.7", UV: "0.9", GCC: "12", Program: "dev", TimeoutSeconds: 3600, MemoryBytes: 1, DiskBytes: 1, Processes: 1,
	}
	smokeEnded  = events.SmokeEnded{Report: smokeReport}
	smokeRecord = RecordSmoke{runA, smokeReport}
)

var smokeScenarios = []scenario{
	{"new", nil, RequestSmoke{runA}, then(smokeAsked), "", ""},
	{"twice", given(smokeAsked), RequestSmoke{runA}, nil, fault.Conflict, "of this id already"},
	{"of nothing", nil, LeaseSmoke{runA, "w1"}, nil, fault.Conflict, "does not wait"},
	{"what waits", given(smokeAsked), LeaseSmoke{runA, "w1"}, then(smokeLeased), "", ""},
	{"what is leased", given(smokeAsked, smokeLeased), LeaseSmoke{runA, "w2"}, nil, fault.Conflict, "does not wait"},
	{"of nothing", nil, smokeRecord, nil, fault.NotFound, "no such proof"},
	{"by nobody", given(smokeAsked), smokeRecord, nil, fault.Conflict, "it is requested"},
	{"by its worker", given(smokeAsked, smokeLeased), smokeRecord, then(smokeEnded), "", ""},
	{"by another", given(smokeAsked, events.SmokeLeased{Worker: "w2"}), smokeRecord, nil, fault.Conflict, "not expected from this worker"},
	{"too late", given(smokeAsked, smokeLeased, events.SmokeExpired{}), smokeRecord, nil, fault.Conflict, "it is expired"},
	{"of nothing", nil, ExpireSmoke{runA}, nil, fault.NotFound, "no such proof"},
	{"what waits", given(smokeAsked), ExpireSmoke{runA}, then(events.SmokeExpired{}), "", ""},
	{"what is leased", given(smokeAsked, smokeLeased), ExpireSmoke{runA}, then(events.SmokeExpired{}), "", ""},
	{"what has ended", given(smokeAsked, smokeLeased, smokeEnded), ExpireSmoke{runA}, nil, "", ""},
}

func TestSmoke(t *testing.T) { check(t, smokeScenarios) }
