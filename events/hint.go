package events

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"strings"
)

// HintStream is the stream of a hint.
func HintStream(id string) string { return "hint/" + id }

// ParseHint reads a hint's stream name.
func ParseHint(stream string) (id string, ok bool) { return strings.CutPrefix(stream, "hint/") }

// HintEvent is a fact of a hint's stream.
//
//sumtype:decl
type HintEvent interface {
	Event
	isHint()
}

type hint struct{}

func (hint) isHint() {}

// Hint says what a build's log means and what to do about it.
type Hint struct {
	ID         string    `json:"id"`      // letters, digits, '.', '_', '-'
	Pattern    string    `json:"pattern"` // RE2, matched against each line of a log
	Recipes    []Recipe  `json:"recipes,omitempty"`
	Note       string    `json:"note,omitempty"`
	Tags       []string  `json:"tags,omitempty"`
	Severity   string    `json:"severity"` // info, warning, error
	AppliesTo  AppliesTo `json:"applies_to,omitzero"`
	Confidence float64   `json:"confidence"`         // 0 to 1; low, medium and high are 0.3, 0.6 and 0.9
	Examples   []string  `json:"examples,omitempty"` // lines; the pattern matches at least one of those given
}

// AppliesTo limits a hint to some builds. An empty list is no limit.
type AppliesTo struct {
	Platforms      []string `json:"platforms,omitempty"`       // prefixes of platform tags, such as linux, musllinux
	Arch           []string `json:"arch,omitempty"`            // ends of platform tags, such as s390x
	PythonVersions []string `json:"python_versions,omitempty"` // such as 3.11
	BuildBackends  []string `json:"build_backends,omitempty"`  // such as setuptools.build_meta
	Packages       []string `json:"packages,omitempty"`        // normalised names (PEP 503)
}

// IsZero says that there is no limit, also where a list is there and empty: both have the same JSON.
func (a AppliesTo) IsZero() bool {
	return len(a.Platforms)+len(a.Arch)+len(a.PythonVersions)+len(a.BuildBackends)+len(a.Packages) == 0
}

// Twin is the same for hints that match the same lines of the same builds.
func (h Hint) Twin() string {
	data, _ := json.Marshal([]any{h.Pattern, h.AppliesTo}) // cannot fail: text and lists of text
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:16])
}

// HintSaved says that the hint is so from now on.
type HintSaved struct {
	hint
	Hint    Hint `json:"hint"`
	Shipped bool `json:"shipped,omitempty"` // by this program's own catalogue
}

// HintDeleted says that the hint is not looked for any more.
type HintDeleted struct {
	hint
}

func (HintSaved) Name() string   { return "hint.saved.v1" }
func (HintDeleted) Name() string { return "hint.deleted.v1" }

func init() {
	register[HintSaved]()
	register[HintDeleted]()
}
