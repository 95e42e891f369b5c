package events

import (
	"strings"

	"github.com/google/uuid"
)

// BulkStream is the stream of a bulk action.
func BulkStream(id uuid.UUID) string { return "bulk/" + id.String() }

// ParseBulk reads the name of a bulk action's stream.
func ParseBulk(stream string) (uuid.UUID, bool) { return parseID(stream, "bulk/") }

func parseID(stream, prefix string) (uuid.UUID, bool) {
	text, ok := strings.CutPrefix(stream, prefix)
	id, err := uuid.Parse(text)
	return id, ok && err == nil && id.String() == text
}

// BulkEvent is a fact of a bulk action.
//
//sumtype:decl
type BulkEvent interface {
	Event
	isBulk()
}

type bulk struct{}

func (bulk) isBulk() {}

// BulkRequested says that something is to be done with each of these builds.
type BulkRequested struct {
	bulk
	Action   string    `json:"action"`             // retry, cancel, priority
	Priority *int      `json:"priority,omitempty"` // with priority; with retry: instead of those that they had
	Recipes  []Recipe  `json:"recipes,omitempty"`  // with retry: instead of those that they had
	Reason   string    `json:"reason,omitempty"`
	Builds   []BuildID `json:"builds"`
}

// BulkProgressed says what became of so many more of them.
type BulkProgressed struct {
	bulk
	Applied int `json:"applied"`
	Refused int `json:"refused"` // they had changed before their turn came
}

func (BulkRequested) Name() string  { return "bulk.requested.v1" }
func (BulkProgressed) Name() string { return "bulk.progressed.v1" }

func init() {
	register[BulkRequested]()
	register[BulkProgressed]()
}
