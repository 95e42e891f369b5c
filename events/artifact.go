package events

import "strings"

// ArtifactStream is the stream of a wheel.
func ArtifactStream(filename string) string { return "artifact/" + filename }

// ParseArtifact reads the name of a wheel's stream.
func ParseArtifact(stream string) (filename string, ok bool) {
	return strings.CutPrefix(stream, "artifact/")
}

// ArtifactEvent is a fact of a wheel's stream.
//
//sumtype:decl
type ArtifactEvent interface {
	Event
	isArtifact()
}

type artifact struct{}

func (artifact) isArtifact() {}

// ArtifactPublished says that a wheel is in the store and the index.
type ArtifactPublished struct {
	artifact
	Filename       string   `json:"filename"`
	SHA256         string   `json:"sha256"`
	Size           int64    `json:"size"`
	Project        string   `json:"project"` // normalised (PEP 503)
	Version        string   `json:"version"`
	Tags           []string `json:"tags"` // expanded (PEP 425), such as py3-none-any
	RequiresPython string   `json:"requires_python,omitempty"`
	MetadataSHA256 string   `json:"metadata_sha256"` // of the METADATA file (PEP 658); it is in the store under this hash
	Build          BuildID  `json:"build"`
	Attempt        int      `json:"attempt"`
}

// ArtifactYanked says that nobody should choose the wheel any more (PEP 592).
type ArtifactYanked struct {
	artifact
	Reason string `json:"reason,omitempty"`
}

// ArtifactUnyanked says that the wheel may be chosen again.
type ArtifactUnyanked struct{ artifact }

func (ArtifactPublished) Name() string { return "artifact.published.v1" }
func (ArtifactYanked) Name() string    { return "artifact.yanked.v1" }
func (ArtifactUnyanked) Name() string  { return "artifact.unyanked.v1" }

func init() {
	register[ArtifactPublished]()
	register[ArtifactYanked]()
	register[ArtifactUnyanked]()
}
