package commands

import (
	"fmt"
	"strings"

	"github.com/wheelrefinery/refinery/events"
	"github.com/wheelrefinery/refinery/internal/fault"
)

// Artifact is the state of a wheel.
type Artifact struct {
	Filename string `json:"filename"`
	SHA256   string `json:"sha256"`
	Size     int64  `json:"size"`
	Yanked   bool   `json:"yanked,omitempty"`
	Reason   string `json:"yank_reason,omitempty"`
	build    events.BuildID
	attempt  int
}

// Fold applies an event.
func (a Artifact) Fold(e events.ArtifactEvent) Artifact {
	switch e := e.(type) {
	case events.ArtifactPublished:
		a = Artifact{Filename: e.Filename, SHA256: e.SHA256, Size: e.Size, build: e.Build, attempt: e.Attempt}
	case events.ArtifactYanked:
		a.Yanked, a.Reason = true, e.Reason
	case events.ArtifactUnyanked:
		a.Yanked, a.Reason = false, ""
	}
	return a
}

// PublishArtifact puts a verified wheel, which is in the store, into the index.
type PublishArtifact struct {
	Filename       string         `json:"filename"`
	SHA256         string         `json:"sha256"`
	Size           int64          `json:"size"`
	Project        string         `json:"project"`
	Version        string         `json:"version"`
	Tags           []string       `json:"tags"`
	RequiresPython string         `json:"requires_python,omitempty"`
	MetadataSHA256 string         `json:"metadata_sha256"`
	Build          events.BuildID `json:"build"`
	Attempt        int            `json:"attempt"`
}

// Decide publishes it. A wheel is replaced only by a later attempt of the same build: a file that somebody pinned by its hash does not
// change because another target builds the same pure-Python wheel.
func (c PublishArtifact) Decide(a Artifact) ([]events.ArtifactEvent, error) {
	switch {
	case a.SHA256 == c.SHA256:
		return none[events.ArtifactEvent]()
	case a.Filename != "" && (a.build != c.Build || a.attempt >= c.Attempt):
		err := fault.New(fault.Conflict, "another wheel of this name is published: built as %s, attempt %d; use that one", a.build, a.attempt)
		err.Fields = []fault.Field{{Pointer: "/sha256", Detail: a.SHA256}}
		return nil, err
	}
	return one[events.ArtifactEvent](events.ArtifactPublished{
		Filename: c.Filename, SHA256: c.SHA256, Size: c.Size, Project: c.Project, Version: c.Version, Tags: c.Tags,
		RequiresPython: c.RequiresPython, MetadataSHA256: c.MetadataSHA256, Build: c.Build, Attempt: c.Attempt,
	})
}

// YankArtifact takes a wheel out of the choice, or puts it back (PEP 592).
type YankArtifact struct {
	Filename string `json:"filename"`
	Yanked   bool   `json:"yanked"`
	Reason   string `json:"reason,omitempty"`
}

// Decide notes what is new, another reason too.
func (c YankArtifact) Decide(a Artifact) ([]events.ArtifactEvent, error) {
	switch {
	case a.Filename == "":
		return nil, fault.New(fault.NotFound, "the index has no such wheel")
	case c.Yanked && (!a.Yanked || a.Reason != c.Reason):
		return one[events.ArtifactEvent](events.ArtifactYanked{Reason: c.Reason})
	case !c.Yanked && a.Yanked:
		return one[events.ArtifactEvent](events.ArtifactUnyanked{})
	}
	return none[events.ArtifactEvent]()
}

// Name is the name on the bus.
func (YankArtifact) Name() string { return "artifact.yank" }

// Stream is the wheel's.
func (c YankArtifact) Stream() string { return events.ArtifactStream(c.Filename) }

// Validate checks the shape.
func (c YankArtifact) Validate() error {
	var k fault.Checks
	k.Check(form(c.Filename, fileForm, 300), "/filename", "is not a file name of at most 300 characters")
	k.Check(clean(c.Reason, mostReason) && !strings.ContainsAny(c.Reason, "\r\n"), "/reason", "is longer than %d bytes or not one line of text", mostReason)
	k.Check(c.Yanked || c.Reason == "", "/reason", "goes with a yank only")
	return k.Err()
}

// Name is the name on the bus.
func (PublishArtifact) Name() string { return "artifact.publish" }

// Stream is the wheel's.
func (c PublishArtifact) Stream() string { return events.ArtifactStream(c.Filename) }

// Validate checks the shape; the wheel itself was verified before it came here.
func (c PublishArtifact) Validate() error {
	var k fault.Checks
	checkBuild(&k, "/build", c.Build)
	k.Check(form(c.Filename, fileForm, 300), "/filename", "is not a file name of at most 300 characters")
	k.Check(hashForm.MatchString(c.SHA256), "/sha256", "is not a SHA-256 in 64 lower-case hex digits")
	k.Check(hashForm.MatchString(c.MetadataSHA256), "/metadata_sha256", "is not a SHA-256 in 64 lower-case hex digits")
	k.Check(c.Size > 0, "/size", "is not positive")
	k.Check(form(c.Project, nameForm, 200), "/project", "is not a normalised project name (PEP 503)")
	k.Check(form(c.Version, versionForm, 100), "/version", "is not a normalised version (PEP 440)")
	k.Check(c.Attempt > 0, "/attempt", "is not a positive number")
	k.Check(len(c.Tags) > 0 && len(c.Tags) <= 200, "/tags", "are none or more than 200")
	for i, t := range c.Tags {
		k.Check(form(t, tripleForm, 200), fmt.Sprintf("/tags/%d", i), "is not a tag of three parts (PEP 425)")
	}
	k.Check(clean(c.RequiresPython, 200), "/requires_python", "is longer than 200 bytes or not text")
	return k.Err()
}

func init() {
	register[PublishArtifact]()
	register[YankArtifact]()
}
