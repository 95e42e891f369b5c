package commands

import (
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/wheelrefinery/refinery/events"
	"github.com/wheelrefinery/refinery/internal/fault"
)

// mostLosses is how often a worker may be lost with a build before the build is given up: it may be what kills them.
const mostLosses = 3

// Build is the state of a build.
type Build struct {
	Status   string `json:"status"`
	Attempt  int    `json:"attempt"`
	Priority int    `json:"priority"`

	queued      int64 // position of the event that queued it last
	waits       int64 // and of the one since which it waits, which may have handed it back
	run         uuid.UUID
	worker      string
	losses      int
	sdist       *events.File
	constraints []string
	recipes     []events.Recipe
	hints       []string     // that brought some of the recipes
	fix         fix          // how trying to mend it stands
	built       *events.File // our own wheel
	builtFrom   string       // SHA-256 of its sdist
}

// Fold applies an event.
func (b Build) Fold(e events.BuildEvent) Build {
	switch e := e.(type) {
	case events.BuildPlanned:
		b.Status, b.run = "planned", e.Run
	case events.BuildQueued:
		b.Status, b.Priority, b.run, b.losses = "queued", e.Priority, e.Run, 0
		b.sdist, b.constraints, b.recipes, b.hints = e.Sdist, e.Constraints, e.Recipes, e.Hints
		if b.fix = b.fix.queued(e); len(e.Hints) > 0 {
			b.Status = "retrying"
		}
	case events.BuildLeased:
		b.Status, b.Attempt, b.worker = "leased", e.Attempt, e.Worker
	case events.BuildStarted:
		b.Status = "building"
	case events.BuildReleased:
		b.Status = "retrying"
		if e.Lost {
			b.losses++
		}
	case events.BuildSucceeded:
		b.Status, b.built, b.builtFrom = "built", &e.Wheel, e.SdistSHA256
		b.fix.unjudged = 0
	case events.BuildFailed:
		b.Status = "failed"
		b.fix = b.fix.failed(e)
	case events.BuildHinted:
		b.fix = b.fix.judged(e)
	case events.BuildReused:
		b.Status, b.run = "reused", e.Run
	case events.BuildSkipped:
		b.Status = "skipped"
	case events.BuildCancelled:
		b.Status = "cancelled"
	case events.BuildPriorityChanged:
		b.Priority = e.Priority
	}
	return b
}

// FoldAt applies an event and notes since when the build waits.
func (b Build) FoldAt(e events.BuildEvent, position int64) Build {
	if _, ok := e.(events.BuildQueued); ok {
		b.queued, b.waits = position, position
	} else if _, ok := e.(events.BuildReleased); ok {
		b.waits = position
	}
	return b.Fold(e)
}

// cleared says that the queue was cleared of the build, whose stream has not been told yet.
func (b Build) cleared(q Queue) bool {
	return b.waiting() && b.waits < q.cleared || (b.waiting() || b.leased()) && b.queued < q.clearedLeased
}

func (b Build) waiting() bool { return b.Status == "queued" || b.Status == "retrying" }
func (b Build) leased() bool  { return b.Status == "leased" || b.Status == "building" }

// has says that our own wheel is there, built from this source. A source that is not named is any.
func (b Build) has(sdist *events.File) bool {
	return b.built != nil && (sdist == nil || b.builtFrom == sdist.SHA256)
}

// held refuses unless attempt is the one that holds the lease.
func (b Build) held(attempt int) error {
	if b.Status == "" {
		return fault.New(fault.NotFound, "there is no such build")
	}
	if !b.leased() || b.Attempt != attempt {
		return fault.New(fault.Conflict, "attempt %d does not hold the lease: the build is %s at attempt %d; drop it", attempt, b.Status, b.Attempt)
	}
	return nil
}

// PlanBuild says that a run will want the wheel once what it needs is there.
type PlanBuild struct {
	Build events.BuildID `json:"build"`
	Run   uuid.UUID      `json:"run"`
	Sdist *events.File   `json:"sdist,omitempty"`
}

// Decide plans it, unless it is under way or there.
func (c PlanBuild) Decide(b Build) ([]events.BuildEvent, error) {
	switch {
	case b.waiting() || b.leased():
		return none[events.BuildEvent]()
	case b.has(c.Sdist):
		return one[events.BuildEvent](events.BuildReused{Run: c.Run, Wheel: *b.built, Own: true})
	}
	return one[events.BuildEvent](events.BuildPlanned{Run: c.Run})
}

// EnqueueBuild asks for the wheel. Asking twice is one entry. What is not given about the source is kept from earlier.
type EnqueueBuild struct {
	Build       events.BuildID  `json:"build"`
	Run         uuid.UUID       `json:"run,omitzero"`
	Sdist       *events.File    `json:"sdist,omitempty"`
	Constraints []string        `json:"constraints,omitempty"`
	Recipes     []events.Recipe `json:"recipes,omitempty"`
	Priority    int             `json:"priority"`
	Rebuild     bool            `json:"rebuild,omitempty"` // even when it is built
}

// Beside is the queue.
func (EnqueueBuild) Beside() string { return events.QueueStream }

// Decide queues it, unless it is queued, leased, or there. What the queue was cleared of is cancelled first, since whoever asks after that
// wants it anew.
func (c EnqueueBuild) Decide(b Build, q Queue) ([]events.BuildEvent, error) {
	if b.cleared(q) {
		gone := events.BuildCancelled{Reason: "the queue was cleared"}
		if b.leased() {
			gone.Attempt = b.Attempt
		}
		evs, err := c.Decide(b.Fold(gone), q)
		return append([]events.BuildEvent{gone}, evs...), err
	}
	if b.waiting() || b.leased() {
		return none[events.BuildEvent]()
	}
	if !c.Rebuild && b.has(c.Sdist) {
		return one[events.BuildEvent](events.BuildReused{Run: c.Run, Wheel: *b.built, Own: true})
	}
	asked := events.BuildQueued{
		Run: c.Run, Sdist: c.Sdist, Constraints: c.Constraints, Recipes: c.Recipes, Priority: c.Priority, Retry: b.Attempt > 0,
	}
	if asked.Sdist == nil {
		asked.Sdist = b.sdist
		if asked.Constraints == nil {
			asked.Constraints = b.constraints
		}
	}
	if asked.Recipes == nil {
		asked.Recipes = b.recipes
	}
	return one[events.BuildEvent](asked)
}

// LeaseBuild gives the build to one worker.
type LeaseBuild struct {
	Build     events.BuildID `json:"build"`
	Worker    string         `json:"worker"`
	ExpiresAt time.Time      `json:"expires_at"`
}

// Beside is the queue.
func (LeaseBuild) Beside() string { return events.QueueStream }

// Decide leases what waits, while the queue is not paused.
func (c LeaseBuild) Decide(b Build, q Queue) ([]events.BuildEvent, error) {
	switch {
	case q.Paused:
		return conflict[events.BuildEvent]("the queue is paused")
	case !b.waiting() || b.cleared(q):
		return conflict[events.BuildEvent]("the build does not wait for a worker")
	}
	return one[events.BuildEvent](events.BuildLeased{Attempt: b.Attempt + 1, Worker: c.Worker, ExpiresAt: c.ExpiresAt})
}

// StartBuild says that the build backend runs.
type StartBuild struct {
	Build   events.BuildID `json:"build"`
	Attempt int            `json:"attempt"`
}

// Decide believes whoever holds the lease.
func (c StartBuild) Decide(b Build) ([]events.BuildEvent, error) {
	if err := b.held(c.Attempt); err != nil {
		return nil, err
	}
	if b.Status == "building" {
		return none[events.BuildEvent]()
	}
	return one[events.BuildEvent](events.BuildStarted{Attempt: c.Attempt})
}

// SucceedBuild says that the wheel is in the index.
type SucceedBuild struct {
	Build       events.BuildID `json:"build"`
	Attempt     int            `json:"attempt"`
	Worker      string         `json:"worker"`
	Wheel       events.File    `json:"wheel"`
	SdistSHA256 string         `json:"sdist_sha256,omitempty"`
	StartedAt   time.Time      `json:"started_at"`
	DurationMS  int64          `json:"duration_ms"`
	LogLines    int            `json:"log_lines"`
}

// Decide takes the result of whoever holds the lease.
func (c SucceedBuild) Decide(b Build) ([]events.BuildEvent, error) {
	if b.Status == "built" && b.Attempt == c.Attempt && b.built.SHA256 == c.Wheel.SHA256 {
		return none[events.BuildEvent]()
	}
	if err := b.held(c.Attempt); err != nil {
		return nil, err
	}
	return one[events.BuildEvent](events.BuildSucceeded{
		Attempt: c.Attempt, Run: b.run, Worker: c.Worker, Wheel: c.Wheel, SdistSHA256: c.SdistSHA256,
		StartedAt: c.StartedAt, DurationMS: c.DurationMS, LogLines: c.LogLines, Hints: b.hints,
	})
}

// FailBuild says that the attempt ended without a wheel.
type FailBuild struct {
	Build      events.BuildID `json:"build"`
	Attempt    int            `json:"attempt"`
	Worker     string         `json:"worker"`
	Class      events.Class   `json:"class"`
	Reason     string         `json:"reason"`
	Evidence   []string       `json:"evidence,omitempty"`
	Backend    string         `json:"backend,omitempty"` // that builds the sdist (PEP 517); empty: not known
	StartedAt  time.Time      `json:"started_at"`
	DurationMS int64          `json:"duration_ms"`
	LogLines   int            `json:"log_lines"`
}

// Decide takes the result of whoever holds the lease.
func (c FailBuild) Decide(b Build) ([]events.BuildEvent, error) {
	if b.Status == "failed" && b.Attempt == c.Attempt {
		return none[events.BuildEvent]()
	}
	if err := b.held(c.Attempt); err != nil {
		return nil, err
	}
	return one[events.BuildEvent](events.BuildFailed{
		Attempt: c.Attempt, Run: b.run, Worker: c.Worker, Class: c.Class, Reason: c.Reason, Evidence: c.Evidence, Backend: c.Backend,
		StartedAt: c.StartedAt, DurationMS: c.DurationMS, LogLines: c.LogLines,
	})
}

// ReleaseBuild puts a leased build back into the queue: its worker hands it back, or (Lost) its lease has expired.
type ReleaseBuild struct {
	Build   events.BuildID `json:"build"`
	Attempt int            `json:"attempt"`
	Worker  string         `json:"worker"`
	Reason  string         `json:"reason"`
	Lost    bool           `json:"lost,omitempty"`
}

// Decide releases it; a build whose workers are lost again and again fails.
func (c ReleaseBuild) Decide(b Build) ([]events.BuildEvent, error) {
	if b.Status == "retrying" && b.Attempt == c.Attempt {
		return none[events.BuildEvent]()
	}
	if err := b.held(c.Attempt); err != nil {
		return nil, err
	}
	if c.Lost && b.losses+1 >= mostLosses {
		return one[events.BuildEvent](events.BuildFailed{
			Attempt: c.Attempt, Run: b.run, Worker: b.worker, Class: events.ClassLostWorker,
			Reason: fmt.Sprintf("the worker was lost %d times while it built this; look at the worker's machine, then retry", mostLosses),
		})
	}
	return one[events.BuildEvent](events.BuildReleased{Attempt: c.Attempt, Worker: b.worker, Reason: c.Reason, Lost: c.Lost})
}

// CancelBuild stops a build that has not ended.
type CancelBuild struct {
	Build      events.BuildID `json:"build"`
	Run        uuid.UUID      `json:"run,omitzero"` // the run that no longer wants it
	Reason     string         `json:"reason"`
	KeepLeased bool           `json:"keep_leased,omitempty"` // leave it alone when a worker has it
	// Cleared is the position at which the queue was cleared of it; 0: it was not that. What was queued, or left to its worker and handed
	// back, after that stays.
	Cleared int64 `json:"cleared,omitempty"`
}

// Decide cancels what is planned, waits, is being built, or has failed and may be tried again.
func (c CancelBuild) Decide(b Build) ([]events.BuildEvent, error) {
	switch {
	case b.Status == "":
		return nil, fault.New(fault.NotFound, "there is no such build")
	case c.Cleared > 0 && (!b.waiting() && !b.leased() || b.queued > c.Cleared || b.waits > c.Cleared && c.KeepLeased):
		return none[events.BuildEvent]()
	case b.leased() && c.KeepLeased:
		return none[events.BuildEvent]()
	case b.leased():
		return one[events.BuildEvent](events.BuildCancelled{Run: c.Run, Reason: c.Reason, Attempt: b.Attempt})
	case b.waiting() || b.Status == "planned" || b.Status == "failed" && b.fix.unjudged > 0:
		return one[events.BuildEvent](events.BuildCancelled{Run: c.Run, Reason: c.Reason})
	}
	return conflict[events.BuildEvent]("the build has ended already: it is %s", b.Status)
}

// SkipBuild gives up a planned build because of what it needs.
type SkipBuild struct {
	Build  events.BuildID `json:"build"`
	Run    uuid.UUID      `json:"run"`
	Reason string         `json:"reason"`
}

// Decide skips what nobody else wants.
func (c SkipBuild) Decide(b Build) ([]events.BuildEvent, error) {
	if b.Status != "planned" && b.Status != "" {
		return none[events.BuildEvent]()
	}
	return one[events.BuildEvent](events.BuildSkipped{Run: c.Run, Reason: c.Reason})
}

// ReuseBuild says that a run uses a wheel that is there.
type ReuseBuild struct {
	Build events.BuildID `json:"build"`
	Run   uuid.UUID      `json:"run"`
	Wheel events.File    `json:"wheel"`
	Own   bool           `json:"own"`
}

// Decide notes it, unless the build is under way.
func (c ReuseBuild) Decide(b Build) ([]events.BuildEvent, error) {
	if b.waiting() || b.leased() {
		return none[events.BuildEvent]()
	}
	return one[events.BuildEvent](events.BuildReused{Run: c.Run, Wheel: c.Wheel, Own: c.Own})
}

func (PlanBuild) Name() string    { return "build.plan" }
func (EnqueueBuild) Name() string { return "build.enqueue" }
func (LeaseBuild) Name() string   { return "build.lease" }
func (StartBuild) Name() string   { return "build.start" }
func (SucceedBuild) Name() string { return "build.succeed" }
func (FailBuild) Name() string    { return "build.fail" }
func (ReleaseBuild) Name() string { return "build.release" }
func (CancelBuild) Name() string  { return "build.cancel" }
func (SkipBuild) Name() string    { return "build.skip" }
func (ReuseBuild) Name() string   { return "build.reuse" }

func (c PlanBuild) Stream() string    { return c.Build.Stream() }
func (c EnqueueBuild) Stream() string { return c.Build.Stream() }
func (c LeaseBuild) Stream() string   { return c.Build.Stream() }
func (c StartBuild) Stream() string   { return c.Build.Stream() }
func (c SucceedBuild) Stream() string { return c.Build.Stream() }
func (c FailBuild) Stream() string    { return c.Build.Stream() }
func (c ReleaseBuild) Stream() string { return c.Build.Stream() }
func (c CancelBuild) Stream() string  { return c.Build.Stream() }
func (c SkipBuild) Stream() string    { return c.Build.Stream() }
func (c ReuseBuild) Stream() string   { return c.Build.Stream() }

// Validate checks the shape.
func (c PlanBuild) Validate() error {
	var k fault.Checks
	checkBuild(&k, "/build", c.Build)
	checkFile(&k, "/sdist", c.Sdist)
	return k.Err()
}

// Validate checks the shape.
func (c EnqueueBuild) Validate() error {
	var k fault.Checks
	checkBuild(&k, "/build", c.Build)
	checkFile(&k, "/sdist", c.Sdist)
	checkLines(&k, "/constraints", c.Constraints, mostPins)
	checkRecipes(&k, c.Recipes)
	checkPriority(&k, c.Priority)
	return k.Err()
}

// Validate checks the shape.
func (c LeaseBuild) Validate() error {
	var k fault.Checks
	checkBuild(&k, "/build", c.Build)
	checkWorker(&k, c.Worker)
	k.Check(!c.ExpiresAt.IsZero(), "/expires_at", "is missing")
	return k.Err()
}

// Validate checks the shape.
func (c StartBuild) Validate() error {
	var k fault.Checks
	checkBuild(&k, "/build", c.Build)
	return k.Err()
}

// Validate checks the shape.
func (c SucceedBuild) Validate() error {
	var k fault.Checks
	checkBuild(&k, "/build", c.Build)
	checkWorker(&k, c.Worker)
	checkFile(&k, "/wheel", &c.Wheel)
	k.Check(c.SdistSHA256 == "" || hashForm.MatchString(c.SdistSHA256), "/sdist_sha256", "is not a SHA-256 in 64 lower-case hex digits")
	checkEffort(&k, c.DurationMS, c.LogLines)
	return k.Err()
}

// Validate checks the shape.
func (c FailBuild) Validate() error {
	var k fault.Checks
	checkBuild(&k, "/build", c.Build)
	checkWorker(&k, c.Worker)
	checkClass(&k, c.Class)
	k.Check(c.Reason != "" && clean(c.Reason, mostReason), "/reason", "is empty, longer than %d bytes or not text", mostReason)
	checkLines(&k, "/evidence", c.Evidence, mostEvidence)
	k.Check(c.Backend == "" || form(c.Backend, backendForm, 300), "/backend", "is not a build backend (PEP 517) of at most 300 characters")
	checkEffort(&k, c.DurationMS, c.LogLines)
	return k.Err()
}

// Validate checks the shape.
func (c ReleaseBuild) Validate() error {
	var k fault.Checks
	checkBuild(&k, "/build", c.Build)
	checkReason(&k, c.Reason)
	return k.Err()
}

// Validate checks the shape.
func (c CancelBuild) Validate() error {
	var k fault.Checks
	checkBuild(&k, "/build", c.Build)
	k.Check(c.Cleared >= 0, "/cleared", "is negative")
	checkReason(&k, c.Reason)
	return k.Err()
}

// Validate checks the shape.
func (c SkipBuild) Validate() error {
	var k fault.Checks
	checkBuild(&k, "/build", c.Build)
	checkReason(&k, c.Reason)
	return k.Err()
}

// Validate checks the shape.
func (c ReuseBuild) Validate() error {
	var k fault.Checks
	checkBuild(&k, "/build", c.Build)
	checkFile(&k, "/wheel", &c.Wheel)
	return k.Err()
}

func init() {
	register[PlanBuild]()
	registerBeside[EnqueueBuild]()
	registerBeside[LeaseBuild]()
	register[StartBuild]()
	register[SucceedBuild]()
	register[FailBuild]()
	register[ReleaseBuild]()
	register[CancelBuild]()
	register[SkipBuild]()
	register[ReuseBuild]()
}
