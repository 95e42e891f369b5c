package events

import "github.com/google/uuid"

// SmokeStream is the stream of one proof that workers work.
func SmokeStream(id uuid.UUID) string { return "smoke/" + id.String() }

// ParseSmoke reads the name of a proof's stream.
func ParseSmoke(stream string) (uuid.UUID, bool) { return parseID(stream, "smoke/") }

// SmokeEvent is a fact of a proof.
//
//sumtype:decl
type SmokeEvent interface {
	Event
	isSmoke()
}

type smoke struct{}

func (smoke) isSmoke() {}

// SmokeRequested says that a worker is to prove that it can plan and build.
type SmokeRequested struct{ smoke }

// SmokeLeased says which one does.
type SmokeLeased struct {
	smoke
	Worker string `json:"worker"`
}

// SmokeReport is what a worker found.
type SmokeReport struct {
	Worker     string   `json:"worker"`
	OK         bool     `json:"ok"`
	Failures   []string `json:"failures"`
	DurationMS int64    `json:"duration_ms"`
	PlanMS     int64    `json:"plan_ms,omitempty"`
	BuildMS    int64    `json:"build_ms,omitempty"`
	Wheel      string   `json:"wheel,omitempty"` // the filename of what was built

	PythonVersion string `json:"python_version,omitempty"`
	UV            string `json:"uv,omitempty"`
	GCC           string `json:"gcc,omitempty"`     // empty: there is none
	Program       string `json:"program,omitempty"` // version of the worker's program
	User          string `json:"user,omitempty"`    // as whom builds run

	// Limits of one build.
	TimeoutSeconds int64 `json:"timeout_seconds,omitempty"`
	MemoryBytes    int64 `json:"memory_bytes,omitempty"`
	DiskBytes      int64 `json:"disk_bytes,omitempty"`
	Processes      int64 `json:"processes,omitempty"`
}

// SmokeEnded says what the worker found.
type SmokeEnded struct {
	smoke
	Report SmokeReport `json:"report"`
}

// SmokeExpired says that nobody waits for it any more.
type SmokeExpired struct{ smoke }

func (SmokeRequested) Name() string { return "smoke.requested.v1" }
func (SmokeLeased) Name() string    { return "smoke.leased.v1" }
func (SmokeEnded) Name() string     { return "smoke.ended.v1" }
func (SmokeExpired) Name() string   { return "smoke.expired.v1" }

func init() {
	register[SmokeRequested]()
	register[SmokeLeased]()
	register[SmokeEnded]()
	register[SmokeExpired]()
}
