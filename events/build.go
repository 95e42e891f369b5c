package events

import (
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/google/uuid"
)

// BuildID is what a build produces, and so its identity. The tags are the target's; the wheel that comes out has its own.
type BuildID struct {
	Name        string `json:"name"`         // normalised (PEP 503)
	Version     string `json:"version"`      // normalised (PEP 440)
	PythonTag   string `json:"python_tag"`   // such as cp311
	PlatformTag string `json:"platform_tag"` // such as linux_x86_64
}

// Stream is the build's stream.
func (b BuildID) Stream() string {
	return "build/" + b.String()
}

// String is "name/version/python_tag/platform_tag".
func (b BuildID) String() string {
	return b.Name + "/" + b.Version + "/" + b.PythonTag + "/" + b.PlatformTag
}

// Log is the stream of an attempt's log.
func (b BuildID) Log(attempt int) string { return fmt.Sprintf("log/%s/%d", b, attempt) }

// ParseBuild reads a build's stream name.
func ParseBuild(stream string) (BuildID, bool) {
	p := strings.Split(stream, "/")
	if len(p) != 5 || p[0] != "build" {
		return BuildID{}, false
	}
	return BuildID{p[1], p[2], p[3], p[4]}, true
}

var separators = regexp.MustCompile(`[-_.]+`)

// NormalizeName is the normal form of a project's name (PEP 503).
func NormalizeName(name string) string {
	return strings.ToLower(separators.ReplaceAllString(name, "-"))
}

// BuildEvent is a fact of a build's stream.
//
//sumtype:decl
type BuildEvent interface {
	Event
	isBuild()
}

type build struct{}

func (build) isBuild() {}

// File is something to download: an sdist or a wheel.
type File struct {
	Filename string `json:"filename"`
	URL      string `json:"url"`
	SHA256   string `json:"sha256"` // hex
	Size     int64  `json:"size,omitempty"`
}

// Recipe says what a build needs beside its requirements. Package names are checked against their distribution's grammar.
type Recipe struct {
	Kind  string   `json:"kind"` // apt, dnf, pip, env; constraint: of the build requirements; version: no fix, but these versions build
	Items []string `json:"items"`
}

// Class says what kind of failure it was.
type Class string

// The classes of failures.
const (
	ClassResolve        Class = "resolve"
	ClassDownload       Class = "download"
	ClassMissingHeader  Class = "missing-header"
	ClassMissingLibrary Class = "missing-library"
	ClassMissingTool    Class = "missing-tool"
	ClassCompiler       Class = "compiler"
	ClassBackend        Class = "backend"
	ClassTimeout        Class = "timeout"
	ClassOutOfMemory    Class = "out-of-memory"
	ClassRepair         Class = "repair"
	ClassTest           Class = "test"
	ClassLostWorker     Class = "lost-worker"
	ClassOther          Class = "other"
)

// Classes lists every class.
var Classes = []Class{
	ClassResolve, ClassDownload, ClassMissingHeader, ClassMissingLibrary, ClassMissingTool, ClassCompiler, ClassBackend,
	ClassTimeout, ClassOutOfMemory, ClassRepair, ClassTest, ClassLostWorker, ClassOther,
}

// BuildPlanned says that a run will want this wheel once what it needs is there.
type BuildPlanned struct {
	build
	Run uuid.UUID `json:"run"`
}

// BuildQueued says that the wheel waits for a worker. Fields that describe the source are kept from the last event that had them.
type BuildQueued struct {
	build
	Run         uuid.UUID `json:"run,omitzero"` // zero: asked for by itself
	Sdist       *File     `json:"sdist,omitempty"`
	Constraints []string  `json:"constraints,omitempty"` // pins of the build requirements
	Recipes     []Recipe  `json:"recipes,omitempty"`
	Priority    int       `json:"priority"` // higher is leased earlier
	Retry       bool      `json:"retry,omitempty"`
	Hints       []string  `json:"hints,omitempty"`     // that brought recipes: nobody asked for this attempt but a verdict
	NotBefore   time.Time `json:"not_before,omitzero"` // no lease before
}

// BuildLeased says that one worker builds it until the lease ends.
type BuildLeased struct {
	build
	Attempt   int       `json:"attempt"` // from 1
	Worker    string    `json:"worker"`
	ExpiresAt time.Time `json:"expires_at"` // unless heartbeats extend it
}

// BuildStarted says that the worker has all it needs and runs the build backend.
type BuildStarted struct {
	build
	Attempt int `json:"attempt"`
}

// BuildReleased says that an attempt ended without a result and the wheel waits again.
type BuildReleased struct {
	build
	Attempt int    `json:"attempt"`
	Worker  string `json:"worker"`
	Reason  string `json:"reason"`         // what the worker or the control plane said
	Lost    bool   `json:"lost,omitempty"` // the lease expired
}

// BuildSucceeded says that the wheel is in the index.
type BuildSucceeded struct {
	build
	Attempt     int       `json:"attempt"`
	Run         uuid.UUID `json:"run,omitzero"` // the run that asked last
	Worker      string    `json:"worker"`
	Wheel       File      `json:"wheel"`
	SdistSHA256 string    `json:"sdist_sha256,omitempty"` // part of the result's key: two builds of one source differ in bytes
	StartedAt   time.Time `json:"started_at"`
	DurationMS  int64     `json:"duration_ms"`
	LogLines    int       `json:"log_lines"`
	Hints       []string  `json:"hints,omitempty"` // whose recipes made it succeed
}

// BuildFailed says that an attempt ended without a wheel. A BuildHinted says whether that was the last one.
type BuildFailed struct {
	build
	Attempt    int       `json:"attempt"`
	Run        uuid.UUID `json:"run,omitzero"`
	Worker     string    `json:"worker"`
	Class      Class     `json:"class"`
	Reason     string    `json:"reason"`             // one line
	Evidence   []string  `json:"evidence,omitempty"` // the last lines of the log
	Backend    string    `json:"backend,omitempty"`  // that builds the sdist (PEP 517); empty: not known
	StartedAt  time.Time `json:"started_at"`
	DurationMS int64     `json:"duration_ms"`
	LogLines   int       `json:"log_lines"`
}

// BuildReused says that a wheel that was there already serves.
type BuildReused struct {
	build
	Run   uuid.UUID `json:"run"`
	Wheel File      `json:"wheel"`
	Own   bool      `json:"own"` // it is in the refinery's index
}

// BuildSkipped says that a run gave it up, because of what it needs.
type BuildSkipped struct {
	build
	Run    uuid.UUID `json:"run"`
	Reason string    `json:"reason"`
}

// BuildCancelled says that nobody wants it any more. A worker that builds it learns so with its next heartbeat.
type BuildCancelled struct {
	build
	Run     uuid.UUID `json:"run,omitzero"`
	Reason  string    `json:"reason"`
	Attempt int       `json:"attempt,omitempty"` // the lease that it ended
}

// BuildPriorityChanged says that the build, which waits, has another place in the queue.
type BuildPriorityChanged struct {
	build
	Priority int `json:"priority"`
}

func (BuildPlanned) Name() string         { return "build.planned.v1" }
func (BuildQueued) Name() string          { return "build.queued.v1" }
func (BuildLeased) Name() string          { return "build.leased.v1" }
func (BuildStarted) Name() string         { return "build.started.v1" }
func (BuildReleased) Name() string        { return "build.released.v1" }
func (BuildSucceeded) Name() string       { return "build.succeeded.v1" }
func (BuildFailed) Name() string          { return "build.failed.v1" }
func (BuildReused) Name() string          { return "build.reused.v1" }
func (BuildSkipped) Name() string         { return "build.skipped.v1" }
func (BuildCancelled) Name() string       { return "build.cancelled.v1" }
func (BuildPriorityChanged) Name() string { return "build.priority_changed.v1" }

func init() {
	register[BuildPlanned]()
	register[BuildQueued]()
	register[BuildLeased]()
	register[BuildStarted]()
	register[BuildReleased]()
	register[BuildSucceeded]()
	register[BuildFailed]()
	register[BuildReused]()
	register[BuildSkipped]()
	register[BuildCancelled]()
	register[BuildPriorityChanged]()
}
