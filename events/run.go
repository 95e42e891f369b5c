package events

import (
	"time"

	"github.com/google/uuid"
)

// RunStream is the stream of a run.
func RunStream(id uuid.UUID) string { return "run/" + id.String() }

// ParseRun reads a run's stream name.
func ParseRun(stream string) (uuid.UUID, bool) { return parseID(stream, "run/") }

// RunEvent is a fact of a run's stream.
//
//sumtype:decl
type RunEvent interface {
	Event
	isRun()
}

type run struct{}

func (run) isRun() {}

// RunSubmitted says what somebody wants.
type RunSubmitted struct {
	run
	Requirements string   `json:"requirements"`          // the text of a requirements file
	Constraints  string   `json:"constraints,omitempty"` // the text of a constraints file
	Python       string   `json:"python,omitempty"`      // X.Y; empty: the worker's
	Platform     string   `json:"platform,omitempty"`    // empty: the worker's
	Strategy     string   `json:"strategy"`              // pinned, upgrade
	Build        string   `json:"build"`                 // missing, all, bootstrap, names
	Names        []string `json:"names,omitempty"`       // with build = names
}

// RunPlanLeased says that a worker plans it until the lease ends.
type RunPlanLeased struct {
	run
	Attempt   int       `json:"attempt"`
	Worker    string    `json:"worker"`
	ExpiresAt time.Time `json:"expires_at"`
}

// RunPlanReleased says that a planning attempt ended without a plan and the run waits for another worker.
type RunPlanReleased struct {
	run
	Attempt int    `json:"attempt"`
	Worker  string `json:"worker"`
	Reason  string `json:"reason"`
	Lost    bool   `json:"lost,omitempty"`
}

// Node is one wheel of a plan.
type Node struct {
	Name           string   `json:"name"`
	Version        string   `json:"version"`
	PythonTag      string   `json:"python_tag"`
	PlatformTag    string   `json:"platform_tag"`
	Action         string   `json:"action"`                    // build, reuse, skip
	Reason         string   `json:"reason"`                    // a code, such as no-wheel, asked, published-wheel, own-wheel, cycle
	Root           bool     `json:"root,omitempty"`            // named by the requirements, or needed by such at run time
	Sdist          *File    `json:"sdist,omitempty"`           // with action build
	Wheel          *File    `json:"wheel,omitempty"`           // with action reuse
	Own            bool     `json:"own,omitempty"`             // the wheel is in the refinery's index
	RequiresPython string   `json:"requires_python,omitempty"` // PEP 345
	Constraints    []string `json:"constraints,omitempty"`     // pins for its build requirements
}

// Key names a node within its plan.
func (n Node) Key() string { return n.Name + "/" + n.Version }

// Build is the build that the node stands for.
func (n Node) Build() BuildID { return BuildID{n.Name, n.Version, n.PythonTag, n.PlatformTag} }

// Edge says that From needs To. Both are node keys.
type Edge struct {
	From string `json:"from"`
	To   string `json:"to"`
	Kind string `json:"kind"` // runtime, build
}

// RunPlanned carries the plan.
type RunPlanned struct {
	run
	Plan        uuid.UUID `json:"plan"`
	Worker      string    `json:"worker"`
	PythonTag   string    `json:"python_tag"`
	PlatformTag string    `json:"platform_tag"`
	Nodes       []Node    `json:"nodes"`
	Edges       []Edge    `json:"edges"`
	Warnings    []string  `json:"warnings,omitempty"` // such as a cycle that was broken
	DurationMS  int64     `json:"duration_ms"`
}

// RunPlanFailed says that no plan could be made; the run ends.
type RunPlanFailed struct {
	run
	Worker string   `json:"worker"`
	Class  Class    `json:"class"`
	Reason string   `json:"reason"`
	Detail []string `json:"detail,omitempty"` // lines
}

// RunCancelled says that nobody wants the rest.
type RunCancelled struct {
	run
	Reason string `json:"reason"`
}

// ManifestEntry is what became of one wheel of a run.
type ManifestEntry struct {
	Name        string `json:"name"`
	Version     string `json:"version"`
	PythonTag   string `json:"python_tag"`
	PlatformTag string `json:"platform_tag"`
	Status      string `json:"status"` // built, reused, failed, skipped, cancelled
	Wheel       string `json:"wheel,omitempty"`
	SHA256      string `json:"sha256,omitempty"`
	Size        int64  `json:"size,omitempty"`
	DurationMS  int64  `json:"duration_ms,omitempty"`
	Reason      string `json:"reason,omitempty"`
}

// RunFinished says that every wheel of the run has ended one way or another.
type RunFinished struct {
	run
	State    string          `json:"state"` // built, failed, cancelled
	Counts   map[string]int  `json:"counts"`
	Manifest []ManifestEntry `json:"manifest"`
}

// ManifestRecorded carries entries that a worker reported.
type ManifestRecorded struct {
	run
	Worker  string          `json:"worker"`
	Entries []ManifestEntry `json:"entries"`
}

func (RunSubmitted) Name() string     { return "run.submitted.v1" }
func (RunPlanLeased) Name() string    { return "run.plan_leased.v1" }
func (RunPlanReleased) Name() string  { return "run.plan_released.v1" }
func (RunPlanned) Name() string       { return "run.planned.v1" }
func (RunPlanFailed) Name() string    { return "run.plan_failed.v1" }
func (RunCancelled) Name() string     { return "run.cancelled.v1" }
func (RunFinished) Name() string      { return "run.finished.v1" }
func (ManifestRecorded) Name() string { return "run.manifest_recorded.v1" }

func init() {
	register[RunSubmitted]()
	register[RunPlanLeased]()
	register[RunPlanReleased]()
	register[RunPlanned]()
	register[RunPlanFailed]()
	register[RunCancelled]()
	register[RunFinished]()
	register[ManifestRecorded]()
}
