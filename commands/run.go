package commands

import (
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/wheelrefinery/refinery/events"
	"github.com/wheelrefinery/refinery/internal/fault"
)

// Run is the state of a run.
type Run struct {
	State string    `json:"state"` // submitted, planning, planned, built, failed, cancelled
	Plan  uuid.UUID `json:"plan_id,omitzero"`
	// Attempt counts the leases for planning.
	Attempt int `json:"attempt"`

	worker string
	losses int
	ended  bool // RunFinished or RunPlanFailed
}

// Fold applies an event.
func (r Run) Fold(e events.RunEvent) Run {
	switch e := e.(type) {
	case events.RunSubmitted:
		r.State = "submitted"
	case events.RunPlanLeased:
		r.State, r.Attempt, r.worker = "planning", e.Attempt, e.Worker
	case events.RunPlanReleased:
		r.State = "submitted"
		if e.Lost {
			r.losses++
		}
	case events.RunPlanned:
		r.State, r.Plan = "planned", e.Plan
	case events.RunPlanFailed:
		r.State, r.ended = "failed", true
	case events.RunCancelled:
		r.State = "cancelled"
		r.ended = r.Plan == uuid.Nil // with a plan, RunFinished follows
	case events.RunFinished:
		r.State, r.ended = e.State, true
	case events.ManifestRecorded:
	}
	return r
}

func (r Run) there() error {
	if r.State == "" {
		return fault.New(fault.NotFound, "there is no such run")
	}
	return nil
}

// held refuses unless attempt is the one that plans.
func (r Run) held(attempt int) error {
	if err := r.there(); err != nil {
		return err
	}
	if r.State != "planning" || r.Attempt != attempt {
		return fault.New(fault.Conflict, "attempt %d does not hold the lease: the run is %s at attempt %d; drop it", attempt, r.State, r.Attempt)
	}
	return nil
}

// SubmitRun asks for a set of requirements.
type SubmitRun struct {
	Run          uuid.UUID `json:"run"`
	Requirements string    `json:"requirements"`
	Constraints  string    `json:"constraints,omitempty"`
	Python       string    `json:"python,omitempty"`
	Platform     string    `json:"platform,omitempty"`
	Strategy     string    `json:"strategy"`
	Build        string    `json:"build"`
	Names        []string  `json:"names,omitempty"`
}

// Decide takes it once.
func (c SubmitRun) Decide(r Run) ([]events.RunEvent, error) {
	if r.State != "" {
		return conflict[events.RunEvent]("there is a run of this id already")
	}
	return one[events.RunEvent](events.RunSubmitted{
		Requirements: c.Requirements, Constraints: c.Constraints, Python: c.Python, Platform: c.Platform,
		Strategy: c.Strategy, Build: c.Build, Names: c.Names,
	})
}

// LeasePlan gives the planning to one worker.
type LeasePlan struct {
	Run       uuid.UUID `json:"run"`
	Worker    string    `json:"worker"`
	ExpiresAt time.Time `json:"expires_at"`
}

// Beside is the queue.
func (LeasePlan) Beside() string { return events.QueueStream }

// Decide leases what waits, while the queue is not paused.
func (c LeasePlan) Decide(r Run, q Queue) ([]events.RunEvent, error) {
	if q.Paused {
		return conflict[events.RunEvent]("the queue is paused")
	}
	if r.State != "submitted" {
		return conflict[events.RunEvent]("the run does not wait for a plan")
	}
	return one[events.RunEvent](events.RunPlanLeased{Attempt: r.Attempt + 1, Worker: c.Worker, ExpiresAt: c.ExpiresAt})
}

// ReleasePlan puts a run that is being planned back: its worker hands it back, or (Lost) its lease has expired.
type ReleasePlan struct {
	Run     uuid.UUID `json:"run"`
	Attempt int       `json:"attempt"`
	Worker  string    `json:"worker"`
	Reason  string    `json:"reason"`
	Lost    bool      `json:"lost,omitempty"`
}

// Decide releases it; a run whose planners are lost again and again fails.
func (c ReleasePlan) Decide(r Run) ([]events.RunEvent, error) {
	if r.State == "submitted" && r.Attempt == c.Attempt && c.Attempt > 0 {
		return none[events.RunEvent]()
	}
	if err := r.held(c.Attempt); err != nil {
		return nil, err
	}
	if c.Lost && r.losses+1 >= mostLosses {
		return one[events.RunEvent](events.RunPlanFailed{
			Worker: r.worker, Class: events.ClassLostWorker,
			Reason: fmt.Sprintf("the worker was lost %d times while it planned this; look at the worker's machine, then submit again", mostLosses),
		})
	}
	return one[events.RunEvent](events.RunPlanReleased{Attempt: c.Attempt, Worker: r.worker, Reason: c.Reason, Lost: c.Lost})
}

// RecordPlan is a worker's plan.
type RecordPlan struct {
	Run         uuid.UUID     `json:"run"`
	Attempt     int           `json:"attempt"`
	Plan        uuid.UUID     `json:"plan"`
	Worker      string        `json:"worker"`
	PythonTag   string        `json:"python_tag"`
	PlatformTag string        `json:"platform_tag"`
	Nodes       []events.Node `json:"nodes"`
	Edges       []events.Edge `json:"edges"`
	Warnings    []string      `json:"warnings,omitempty"`
	DurationMS  int64         `json:"duration_ms"`
}

// Decide takes the plan of whoever holds the lease.
func (c RecordPlan) Decide(r Run) ([]events.RunEvent, error) {
	if err := r.held(c.Attempt); err != nil {
		return nil, err
	}
	return one[events.RunEvent](events.RunPlanned{
		Plan: c.Plan, Worker: c.Worker, PythonTag: c.PythonTag, PlatformTag: c.PlatformTag,
		Nodes: c.Nodes, Edges: c.Edges, Warnings: c.Warnings, DurationMS: c.DurationMS,
	})
}

// FailPlan says that no plan can be made.
type FailPlan struct {
	Run     uuid.UUID    `json:"run"`
	Attempt int          `json:"attempt"`
	Worker  string       `json:"worker"`
	Class   events.Class `json:"class"`
	Reason  string       `json:"reason"`
	Detail  []string     `json:"detail,omitempty"`
}

// Decide takes the word of whoever holds the lease.
func (c FailPlan) Decide(r Run) ([]events.RunEvent, error) {
	if err := r.held(c.Attempt); err != nil {
		return nil, err
	}
	return one[events.RunEvent](events.RunPlanFailed{Worker: c.Worker, Class: c.Class, Reason: c.Reason, Detail: c.Detail})
}

// CancelRun stops what has not been built.
type CancelRun struct {
	Run    uuid.UUID `json:"run"`
	Reason string    `json:"reason,omitempty"`
}

// Decide cancels what has not ended.
func (c CancelRun) Decide(r Run) ([]events.RunEvent, error) {
	if err := r.there(); err != nil {
		return nil, err
	}
	if r.ended || r.State == "cancelled" {
		return conflict[events.RunEvent]("the run has ended already: it is %s", r.State)
	}
	return one[events.RunEvent](events.RunCancelled{Reason: c.Reason})
}

// FinishRun closes a run whose wheels have all ended; a policy sends it.
type FinishRun struct {
	Run      uuid.UUID              `json:"run"`
	State    string                 `json:"state"` // built, failed, cancelled
	Counts   map[string]int         `json:"counts"`
	Manifest []events.ManifestEntry `json:"manifest"`
}

// Decide closes it once.
func (c FinishRun) Decide(r Run) ([]events.RunEvent, error) {
	if err := r.there(); err != nil {
		return nil, err
	}
	if r.ended {
		return none[events.RunEvent]()
	}
	if r.Plan == uuid.Nil {
		return conflict[events.RunEvent]("the run has no plan yet")
	}
	return one[events.RunEvent](events.RunFinished{State: c.State, Counts: c.Counts, Manifest: c.Manifest})
}

// RecordManifest is what a worker says of a run's wheels: all entries or none.
type RecordManifest struct {
	Run     uuid.UUID              `json:"run"`
	Worker  string                 `json:"worker"`
	Entries []events.ManifestEntry `json:"entries"`
}

// Decide takes it for any run that is there.
func (c RecordManifest) Decide(r Run) ([]events.RunEvent, error) {
	if err := r.there(); err != nil {
		return nil, err
	}
	return one[events.RunEvent](events.ManifestRecorded{Worker: c.Worker, Entries: c.Entries})
}

func (SubmitRun) Name() string      { return "run.submit" }
func (LeasePlan) Name() string      { return "run.lease_plan" }
func (ReleasePlan) Name() string    { return "run.release_plan" }
func (RecordPlan) Name() string     { return "run.record_plan" }
func (FailPlan) Name() string       { return "run.fail_plan" }
func (CancelRun) Name() string      { return "run.cancel" }
func (FinishRun) Name() string      { return "run.finish" }
func (RecordManifest) Name() string { return "run.record_manifest" }

func (c SubmitRun) Stream() string      { return events.RunStream(c.Run) }
func (c LeasePlan) Stream() string      { return events.RunStream(c.Run) }
func (c ReleasePlan) Stream() string    { return events.RunStream(c.Run) }
func (c RecordPlan) Stream() string     { return events.RunStream(c.Run) }
func (c FailPlan) Stream() string       { return events.RunStream(c.Run) }
func (c CancelRun) Stream() string      { return events.RunStream(c.Run) }
func (c FinishRun) Stream() string      { return events.RunStream(c.Run) }
func (c RecordManifest) Stream() string { return events.RunStream(c.Run) }

// Limits of what a run's commands carry.
const (
	mostRequirements = 1 << 20 // bytes
	mostNames        = 1_000
	mostManifest     = mostNodes
)

// statuses are what a wheel of a run ends as.
var statuses = []string{"built", "reused", "failed", "skipped", "cancelled"}

// Validate checks the shape; whether the requirements parse is the planner's business.
func (c SubmitRun) Validate() error {
	var k fault.Checks
	k.Check(c.Run != uuid.Nil, "/run", "is missing")
	k.Check(c.Requirements != "", "/requirements", "is empty: give the text of a requirements file")
	k.Check(clean(c.Requirements, mostRequirements), "/requirements", "is longer than %d bytes or not UTF-8 text", mostRequirements)
	k.Check(clean(c.Constraints, mostRequirements), "/constraints", "is longer than %d bytes or not UTF-8 text", mostRequirements)
	k.Check(c.Python == "" || form(c.Python, pythonForm, 10), "/python", "is not of the form 3.11")
	k.Check(c.Platform == "" || form(c.Platform, tagForm, 100), "/platform", "is not a platform tag (PEP 425)")
	k.Check(c.Strategy == "pinned" || c.Strategy == "upgrade", "/strategy", "is not pinned or upgrade")
	k.Check(slices.Contains([]string{"missing", "all", "bootstrap", "names"}, c.Build), "/build", "is not missing, all, bootstrap or names")
	k.Check((c.Build == "names") == (len(c.Names) > 0), "/names", "must be given with build = names, and only then")
	k.Check(len(c.Names) <= mostNames, "/names", "has more than %d items", mostNames)
	for i, n := range c.Names {
		k.Check(form(n, nameForm, 200), fmt.Sprintf("/names/%d", i), "is not a normalised project name (PEP 503)")
	}
	return k.Err()
}

// Validate checks the shape.
func (c LeasePlan) Validate() error {
	var k fault.Checks
	checkWorker(&k, c.Worker)
	k.Check(!c.ExpiresAt.IsZero(), "/expires_at", "is missing")
	return k.Err()
}

// Validate checks the shape.
func (c ReleasePlan) Validate() error {
	var k fault.Checks
	checkReason(&k, c.Reason)
	return k.Err()
}

// Validate checks the shape, that edges join nodes, and that no build waits for itself.
func (c RecordPlan) Validate() error {
	var k fault.Checks
	checkWorker(&k, c.Worker)
	k.Check(form(c.PythonTag, tagForm, 50), "/python_tag", "is not a python tag (PEP 425)")
	k.Check(form(c.PlatformTag, tagForm, 100), "/platform_tag", "is not a platform tag (PEP 425)")
	k.Check(c.Plan != uuid.Nil, "/plan", "is missing")
	checkLines(&k, "/warnings", c.Warnings, 100)
	checkEffort(&k, c.DurationMS, 0)
	checkPlan(&k, c.Nodes, c.Edges)
	return k.Err()
}

// Validate checks the shape.
func (c FailPlan) Validate() error {
	var k fault.Checks
	checkWorker(&k, c.Worker)
	checkClass(&k, c.Class)
	k.Check(c.Reason != "" && clean(c.Reason, mostReason), "/reason", "is empty, longer than %d bytes or not text", mostReason)
	checkLines(&k, "/detail", c.Detail, mostEvidence)
	return k.Err()
}

// Validate checks the shape.
func (c CancelRun) Validate() error {
	var k fault.Checks
	checkReason(&k, c.Reason)
	return k.Err()
}

// Validate checks the shape.
func (c FinishRun) Validate() error {
	var k fault.Checks
	k.Check(slices.Contains([]string{"built", "failed", "cancelled"}, c.State), "/state", "is not built, failed or cancelled")
	for status, n := range c.Counts {
		k.Check(slices.Contains(statuses, status) && n >= 0, "/counts", "has another key than %v, or a negative number", statuses)
	}
	checkManifest(&k, "/manifest", c.Manifest)
	return k.Err()
}

// Validate checks the shape.
func (c RecordManifest) Validate() error {
	var k fault.Checks
	checkWorker(&k, c.Worker)
	k.Check(len(c.Entries) > 0, "/entries", "is empty")
	checkManifest(&k, "/entries", c.Entries)
	return k.Err()
}

func checkManifest(k *fault.Checks, at string, entries []events.ManifestEntry) {
	k.Check(len(entries) <= mostManifest, at, "has more than %d items", mostManifest)
	for i, e := range entries {
		here := fmt.Sprintf("%s/%d", at, i)
		checkBuild(k, here, events.BuildID{Name: e.Name, Version: e.Version, PythonTag: e.PythonTag, PlatformTag: e.PlatformTag})
		k.Check(slices.Contains(statuses, e.Status), here+"/status", "is not one of %v", statuses)
		k.Check(e.Wheel == "" || form(e.Wheel, fileForm, 300), here+"/wheel", "is not a file name")
		k.Check(e.SHA256 == "" || hashForm.MatchString(e.SHA256), here+"/sha256", "is not a SHA-256 in 64 lower-case hex digits")
		k.Check(e.Size >= 0 && e.DurationMS >= 0, here, "has a negative size or duration")
		k.Check(clean(e.Reason, mostReason), here+"/reason", "is longer than %d bytes or not text", mostReason)
	}
}

func init() {
	register[SubmitRun]()
	registerBeside[LeasePlan]()
	register[ReleasePlan]()
	register[RecordPlan]()
	register[FailPlan]()
	register[CancelRun]()
	register[FinishRun]()
	register[RecordManifest]()
}
