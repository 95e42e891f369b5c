package commands

import (
	"github.com/google/uuid"

	"github.com/wheelrefinery/refinery/events"
	"github.com/wheelrefinery/refinery/internal/fault"
)

// Smoke is the state of a proof that workers work.
type Smoke struct {
	State  string              `json:"state"` // requested, leased, ended, expired
	Worker string              `json:"worker,omitempty"`
	Report *events.SmokeReport `json:"report,omitempty"`
}

// Fold applies an event.
func (s Smoke) Fold(e events.SmokeEvent) Smoke {
	switch e := e.(type) {
	case events.SmokeRequested:
		s.State = "requested"
	case events.SmokeLeased:
		s.State, s.Worker = "leased", e.Worker
	case events.SmokeEnded:
		s.State, s.Report = "ended", &e.Report
	case events.SmokeExpired:
		s.State = "expired"
	}
	return s
}

// RequestSmoke asks for the proof.
type RequestSmoke struct {
	Smoke uuid.UUID `json:"smoke"`
}

// Decide takes it once.
func (c RequestSmoke) Decide(s Smoke) ([]events.SmokeEvent, error) {
	if s.State != "" {
		return conflict[events.SmokeEvent]("there is a proof of this id already")
	}
	return one[events.SmokeEvent](events.SmokeRequested{})
}

// LeaseSmoke gives it to one worker.
type LeaseSmoke struct {
	Smoke  uuid.UUID `json:"smoke"`
	Worker string    `json:"worker"`
}

// Decide leases what waits.
func (c LeaseSmoke) Decide(s Smoke) ([]events.SmokeEvent, error) {
	if s.State != "requested" {
		return conflict[events.SmokeEvent]("the proof does not wait for a worker")
	}
	return one[events.SmokeEvent](events.SmokeLeased{Worker: c.Worker})
}

// RecordSmoke is what the worker found.
type RecordSmoke struct {
	Smoke  uuid.UUID          `json:"smoke"`
	Report events.SmokeReport `json:"report"`
}

// Decide believes the worker that has it.
func (c RecordSmoke) Decide(s Smoke) ([]events.SmokeEvent, error) {
	switch {
	case s.State == "":
		return nil, fault.New(fault.NotFound, "there is no such proof")
	case s.State != "leased" || s.Worker != c.Report.Worker:
		return conflict[events.SmokeEvent]("the proof is not expected from this worker: it is %s", s.State)
	}
	return one[events.SmokeEvent](events.SmokeEnded{Report: c.Report})
}

// ExpireSmoke gives it up.
type ExpireSmoke struct {
	Smoke uuid.UUID `json:"smoke"`
}

// Decide gives up what has not ended.
func (c ExpireSmoke) Decide(s Smoke) ([]events.SmokeEvent, error) {
	switch s.State {
	case "":
		return nil, fault.New(fault.NotFound, "there is no such proof")
	case "requested", "leased":
		return one[events.SmokeEvent](events.SmokeExpired{})
	}
	return none[events.SmokeEvent]()
}

func (RequestSmoke) Name() string { return "smoke.request" }
func (LeaseSmoke) Name() string   { return "smoke.lease" }
func (RecordSmoke) Name() string  { return "smoke.record" }
func (ExpireSmoke) Name() string  { return "smoke.expire" }

func (c RequestSmoke) Stream() string { return events.SmokeStream(c.Smoke) }
func (c LeaseSmoke) Stream() string   { return events.SmokeStream(c.Smoke) }
func (c RecordSmoke) Stream() string  { return events.SmokeStream(c.Smoke) }
func (c ExpireSmoke) Stream() string  { return events.SmokeStream(c.Smoke) }

// Validate finds nothing to check.
func (RequestSmoke) Validate() error { return nil }

// Validate checks the shape.
func (c LeaseSmoke) Validate() error {
	var k fault.Checks
	checkWorker(&k, c.Worker)
	return k.Err()
}

// mostFacts bounds the lists of a report.
const mostFacts = 40

// Validate checks the shape.
func (c RecordSmoke) Validate() error {
	var k fault.Checks
	r := c.Report
	k.Check(form(r.Worker, workerForm, 100), "/report/worker", "is not a worker id")
	k.Check(r.OK == (len(r.Failures) == 0), "/report/ok", "is not what the failures say")
	checkLines(&k, "/report/failures", r.Failures, mostFacts)
	k.Check(r.DurationMS >= 0, "/report/duration_ms", "is negative")
	k.Check(r.PlanMS >= 0, "/report/plan_ms", "is negative")
	k.Check(r.BuildMS >= 0, "/report/build_ms", "is negative")
	k.Check(r.Wheel == "" || form(r.Wheel, fileForm, 300), "/report/wheel", "is not a file name of at most 300 characters")
	for name, text := range map[string]string{
		"python_version": r.PythonVersion, "uv": r.UV, "gcc": r.GCC, "program": r.Program, "user": r.User,
	} {
		k.Check(clean(text, 200), "/report/"+name, "is longer than 200 bytes or not text")
	}
	for name, n := range map[string]int64{
		"timeout_seconds": r.TimeoutSeconds, "memory_bytes": r.MemoryBytes, "disk_bytes": r.DiskBytes, "processes": r.Processes,
	} {
		k.Check(n >= 0, "/report/"+name, "is negative")
	}
	return k.Err()
}

// Validate finds nothing to check.
func (ExpireSmoke) Validate() error { return nil }

func init() {
	register[RequestSmoke]()
	register[LeaseSmoke]()
	register[RecordSmoke]()
	register[ExpireSmoke]()
}
